"""How long the tests of faults run: a short form in ``make test``, the whole of it in ``make chaos``."""

from __future__ import annotations

import os

FULL = os.environ.get("CHAOS") == "full"


def rounds(whole: int, short: int) -> int:
    """How often; the conditions are the same."""
    return whole if FULL else short
