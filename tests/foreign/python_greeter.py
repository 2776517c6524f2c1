"""What greets in Python: ``python -m tests.foreign.python_greeter TARGET...``."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc import experimental

from protos.api_pb2 import PingMessage
from protos.api_pb2_grpc import PingStub


class Counts:
    """The calls of each target by the replica that answered, or the error."""

    def __init__(self, targets: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, Counter[str]] = {target: Counter() for target in targets}

    def add(self, target: str, what: str) -> None:
        """Counts a call."""
        with self._lock:
            self._seen[target][what] += 1

    def print(self) -> None:
        """Prints the calls since the last time."""
        with self._lock:
            print(json.dumps(self._seen), flush=True)
            self._seen = {target: Counter() for target in self._seen}


def greet(target: str, counts: Counts, ended: threading.Event) -> None:
    """Calls a target 50 times a second until the end."""
    # With targets of xDS the control plane says which replicas speak TLS.
    clear = experimental.insecure_channel_credentials()  # type: ignore[no-untyped-call] # it has no types
    told = grpc.xds_channel_credentials(clear)
    with grpc.secure_channel(target, told) as channel:
        stub = PingStub(channel)
        while not ended.is_set():
            try:
                answer = stub.SayHello(PingMessage(greeting="hello"), timeout=30)
                counts.add(target, answer.greeting.removeprefix("Hello from ").removesuffix("."))
            except grpc.RpcError as error:
                counts.add(target, f"{error.code().name}: {error.details()}")
            ended.wait(0.02)


def main() -> None:
    """Calls all targets until the input ends."""
    targets = sys.argv[1:]
    counts, ended = Counts(targets), threading.Event()
    with ThreadPoolExecutor(len(targets)) as pool:
        callers = [pool.submit(greet, target, counts, ended) for target in targets]
        for _ in sys.stdin:
            counts.print()
        ended.set()
        for caller in callers:
            caller.result()
    counts.print()


if __name__ == "__main__":
    main()
