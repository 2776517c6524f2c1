"""The file in which the control plane finds the clients of xDS, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from balancer import snapshot
from balancer.errors import BalancerError
from balancer.xds.stream import Stream

LOG = logging.getLogger("balancer.xds")

_PAUSE_SECONDS = 0.5
_MOST_REFUSALS = 10


class Report:
    """The streams of all clients.

    Args:
        path: the file, JSON: ``clients``, the number of streams; ``refusing``, of those whose latest response of a type
            was refused; ``refused``, of all refused responses since the start; ``refusals``, the latest, as text.

    Attributes:
        streams: those that are open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = asyncio.Event()
        self._refused = 0
        self.streams: set[Stream] = set()
        self.note()

    def add(self, stream: Stream) -> None:
        """Adds a stream that opens."""
        self.streams.add(stream)
        self.note()

    def remove(self, stream: Stream) -> None:
        """Removes a stream that has ended."""
        self.streams.discard(stream)
        self._refused += stream.refused
        self.note()

    def note(self) -> None:
        """Has the file written soon."""
        self._changed.set()

    def describe(self) -> dict[str, Any]:
        """Returns what the file has."""
        refusals = [stream.refusals for stream in self.streams]
        return {
            "clients": len(self.streams),
            "refusing": sum(map(bool, refusals)),
            "refused": self._refused + sum(stream.refused for stream in self.streams),
            "refusals": sorted(one for some in refusals for one in some)[-_MOST_REFUSALS:],
        }

    async def write(self) -> None:
        """Writes the file after changes, until the task is cancelled."""
        problem = ""
        before = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if (present := self.describe()) != before:
                try:
                    await asyncio.to_thread(snapshot.save, self._path, json.dumps(present).encode())
                    before, problem = present, ""
                except BalancerError as error:
                    if str(error) != problem:
                        LOG.warning("status and metrics of xDS stay as they are reason=%s", error)
                    problem = str(error)
                    self.note()
            await asyncio.sleep(_PAUSE_SECONDS)
