"""The stack without Docker, for the tests of this directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import Processes
from local_stack.tools import TOOLS, ToolError, find
from tests.support import chaos
from tests.support.drivers import LocalDriver
from tests.support.scenarios import wait_for_replicas

# By process, so that two runs on one machine don't meet.
SLOT = os.getpid() % 100


@pytest.fixture(scope="session")
def tools() -> None:
    """Skips where a program is missing; in CI that is a failure."""
    try:
        for tool in TOOLS:
            find(tool, install=os.environ.get("CI") == "true")
    except ToolError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(f"run `make up` once, it finds or builds what is missing: {error}")


@pytest.fixture(scope="session")
def stack(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDriver]:  # noqa: ARG001
    """A stack with one replica, for all tests that leave it as they find it."""
    driver = LocalDriver(
        short_home("tests"), address_base=f"127.{100 + SLOT}.0.0", port=15000 + SLOT, consul_port=18500 + SLOT
    )
    driver.down()
    driver.up(1)
    yield driver
    driver.end()


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Ends what a test has started."""
    # A short path: it has Unix sockets.
    with tempfile.TemporaryDirectory(prefix="glb-") as directory, Processes(Path(directory)) as started:
        yield started


@pytest.fixture(scope="module")
def five_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with five replicas; one again afterwards."""
    yield from with_replicas(stack, 5)


def with_replicas(stack: LocalDriver, count: int) -> Iterator[LocalDriver]:
    """The stack with so many replicas, and with one when it is no longer needed."""
    stack.up(count)
    wait_for_replicas(stack, count)
    yield stack
    stack.up(1)
    wait_for_replicas(stack, 1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of faults; the whole run also writes it."""
    if chaos.ROWS:
        terminalreporter.section("faults while calls went on")
        terminalreporter.write_line(chaos.table())
        if report := os.environ.get("CHAOS_REPORT"):
            ends = [one for end in ("failed", "error", "skipped") for one in terminalreporter.stats.get(end, [])]
            chaos.write([one.nodeid.rpartition("::")[2] for one in ends], Path(report))


def short_home(name: str) -> Path:
    """A directory for a stack: a Unix socket's path has few characters, and pytest's own directories many."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"glb-{os.getpid()}" / name  # noqa: S108
