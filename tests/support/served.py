"""gRPC servers in the event loop of a test, and ``python -m grpc_client`` as a process that calls them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from local_stack.settings import ROOT
from protos.api_pb2 import PingMessage

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Answer: TypeAlias = Callable[[PingMessage, Context], Awaitable[PingMessage]]


@contextlib.asynccontextmanager
async def served(
    *handlers: grpc.GenericRpcHandler, port: int = 0, grace_seconds: float | None = None
) -> AsyncIterator[int]:
    """Serves the handlers, by default on a free port, and yields the port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace_seconds)


def ping_handler(answer: Answer) -> grpc.GenericRpcHandler:
    """Returns the service ``protos.Ping``, whose ``SayHello`` is ``answer``."""
    say_hello = grpc.unary_unary_rpc_method_handler(answer, PingMessage.FromString, PingMessage.SerializeToString)
    return grpc.method_handlers_generic_handler("protos.Ping", {"SayHello": say_hello})


async def start_client(*arguments: object, **settings: Any) -> asyncio.subprocess.Process:
    """Starts the client; its output goes to pipes unless the settings of the process say otherwise."""
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | settings
    command = [sys.executable, "-m", "grpc_client", "--host", "127.0.0.1", *map(str, arguments)]
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, **pipes)


async def run_client(*arguments: object) -> tuple[int | None, str, str]:
    """Runs the client to its end; returns its exit code and its output."""
    process = await start_client(*arguments)
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()
