"""What a test needs and this machine does not have."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skips the test; in CI, where everything is to be there, it fails."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)
