"""Consul's UI in a browser shows the service and each of its replicas."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drivers import ROOT, ConsulApi, LocalDriver
from tests.support.scenarios import wait_for_replicas
from tests.support.wait import wait_for

REPLICAS = ("hello_server-1", "hello_server-2", "hello_server-3")
_BROWSER_SECONDS = 90


class Browser:
    """Chromium without a window, one process a page."""

    def __init__(self, program: str, profile: Path, base: str) -> None:
        self._command = [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1280,900",
            # The page's clock runs ahead while it waits for Consul, so that it is rendered when it is looked at.
            "--virtual-time-budget=20000",
            f"--user-data-dir={profile}",
        ]
        self._base = base

    def html(self, path: str) -> str:
        """A page as its scripts have made it."""
        return self._run("--dump-dom", self._base + path)

    def screenshot(self, path: str, png: Path) -> None:
        """Writes a picture of a page."""
        self._run(f"--screenshot={png}", self._base + path)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=_BROWSER_SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def browser(stack: LocalDriver, tmp_path: Path) -> Browser:
    program = shutil.which("chromium")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing; apt-get install chromium")
        pytest.skip("chromium is missing; apt-get install chromium")
    return Browser(program, tmp_path / "profile", f"http://127.0.0.1:{stack.consul_port}")


@pytest.fixture
def three_replicas(stack: LocalDriver) -> Iterator[None]:
    stack.up(3)
    try:
        api = ConsulApi(stack)
        wait_for(
            lambda: sorted(api.instances("hello_server").values()),
            lambda statuses: statuses == ["passing"] * 3,
            60,
            "three passing replicas",
        )
        yield
    finally:
        stack.up(1)
        wait_for_replicas(stack, 1)


@pytest.mark.usefixtures("three_replicas")
def test_the_ui_shows_three_passing_replicas(browser: Browser, tmp_path: Path) -> None:
    assert "hello_server" in browser.html("/ui/dc1/services")

    page = browser.html("/ui/dc1/services/hello_server/instances")
    assert [name for name in REPLICAS if name not in page] == []
    assert page.count("All service checks passing") == 3, page
    assert page.count("All node checks passing") == 3, page

    png = tmp_path / "consul-ui.png"
    browser.screenshot("/ui/dc1/services/hello_server/instances", png)
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1280, 900)
    # An empty page of this size has about 5 kB.
    assert len(content) > 20_000
    if os.environ.get("UPDATE_DOCS") == "1":
        (ROOT / "docs").mkdir(exist_ok=True)
        shutil.copyfile(png, ROOT / "docs" / "consul-ui.png")
