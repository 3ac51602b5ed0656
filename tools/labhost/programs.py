"""Programs of the outer machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import LabError


def program(command: Sequence[str | Path], timeout: float, capture: bool = False) -> str:
    """Run a program, its output on stderr or, with `capture`, returned.

    Raises LabError when it is missing, fails, or takes more than `timeout` seconds.
    """
    words = [str(word) for word in command]
    output = subprocess.PIPE if capture else sys.stderr
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            timeout=timeout,
            check=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise LabError(
            f"cannot run {words[0]}: it is not installed", "install it, or run the lab as root"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout:.0f} s: {' '.join(words)}") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"exit status {error.returncode}: {' '.join(words)}") from error
    return done.stdout if capture else ""
