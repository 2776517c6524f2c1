"""How long the tests of endurance run: a short form by default, the whole one with ``CHAOS=full``."""

from __future__ import annotations

import os

FULL = os.environ.get("CHAOS") == "full"
