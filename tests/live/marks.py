"""Which tests run where: see `markers` in setup.cfg."""

from __future__ import annotations

import pytest

ENDURANCE = (pytest.mark.thorough, pytest.mark.endurance)
