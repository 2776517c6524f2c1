"""Ends the calls in flight before the server closes its connections.

gRPC's own ``stop`` says GOAWAY at once, and then closes a connection together with the end of its last call. nginx
that has something to send at that moment, such as an acknowledgement, takes the closed connection for a broken call:
of streams that ended in the grace some in a hundred became INTERNAL. So calls are waited for first, then comes GOAWAY.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

# Between the last call's end and GOAWAY, for those on the way to take the one before the other.
SETTLE_SECONDS = 0.2
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class CallsInFlight(grpc.aio.ServerInterceptor):
    """Knows the calls that are open; once told to leave, new ones are refused with UNAVAILABLE."""

    def __init__(self) -> None:
        self._tasks: dict[Any, asyncio.Task[Any]] = {}
        # By the handler of a method: wrapped at its first call, not at each. The server makes its handlers once.
        self._wrapped: dict[Any, Any] = {}
        self._leaving = False
        self._over = False
        self._idle = asyncio.Event()

    async def leave(self, grace_seconds: float) -> None:
        """Refuses new calls and waits for the open ones; those that outlast the grace end as UNAVAILABLE."""
        self._leaving = True
        await self._wait(grace_seconds)
        self._over = True
        for task in list(self._tasks.values()):
            task.cancel()
        await self._wait(1.0)
        await asyncio.sleep(SETTLE_SECONDS)

    async def _wait(self, seconds: float) -> None:
        self._idle.clear()
        if self._tasks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Gives the wrapped method that a call is for; the types are gRPC's, which are generic in each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrapped = self._wrapped.get(handler)
        if wrapped is None:
            wrapped = self._wrapped[handler] = self._wrap(handler)
        return wrapped

    def _wrap(self, handler: Any) -> Any:
        kind = next(kind for kind in KINDS if getattr(handler, kind))
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            self._counted(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer
        )

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                await self._enter(context)
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
                await self._enter(context)
                try:
                    return await method(request, context)
                except asyncio.CancelledError:
                    await self._end(context)
                    raise

            return coroutine
        # A plain function runs in a thread of gRPC's; this server has none.
        return method

    async def _enter(self, context: Context) -> None:
        if self._leaving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - gRPC runs each call in one
        self._tasks[context] = task
        forget: Any = self._forget
        context.add_done_callback(forget)

    def _forget(self, context: Context) -> None:
        self._tasks.pop(context, None)
        if not self._tasks:
            self._idle.set()

    async def _end(self, context: Context) -> None:
        """Gives a cancelled call its status when the end of the grace is what cancels it."""
        if self._over:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
