"""The server in Python: ``python -m tests.foreign.python_server threads|aio HOST:PORT``."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

NAME = "foreign.Echo"
Pairs = list[tuple[str, Any]]


def options() -> list[tuple[str, Any]]:
    """Returns the options of ``FOREIGN_OPTIONS``."""
    return [(f"grpc.{name}", value) for name, value in json.loads(os.environ.get("FOREIGN_OPTIONS", "{}")).items()]


def decoded(pairs: list[list[str]]) -> Pairs:
    """Returns metadata as grpcio takes it."""
    return [(name, base64.b64decode(value) if name.endswith("-bin") else value) for name, value in pairs]


def encoded(pairs: Any) -> list[list[str]]:
    """Returns metadata as JSON takes it."""
    return [
        [name, base64.b64encode(value).decode() if isinstance(value, bytes) else value] for name, value in pairs or ()
    ]


def answer(request: dict[str, Any], context: Any, index: int = 0) -> bytes:
    """Returns the answer to a request."""
    payload = request.get("payload", "x" * request.get("size", 0))
    return json.dumps({"payload": payload, "metadata": encoded(context.invocation_metadata()), "index": index}).encode()


class Threads:
    """With grpcio's threads."""

    def _begin(self, request: dict[str, Any], context: Any) -> None:
        context.set_trailing_metadata(decoded(request.get("trailing", [])))
        context.send_initial_metadata(decoded(request.get("initial", [])))

    def _end(self, request: dict[str, Any], context: Any) -> None:
        code, message = request.get("status", [0, ""])
        if code:
            context.abort(next(one for one in grpc.StatusCode if one.value[0] == code), message)

    def unary(self, message: bytes, context: Any) -> bytes:
        request = json.loads(message)
        self._begin(request, context)
        time.sleep(request.get("pause_ms", 0) / 1000)
        self._end(request, context)
        return answer(request, context)

    def server_stream(self, message: bytes, context: Any) -> Iterator[bytes]:
        """One request, many answers."""
        request = json.loads(message)
        self._begin(request, context)
        for index in range(request.get("count", 1)):
            time.sleep(request.get("pause_ms", 0) / 1000)
            yield answer(request, context, index)
        self._end(request, context)

    def client_stream(self, messages: Iterator[bytes], context: Any) -> bytes:
        """Many requests, one answer: with all payloads joined and their number."""
        requests = [json.loads(message) for message in messages]
        first = requests[0] if requests else {}
        self._begin(first, context)
        self._end(first, context)
        return answer({"payload": "".join(one.get("payload", "") for one in requests)}, context, len(requests))

    def bidi(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """An answer to each request."""
        first: dict[str, Any] = {}
        for index, message in enumerate(messages):
            request = json.loads(message)
            if index == 0:
                first = request
                self._begin(request, context)
            yield answer(request, context, index)
            if index + 1 == first.get("end_after"):
                break
        self._end(first, context)


class Aio:
    """The same with grpcio's event loop."""

    async def _begin(self, request: dict[str, Any], context: Any) -> None:
        context.set_trailing_metadata(tuple(decoded(request.get("trailing", []))))
        await context.send_initial_metadata(tuple(decoded(request.get("initial", []))))

    async def _end(self, request: dict[str, Any], context: Any) -> None:
        code, message = request.get("status", [0, ""])
        if code:
            await context.abort(
                next(one for one in grpc.StatusCode if one.value[0] == code),
                message,
                tuple(decoded(request.get("trailing", []))),
            )

    async def unary(self, message: bytes, context: Any) -> bytes:
        request = json.loads(message)
        await self._begin(request, context)
        await asyncio.sleep(request.get("pause_ms", 0) / 1000)
        await self._end(request, context)
        return answer(request, context)

    async def server_stream(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        request = json.loads(message)
        await self._begin(request, context)
        for index in range(request.get("count", 1)):
            await asyncio.sleep(request.get("pause_ms", 0) / 1000)
            yield answer(request, context, index)
        await self._end(request, context)

    async def client_stream(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        requests = [json.loads(message) async for message in messages]
        first = requests[0] if requests else {}
        await self._begin(first, context)
        await self._end(first, context)
        return answer({"payload": "".join(one.get("payload", "") for one in requests)}, context, len(requests))

    async def bidi(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        first: dict[str, Any] = {}
        index = 0
        async for message in messages:
            request = json.loads(message)
            if index == 0:
                first = request
                await self._begin(request, context)
            yield answer(request, context, index)
            index += 1
            if index == first.get("end_after"):
                break
        await self._end(first, context)


def handlers(servicer: Any) -> list[Any]:
    """Returns the methods for both kinds of servers."""
    return [
        grpc.method_handlers_generic_handler(
            NAME,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(servicer.unary),
                "ServerStream": grpc.unary_stream_rpc_method_handler(servicer.server_stream),
                "ClientStream": grpc.stream_unary_rpc_method_handler(servicer.client_stream),
                "Bidi": grpc.stream_stream_rpc_method_handler(servicer.bidi),
            },
        ),
    ]


def threads(target: str) -> None:
    server = grpc.server(ThreadPoolExecutor(64), handlers=handlers(Threads()), options=options())
    server.add_insecure_port(target)
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


async def aio(target: str) -> None:
    server = grpc.aio.server(options=options())
    server.add_generic_rpc_handlers(tuple(handlers(Aio())))
    server.add_insecure_port(target)
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "threads":
        threads(sys.argv[2])
    else:
        asyncio.run(aio(sys.argv[2]))
