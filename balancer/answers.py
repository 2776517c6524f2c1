"""Serves gRPC's health and reflection for all applications behind the balancer together.

nginx sends their calls here if there are several applications and the call names none.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from balancer.directory import Directory
from balancer.reflection import SERVICES, Session

LOG = logging.getLogger("balancer.directory")

# Most calls in flight are watches. Further calls get RESOURCE_EXHAUSTED.
MAX_CALLS = 4096
_OPTIONS = [("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)]
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # it ships no types
    """grpc.health.v1.Health: a service serves while a replica that gets its calls does.

    grpcio's own servicer writes to one watcher after the other, so that a watcher that reads nothing blocks the others
    and each change of a status.

    Args:
        directory: the latest document.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def _find_status(self, service: str) -> Any:
        serving = self._directory.serving.get(service)
        if serving is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serving else _Status.NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - named as in the .proto
        """Answers once; NOT_FOUND for a service that no application has."""
        status = self._find_status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no application has this service")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802, ARG002
        """Answers now and at each change; SERVICE_UNKNOWN for a service that no application has."""
        sent = None
        while True:
            status = self._find_status(request.service)
            if status != sent:
                sent = status
                yield _Status(status=status)
            else:
                await self._directory.wait_for_change()


def make_server(directory: Directory, socket: Path) -> grpc.aio.Server:
    """Returns the server at a Unix socket, which is not started yet."""

    async def reflect(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        session = Session(directory, context.invocation_metadata() or ())
        try:
            async for request in requests:
                yield await session.answer(request)
        finally:
            session.close()

    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    health_pb2_grpc.add_HealthServicer_to_server(Health(directory), server)
    # v1 and v1alpha have the same messages on the wire (gRFC A15); grpcio-reflection has only v1alpha.
    handler = grpc.stream_stream_rpc_method_handler(
        reflect,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in SERVICES)
    )
    # A program that was killed leaves its socket.
    socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    return server


async def serve(document: Path, socket: Path, copies: Path) -> None:
    """Serves the document in a file until the task is cancelled.

    Args:
        document: the file.
        socket: the socket of the server.
        copies: the directory of the certificates for TLS with replicas.
    """
    directory = Directory(copies)
    server = make_server(directory, socket)
    await server.start()
    LOG.info("serving health and reflection of all applications")
    try:
        await directory.follow(document)
    finally:
        await server.stop(0)
