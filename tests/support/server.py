"""The test server, which behaves as its requests say: ``python -m tests.support.server ADDRESS PORT GRACE_SECONDS``.

Its service, ``tests.Probe``, takes and gives bytes; where a request has a structure it is JSON. It speaks TLS with the
variables of ``grpc_server``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from common.grpc_tls import make_credentials
from grpc_server.calls import Calls
from grpc_server.config import ServerConfig
from grpc_server.in_flight import CallsInFlight

SERVICE = "tests.Probe"
# Metadata whose key begins with it comes back, as initial metadata and as trailers.
BACK = "back-"
_CANCELLATIONS_KEPT = 20_000

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]


def metadata_of(context: Context) -> list[tuple[str, str | bytes]]:
    """The call's metadata, as the server got it."""
    metadata: Any = context.invocation_metadata()
    return [(str(key), value) for key, value in metadata or ()]


async def send_back(context: Context) -> None:
    """Sends the metadata that is to come back, and sets it as trailers."""
    back = tuple(pair for pair in metadata_of(context) if pair[0].startswith(BACK))
    await context.send_initial_metadata(back)
    context.set_trailing_metadata(back)


def printable(metadata: list[tuple[str, str | bytes]]) -> list[list[str]]:
    """Metadata as JSON can carry it."""
    return [[key, value.hex() if isinstance(value, bytes) else value] for key, value in metadata]


class Probe:
    """The methods of the service."""

    def __init__(self) -> None:
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._open: set[str] = set()

    async def Unary(self, request: bytes, context: Context) -> bytes:  # noqa: N802 - a gRPC method's name
        """Answers with the request."""
        await send_back(context)
        return request

    async def Seen(self, _request: bytes, context: Context) -> bytes:  # noqa: N802
        """Answers with what the server knows of the call."""
        seen = {"metadata": printable(metadata_of(context)), "seconds": context.time_remaining()}
        return json.dumps(seen).encode()

    async def Fail(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        """Fails with the ``code``, ``details`` and ``trailers`` of the request."""
        wanted = json.loads(request)
        code = next(code for code in grpc.StatusCode if code.value[0] == wanted["code"])
        trailers = tuple(
            (key, bytes.fromhex(value) if key.endswith("-bin") else value) for key, value in wanted.get("trailers", [])
        )
        await context.abort(code, wanted["details"], trailers)

    async def Compressed(self, request: bytes, context: Context) -> bytes:  # noqa: N802
        """Answers with the request, compressed."""
        context.set_compression(grpc.Compression.Gzip)
        return request

    async def ServerStream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        """Sends ``count`` messages of ``size`` bytes, ``pause`` seconds apart; fails then if ``fail`` is given."""
        wanted = json.loads(request)
        await send_back(context)
        for number in range(wanted["count"]):
            if number and wanted.get("pause"):
                await asyncio.sleep(wanted["pause"])
            yield number.to_bytes(4, "big").ljust(wanted["size"], b"x") if wanted["size"] else b""
        if wanted.get("fail"):
            await context.abort(grpc.StatusCode.DATA_LOSS, wanted["fail"])

    async def ClientStream(self, requests: AsyncIterator[bytes], context: Context) -> bytes:  # noqa: N802
        """Answers with the count of the requests and the SHA-256 of all of them together."""
        await send_back(context)
        count, digest = 0, hashlib.sha256()
        async for request in requests:
            count += 1
            digest.update(request)
        return f"{count} {digest.hexdigest()}".encode()

    async def Bidi(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        """Answers each request with itself, and the end of them with ``end``."""
        await send_back(context)
        async for request in requests:
            yield request
        yield b"end"

    async def AfterHalfClose(  # noqa: N802
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answers only when the last request has come."""
        await send_back(context)
        for request in [request async for request in requests]:
            yield request

    async def EarlyError(self, requests: AsyncIterator[bytes], context: Context) -> bytes:  # noqa: N802
        """Fails at the first request, while the client still sends."""
        async for request in requests:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"enough after {len(request)} bytes")
        return b""

    async def Hang(self, request: bytes, _context: Context) -> bytes:  # noqa: N802
        """Never answers; notes when it is cancelled, under the request's text."""
        name = request.decode()
        self._open.add(name)
        try:
            await asyncio.sleep(3600)
        finally:
            self._open.discard(name)
            self._cancelled[name] = time.monotonic()
            while len(self._cancelled) > _CANCELLATIONS_KEPT:
                self._cancelled.popitem(last=False)
        return b""

    async def Cancelled(self, request: bytes, _context: Context) -> bytes:  # noqa: N802
        """When the ``Hang`` of that name was cancelled, in seconds of this machine's clock; 0 if it was not."""
        return repr(self._cancelled.get(request.decode(), 0.0)).encode()

    async def Hanging(self, request: bytes, _context: Context) -> bytes:  # noqa: N802
        """How many calls to ``Hang`` are open, those of a name or all."""
        name = request.decode()
        return str(int(name in self._open) if name else len(self._open)).encode()

    def handlers(self) -> grpc.GenericRpcHandler:
        """All of them, for a server."""
        kinds: dict[str, tuple[str, ...]] = {
            "unary_unary": ("Unary", "Seen", "Fail", "Compressed", "Hang", "Cancelled", "Hanging"),
            "unary_stream": ("ServerStream",),
            "stream_unary": ("ClientStream", "EarlyError"),
            "stream_stream": ("Bidi", "AfterHalfClose"),
        }
        methods = {
            name: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, name))
            for kind, names in kinds.items()
            for name in names
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)


async def serve(address: str, port: int, grace_seconds: float) -> None:
    """Serves until SIGTERM; then calls in flight get the grace."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # As grpc_server has it.
    in_flight = CallsInFlight()
    services = Calls(in_flight)
    services.add_generic_rpc_handlers((Probe().handlers(),))
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 64 * 1024),
        ],
    )
    server.add_generic_rpc_handlers((services,))
    files = ServerConfig.from_env({**os.environ, "APP_PORT": str(port)}).certificates
    if files.certificate:
        server.add_secure_port(f"{address}:{port}", make_credentials(files, logging.getLogger(SERVICE)))
    else:
        server.add_insecure_port(f"{address}:{port}")
    await server.start()
    print("serving", flush=True)
    await stop.wait()
    await in_flight.leave(server, grace_seconds)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
