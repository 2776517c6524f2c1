"""File systems of the tests' own; only root can mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(directory: Path, kibibytes: int) -> Iterator[None]:
    """An empty file system of that size over a directory; gone afterwards."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        # Lazily: a program of the stack may have a file of it open at this moment.
        subprocess.run(["umount", "--lazy", directory], check=True)
