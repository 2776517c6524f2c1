"""Prometheus metrics of the calls of a ``grpc.aio`` server, named as go-grpc-prometheus names them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    multiprocess,
)

from grpc_server import exposition
from grpc_server.calls import KINDS, rewrap

# By go-grpc-prometheus: the values of grpc_type.
TYPES = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}
# A client whose deadline has passed cancels its call, and its deadline began when the call left it.
EARLY_SECONDS = 0.05
LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Metrics(grpc.aio.ServerInterceptor):
    """Counts calls, their messages and their time; belongs in front of all other interceptors.

    A call of a method that the server does not have is no call of the server's and is not counted: clients ask for
    versions of the reflection service that few servers have. Handlers are coroutines or asynchronous generators; calls
    of plain functions, which gRPC runs in threads, are not counted.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._started = Counter("grpc_server_started", "Calls that have begun.", LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls that have ended, by status.", (*LABELS, "grpc_code"), registry=registry
        )
        self._received = Counter("grpc_server_msg_received", "Messages from clients.", LABELS, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages to clients.", LABELS, registry=registry)
        self._seconds = Histogram(
            "grpc_server_handling_seconds", "Time from a call's begin to its end.", LABELS, registry=registry
        )
        # By method and its handler: the server makes its handlers once.
        self._wrapped: dict[Any, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Gives the wrapped method that a call is for; the types are gRPC's, which are generic in each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        key = handler_call_details.method, handler
        wrapped = self._wrapped.get(key)
        if wrapped is None:
            wrapped = self._wrapped[key] = self._wrap(handler, handler_call_details.method)
        return wrapped

    def _wrap(self, handler: Any, path: str) -> Any:
        kind = next(kind for kind in KINDS if getattr(handler, kind))
        service, _, method = path.removeprefix("/").rpartition("/")
        series = _Series(self, (TYPES[kind], service, method))
        return rewrap(handler, kind, _counted(getattr(handler, kind), kind, series))


class _Series:
    """The metrics of one method."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        self.started = metrics._started.labels(*labels)
        self.received = metrics._received.labels(*labels)
        self.sent = metrics._sent.labels(*labels)
        self.seconds = metrics._seconds.labels(*labels)
        self.handled = functools.cache(lambda code: metrics._handled.labels(*labels, code))


class _Call:
    """One call; stands for its context in the handler, and counts the messages that go through it."""

    def __init__(self, context: Any, series: _Series) -> None:
        self._context = context
        self._series = series
        self._began = time.perf_counter()
        self._code: grpc.StatusCode | None = None
        series.started.inc()
        context.add_done_callback(self._done)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next message, or EOF."""
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._series.received.inc()
        return message

    async def write(self, message: Any) -> None:
        """Sends a message."""
        await self._context.write(message)
        self._series.sent.inc()

    async def requests(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages as a handler iterates over them."""
        async for message in messages:
            self._series.received.inc()
            yield message

    def ended(self, error: BaseException | None = None) -> None:
        """The handler has returned, or raised."""
        if error is None:
            self._code = grpc.StatusCode.OK
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._code = self._cut()
        else:
            self._code = grpc.StatusCode.UNKNOWN

    def _cut(self) -> grpc.StatusCode:
        """Why a call is over before its handler is."""
        left = self._context.time_remaining()
        passed = left is not None and left <= EARLY_SECONDS
        return grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED

    def _done(self, _context: Any) -> None:
        # What the handler has set, or an abort, comes before what can be told from how it ended.
        code = self._context.code() or self._code or self._cut()
        self._series.handled(_NAMES.get(code, "Unknown")).inc()
        self._series.seconds.observe(time.perf_counter() - self._began)


# As go-grpc-prometheus writes them: CamelCase, OK as it is.
_NAMES = {
    code: "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "").replace("Cancelled", "Canceled")
    for code in grpc.StatusCode
}


def _counted(method: Callable[..., Any], kind: str, series: _Series) -> Callable[..., Any]:
    def begin(request: Any, context: Any) -> tuple[Any, _Call]:
        call = _Call(context, series)
        if kind.startswith("stream"):
            return call.requests(request), call
        series.received.inc()
        return request, call

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        request, call = begin(request, context)
        answers = method(request, call)
        try:
            async for answer in answers:
                yield answer
                series.sent.inc()
        except BaseException as error:
            call.ended(error)
            raise
        finally:
            await answers.aclose()
        call.ended()

    async def coroutine(request: Any, context: Any) -> Any:
        request, call = begin(request, context)
        try:
            answer = await method(request, call)
        except BaseException as error:
            call.ended(error)
            raise
        # One that answers with a stream has written it.
        if not kind.endswith("stream"):
            series.sent.inc()
        call.ended()
        return answer

    if inspect.isasyncgenfunction(method):
        return stream
    return coroutine if inspect.iscoroutinefunction(method) else method


def serve(address: str, port: int) -> None:
    """Answers ``/metrics`` from a thread, for this process or, after :func:`share`, for all workers.

    Raises:
        OSError: the port can't be had.
    """
    # A series more for each, and of use only to OpenMetrics' readers.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    exposition.start(address, port, registry)


def share() -> tempfile.TemporaryDirectory[str]:
    """Makes workers that are started from now on keep their counts where this process finds them.

    The directory is to be kept until they have ended (prometheus_client, "Multiprocess Mode").
    """
    directory = tempfile.TemporaryDirectory(prefix="grpc-server-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory.name
    return directory
