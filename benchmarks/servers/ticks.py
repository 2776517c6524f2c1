"""The service of stream.proto without generated modules, and a client that measures the delay of its messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import empty_pb2, wrappers_pb2

INTERVAL_SECONDS = 0.01
_SERVICE = "bench.Stream"
_METHOD = "Ticks"
_GRACE_SECONDS = 15.0


def handler(ticks: Callable[..., Any]) -> grpc.GenericRpcHandler:
    """Returns the service with a method that sends ticks."""
    method = grpc.unary_stream_rpc_method_handler(
        ticks,
        request_deserializer=empty_pb2.Empty.FromString,
        response_serializer=wrappers_pb2.Int64Value.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})


def delays(target: str, streams: int, seconds: float) -> list[float]:
    """Reads streams on one connection, and returns the delay of each message in seconds.

    Raises:
        grpc.RpcError: a stream failed.
        TimeoutError: a stream has sent nothing for long.
    """
    return asyncio.run(asyncio.wait_for(_delays(target, streams, seconds), seconds + _GRACE_SECONDS))


async def _delays(target: str, streams: int, seconds: float) -> list[float]:
    found: list[float] = []
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = channel.unary_stream(
            f"/{_SERVICE}/{_METHOD}",
            request_serializer=empty_pb2.Empty.SerializeToString,
            response_deserializer=wrappers_pb2.Int64Value.FromString,
        )

        async def read() -> None:
            call = method(empty_pb2.Empty())
            end = time.monotonic() + seconds
            async for tick in call:
                now = time.monotonic_ns()
                found.append((now - tick.value) / 1e9)
                if now > end * 1e9:
                    break
            call.cancel()

        await asyncio.gather(*(read() for _ in range(streams)))
    return found
