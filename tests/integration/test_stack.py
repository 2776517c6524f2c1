"""The scenarios on the stack without Docker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.drivers import Driver, LocalDriver
from tests.support.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_without_docker(stack: LocalDriver, scenario: Callable[[Driver], None]) -> None:
    scenario(stack)
