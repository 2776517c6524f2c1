"""Calls to Ping, one after the other or some at once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

from protos import api_pb2, api_pb2_grpc

# Without this every call of the process would share one connection, and a failure its back-off.
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


def say_hello(target: str, greeting: str = "hello", timeout: float = 5) -> str:
    """The name of the replica that answers; raises grpc.RpcError."""
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        return _name(api_pb2_grpc.PingStub(channel), greeting, timeout)


def answers(target: str, count: int, concurrency: int = 8) -> Counter[str]:
    """How often each replica answered; raises grpc.RpcError at the first failure."""
    with grpc.insecure_channel(target, options=OPTIONS) as channel, ThreadPoolExecutor(concurrency) as pool:
        ping = api_pb2_grpc.PingStub(channel)
        return Counter(pool.map(lambda number: _name(ping, f"call {number}", 5), range(count)))


def status(target: str, timeout: float = 5) -> tuple[str, float]:
    """The status of one call on an open connection, and the seconds that it took."""
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout)
        begin = time.monotonic()
        try:
            _name(api_pb2_grpc.PingStub(channel), "hello", timeout)
        except grpc.RpcError as error:
            return error.code().name, time.monotonic() - begin
        return "OK", time.monotonic() - begin


def _name(ping: api_pb2_grpc.PingStub, greeting: str, timeout: float) -> str:
    answer = ping.SayHello(api_pb2.PingMessage(greeting=greeting), timeout=timeout).greeting
    assert answer.startswith("Hello from "), answer
    return answer.removeprefix("Hello from ").removesuffix(".")
