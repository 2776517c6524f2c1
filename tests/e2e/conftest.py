"""The stack in containers, for the tests of this directory."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drivers import ComposeDriver, compose_commands, run
from tests.support.missing import missing


@pytest.fixture(scope="session")
def engine() -> Iterator[dict[str, list[str]]]:
    """The Compose commands; skips where no Docker engine answers, which in CI is a failure.

    Names of images and ports of the host are there once an engine: runs wait for each other, and what a killed run has
    left, which the engine starts again by itself, is removed.
    """
    problem = ""
    if not shutil.which("docker") or subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        problem = "no Docker engine answers"
    elif not compose_commands():
        problem = "no docker-compose is here (COMPOSE_V2 names one of version 2)"
    if problem:
        missing(problem)
    with Path(tempfile.gettempdir(), "glb-engine").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_stacks()
        yield compose_commands()


def remove_stacks() -> None:
    """Removes the stacks of these tests, whose projects are called glb...; images stay."""
    label = "com.docker.compose.project"
    listed = {"container": ["ps", "-a"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
    for kind, command in listed.items():
        name = "{{.ID}}" if kind != "volume" else "{{.Name}}"
        lines = run(["docker", *command, "--format", f'{{{{.Label "{label}"}}}} {name}']).splitlines()
        if left := [line.split()[1] for line in lines if line.startswith("glb")]:
            run(["docker", kind, "rm", *(["-f"] if kind != "network" else []), *left])


@pytest.fixture(scope="session")
def images(engine: dict[str, list[str]]) -> None:
    """This checkout's images, for tests that don't start the stack with this machine's engine."""
    ComposeDriver(next(iter(engine.values())), "glbimages", port=0, consul_port=0).compose("build")
