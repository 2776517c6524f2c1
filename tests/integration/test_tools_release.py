"""The official release, from a server on this machine."""

import hashlib
import io
import platform
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

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.places import Places

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
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """A machine that has the releases and nothing else."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield Places(directories=(tmp_path / "bin",), cache=tmp_path / "cache", releases_url=url)
        server.shutdown()
        thread.join()


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
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, monkeypatch, archive(consul=PROGRAM, LICENSE=b"text"))
    cached = places.cached(CONSUL)
    assert find("consul", places=places) == cached
    assert cached.read_bytes() == PROGRAM
    assert sorted(path.name for path in cached.parent.iterdir()) == ["consul", "lock"]
    assert find("consul", places=places) == cached
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
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str, reason: str
) -> None:
    publish(tmp_path, monkeypatch, content, digest)
    with pytest.raises(ToolError, match=reason):
        find("consul", places=places)
    assert [path.name for path in places.cached(CONSUL).parent.iterdir()] == ["lock"]


def test_release_without_a_pinned_sum_is_not_downloaded(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ToolError, match="official release: none for Linux on riscv64"):
        find("consul", places=places)
    assert Handler.asked == []


def test_release_that_is_not_published_is_a_reason(places: Places) -> None:
    with pytest.raises(ToolError, match=f"{ARCHIVE}: HTTP Error 404: File not found"):
        find("consul", places=places)


@pytest.mark.parametrize(
    ("limit", "reason"),
    # A socket's timeout does not bind the time that the look-up of a name takes; it is not reached in the second case.
    [("PAUSE_SECONDS", "timed out"), ("ANSWER_SECONDS", "no answer within 0 s")],
)
def test_server_that_does_not_answer_is_given_up_in_time(
    places: Places, monkeypatch: pytest.MonkeyPatch, limit: str, reason: str
) -> None:
    monkeypatch.setattr(f"local_stack.tools.release.{limit}", 0.3)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_places = replace(places, releases_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ToolError, match=rf"official release: \S+: {reason}"):
            find("consul", places=silent_places)
    assert time.monotonic() - started < 5


def test_address_that_is_not_http_is_refused(tmp_path: Path) -> None:
    places = Places(directories=(), cache=tmp_path, releases_url="file:///tmp")
    with pytest.raises(ToolError, match=r"LOCAL_STACK_RELEASES_URL: must be an http .* \(got 'file:///tmp'\)"):
        find("consul", places=places)
