"""What all tests share: a stack without Docker; on failure, what it printed and what it had rendered."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from local_stack.tools import TOOLS, ToolError, find
from testbed.errors import MissingError
from testbed.processes import Processes
from testbed.programs import program
from tests.support import chaos
from tests.support.chaos import FULL
from tests.support.drivers import LocalDriver
from tests.support.local import SLOT, short_home, with_replicas
from tests.support.missing import missing
from tests.support.secure import SECURE, SecureDriver


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: what it has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell without job control starts background commands with SIGINT ignored, which the tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests marked `full` to `make chaos`."""
    if not FULL and (left := [item for item in items if item.get_closest_marker("full")]):
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],  # noqa: ARG001 - the signature is pytest's
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the stack's logs and rendered configuration to the report of a failed test."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if hasattr(value, "attach"):
                report.sections.append(("the stack", value.attach()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of faults; the whole run also writes it."""
    if chaos.ROWS:
        terminalreporter.section("faults while calls went on")
        terminalreporter.write_line(chaos.table())
        if report := os.environ.get("CHAOS_REPORT"):
            ends = [one for end in ("failed", "error", "skipped") for one in terminalreporter.stats.get(end, [])]
            chaos.write([one.nodeid.rpartition("::")[2] for one in ends], Path(report))


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
    kind = SecureDriver if SECURE else LocalDriver
    with kind(
        short_home("tests"), address_base=f"127.{100 + SLOT}.0.0", port=15000 + SLOT, consul_port=18500 + SLOT
    ) as driver:
        driver.down()
        driver.up(1)
        yield driver
        # A graceful end is tried in test_local_stack.py.
        driver.stop_extras()


@pytest.fixture
def lb_engine(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables of nginx, or of the engine that ``@engines`` gives (tests/support/control_plane.py)."""
    name = getattr(request, "param", "nginx")
    if name == "nginx":
        return {}
    try:
        program(name)
    except MissingError as error:
        missing(str(error))
    return {"LB_ENGINE": name}


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Ends what a test has started."""
    # A short path: it has Unix sockets.
    with tempfile.TemporaryDirectory(prefix="glb-") as directory, Processes(Path(directory)) as started:
        yield started


@pytest.fixture(scope="module")
def two_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with two replicas; one again afterwards."""
    yield from with_replicas(stack, 2)


@pytest.fixture(scope="module")
def three_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with three replicas; one again afterwards."""
    yield from with_replicas(stack, 3)


@pytest.fixture(scope="module")
def five_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    """The shared stack with five replicas; one again afterwards."""
    yield from with_replicas(stack, 5)
