"""What the lab could not do."""

from __future__ import annotations


class LabError(Exception):
    """What was tried and why it failed, and what may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
