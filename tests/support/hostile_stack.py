"""A balancer with TLS that asks for callers' certificates, and a caller that notices what hostile ones do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import grpc

from testbed.calls import open_channel
from testbed.programs import ghz
from testbed.stats import percentile
from tests.support import hostile
from tests.support.balancer import Workers
from tests.support.certificates import Authority, Pair
from tests.support.control_plane import Balancer
from tests.support.drivers import ROOT
from tests.support.hostile import Issuer
from tests.support.server import SERVICE

METHOD = f"/{SERVICE}/Seen"


class Stack(Workers):
    """The balancer, and its good caller.

    Args:
        balancer: asks for certificates of ``root``.
        authority: has issued the balancer's own certificate.
        root: the CA of the callers.
        directory: of the files.
    """

    def __init__(self, balancer: Balancer, authority: Authority, root: Issuer, directory: Path) -> None:
        self.balancer, self.authority, self.root, self.directory = balancer, authority, root, directory
        self.caller = root.issue(directory, "good", hostile.FOR_CALLERS)
        host, _, port = balancer.target.rpartition(":")
        self.address = (host, int(port))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)

    @property
    def workers(self) -> list[int]:
        return self.balancer.nginx.workers()

    def log(self) -> list[str]:
        nginx = self.balancer.nginx
        return nginx.processes.log(nginx.directory.name).read_text(errors="replace").splitlines()

    def call(self, caller: Pair | None, *metadata: tuple[str, str]) -> tuple[str, list[str]]:
        """Returns the status and its message, and the subjects that the replica got."""
        files = (caller.key.read_bytes(), caller.certificate.read_bytes()) if caller else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.path.read_bytes(), *files)
        with open_channel(self.balancer.target, credentials) as channel:
            try:
                seen = json.loads(channel.unary_unary(METHOD)(b"", timeout=10, metadata=metadata))["metadata"]
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}", []
        return "OK", [value for key, value in seen if key == "x-client-certificate-subject"]


class Probe:
    """ghz with a good certificate, which calls all the time while the ``with`` block runs."""

    def __init__(self, tls: Stack) -> None:
        self._report = tls.directory / "ghz.json"
        self.command: list[str | Path] = [
            *(ghz(), "--cacert", tls.authority.path, "--cert", tls.caller.certificate, "--key", tls.caller.key),
            *("--proto", ROOT / "protos/api.proto", "-i", ROOT, "--call", "protos.Ping.SayHello"),
            *("-d", "{}", "-c", "8", "--connections", "4", "--rps", "100", "-z", "600s", "--duration-stop", "wait"),
            *("--timeout", "10s", "-O", "json", "-o", self._report, tls.balancer.target),
        ]

    def __enter__(self) -> Probe:
        self._process = subprocess.Popen(self.command, cwd=ROOT, env={**os.environ, "no_proxy": "127.0.0.1"})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
        found: dict[str, Any] = json.loads(self._report.read_text())
        self.calls, self.statuses = found["count"], found["statusCodeDistribution"]
        self.p99_seconds = percentile([one["latency"] for one in found["details"]], 99) / 1e9
