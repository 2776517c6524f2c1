"""The handlers of the server: wraps each once, for the drain, for the metrics and for the check of callers.

This is no interceptor of gRPC, which would cost each call some coroutines more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from grpc_server.callers import Callers
from grpc_server.in_flight import CallsInFlight, Context
from grpc_server.metrics import TYPES, Metrics, UncountedCall

# The drain does not wait for calls of the health service: Watch goes on for as long as its caller likes.
HEALTH = "/grpc.health.v1.Health/"
# Consul's agent and the registrar call these, with the certificate of the replica.
OPEN = (HEALTH, "/grpc.reflection.")
_Method: TypeAlias = Callable[[Any, Context], Any]


class Calls(grpc.GenericRpcHandler):
    """Takes services as a server does, and tells the drain, and the metrics if there are any, of each call.

    Handlers are coroutines or asynchronous generators. Calls of plain functions, which gRPC runs in threads, are
    neither counted nor waited for; this server has none.
    """

    def __init__(
        self, in_flight: CallsInFlight, metrics: Metrics | None = None, callers: Callers | None = None
    ) -> None:
        self._in_flight = in_flight
        self._callers = callers
        self._metrics = metrics
        self._services: list[grpc.GenericRpcHandler] = []
        # By path. The handlers never change, so a call of a known path needs no other look-up.
        self._wrapped: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Adds services; generated modules call it."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Adds nothing, because generated modules add each service in both ways.

        For each registered method grpc.aio has a future of its next call, and it waits for all of these futures at
        every call: the methods of health and reflection would make a call of Ping slower.
        """

    def service(self, handler_call_details: Any) -> Any:
        """Returns the wrapped handler of a call; the types are gRPC's, which are generic in each call."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            found = (one.service(handler_call_details) for one in self._services)
            handler = next((one for one in found if one is not None), None)
            if handler is None:
                return None
            wrapped = self._wrapped[path] = self._wrap(handler, path)
        return wrapped

    def _wrap(self, handler: Any, path: str) -> Any:
        kind = next(kind for kind in TYPES if getattr(handler, kind))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        count = self._metrics.counter(kind, path) if self._metrics else UncountedCall
        check = self._callers.check if self._callers and not path.startswith(OPEN) else None
        wrapping = _Wrapping(self._in_flight, not path.startswith(HEALTH), count, check)
        method = getattr(handler, kind)
        if inspect.isasyncgenfunction(method):
            method = wrapping.generator(method)
        elif inspect.iscoroutinefunction(method):
            # A handler that answers with a stream, and does not yield, has written it.
            method = wrapping.coroutine(method, answers=not kind.endswith("stream"))
        return make(method, handler.request_deserializer, handler.response_serializer)


@dataclass(frozen=True)
class _Wrapping:
    """What each call of one method needs. The wrappers keep it in local variables, which cost a call least."""

    in_flight: CallsInFlight
    waited_for: bool
    count: Callable[[Any, Context], UncountedCall]
    check: Callable[[Context], Awaitable[None]] | None

    def generator(self, method: _Method) -> _Method:
        """Wraps an asynchronous generator."""
        in_flight, waited_for, count, check = self.in_flight, self.waited_for, self.count, self.check

        async def generator(request: Any, context: Context) -> AsyncIterator[Any]:
            call = count(request, context)
            try:
                if not in_flight.enter(context, waited_for):
                    await in_flight.refuse(context)
                if check:
                    await check(context)
                async with contextlib.aclosing(method(call.request, call.context)) as answers:
                    async for answer in answers:
                        yield answer
                        call.sent()
            except BaseException as error:
                call.failed(error)
                if isinstance(error, asyncio.CancelledError):
                    await in_flight.cancelled(context)
                raise
            call.succeeded()

        return generator

    def coroutine(self, method: _Method, *, answers: bool) -> _Method:
        """Wraps a coroutine, which answers or not."""
        in_flight, waited_for, count, check = self.in_flight, self.waited_for, self.count, self.check

        async def coroutine(request: Any, context: Context) -> Any:
            call = count(request, context)
            try:
                if not in_flight.enter(context, waited_for):
                    await in_flight.refuse(context)
                if check:
                    await check(context)
                answer = await method(call.request, call.context)
            except BaseException as error:
                call.failed(error)
                if isinstance(error, asyncio.CancelledError):
                    await in_flight.cancelled(context)
                raise
            if answers:
                call.sent()
            call.succeeded()
            return answer

        return coroutine
