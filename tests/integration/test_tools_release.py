"""The official release, from a server on this machine."""

import hashlib
import io
import platform
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_stack.tools import TOOLS
from tests.support.machine import Machine

CONSUL = TOOLS["consul"]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
ARCHIVE = f"consul_{CONSUL.version}_linux_{ARCHITECTURE}.zip"
PATH = f"/consul/{CONSUL.version}/{ARCHIVE}"
PROGRAM = b"#!/bin/sh\necho Consul v1.22.7\n"

pytestmark = pytest.mark.skipif(not ARCHITECTURE, reason=f"no release is known for {platform.machine()}")


class Handler(SimpleHTTPRequestHandler):
    """Serves a directory, and records the paths that are asked for."""

    asked: list[str]

    def log_message(self, *_args: object) -> None:
        """Records it, instead of printing it."""
        self.asked.append(self.path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that has the releases and nothing else."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield having(Machine(tmp_path), f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


def having(machine: Machine, releases_url: str) -> Machine:
    """Gives a machine another address of the releases."""
    machine.places = replace(machine.places, releases_url=releases_url)
    return machine


def archive(**members: bytes) -> bytes:
    """Makes a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return buffer.getvalue()


def publish(directory: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str = "") -> None:
    """Publishes an archive, and pins its SHA-256 or another."""
    file = Path(f"{directory}{PATH}")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    sums = {ARCHITECTURE: digest or hashlib.sha256(content).hexdigest()}
    monkeypatch.setitem(TOOLS, "consul", replace(CONSUL, sha256=sums))


def test_release_with_the_right_sum_is_kept_and_nothing_else_of_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, monkeypatch, archive(consul=PROGRAM, LICENSE=b"text"))
    assert machine.find() == machine.cached
    assert machine.cached.read_bytes() == PROGRAM
    assert sorted(path.name for path in machine.cached.parent.iterdir()) == ["consul", "lock"]
    assert machine.find() == machine.cached
    assert Handler.asked == [PATH]


@pytest.mark.parametrize(
    ("content", "digest", "reason"),
    [
        (archive(consul=PROGRAM), "a" * 64, rf"{ARCHIVE} has SHA-256 [0-9a-f]+ instead of a{{64}}"),
        (b"no archive", "", "File is not a zip file"),
        (archive(other=PROGRAM), "", "There is no item named 'consul' in the archive"),
        (archive(consul=PROGRAM.replace(b"1.22.7", b"1.22.5")), "", r"version 1\.22\.5 is older than 1\.22\.7"),
    ],
    ids=["another sum", "no archive", "no program", "another version"],
)
def test_release_with_another_sum_or_without_a_suitable_program_is_refused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str, reason: str
) -> None:
    publish(tmp_path, monkeypatch, content, digest)
    assert re.search(reason, machine.refusal())
    assert [path.name for path in machine.cached.parent.iterdir()] == ["lock"]


def test_release_without_a_pinned_sum_is_not_downloaded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "official release: none for Linux on riscv64" in machine.refusal()
    assert Handler.asked == []


def test_release_that_is_not_published_is_a_reason(machine: Machine) -> None:
    assert f"{ARCHIVE}: HTTP Error 404: File not found" in machine.refusal()


@pytest.mark.parametrize(
    ("limit", "reason"),
    # A socket's timeout does not bind the time that the look-up of a name takes; it is not reached in the second case.
    [("PAUSE_SECONDS", "timed out"), ("ANSWER_SECONDS", "no answer within 0 s")],
)
def test_server_that_does_not_answer_is_given_up_in_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    monkeypatch.setattr(f"local_stack.tools.release.{limit}", 0.3)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refusal = having(machine, f"http://127.0.0.1:{silent.getsockname()[1]}").refusal()
    assert re.search(rf"official release: \S+: {reason}", refusal)
    assert time.monotonic() - started < 5


def test_address_that_is_not_http_is_refused(tmp_path: Path) -> None:
    refusal = having(Machine(tmp_path), "file:///tmp").refusal()
    assert "LOCAL_STACK_RELEASES_URL: must be an http or https address (got 'file:///tmp')" in refusal
