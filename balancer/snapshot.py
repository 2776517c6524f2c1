"""The document on disk, from which nginx and the control plane start before other programs answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from balancer.errors import BalancerError


def load(path: Path) -> dict[str, Any]:
    """Reads a document; it is empty if there is no file.

    Raises:
        BalancerError: the file can't be read, or has no document.
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
    """Writes a document by rename, so that readers see the whole of it, and a full disk leaves the old one.

    Raises:
        BalancerError: the file can't be written.
    """
    new = path.with_suffix(".new")
    try:
        new.write_bytes(text)
        new.replace(path)
    except OSError as error:
        raise BalancerError(f"{path} can't be written: {error}") from error
