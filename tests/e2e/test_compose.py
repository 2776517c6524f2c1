"""The scenarios in containers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.support import scenarios
from tests.support.drivers import ComposeDriver, Driver, run

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module", params=["1", "2"])
def stack(engine: dict[str, list[str]], request: pytest.FixtureRequest) -> Iterator[ComposeDriver]:
    """The stack of docker-compose.yaml by each major version of Compose, built from this checkout."""
    version = request.param
    if version not in engine:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"Compose {version}.x is not here")
    driver = ComposeDriver(engine[version], f"glbtest{version}", port=25000, consul_port=28500)
    driver.down()
    driver.compose("build")
    driver.up(1)
    yield driver
    driver.down()
    assert driver.leftovers() == []


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_in_containers(stack: ComposeDriver, scenario: Callable[[Driver], None]) -> None:
    scenario(stack)


def test_no_process_is_root(stack: ComposeDriver) -> None:
    for service in ("load-balancer", "hello_server", "server-1", "consul-ui"):
        container = stack._container(service)
        owners = run(["docker", "top", container, "-eo", "uid,pid,comm"]).splitlines()[1:]
        assert owners, container
        assert not [line for line in owners if line.split()[0] == "0"], owners
