"""The official release, from a server on this machine."""

import hashlib
import io
import platform
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.places import Places

CONSUL = TOOLS["consul"]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
ARCHIVE = f"consul_{CONSUL.version}_linux_{ARCHITECTURE}.zip"
BASE = f"/consul/{CONSUL.version}"
SUMS = f"{BASE}/consul_{CONSUL.version}_SHA256SUMS"
PROGRAM = b"#!/bin/sh\necho Consul v1.22.7\n"

pytestmark = pytest.mark.skipif(not ARCHITECTURE, reason=f"no release is known for {platform.machine()}")


class Releases:
    """A release server: what it answers, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def publish(self, archive: bytes, *, digest: str = "") -> None:
        """Publish an archive, by default with its right SHA-256, between those of others."""
        digest = digest or hashlib.sha256(archive).hexdigest()
        other = "0" * 64
        self.files[f"{BASE}/{ARCHIVE}"] = archive
        self.files[SUMS] = (
            f"{other}  consul_{CONSUL.version}_darwin_arm64.zip\n{digest}  {ARCHIVE}\n{other}  {ARCHIVE}.other\n"
        ).encode()


@pytest.fixture
def releases() -> Iterator[tuple[Releases, str]]:
    """Serve releases, and give their address."""
    served = Releases()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.answers.wait()
            content = served.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield served, f"http://127.0.0.1:{server.server_address[1]}"
        served.answers.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def places(tmp_path: Path, releases: tuple[Releases, str], monkeypatch: pytest.MonkeyPatch) -> Places:
    """Give a machine that has the releases and nothing else."""
    monkeypatch.setenv("no_proxy", "*")
    return Places(directories=(tmp_path / "bin",), cache=tmp_path / "cache", releases_url=releases[1])


def archive(**members: bytes) -> bytes:
    """Make a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return buffer.getvalue()


def test_release_with_the_right_sum_is_kept_and_nothing_else_of_it(
    releases: tuple[Releases, str], places: Places
) -> None:
    releases[0].publish(archive(consul=PROGRAM, LICENSE=b"text"))
    found = find("consul", places=places)
    assert found == places.cached(CONSUL)
    assert found.read_bytes() == PROGRAM
    assert sorted(path.name for path in found.parent.iterdir()) == ["consul", "lock"]
    assert find("consul", places=places) == found
    assert releases[0].asked == [SUMS, f"{BASE}/{ARCHIVE}"]


def test_release_with_a_wrong_sum_is_refused(releases: tuple[Releases, str], places: Places) -> None:
    releases[0].publish(archive(consul=PROGRAM), digest="a" * 64)
    with pytest.raises(ToolError, match=rf"{ARCHIVE} has SHA-256 [0-9a-f]+, but SHA256SUMS says a{{64}}"):
        find("consul", places=places)
    assert [path.name for path in places.cached(CONSUL).parent.iterdir()] == ["lock"]


def test_release_without_a_sum_is_not_downloaded(releases: tuple[Releases, str], places: Places) -> None:
    releases[0].publish(archive(consul=PROGRAM))
    releases[0].files[SUMS] = b"0  other.zip\n"
    with pytest.raises(ToolError, match=f"SHA256SUMS has no line for {ARCHIVE}"):
        find("consul", places=places)
    assert releases[0].asked == [SUMS]


def test_release_that_is_not_published_is_a_reason(places: Places) -> None:
    with pytest.raises(ToolError, match="SHA256SUMS: HTTP 404 Not Found"):
        find("consul", places=places)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no archive", "File is not a zip file"), (archive(other=PROGRAM), "has no member consul")],
)
def test_release_without_the_program_is_refused(
    releases: tuple[Releases, str], places: Places, content: bytes, reason: str
) -> None:
    releases[0].publish(content)
    with pytest.raises(ToolError, match=reason):
        find("consul", places=places)


def test_release_of_another_version_than_it_says_is_refused(releases: tuple[Releases, str], places: Places) -> None:
    releases[0].publish(archive(consul=PROGRAM.replace(b"1.22.7", b"1.22.5")))
    with pytest.raises(ToolError, match=r"version 1\.22\.5 is older than 1\.22\.7"):
        find("consul", places=places)
    assert not places.cached(CONSUL).exists()


def test_server_that_does_not_answer_is_given_up_in_time(
    releases: tuple[Releases, str], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_stack.tools.release.CONNECT_TIMEOUT_SECONDS", 0.3)
    releases[0].answers.clear()
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"official release: .*SHA256SUMS: timed out"):
        find("consul", places=places)
    assert time.monotonic() - started < 5


def test_name_server_that_does_not_answer_is_given_up_in_time(
    releases: tuple[Releases, str], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A socket's timeout does not bind the time that looking up a name takes: one that is never reached.
    monkeypatch.setattr("local_stack.tools.release._FIRST_ANSWER_SECONDS", 0.3)
    releases[0].answers.clear()
    with pytest.raises(ToolError, match=r"official release: .*SHA256SUMS: no answer within 0 s"):
        find("consul", places=places)


def test_address_that_is_not_http_is_refused(tmp_path: Path) -> None:
    places = Places(directories=(), cache=tmp_path, releases_url="file:///tmp")
    with pytest.raises(ToolError, match="LOCAL_STACK_RELEASES_URL=file:///tmp is not an http or https address"):
        find("consul", places=places)
