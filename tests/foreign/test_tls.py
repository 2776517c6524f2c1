"""Clients of other projects at the closed stack's port: with a certificate, and without one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from testbed.programs import ROOT, ghz
from tests.foreign.conftest import Client, built
from tests.foreign.programs import Command, Library, libraries, tool
from tests.support.local import SLOT, short_home
from tests.support.scenarios import wait_for_replicas
from tests.support.secure import SecureDriver

pytestmark = pytest.mark.timeout(300)
PORT = 31302 + 6 * SLOT
UNIMPLEMENTED, UNAUTHENTICATED = 12, 16
REFUSED = "a client certificate is required"
API = ["-import-path", str(ROOT), "-proto", "protos/api.proto"]


@pytest.fixture(scope="module")
def secure(tools: None) -> Iterator[SecureDriver]:  # noqa: ARG001
    """A secure stack with one replica."""
    base = f"127.{(SLOT + 40) % 50 + 50}.64.0"
    with SecureDriver(short_home("foreign"), address_base=base, port=PORT, consul_port=PORT + 1) as driver:
        driver.up(1)
        wait_for_replicas(driver, 1)
        yield driver


@pytest.fixture
def only_ca(secure: SecureDriver, tmp_path: Path) -> Path:
    """A directory as a caller's, without a certificate of its own."""
    shutil.copy(secure.secrets / "caller" / "callers-ca.pem", tmp_path)
    return tmp_path


@pytest.mark.parametrize("library", libraries("grpc-go", "grpc-js", "grpc-java"), ids=lambda one: one.name)
def test_libraries_reach_a_replica_only_with_a_certificate(
    secure: SecureDriver, library: Library, only_ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client.of(library)
    ends = []
    for directory in (secure.secrets / "caller", only_ca):
        monkeypatch.setenv("FOREIGN_TLS", str(directory))
        (found,) = client.run(secure.target, [{"method": "Unary", "requests": [{"payload": "x"}]}])
        ends.append(found["status"])
    # The first is the replica's own answer, to a method that it does not have.
    assert ends == [[UNIMPLEMENTED, "Method not found!"], [UNAUTHENTICATED, REFUSED]]


def attempt(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def options(directory: Path, dashes: str) -> list[str]:
    """Returns the options for TLS, which grpcurl and ghz call the same."""
    files = {"cacert": "callers-ca.pem", "cert": "tls.pem", "key": "tls-key.pem"}
    present = {name: directory / file for name, file in files.items() if (directory / file).exists()}
    return [word for name, path in present.items() for word in (dashes + name, str(path))]


def test_grpcurl_is_answered_only_with_a_certificate(secure: SecureDriver, only_ca: Path) -> None:
    command: Command = built(lambda: [tool("grpcurl")])
    call = [*API, "-d", json.dumps({"greeting": "x"}), secure.target, "protos.Ping/SayHello"]
    assert "Hello from hello_server-1" in attempt([*command, *options(secure.secrets / "caller", "-"), *call])
    assert REFUSED in attempt([*command, *options(only_ca, "-"), *call])
    # In clear text, to a port with TLS.
    assert "Hello" not in attempt([*command, "-plaintext", "-max-time", "3", *call])


def test_ghz_is_answered_only_with_a_certificate(secure: SecureDriver, only_ca: Path) -> None:
    command: Command = built(lambda: [ghz()])
    call = ["--proto", str(ROOT / "protos" / "api.proto"), "--call", "protos.Ping.SayHello", "-n", "20", "-c", "2"]
    call += ["-d", json.dumps({"greeting": "x"}), "--format", "json", secure.target]
    for directory, status in ((secure.secrets / "caller", "OK"), (only_ca, "Unauthenticated")):
        printed = attempt([*command, *options(directory, "--"), *call])
        assert json.loads(printed)["statusCodeDistribution"] == {status: 20}, printed
