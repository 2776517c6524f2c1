"""Ends the calls in flight before the server closes its connections, and first answers those that still come.

A balancer that Consul could not tell of the end, because the cluster has no leader, finds it out from the health
service half a second later. gRPC's own ``stop`` says GOAWAY at once, and then closes a connection together with the
end of its last call. nginx that has something to send at that moment, such as an acknowledgement, takes the closed
connection for a broken call: of streams that ended in the grace some in a hundred became INTERNAL. So health says
NOT_SERVING first, then calls are waited for, then comes GOAWAY.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any, TypeAlias

import grpc

# New calls are answered until none has come for so long, which is two probes of a balancer with up to 100 replicas
# (balancer/health.py); callers that never stop are refused in the end.
QUIET_SECONDS, ANSWER_SECONDS = 1.0, 5.0
# Between the last call's end and GOAWAY, for those on the way to take the one before the other.
SETTLE_SECONDS = 0.2
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CallsInFlight:
    """Knows the open calls; refuses new ones with UNAVAILABLE once the server leaves."""

    def __init__(self) -> None:
        self._tasks: dict[Context, asyncio.Task[Any]] = {}
        # Those without the calls of the health service.
        self._waited_for: set[Context] = set()
        self._begun = 0
        self._leaving = False
        self._over = False
        self._ended = asyncio.Event()

    async def leave(self, grace_seconds: float) -> None:
        """Waits until no new call comes, refuses any other, and waits for the open ones.

        Calls that outlast the grace end as UNAVAILABLE. Health must be NOT_SERVING by now.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        await self._answer(min(grace_seconds, ANSWER_SECONDS))
        self._leaving = True
        await self._wait(self._waited_for, end - loop.time())
        self._over = True
        for task in list(self._tasks.values()):
            task.cancel()
        await self._wait(self._tasks, 1.0)
        await asyncio.sleep(SETTLE_SECONDS)

    async def _answer(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end, seen = loop.time() + seconds, -1
        while seen != self._begun and loop.time() < end:
            seen = self._begun
            await asyncio.sleep(min(QUIET_SECONDS, end - loop.time()))

    async def _wait(self, calls: Collection[Any], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while calls and loop.time() < end:
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), end - loop.time())

    async def enter(self, context: Context, waited_for: bool) -> None:
        """Notes the call of the running task until the call is done.

        Args:
            context: gRPC's own, because gRPC passes that one to the callback.
            waited_for: whether the drain waits for this call.

        Raises:
            grpc.aio.AbortError: the server leaves.
        """
        if self._leaving and waited_for:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in one
        self._tasks[context] = task
        if waited_for:
            self._begun += 1
            self._waited_for.add(context)
        forget: Any = self._forget
        context.add_done_callback(forget)

    def _forget(self, context: Context) -> None:
        self._tasks.pop(context, None)
        self._waited_for.discard(context)
        self._ended.set()

    async def cancelled(self, context: Context) -> None:
        """Gives a cancelled call its status if the end of the grace has cancelled it.

        Raises:
            grpc.aio.AbortError: it has.
        """
        if self._over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
