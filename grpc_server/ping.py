"""The Ping service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from protos import api_pb2, api_pb2_grpc

# Callers choose the length of a greeting.
_LOGGED = 200


class Ping(api_pb2_grpc.PingServicer):
    """Answers with the name of its host.

    Args:
        hostname: the name.
        log: takes a log line for each call.
    """

    def __init__(self, hostname: str, log: Callable[[str], None]) -> None:
        self._answer = api_pb2.PingMessage(greeting=f"Hello from {hostname}.")
        self._log = log

    async def SayHello(  # noqa: N802 - the method's name in api.proto
        self,
        request: api_pb2.PingMessage,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the signature is gRPC's
    ) -> api_pb2.PingMessage:
        """Answers ``Hello from <hostname>.`` and logs the greeting."""
        greeting = request.greeting
        if len(greeting) <= _LOGGED:
            self._log(f"received greeting={greeting!r}")
        else:
            self._log(f"received greeting={greeting[:_LOGGED]!r} (the first of {len(greeting)} characters)")
        return self._answer
