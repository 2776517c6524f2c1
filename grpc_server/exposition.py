"""Serves Prometheus' metrics over HTTP in one thread, because prometheus_client starts one for each open connection."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

LOG = logging.getLogger("grpc_server")

# The limits of a connection's request.
_SECONDS, _BYTES = 5.0, 16 * 1024


def start(address: str, port: int, registry: CollectorRegistry) -> None:
    """Answers every path with the metrics until the process ends.

    Raises:
        OSError: the port is in use.
    """
    started: Future[None] = Future()
    threading.Thread(target=lambda: asyncio.run(_serve(address, port, registry, started)), daemon=True).start()
    started.result()


async def _serve(address: str, port: int, registry: CollectorRegistry, started: Future[None]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head.decode("latin-1"), registry))
            async with asyncio.timeout(_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            LOG.debug("a request for metrics was not answered reason=%r", error)
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(answer, address, port, limit=_BYTES)
    except OSError as error:
        started.set_exception(error)
        return
    started.set_result(None)
    await server.serve_forever()


def _response(head: str, registry: CollectorRegistry) -> bytes:
    request, *fields = head.split("\r\n")
    method = request.partition(" ")[0]
    if method not in ("GET", "HEAD"):
        return b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    accepted = [field.partition(":")[2].strip() for field in fields if field.lower().startswith("accept:")]
    try:
        encode, content_type = choose_encoder(", ".join(accepted))
    except (TypeError, ValueError):
        # prometheus_client fails at a version that is not a number.
        encode, content_type = choose_encoder("")
    body = encode(registry)
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "\r\n",
    ]
    return "\r\n".join(lines).encode() + (body if method == "GET" else b"")
