"""A server of another gRPC service than the stack's: ``python -m tests.support.foreign HOST:PORT``.

Prints each method that it is called for and answers UNIMPLEMENTED; its health service knows only ``other.Service``.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class _Log(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
        print(details.method, flush=True)
        return continuation(details)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[_Log()])
    servicer = health.HealthServicer()
    for name in ("", "other.Service"):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(sys.argv[1])
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
