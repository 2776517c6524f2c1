"""Servers that a test kills and starts again, and programs that accept and never answer, at addresses of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from common.environment import host_port
from testbed.calls import wait_for_answers
from testbed.ports import listens
from testbed.wait import wait_for
from tests.support.control_plane import line
from tests.support.drivers import ROOT
from tests.support.local import SLOT

# Of the addresses that tests without a stack may use.
NETWORK = f"127.{200 + SLOT}"
PORT = 7777
HEALTH: dict[str, Any] = {"grpc_health": "protos.Ping"}


class ServerProcess:
    """A ``grpc_server`` that can be killed and started again; leaving the ``with`` block kills it.

    Args:
        name: its HOSTNAME.
        address: its own.
        environment: more of its variables.
    """

    def __init__(self, name: str, address: str, **environment: str) -> None:
        self.name, self.address = name, address
        self.environment = environment
        self.process = self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, and waits for an answer."""
        given = {"HOSTNAME": self.name, "BIND_ADDRESS": self.address, "APP_PORT": str(PORT), **self.environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grpc_server"],
            cwd=ROOT,
            env={**os.environ, **given},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if "GRPC_TLS_CERTIFICATE" in self.environment:
            wait_for(lambda: listens(self.address, PORT), bool, 20, f"{self.name} listens")
        else:
            wait_for_answers(host_port(self.address, PORT), 1, 20)
        return self.process

    def kill(self) -> None:
        """Kills it outright."""
        self.process.kill()
        self.process.wait()

    def line(self, **given: Any) -> list[Any]:
        """Its registration, as consul-template renders it."""
        return line(self.address, PORT, **{**HEALTH, "grpc_services": "protos.Ping", **given})


@contextmanager
def dripping() -> Iterator[int]:
    """At every loopback address and one port, which it yields, a program that accepts and sends a byte each 0.4 s."""
    ended = threading.Event()
    listener = socket.create_server(("0.0.0.0", 0), backlog=1024)
    listener.setblocking(False)

    def run() -> None:
        connections: list[socket.socket] = []
        while not ended.wait(0.4):
            with suppress(BlockingIOError):
                while True:
                    connections.append(listener.accept()[0])
            connections = [one for one in connections if _drip(one)]
        for connection in (*connections, listener):
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ended.set()
        thread.join()


def _drip(connection: socket.socket) -> bool:
    """Sends a byte; returns whether the other end is still there."""
    try:
        connection.setblocking(False)
        with suppress(BlockingIOError):
            if not connection.recv(65536):
                connection.close()
                return False
        connection.send(b"\0")
    except OSError:
        connection.close()
        return False
    return True
