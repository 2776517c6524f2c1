"""Prometheus metrics of the calls of a ``grpc.aio`` server, named as go-grpc-prometheus names them."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, multiprocess

from grpc_server import exposition
from grpc_server.series import Series, numbers

# The kinds of methods, and go-grpc-prometheus' values of grpc_type for them.
TYPES = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}
# A client cancels its call at its deadline, which comes before the server's because the client set it earlier.
EARLY_SECONDS = 0.05
# As go-grpc-prometheus writes them: CamelCase, OK as it is.
_NAMES = {
    code: "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "").replace("Cancelled", "Canceled")
    for code in grpc.StatusCode
}
_OK, _UNKNOWN = _NAMES[grpc.StatusCode.OK], _NAMES[grpc.StatusCode.UNKNOWN]


class UncountedCall:
    """One call without metrics; its request and its context are gRPC's."""

    __slots__ = ("context", "request")

    def __init__(self, request: Any, context: Any) -> None:
        self.request = request
        self.context = context

    def sent(self) -> None:
        """Counts a message to the client."""

    def succeeded(self) -> None:
        """Takes the status of the call from the end of its handler."""

    def failed(self, error: BaseException) -> None:
        """Takes the status of the call from the error that has ended its handler."""


class Metrics:
    """Counts calls, their messages and their time.

    A call of a method that the server does not have is not counted: clients ask for versions of the reflection service
    that few servers have.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._numbers = numbers(registry)

    def counter(self, kind: str, path: str) -> Callable[[Any, Any], UncountedCall]:
        """Returns the function that counts the begin of a call of one method, by its request and its context."""
        service, _, method = path.removeprefix("/").rpartition("/")
        series = self._numbers.series((TYPES[kind], service, method))
        counted = _CountedCall if kind == "unary_unary" else _CountedStream
        return functools.partial(counted, series, kind.startswith("stream"))


class _CountedCall(UncountedCall):
    """A call without streams."""

    __slots__ = ("_began", "_series", "_status")

    def __init__(self, series: Series, streams: bool, request: Any, context: Any) -> None:
        self.request = request
        self.context = context
        self._series = series
        self._began = time.perf_counter()
        self._status = ""
        series.start()
        context.add_done_callback(self._done)
        if not streams:
            series.receive()

    def sent(self) -> None:
        self._series.send()

    def succeeded(self) -> None:
        self._status = _OK

    def failed(self, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
        self._status = _cut(self.context) if cancelled else _UNKNOWN

    def _done(self, context: Any) -> None:
        # A status that the handler has set, also with an abort, comes before the one of the handler's end.
        code = context.code()
        status = _NAMES.get(code, _UNKNOWN) if code else self._status or _cut(context)
        self._series.end(status, time.perf_counter() - self._began)


class _CountedStream(_CountedCall):
    """A call whose requests, answers or both are a stream."""

    __slots__ = ()

    def __init__(self, series: Series, streams: bool, request: Any, context: Any) -> None:
        super().__init__(series, streams, request, context)
        self.context = _CountedContext(context, series)
        if streams:
            self.request = _count_messages(request, series)


class _CountedContext:
    """A call's context that counts the messages that a handler reads and writes by itself."""

    def __init__(self, context: Any, series: Series) -> None:
        self._context = context
        self._series = series

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._series.receive()
        return message

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._series.send()


async def _count_messages(messages: AsyncIterator[Any], series: Series) -> AsyncIterator[Any]:
    async for message in messages:
        series.receive()
        yield message


def _cut(context: Any) -> str:
    """Returns why a call is over before its handler is."""
    left = context.time_remaining()
    passed = left is not None and left <= EARLY_SECONDS
    return _NAMES[grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED]


def serve(address: str, port: int) -> None:
    """Serves ``/metrics`` in a thread, for this process or, after :func:`share`, for all workers.

    Raises:
        OSError: the port is in use.
    """
    # Each metric would have another series, which only OpenMetrics' readers use.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    exposition.start(address, port, registry)


def share() -> tempfile.TemporaryDirectory[str]:
    """Makes later workers share their counts with this process, in a directory that must stay until they have ended.

    See prometheus_client, "Multiprocess Mode".
    """
    directory = tempfile.TemporaryDirectory(prefix="grpc-server-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory.name
    return directory
