"""File systems for tests; only root can mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(directory: Path, kibibytes: int) -> Iterator[None]:
    """Mounts an empty file system over a directory while the block runs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", directory], check=True)
    try:
        yield
    finally:
        # Lazily, because a program of the stack may have a file of it open.
        subprocess.run(["umount", "--lazy", directory], check=True)
