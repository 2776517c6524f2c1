"""Publishes documents: nginx gets each one, and the disk has it for the next start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from balancer import snapshot
from balancer.config import BalancerConfig
from balancer.errors import BalancerError, RefusedError
from balancer.nginx import Nginx

LOG = logging.getLogger("balancer")

_WATCH_SECONDS, _AGAIN_SECONDS = 1.0, 0.2
# The pause between two documents, in which changes gather, is twice the time that the last one took.
_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.005, 1.0


class Publisher:
    """Publishes documents.

    Args:
        config: the settings.
        encode: returns the present document as JSON, with the version that it gets.
    """

    def __init__(self, config: BalancerConfig, encode: Callable[[str], bytes]) -> None:
        self._config = config
        self._encode = encode
        self._nginx = Nginx(config.nginx_url)
        self._due = asyncio.Event()
        self._run, self._number = secrets.token_hex(4), 0
        self._problems: dict[str, str] = {}

    def request(self) -> None:
        """Requests that the present document is published."""
        self._due.set()

    async def run(self) -> None:
        """Publishes a document after each request, and again until nginx takes it."""
        while True:
            await self._due.wait()
            self._due.clear()
            began = time.monotonic()
            self._number += 1
            text = self._encode(self._version)
            error = await self._attempt("nginx has not taken the document", self._nginx.publish, text)
            # nginx would refuse the snapshot too when it starts.
            if not isinstance(error, RefusedError):
                for path, failure in (
                    (self._config.current, "health and reflection for all applications stay as they are"),
                    (self._config.snapshot, "a restart would not know the replicas"),
                ):
                    await self._attempt(failure, snapshot.save, path, text)
            if error:
                await asyncio.sleep(_AGAIN_SECONDS)
                self._due.set()
            else:
                pause = max(_LEAST_PAUSE_SECONDS, 2 * (time.monotonic() - began))
                await asyncio.sleep(min(pause, _MOST_PAUSE_SECONDS))

    async def watch(self) -> None:
        """Publishes again after a restart of nginx, which then has the snapshot or no document."""
        self._due.set()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            with contextlib.suppress(BalancerError):
                published = self._version
                version = await asyncio.to_thread(self._nginx.read_version)
                if version != published and published == self._version:
                    LOG.info("nginx has another document version=%s", version or "none")
                    self._due.set()

    @property
    def _version(self) -> str:
        return f"{self._run}-{self._number}"

    async def _attempt(self, failure: str, work: Callable[..., None], *arguments: Any) -> BalancerError | None:
        """Returns the error of a piece of work, and logs it unless it is the same as the last time."""
        error = None
        try:
            await asyncio.to_thread(work, *arguments)
        except BalancerError as caught:
            error = caught
            if str(error) != self._problems.get(failure):
                LOG.warning("%s reason=%s", failure, error)
        self._problems[failure] = str(error)
        return error
