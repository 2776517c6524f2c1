"""Single calls: is somebody there, and who answers."""

from __future__ import annotations

import time

import grpc

from protos import api_pb2, api_pb2_grpc
from testbed.errors import BenchmarkError

# A connection of its own for each channel, no retry, no long back-off, no proxy of the environment.
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
]
_CALL_SECONDS = 2.0


def channel(target: str) -> grpc.Channel:
    """A channel on a connection of its own."""
    return grpc.insecure_channel(target, options=_OPTIONS)


def greeted(ping: api_pb2_grpc.PingStub) -> str:
    """Calls once; the name of the replica that answers.

    Raises:
        grpc.RpcError: the call failed.
    """
    answer = ping.SayHello(api_pb2.PingMessage(greeting="hello"), timeout=_CALL_SECONDS)
    return answer.greeting.removeprefix("Hello from ").removesuffix(".")


def wait_for_answers(target: str, names: int, seconds: float, pause_seconds: float = 0.01) -> set[str]:
    """Calls until so many replicas have answered; their names.

    Raises:
        BenchmarkError: that took longer than ``seconds``.
    """
    deadline = time.monotonic() + seconds
    found: set[str] = set()
    problem = ""
    with channel(target) as one:
        ping = api_pb2_grpc.PingStub(one)
        while len(found) < names:
            try:
                found.add(greeted(ping))
            except grpc.RpcError as error:
                problem = f"; the last call failed: {error.code().name} {error.details()}"
            if len(found) < names and time.monotonic() > deadline:
                raise BenchmarkError(f"{target}: {len(found)} of {names} answer within {seconds:g} s{problem}")
            # What is waited for needs the processor as well.
            time.sleep(pause_seconds)
    return found
