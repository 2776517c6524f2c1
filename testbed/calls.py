"""Single calls of Ping, one after the other or some at once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from protos import api_pb2, api_pb2_grpc
from testbed.errors import BenchmarkError
from testbed.wait import wait_for

# Each channel has a connection of its own, so that no call shares another one's back-off; no retries, no proxy of the
# environment, no limits of sizes.
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
]
_SECONDS = 5.0


# The credentials of targets with TLS.
CREDENTIALS: dict[str, grpc.ChannelCredentials] = {}


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> Any:
    """Returns a channel, with TLS if there are credentials; ``Any`` because grpc's own type wants serializers."""
    if credentials := credentials or CREDENTIALS.get(target):
        return grpc.secure_channel(target, credentials, options=_OPTIONS)
    return grpc.insecure_channel(target, options=_OPTIONS)


def greet(ping: api_pb2_grpc.PingStub, greeting: str = "hello", timeout: float = _SECONDS) -> str:
    """Returns the name of the replica that answers a call.

    Raises:
        grpc.RpcError: the call failed.
        BenchmarkError: the answer is not a replica's.
    """
    answer = ping.SayHello(api_pb2.PingMessage(greeting=greeting), timeout=timeout).greeting
    if not answer.startswith("Hello from "):
        raise BenchmarkError(f"not a replica's answer: {answer!r}")
    return answer.removeprefix("Hello from ").removesuffix(".")


def say_hello(target: str, greeting: str = "hello", timeout: float = _SECONDS) -> str:
    """Returns the name of the replica that answers a call on a channel of its own; raises as :func:`greet` does."""
    with open_channel(target) as channel:
        return greet(api_pb2_grpc.PingStub(channel), greeting, timeout)


def answers(target: str, count: int, concurrency: int = 8) -> Counter[str]:
    """Returns how often each replica answered; raises grpc.RpcError at the first failure."""
    with open_channel(target) as channel, ThreadPoolExecutor(concurrency) as pool:
        ping = api_pb2_grpc.PingStub(channel)
        return Counter(pool.map(lambda number: greet(ping, f"call {number}"), range(count)))


def status(target: str, timeout: float = _SECONDS) -> tuple[str, float]:
    """Returns the status of a call on an open connection, and the seconds that it took."""
    with open_channel(target) as channel:
        grpc.channel_ready_future(channel).result(timeout)
        begin = time.monotonic()
        try:
            greet(api_pb2_grpc.PingStub(channel), timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name, time.monotonic() - begin
        return "OK", time.monotonic() - begin


def wait_for_answers(target: str, count: int, seconds: float) -> None:
    """Calls until so many replicas have answered, whatever their answers are.

    Raises:
        NotReachedError: that took longer than ``seconds``; with the last failure.
    """
    found: set[str] = set()
    with open_channel(target) as channel:
        ping = api_pb2_grpc.PingStub(channel)

        def call() -> tuple[int, str]:
            try:
                found.add(ping.SayHello(api_pb2.PingMessage(greeting="hello"), timeout=2).greeting)
            except grpc.RpcError as error:
                return len(found), f"the last call failed: {error.code().name} {error.details()}"
            return len(found), ""

        # The pause leaves the processors to the replicas.
        wait_for(call, lambda seen: seen[0] >= count, seconds, f"{target}: {count} replicas answer", 0.01)
