"""A run: its plan, programs and stack, the cheap backend, the addresses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.plan import Plan
from local_stack.settings import port_in_use
from testbed import programs, render
from testbed.balancers import Balancer, Envoy, FedEnvoy, HAProxy, OriginalNginx, TlsHAProxy, TlsNginx
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.processes import Processes
from testbed.stack import Stack

_PORTS = 30


class Bench:
    """One run.

    Args:
        plan: how much.
        directory: everything that is written goes below it.
        address_base: the first of the loopback addresses to use, 127.x.0.0.
        port: the first of thirty ports on 127.0.0.1.
        consul_port: the Consul UI's.
    """

    def __init__(self, plan: Plan, directory: Path, *, address_base: str, port: int, consul_port: int) -> None:
        self.plan = plan
        self.processes = Processes(directory)
        self.stack = Stack(directory / "stack", address_base=address_base, port=port, consul_port=consul_port)
        self.port = port
        self._backend = False

    def check_ports(self) -> None:
        """Checks that the ports are free, so that answers are from this run.

        Raises:
            BenchmarkError: a port is in use.
        """
        for port in range(self.port, self.port + _PORTS):
            if port_in_use("127.0.0.1", port):
                raise BenchmarkError(f"127.0.0.1:{port} is in use; end what uses it, or choose another --port")

    def close(self) -> None:
        """Ends everything that was started."""
        with self.processes, self.stack:
            pass

    def address(self, number: int) -> str:
        """Returns a loopback address outside the stack's containers; all have the same length."""
        return self.stack.own_address(200 + number // 150, 100 + number % 150)

    def cheap_backend(self, count: int) -> list[str]:
        """Returns so many cheap peers: addresses of one nginx that answers every call itself."""
        port = self.port + 29
        peers = [f"{self.address(number)}:{port}" for number in range(count)]
        if not self._backend:
            directory = self.processes.directory / "backend"
            directory.mkdir()
            (directory / "nginx.conf").write_text(render.fill("backend.conf", {"PORT": str(port)}))
            # Module files name modules below the prefix.
            (directory / "modules").symlink_to(programs.nginx_modules())
            where: list[str | Path] = ["-p", directory, "-c", directory / "nginx.conf", "-e", "stderr"]
            self.processes.start("backend", [programs.tool("nginx"), *where, "-g", "daemon off;"], cwd=directory)
            with self.processes.explained("the backend", "backend"):
                wait_for_answers(peers[0], 1, 10)
            self._backend = True
        return peers

    @contextmanager
    def replica(self, name: str, address: str, workers: int = 1) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a ``grpc_server`` at ``address:7777``, which answers when the block begins."""
        env = {"HOSTNAME": name, "BIND_ADDRESS": address, "APP_PORT": "7777", "GRPC_WORKERS": str(workers)}
        server = self.processes.start(name, [sys.executable, "-m", "grpc_server"], cwd=programs.ROOT, env=env)
        try:
            with self.processes.explained(name, name):
                wait_for_answers(f"{address}:7777", 1, 15)
            yield server
        finally:
            self.processes.stop(server)

    def candidates(self) -> list[Balancer]:
        """Returns the other balancers, each at a port of its own."""
        kinds: list[type[Balancer]] = [OriginalNginx, HAProxy, Envoy, FedEnvoy]
        return [kind(self.processes, port) for port, kind in enumerate(kinds, self.port + 1)]

    def tls_candidates(self) -> list[Balancer]:
        """Returns balancers with TLS for callers; the first needs three ports."""
        return [TlsNginx(self.processes, self.port + 10), TlsHAProxy(self.processes, self.port + 13)]

    def say(self, text: str) -> None:
        """Prints progress."""
        print(text, file=sys.stderr, flush=True)
