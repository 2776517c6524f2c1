"""Two containers with one HOSTNAME: the first one still serves, the second one reports the conflict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_stack.container import Container
from local_stack.settings import Directory
from local_stack.stack import Stack
from testbed.wait import wait_for
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.scenarios import calls_going_on, wait_for_replicas

NAME = "hello_server-1"
ALIVE = 1


@pytest.fixture(params=[{}])
def other(stack: LocalDriver, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A second container with the name of the first, and with the variables of the parameter."""
    whole = Stack(Directory(stack.home), {**os.environ, **stack.env})
    container = whole.container(whole.services["hello_server"], 90)
    container.prepare({**whole.environment(container), "HOSTNAME": NAME, **request.param})
    # It is not a part of the stack, so it has no entry there.
    container.program.unlink()
    with container.log.open("wb") as log:
        process = subprocess.Popen(["/bin/sh", "start"], cwd=container.path, stdout=log, stderr=log)
    yield container
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    container.remove()
    container.log.unlink()


def health(container: Container) -> tuple[int, str]:
    """The exit code of the container's health check, and its message."""
    script = ". ./environment; exec python3 -m registrar health"
    done = subprocess.run(
        ["env", "-i", "/bin/sh", "-c", script], cwd=container.path, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def give_back_the_name(stack: LocalDriver, other: Container) -> None:
    """Starts the first and stops the second; waits until the cluster and the balancer have the first."""
    stack.start(NAME)
    os.kill(int((other.path / "run/supervisord.pid").read_text()), signal.SIGTERM)
    wait_for(
        lambda: [one for one in ConsulApi(stack).get("/v1/agent/members") if one["Name"] == NAME],
        lambda found: [(one["Addr"], one["Status"]) for one in found] == [(stack.address(NAME), ALIVE)],
        90,
        "the cluster knows the first",
    )
    assert wait_for_replicas(stack, 1) == {NAME}


def test_the_second_reports_it_and_serves_once_the_first_is_gone(stack: LocalDriver, other: Container) -> None:
    first = stack.address(NAME)
    message = f"another container, at {first}, has the name of this one, {NAME}"
    wait_for(lambda: Path(other.log).read_text(), lambda text: message in text, 30, "it says so")
    assert health(other)[0] == 1
    assert message in health(other)[1]
    (row,) = (
        one for one in json.loads(stack.local_stack("status", "--json"))["replicas"] if one["address"] == other.address
    )
    assert (row["node"], row["difference"]) == (NAME, f"another container, at {first}, has its name")
    # The first one is unchanged.
    wait_for_replicas(stack, 1)
    with calls_going_on(stack) as seen:
        wait_for(lambda: seen["OK"], lambda count: count > 200, 30, "calls are answered")
    assert set(seen) == {"OK"}

    stack.stop(NAME)
    assert wait_for_replicas(stack, 1) == {NAME}
    wait_for(lambda: health(other), lambda found: found[0] == 0, 60, "the second has the name")
    assert not [one for one in json.loads(stack.local_stack("status", "--json"))["replicas"] if one["difference"]]
    # The first comes back while the second has the name, and has it again once the second is gone.
    give_back_the_name(stack, other)
    assert "is healthy" in stack.execute(NAME, "python3", "-m", "registrar", "health")


# Without a passing check it registers after 5 s. Its agent has compared its services with those of the catalogue by
# then, and fails each registration.
@pytest.mark.parametrize("other", [{"HEALTH_CHECK_ENDPOINT": "/protos.NoSuchService"}], indirect=True)
def test_a_second_that_registers_late_reports_it_too(stack: LocalDriver, other: Container) -> None:
    message = f"another container, at {stack.address(NAME)}, has the name of this one, {NAME}"
    wait_for(lambda: Path(other.log).read_text(), lambda text: message in text, 30, "it says so")
    stack.stop(NAME)
    registered = f"registered id=hello_server-{NAME}-7777 status=critical"
    wait_for(lambda: Path(other.log).read_text(), lambda text: registered in text, 60, "it is registered")
    assert "attempt=10/10" not in Path(other.log).read_text()
    assert other.address in {one["Address"] for one in ConsulApi(stack).get("/v1/catalog/service/hello_server")}
    give_back_the_name(stack, other)
