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
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, TypeAlias

import grpc

from grpc_server.calls import KINDS, rewrap

# New calls are answered until none has come for so long, which is two probes of a balancer with up to 100 replicas
# (balancer/health.py); callers that never stop are refused in the end.
QUIET_SECONDS, ANSWER_SECONDS = 1.0, 5.0
# Questions about health say nothing about calls, and Watch goes on for as long as its caller likes.
HEALTH = "/grpc.health.v1.Health/"
# Between the last call's end and GOAWAY, for those on the way to take the one before the other.
SETTLE_SECONDS = 0.2
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CallsInFlight(grpc.aio.ServerInterceptor):
    """Knows the calls that are open; once told to leave, new ones are refused with UNAVAILABLE."""

    def __init__(self) -> None:
        self._tasks: dict[Any, asyncio.Task[Any]] = {}
        # Those of them that are no questions about health.
        self._waited_for: set[Any] = set()
        # By the handler of a method: wrapped at its first call, not at each. The server makes its handlers once.
        self._wrapped: dict[Any, Any] = {}
        self._begun = 0
        self._leaving = False
        self._over = False
        self._ended = asyncio.Event()

    async def leave(self, grace_seconds: float) -> None:
        """Waits until no new call comes, refuses any other, and waits for the open ones.

        Calls that outlast the grace end as UNAVAILABLE. Health has to be NOT_SERVING by now.
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

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Gives the wrapped method that a call is for; the types are gRPC's, which are generic in each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrapped = self._wrapped.get(handler)
        if wrapped is None:
            waited_for = not handler_call_details.method.startswith(HEALTH)
            wrapped = self._wrapped[handler] = self._wrap(handler, waited_for)
        return wrapped

    def _wrap(self, handler: Any, waited_for: bool) -> Any:
        kind = next(kind for kind in KINDS if getattr(handler, kind))
        return rewrap(handler, kind, self._counted(getattr(handler, kind), waited_for))

    def _counted(self, method: Callable[..., Any], waited_for: bool) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                await self._enter(context, waited_for)
                try:
                    async with contextlib.aclosing(method(request, context)) as answers:
                        async for answer in answers:
                            yield answer
                except asyncio.CancelledError:
                    await self._end(context)
                    raise

            return stream
        if inspect.iscoroutinefunction(method):

            async def coroutine(request: Any, context: Context) -> Any:
                await self._enter(context, waited_for)
                try:
                    return await method(request, context)
                except asyncio.CancelledError:
                    await self._end(context)
                    raise

            return coroutine
        # A plain function runs in a thread of gRPC's; this server has none.
        return method

    async def _enter(self, context: Context, waited_for: bool) -> None:
        if self._leaving and waited_for:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in one
        self._tasks[context] = task
        if waited_for:
            self._begun += 1
            self._waited_for.add(context)
        # By this context, which an interceptor may have put in the place of gRPC's own.
        forget: Any = functools.partial(self._forget, context)
        context.add_done_callback(forget)

    def _forget(self, context: Context, _original: Context) -> None:
        self._tasks.pop(context, None)
        self._waited_for.discard(context)
        self._ended.set()

    async def _end(self, context: Context) -> None:
        """Gives a cancelled call its status when the end of the grace is what cancels it."""
        if self._over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
