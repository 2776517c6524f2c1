"""The Ping service."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from protos import api_pb2, api_pb2_grpc

LOG = logging.getLogger("grpc_server")

# Callers choose the length of a greeting.
_LOGGED = 200


class Ping(api_pb2_grpc.PingServicer):
    """Answers with the name of its host."""

    def __init__(self, hostname: str) -> None:
        self._answer = api_pb2.PingMessage(greeting=f"Hello from {hostname}.")

    async def SayHello(  # noqa: N802 - the method's name in api.proto
        self,
        request: api_pb2.PingMessage,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the signature is gRPC's
    ) -> api_pb2.PingMessage:
        """Answers ``Hello from <hostname>.`` and logs the greeting."""
        greeting = request.greeting
        cut = f" (the first of {len(greeting)} characters)" if len(greeting) > _LOGGED else ""
        LOG.info("received greeting=%r%s", greeting[:_LOGGED], cut)
        return self._answer
