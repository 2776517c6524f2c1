"""A server of grpc with threads: ``python -m benchmarks.servers.threads ADDRESS:PORT``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import empty_pb2, wrappers_pb2

from benchmarks.servers import ticks
from protos import api_pb2, api_pb2_grpc


class Ping(api_pb2_grpc.PingServicer):
    """Answers with the request's greeting."""

    def SayHello(self, request: api_pb2.PingMessage, context: Any) -> api_pb2.PingMessage:  # noqa: ARG002, N802
        """Answers with the request."""
        return request


def send_ticks(request: empty_pb2.Empty, context: grpc.ServicerContext) -> Iterator[wrappers_pb2.Int64Value]:  # noqa: ARG001
    """Sends the time of CLOCK_MONOTONIC in nanoseconds, until the client leaves."""
    while context.is_active():
        yield wrappers_pb2.Int64Value(value=time.monotonic_ns())
        time.sleep(ticks.INTERVAL_SECONDS)


def main() -> None:
    """Serves until it is ended."""
    server = grpc.server(ThreadPoolExecutor(max_workers=10))
    api_pb2_grpc.add_PingServicer_to_server(Ping(), server)
    server.add_generic_rpc_handlers((ticks.handler(send_ticks),))
    server.add_insecure_port(sys.argv[1])
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
