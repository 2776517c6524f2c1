"""What all tests share: on failure, what the stack printed and what it had rendered."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: what it has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
