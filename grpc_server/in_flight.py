"""Answers new calls until the balancer has noticed the stop, then waits for the calls in flight.

Without a leader, Consul does not tell the balancer of the stop, which then learns it from the health service half a
second later. gRPC's own ``stop`` sends GOAWAY at once, and closes a connection together with the end of its last call.
If nginx has something to send then, such as an acknowledgement, it takes the closed connection for a broken call: some
in a hundred of the streams that ended in the grace became INTERNAL. So NOT_SERVING comes first, then the end of the
calls, then GOAWAY.

Some callers go on, such as gRPC's clients of xDS, and nginx, while the control plane is down. They get GOAWAY while
their calls are still answered, and call other replicas; a refusal would be the end of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any, TypeAlias

import grpc

# New calls are answered until none has come for QUIET_SECONDS, which is two health probes of a balancer with up to 100
# replicas (balancer/health.py), but no longer than ANSWER_SECONDS.
QUIET_SECONDS, ANSWER_SECONDS = 1.0, 5.0
# Between the last call's end and GOAWAY, so that nginx handles the one before the other.
SETTLE_SECONDS = 0.2
# For the handlers of cancelled calls.
_CANCEL_SECONDS = 1.0
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
        # grpcio's types have a callback without the context that it gets.
        self._callback: Any = self._forget

    async def leave(self, server: grpc.aio.Server, grace_seconds: float) -> None:
        """Waits until no new call comes, refuses any other, waits for the open ones, and stops the server.

        Calls that outlast the grace end as UNAVAILABLE. Health must be NOT_SERVING by now.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        goaway = None
        if await self._answer(min(grace_seconds, ANSWER_SECONDS)):
            self._leaving = True
        else:
            goaway = asyncio.create_task(server.stop(grace_seconds + _CANCEL_SECONDS))
        await self._wait(self._waited_for, end - loop.time())
        self._over = True
        for task in list(self._tasks.values()):
            task.cancel()
        await self._wait(self._tasks, _CANCEL_SECONDS)
        await asyncio.sleep(SETTLE_SECONDS)
        await (goaway or server.stop(0))

    async def _answer(self, seconds: float) -> bool:
        """Answers new calls; returns whether they have ceased."""
        loop = asyncio.get_running_loop()
        end, seen = loop.time() + seconds, -1
        while seen != self._begun and loop.time() < end:
            seen = self._begun
            await asyncio.sleep(min(QUIET_SECONDS, end - loop.time()))
        return seen == self._begun

    async def _wait(self, calls: Collection[Any], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while calls:
                    self._ended.clear()
                    await self._ended.wait()

    def enter(self, context: Context, waited_for: bool) -> bool:
        """Notes the call of the running task until the call is done; returns False if it must be refused instead.

        Args:
            context: gRPC's own, because gRPC passes that one to the callback.
            waited_for: whether the drain waits for this call.
        """
        if waited_for:
            if self._leaving:
                return False
            self._begun += 1
            self._waited_for.add(context)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in one
        self._tasks[context] = task
        context.add_done_callback(self._callback)
        return True

    async def refuse(self, context: Context) -> None:
        """Ends a call that has not entered.

        Raises:
            grpc.aio.AbortError: always.
        """
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

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
