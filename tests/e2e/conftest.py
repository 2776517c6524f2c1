"""The stack in containers, for the tests of this directory."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.drivers import ComposeDriver, compose_commands
from tests.support.missing import missing


@pytest.fixture(scope="session")
def engine() -> dict[str, list[str]]:
    """The Compose commands; skips where no Docker engine answers, which in CI is a failure."""
    problem = ""
    if not shutil.which("docker") or subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        problem = "no Docker engine answers"
    elif not compose_commands():
        problem = "no docker-compose is here (COMPOSE_V2 names one of version 2)"
    if problem:
        missing(problem)
    return compose_commands()


@pytest.fixture(scope="session")
def images(engine: dict[str, list[str]]) -> None:
    """This checkout's images, for tests that don't start the stack with this machine's engine."""
    ComposeDriver(next(iter(engine.values())), "glbimages", port=0, consul_port=0).compose("build")
