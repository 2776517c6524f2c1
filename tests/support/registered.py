"""Test servers beside a stack, which tests register with Consul's HTTP API."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from testbed.wait import wait_for
from tests.support.balancer import peers
from tests.support.drivers import ROOT, ConsulApi, LocalDriver
from tests.support.server import SERVICE

APP = "probe"
PORT = 7777


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A server that a test registers.

    Attributes:
        service: its gRPC services, separated by commas; empty for one that registers none.
        meta: more metadata.
        more: more fields of Consul's API page "Register Service".
    """

    stack: LocalDriver
    address: str
    app: str = APP
    service: str = SERVICE
    since: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Its address without the balancer."""
        return f"{self.address}:{PORT}"

    def register(self, *, wait: bool = True) -> None:
        """Registers it and waits until the balancer has it."""
        metadata = {"grpc_services": self.service, "grpc_since": self.since, **self.meta}
        given = {key: value for key, value in metadata.items() if value}
        self.stack.register(self.target, given, application=self.app, **self.more)
        if wait:
            self._wait(present=True)

    def deregister(self, *, wait: bool = True) -> None:
        """Deregisters it, if it is registered, and waits until the balancer has forgotten it."""
        if f"{self.app}-{self.address}" in ConsulApi(self.stack).get("/v1/agent/services"):
            self.stack.deregister(self.target, application=self.app)
        if wait:
            self._wait(present=False)

    @contextmanager
    def registered(self, *, wait: bool = True) -> Iterator[None]:
        """Registers it while the block runs."""
        try:
            self.register(wait=wait)
            yield
        finally:
            self.deregister(wait=wait)

    def _wait(self, *, present: bool) -> None:
        wait_for(
            lambda: {peer["address"] for peer in peers(self.stack)},
            lambda found: (self.address in found) == present,
            20,
            f"{self.address} is {'known' if present else 'forgotten'}",
        )


@dataclass(frozen=True, kw_only=True)
class RegisteredServer(Registration):
    """A server that runs."""

    process: subprocess.Popen[bytes]


@contextmanager
def probe_server(
    address: str, grace_seconds: float = 0, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server of ``tests.Probe`` at an address while the block runs; the environment is more of its variables."""
    command = [sys.executable, "-m", "tests.support.server", address, str(PORT), str(grace_seconds)]
    env = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield process
        finally:
            process.kill()


@contextmanager
def running_server(
    stack: LocalDriver, number: int, *, grace_seconds: float = 0, app: str = APP, since: str = ""
) -> Iterator[RegisteredServer]:
    """A server at an address of its own, registered with the stack's Consul; both are ended afterwards."""
    address = stack.own_address(201, number)
    with probe_server(address, grace_seconds, stack.server_environment(app)) as process:
        server = RegisteredServer(stack=stack, address=address, app=app, since=since, process=process)
        server.register()
        try:
            yield server
        finally:
            server.deregister(wait=False)
