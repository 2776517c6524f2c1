"""The example server in Python without balancer or container: its calls, and its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_stack.settings import ROOT
from testbed.ports import free_ports
from testbed.wait import wait_for
from tests.integration.test_server import NOT_SERVING, SERVING
from tests.support.certificates import Authority
from tests.support.drivers import run

SERVICE = "examples.numbers.v1.Numbers"


class Server:
    """The server with the modules that its image's build would make."""

    def __init__(self, directory: Path, **variables: str) -> None:
        source = ROOT / "examples/python"
        outputs = [f"--{kind}_out={directory}" for kind in ("python", "grpc_python")]
        run([sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", *outputs, source / "numbers.proto"])
        self.port = free_ports(1)[0]
        self.target = f"127.0.0.1:{self.port}"
        env = {**os.environ, "PYTHONPATH": str(directory), "APP_PORT": str(self.port), **variables}
        self.process = subprocess.Popen([sys.executable, source / "server.py"], env=env)

    def call(self, method: str, data: object) -> list[float]:
        """The values that a call of the client is answered with."""
        command = [sys.executable, "-m", "grpc_client", "--port", str(self.port), "--host", "127.0.0.1"]
        command += ["--call", f"{SERVICE}/{method}", "--data", json.dumps(data)]
        return [json.loads(line)["value"] for line in run(command).splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        with grpc.insecure_channel(server.target) as channel:
            grpc.channel_ready_future(channel).result(30)
        yield server
    finally:
        server.process.kill()
        server.process.wait(30)


def test_it_answers_each_kind_of_call(server: Server) -> None:
    numbers = [{"value": value} for value in (1, 2, 6)]
    assert server.call("Square", {"value": 3}) == [9]
    assert server.call("Count", {"value": 3}) == [1, 2, 3]
    assert server.call("Sum", numbers) == [9]
    assert server.call("Average", numbers) == [1, 1.5, 3]


def test_an_open_stream_ends_in_peace_while_health_says_not_serving(server: Server) -> None:
    # As on the wire, field 1 of type double: this process has no generated modules.
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    one = struct.pack("<Bd", 0x09, 1)
    with grpc.insecure_channel(server.target) as plain:
        channel: Any = plain
        health = health_pb2_grpc.HealthStub(channel)

        def status() -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5).status)

        answers = channel.stream_stream(f"/{SERVICE}/Average")(iter(requests.get, None), timeout=30)
        requests.put(one)
        assert next(answers).startswith(one)
        assert status() == SERVING
        server.process.send_signal(signal.SIGTERM)
        wait_for(status, lambda found: found == NOT_SERVING, 5, "health says so")
        requests.put(one)
        assert next(answers).startswith(one)
        requests.put(None)
        assert list(answers) == []
    assert server.process.wait(10) == 0


def test_with_tls_it_takes_callers_of_the_ca_and_serves_renewed_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("numbers", ("localhost",))
    files = {"CERTIFICATE": pair.certificate, "KEY": pair.key, "CLIENT_CA": authority.path}
    server = Server(tmp_path, **{f"GRPC_TLS_{name}": str(path) for name, path in files.items()})

    def read() -> list[bytes]:
        return [path.read_bytes() for path in (authority.path, pair.key, pair.certificate)]

    def serves(root: bytes, key: bytes | None = None, certificate: bytes | None = None) -> bool:
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{server.port}", credentials, options=options) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=SERVICE)
                return bool(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status == SERVING)
            except grpc.RpcError:
                return False

    before = read()
    try:
        wait_for(lambda: serves(*before), bool, 30, "it serves")
        assert not serves(before[0])
        other = Authority(tmp_path, "other")
        # Half of a renewal: gRPC keeps the files before it.
        authority.path.write_bytes(other.path.read_bytes())
        pair.key.write_bytes(b"no key")
        assert serves(*before)
        pair.replace_with(other.issue("numbers", ("localhost",), file="renewed"))
        wait_for(lambda: serves(*read()), bool, 5, "the renewed certificate is served")
        assert not serves(*before)
    finally:
        server.process.kill()
        server.process.wait(30)
