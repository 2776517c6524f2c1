"""The document on disk: nginx and the control plane start with what was known before anything else answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from balancer.errors import BalancerError


def load(path: Path) -> dict[str, Any]:
    """The document that was saved; an empty one where there is none.

    Raises:
        BalancerError: it can't be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BalancerError(f"{path} can't be read: {error}") from error
    if not isinstance(document, dict):
        raise BalancerError(f"{path} is not a document")
    return document


def save(path: Path, text: bytes) -> None:
    """Replaces it by rename: a reader never sees half of it, and a full disk leaves the old one.

    Raises:
        BalancerError: it can't be written.
    """
    new = path.with_suffix(".new")
    try:
        new.write_bytes(text)
        new.replace(path)
    except OSError as error:
        raise BalancerError(f"{path} can't be written: {error}") from error
