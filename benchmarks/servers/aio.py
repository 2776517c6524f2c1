"""A server of grpc.aio: ``python -m benchmarks.servers.aio ADDRESS:PORT``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import empty_pb2, wrappers_pb2

from benchmarks.servers import ticks
from protos import api_pb2, api_pb2_grpc


class Ping(api_pb2_grpc.PingServicer):
    """Answers with the request's greeting."""

    async def SayHello(self, request: api_pb2.PingMessage, context: Any) -> api_pb2.PingMessage:  # noqa: ARG002, N802
        """Answers with the request."""
        return request


async def send_ticks(request: empty_pb2.Empty, context: Any) -> AsyncIterator[wrappers_pb2.Int64Value]:  # noqa: ARG001
    """Sends the time of CLOCK_MONOTONIC in nanoseconds, until the client leaves."""
    while True:
        yield wrappers_pb2.Int64Value(value=time.monotonic_ns())
        await asyncio.sleep(ticks.INTERVAL_SECONDS)


async def main() -> None:
    """Serves until it is ended."""
    server = grpc.aio.server()
    api_pb2_grpc.add_PingServicer_to_server(Ping(), server)
    server.add_generic_rpc_handlers((ticks.handler(send_ticks),))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
