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
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from numbers_pb2 import Answer, Number

try:
    # With it a call takes a tenth less processor time.
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

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


class Unregistered:
    """Adds services to a server, as generic handlers only.

    Generated modules register each method too. grpc.aio then has a future of the next call of each method, and waits
    for all of these futures at every call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, object]) -> None:
        """Adds nothing."""


async def serve(port: str) -> None:
    """Serves until SIGTERM or SIGINT; then sets NOT_SERVING first, and lets calls in flight end."""
    limit = int(os.environ.get("GRPC_MAX_MESSAGE_BYTES") or MAX_MESSAGE_BYTES)
    # The balancer has a connection for each call in flight, and without the second option each connection would send
    # PINGs to measure its bandwidth.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", limit), ("grpc.http2.bdp_probe", 0)])
    services = Unregistered(server)
    numbers_pb2_grpc.add_NumbersServicer_to_server(Numbers(), services)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, services)
    # The registrar reads the server's services from reflection where GRPC_SERVICES is not set.
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), services)
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
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(os.environ["APP_PORT"]))
