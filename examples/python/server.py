"""A gRPC server in Python with health, reflection and a graceful stop, in which no unary call is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

# The build makes these two from numbers.proto.
import numbers_pb2
import numbers_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from numbers_pb2 import Answer, Number

LOG = logging.getLogger("numbers")
SERVICE = numbers_pb2.DESCRIPTOR.services_by_name["Numbers"].full_name
# Longer than a balancer takes to learn NOT_SERVING from the health service.
QUIET_SECONDS = 1
# A call with a larger message gets RESOURCE_EXHAUSTED.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# The grace of calls in flight; supervisord's stopwaitsecs is longer.
GRACE_SECONDS = float((os.environ.get("GRPC_GRACE_SECONDS") or "20").rstrip("s"))


def read_tls() -> grpc.ServerCertificateConfiguration:
    """Reads the server's certificate, its key, and the CA of callers."""
    names = ("GRPC_TLS_CERTIFICATE", "GRPC_TLS_KEY", "GRPC_TLS_CLIENT_CA")
    texts = [Path(os.environ[name]).read_bytes() if os.environ.get(name) else None for name in names]
    return grpc.ssl_server_certificate_configuration([(texts[1], texts[0])], texts[2])


def fetch_tls() -> grpc.ServerCertificateConfiguration | None:
    """Reads renewed files at each handshake; gRPC keeps the last ones instead of wrong ones."""
    try:
        return read_tls()
    except OSError:
        return None


def answer(value: float) -> Answer:
    """Returns an answer of this replica."""
    return Answer(value=value, replica=socket.gethostname())


class Numbers(numbers_pb2_grpc.NumbersServicer):
    """The service of numbers.proto."""

    async def Square(self, request: Number, _context: object) -> Answer:
        """Answers one request with one answer (unary)."""
        return answer(request.value**2)

    async def Count(self, request: Number, _context: object) -> AsyncIterator[Answer]:
        """Answers one request with many answers (server stream)."""
        for value in range(1, int(request.value) + 1):
            yield answer(value)

    async def Sum(self, requests: AsyncIterator[Number], _context: object) -> Answer:
        """Answers many requests with one answer (client stream)."""
        return answer(sum([request.value async for request in requests]))

    async def Average(self, requests: AsyncIterator[Number], _context: object) -> AsyncIterator[Answer]:
        """Answers while requests come in (bidirectional)."""
        count, total = 0, 0.0
        async for request in requests:
            count, total = count + 1, total + request.value
            yield answer(total / count)


async def serve(port: str) -> None:
    """Serves until SIGTERM or SIGINT; then sets NOT_SERVING first, and lets calls in flight end."""
    limit = int(os.environ.get("GRPC_MAX_MESSAGE_BYTES") or MAX_MESSAGE_BYTES)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", limit)])
    numbers_pb2_grpc.add_NumbersServicer_to_server(Numbers(), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    # The registrar reads the server's services from reflection where GRPC_SERVICES is not set.
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    if os.environ.get("GRPC_TLS_CERTIFICATE"):
        callers = bool(os.environ.get("GRPC_TLS_CLIENT_CA"))
        tls = grpc.dynamic_ssl_server_credentials(read_tls(), fetch_tls, require_client_authentication=callers)
        server.add_secure_port(f"0.0.0.0:{port}", tls)
    else:
        server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    for name in ("", SERVICE):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    LOG.info("serving port=%s", port)

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    LOG.info("stopping")
    await servicer.enter_graceful_shutdown()
    await asyncio.sleep(QUIET_SECONDS)
    await server.stop(GRACE_SECONDS)
    LOG.info("stopped")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(os.environ["APP_PORT"]))
