"""The server's interceptor: wraps each handler once, for the drain, for the metrics and for the check of callers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from grpc_server.in_flight import CallsInFlight, Context
from grpc_server.metrics import TYPES, Metrics, UncountedCall
from grpc_server.tls import Callers

# The drain does not wait for calls of the health service: Watch goes on for as long as its caller likes.
HEALTH = "/grpc.health.v1.Health/"
# Consul's agent and the registrar call these, with the certificate of the replica.
OPEN = (HEALTH, "/grpc.reflection.")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Tells the drain, and the metrics if there are any, of each call.

    Handlers are coroutines or asynchronous generators. Calls of plain functions, which gRPC runs in threads, are
    neither counted nor waited for; this server has none.
    """

    def __init__(
        self, in_flight: CallsInFlight, metrics: Metrics | None = None, callers: Callers | None = None
    ) -> None:
        self._in_flight = in_flight
        self._callers = callers
        self._metrics = metrics
        # By path. The server's handlers never change, so a call of a known path needs no look-up by gRPC.
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Returns the wrapped handler of a call; the types are gRPC's, which are generic in each call."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[path] = self._wrap(handler, path)
        return wrapped

    def _wrap(self, handler: Any, path: str) -> Any:
        kind = next(kind for kind in TYPES if getattr(handler, kind))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        method = self._wrap_method(getattr(handler, kind), kind, path)
        return make(method, handler.request_deserializer, handler.response_serializer)

    def _wrap_method(self, method: Callable[..., Any], kind: str, path: str) -> Callable[..., Any]:
        in_flight = self._in_flight
        streams = kind.endswith("stream")
        enter = self._wrap_enter(path)
        begin = self._metrics.counter(kind, path) if self._metrics else UncountedCall

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            call = begin(request, context)
            try:
                await enter(context)
                async with contextlib.aclosing(method(call.request, call.context)) as answers:
                    async for answer in answers:
                        yield answer
                        call.sent()
            except BaseException as error:
                call.ended(error)
                if isinstance(error, asyncio.CancelledError):
                    await in_flight.cancelled(context)
                raise
            call.ended()

        async def coroutine(request: Any, context: Context) -> Any:
            call = begin(request, context)
            try:
                await enter(context)
                answer = await method(call.request, call.context)
            except BaseException as error:
                call.ended(error)
                if isinstance(error, asyncio.CancelledError):
                    await in_flight.cancelled(context)
                raise
            # A handler that answers with a stream has written it.
            if not streams:
                call.sent()
            call.ended()
            return answer

        if inspect.isasyncgenfunction(method):
            return stream
        return coroutine if inspect.iscoroutinefunction(method) else method

    def _wrap_enter(self, path: str) -> Callable[[Context], Awaitable[None]]:
        """Returns the function that begins a call, and may end it with a status."""
        enter = functools.partial(self._in_flight.enter, waited_for=not path.startswith(HEALTH))
        callers = self._callers
        if callers is None or path.startswith(OPEN):
            return enter

        async def enter_and_check(context: Context) -> None:
            await enter(context)
            await callers.check(context)

        return enter_and_check
