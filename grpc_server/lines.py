"""Gathers the log lines of calls, because a write for each call would cost more than its handler."""

from __future__ import annotations

import atexit
import os
import select
import threading
import time

# A pipe takes up to PIPE_BUF bytes in one piece, so that lines of several workers do not mix. 4 KiB on Linux.
MOST_BYTES = select.PIPE_BUF
SECONDS = 1.0


class GatheredLines:
    """A stream of log lines, which are written at most once a second, or as soon as there are 4 KiB of them.

    A line that comes after a quiet second is written at once. logging's handlers flush after each of their lines, so
    that only the lines of calls are gathered. Nothing is lost at an exit, also one by an exception; a process that is
    killed outright loses the lines of one second.

    Args:
        descriptor: the file descriptor to write to.
        seconds: instead of the second.
    """

    def __init__(self, descriptor: int, seconds: float = SECONDS) -> None:
        self._descriptor = descriptor
        self._seconds = seconds
        self._lines: list[bytes] = []
        self._size = 0
        self._written = -seconds
        # Reentrant: the garbage collector may log something while a line is added.
        self._lock = threading.RLock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None
        atexit.register(self.flush)

    def write(self, lines: str) -> None:
        """Adds whole lines."""
        data = lines.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._size + len(data) > MOST_BYTES:
                self.flush()
            self._lines.append(data)
            self._size += len(data)
            if len(self._lines) == 1:
                if time.monotonic() >= self._written + self._seconds:
                    self.flush()
                else:
                    self._wake()

    def flush(self) -> None:
        """Writes what is gathered. Lines that can't be written, as on a full disk, are lost."""
        with self._lock:
            if not self._lines:
                return
            lines, self._lines, self._size = self._lines, [], 0
            self._written = time.monotonic()
            data = b"".join(lines)
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                return

    def _wake(self) -> None:
        # A thread, because an event loop may be blocked, and because there is one loop or none.
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_in_time, name="log lines", daemon=True)
            self._thread.start()
        self._some.set()

    def _write_in_time(self) -> None:
        while self._some.wait():
            self._some.clear()
            while self._lines:
                left = self._written + self._seconds - time.monotonic()
                if left > 0:
                    time.sleep(left)
                else:
                    self.flush()


STDERR = GatheredLines(2)
