"""Has consul-template read the token and the certificates for Consul again, which it reads only at its start."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LOG = logging.getLogger("balancer")

_NAME = "consul-template"
# A replaced token is used within 5 s.
_LOOK_SECONDS = 1.0


class ConsulTemplate:
    """The consul-template of this container.

    Args:
        files: the files that it reads at its start.
        pid_file: the file with its process ID.
    """

    def __init__(self, files: Sequence[Path], pid_file: Path) -> None:
        self._files = files
        self._pid_file = pid_file
        self._read = self._read_files()

    async def follow(self) -> None:
        """Sends SIGHUP after each change of the files."""
        while self._files:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.update)

    def update(self) -> None:
        """Sends SIGHUP if the files have changed; without a process it reads them when it starts."""
        found = self._read_files()
        # Without one of its files it would end.
        if found == self._read or b"" in found:
            return
        self._read = found
        LOG.info("the token or a certificate for Consul has changed, reloading consul-template")
        self.reload()

    def reload(self) -> None:
        """Sends SIGHUP: consul-template reads its files and the whole catalogue again."""
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            # A killed one leaves its file, and another program may have the ID by now.
            if Path(f"/proc/{pid}/comm").read_text().strip() == _NAME:
                os.kill(pid, signal.SIGHUP)

    def _read_files(self) -> list[bytes]:
        found = []
        for file in self._files:
            try:
                found.append(file.read_bytes())
            except OSError:
                found.append(b"")
        return found
