"""Consul's UI in a browser shows the service and each of its replicas."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.wait import wait_for
from tests.support.drivers import ROOT, LocalDriver
from tests.support.missing import missing
from tests.support.registered import Registration

REPLICAS = ("hello_server-1", "hello_server-2", "hello_server-3")
_PAGE_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


class Browser:
    """Chromium without a window, driven through its DevTools pipe.

    ``--dump-dom`` and ``--screenshot`` wait for the end of loading or for virtual time, and the UI's blocking
    queries to Consul never let either come. The pipe (file descriptors 3 and 4, a NUL after each message) needs no
    port and no library (Chromium, ``--remote-debugging-pipe``; Chrome DevTools Protocol).
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._requests = os.pipe()
        self._answers, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--window-size=1280,900", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        # The shell gives the pipe the numbers that Chromium expects.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._count = 0
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Opens a page; does not wait for it."""
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """The visible text of the page as it is now."""
        result = self._call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return str(result["result"]["value"])

    def screenshot(self) -> bytes:
        """The page as it is now, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Kills it with all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        os.close(self._answers)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            while b"\0" not in self._buffer:
                readable, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
                assert readable, f"chromium does not answer {method} within {_ANSWER_SECONDS:g} s"
                received = os.read(self._answers, 1 << 16)
                assert received, f"chromium ended at {method}"
                self._buffer += received
            answer, _, self._buffer = self._buffer.partition(b"\0")
            decoded = json.loads(answer)
            if decoded.get("id") == self._count:
                assert "result" in decoded, decoded
                return dict(decoded["result"])


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        missing("chromium is missing; apt-get install chromium")
    started = Browser(program, tmp_path / "profile")
    yield started
    started.close()


@pytest.fixture
def page(three_replicas: LocalDriver) -> str:
    """The address of the UI's page of services."""
    return f"http://127.0.0.1:{three_replicas.consul_port}/ui/dc1/services"


def test_the_ui_shows_three_passing_replicas(browser: Browser, page: str) -> None:
    browser.open(page)
    wait_for(browser.text, lambda text: "hello_server" in text, _PAGE_SECONDS, "the service is listed")

    browser.open(f"{page}/hello_server/instances")
    wait_for(
        browser.text,
        lambda text: (
            all(name in text for name in REPLICAS)
            and text.count("All service checks passing") == 3
            and text.count("All node checks passing") == 3
        ),
        _PAGE_SECONDS,
        "three replicas that pass",
    )


@pytest.fixture
def failing_application(stack: LocalDriver) -> Iterator[str]:
    """Another application, whose only replica fails its check; its name."""
    address = stack.address("load-balancer")
    check = {"Name": "gRPC", "GRPC": f"{address}:7777", "Interval": "1s", "Timeout": "1s"}
    failing = Registration(stack=stack, address=address, app="weather", service="", more={"Check": check})
    with failing.registered(wait=False):
        yield failing.app


def test_the_ui_shows_two_applications_and_a_check_that_fails(
    browser: Browser, page: str, failing_application: str, tmp_path: Path
) -> None:
    browser.open(f"{page}/{failing_application}/instances")
    wait_for(browser.text, lambda text: "service checks failing" in text, _PAGE_SECONDS, "it is shown as failing")
    browser.open(page)
    names = ("hello_server", failing_application, "load-balancer")
    wait_for(browser.text, lambda text: all(name in text for name in names), _PAGE_SECONDS, "all are listed")
    picture(browser, "consul-ui.png", tmp_path)


def picture(browser: Browser, name: str, directory: Path) -> None:
    """Takes a picture of the page and checks that it is not empty; UPDATE_DOCS=1 copies it to docs."""
    png = directory / name
    png.write_bytes(browser.screenshot())
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) > (1000, 600)
    # An empty page of this size has under 10 kB.
    assert len(content) > 20_000
    if os.environ.get("UPDATE_DOCS") == "1":
        (ROOT / "docs").mkdir(exist_ok=True)
        shutil.copyfile(png, ROOT / "docs" / name)
