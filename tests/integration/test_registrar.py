"""``python -m registrar`` as a process, with a real Consul agent."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from local_stack.settings import ROOT
from local_stack.tools import find
from testbed.ports import free_ports
from testbed.wait import wait_for

ID = "hello_server-box-7777"


class Consul:
    """The HTTP API of a Consul agent that only this test uses."""

    def __init__(self, port: int, serf: str = "") -> None:
        self.port = port
        self.serf = serf
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        """The decoded answer; None when there is none."""
        try:
            response = requests.get(self.url + path, timeout=5)
        except (requests.ConnectionError, requests.Timeout):
            return None
        return response.json() if response.ok else None

    def put(self, path: str, body: Any = None) -> None:
        """Sends a change, as a person would."""
        requests.put(self.url + path, json=body, timeout=5).raise_for_status()

    def deregister(self, service_id: str) -> None:
        """Deregisters a service."""
        self.put(f"/v1/agent/service/deregister/{service_id}")

    def services(self) -> set[str]:
        """The IDs of the agent's services."""
        return set(self.get("/v1/agent/services") or ())


@contextmanager
def server(log: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Consul]:
    """Runs an agent that only this test uses; with ``-dev`` it is a server.

    Args:
        log: gets its output.
        arguments: flags of ``consul agent``.
        variables: of a container; consul-start then starts the agent.
    """
    http, rpc, serf = free_ports(3)
    flags = f"-bind 127.0.0.1 -client 127.0.0.1 -http-port {http} -server-port {rpc} -serf-lan-port {serf}"
    unused = "-dns-port -1 -grpc-port -1 -grpc-tls-port -1 -serf-wan-port -1"
    program, flags = str(find("consul")), f"{shlex.join(arguments)} {flags} {unused}"
    command, env = [program, "agent", *shlex.split(flags)], None
    if variables is not None:
        # Of a flag that is given twice the last one counts.
        wrapper = log.with_name("consul")
        wrapper.write_text(f'#!/bin/sh\nexec {program} "$@" {flags}\n')
        wrapper.chmod(0o755)
        command = [str(ROOT / "build/config/consul/usr/bin/consul-start")]
        # Without the settings of a client, because it is a server too.
        (log.parent / "agent").mkdir()
        directories = {"CONSUL_CONFIG_DIR": str(log.parent), "CONSUL_DATA_DIR": f"{log}.data"}
        env = {"PATH": f"{log.parent}:{os.environ['PATH']}", "HOSTNAME": "box", "CONSUL_SERVER": "127.0.0.1"}
        env |= {**directories, **variables}
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output, env=env) as process:
        try:
            yield Consul(http, f"127.0.0.1:{serf}")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def agent(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consul]:  # noqa: ARG001
    """An agent that is a cluster of one, with a leader."""
    log = tmp_path_factory.mktemp("consul") / "log"
    with server(log, "-dev") as consul:
        wait_for(lambda: consul.get("/v1/status/leader"), bool, 60, f"a leader, see {log}")
        wait_for(lambda: consul.get("/v1/catalog/nodes"), bool, 60, f"the node in the catalogue, see {log}")
        yield consul


@pytest.fixture
def consul(agent: Consul) -> Iterator[Consul]:
    """The agent, without services before and after."""
    yield agent
    for service in agent.services():
        agent.deregister(service)


def environment(consul_port: int, **variables: str) -> dict[str, str]:
    """The environment of a registrar."""
    known = ("PATH", "PYTHONPATH", "LANG", "TMPDIR")
    base = {name: os.environ[name] for name in known if name in os.environ}
    service = {"APP_NAME": "hello_server", "APP_PORT": "7777", "TAGS": "a,b", "HOSTNAME": "box", "DRAIN_SECONDS": "0"}
    return {**base, **service, "CONSUL_PORT": str(consul_port), **variables}


def registrar(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a registrar to its end."""
    command = [sys.executable, "-m", "registrar", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def health(consul_port: int, **variables: str) -> tuple[int, str, str]:
    """The exit code of the health command, its output and its errors."""
    done = registrar(environment(consul_port, **variables), "health")
    return done.returncode, done.stdout, done.stderr


@contextmanager
def staying(env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A registrar that stays, killed at the end if it still runs."""
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-m", "registrar"], cwd=ROOT, env=env, stderr=output) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_until_registered(consul: Consul, log: Path, seconds: float = 30) -> None:
    wait_for(lambda: (consul.services(), log.read_text()), lambda seen: ID in seen[0], seconds, "registered")


def seconds_between(first: str, last: str) -> float:
    """The time from one log line to another."""
    began, ended = (datetime.fromisoformat(line.split()[0]) for line in (first, last))
    return (ended - began).total_seconds()


def test_wrong_environment_is_reported_at_once_without_a_stack_trace() -> None:
    done = registrar(environment(0, APP_PORT="65536", TAGS="", APP_NAME="a b", HEALTH_CHECK_TYPE="tcp"))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    wrong = ["APP_NAME", "APP_PORT", "CONSUL_PORT", "HEALTH_CHECK_TYPE", "TAGS"]
    assert sorted(line.split(":")[0] for line in lines) == wrong


def test_ten_attempts_are_made_where_there_is_no_agent() -> None:
    (port,) = free_ports(1)
    done = registrar(environment(port))
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert [line.split("attempt=")[1].split()[0] for line in lines[:-1]] == [f"{number}/10" for number in range(1, 11)]
    assert all(f"reason=no agent at http://127.0.0.1:{port}" in line for line in lines[:-1])
    assert lines[-1].endswith(f"ERROR registrar no registration of {ID} in 10 attempts")


def test_signal_ends_the_attempts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with staying(environment(free_ports(1)[0]), log) as process:
        wait_for(log.read_text, lambda text: "attempt=1/10" in text, 30, "the first attempt")
        process.terminate()
        assert process.wait(20) == 0


def test_registering_once_leaves_the_service_with_its_check(consul: Consul) -> None:
    variables = {
        "HEALTH_CHECK_TYPE": "http",
        "HEALTH_CHECK_ENDPOINT": f"{consul.url}/v1/status/leader",
        "WEIGHT": "7",
        "APP_ADDRESS": "127.0.0.9",
    }
    done = registrar(environment(consul.port, **variables), "--once")
    assert (done.returncode, "status=passing" in done.stderr) == (0, True), done.stderr
    service = consul.get(f"/v1/agent/service/{ID}")
    assert (service["Service"], service["Address"], service["Port"]) == ("hello_server", "127.0.0.9", 7777)
    assert (service["Tags"], service["Weights"]) == (["a", "b"], {"Passing": 7, "Warning": 1})
    (check,) = [check for check in consul.get("/v1/agent/checks").values() if check["ServiceID"] == ID]
    assert (check["Type"], check["Status"]) == ("http", "passing")
    assert check["Name"] == f"HTTP GET {consul.url}/v1/status/leader"


def test_service_that_fails_its_check_is_registered_as_critical(consul: Consul) -> None:
    variables = {"HEALTH_CHECK_TYPE": "grpc", "HEALTH_CHECK_ENDPOINT": f":{free_ports(1)[0]}/protos.Ping"}
    done = registrar(environment(consul.port, **variables), "--once")
    assert (done.returncode, "status=critical" in done.stderr) == (0, True), done.stderr
    (check,) = [check for check in consul.get("/v1/agent/checks").values() if check["ServiceID"] == ID]
    assert (check["Type"], check["Status"]) == ("grpc", "critical")


def test_service_deregistered_by_hand_is_back_within_five_seconds(consul: Consul, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with staying(environment(consul.port), log):
        wait_until_registered(consul, log)
        consul.deregister(ID)
        wait_until_registered(consul, log, seconds=5)
        wait_for(log.read_text, lambda text: f"the agent has lost the service id={ID}" in text, 5, "the log says so")


def test_service_lost_by_the_catalogue_is_back_within_ten_seconds(consul: Consul, tmp_path: Path) -> None:
    def listed() -> list[dict[str, Any]]:
        return list(consul.get("/v1/catalog/service/hello_server") or [])

    log = tmp_path / "log"
    with staying(environment(consul.port), log):
        (replica,) = wait_for(listed, bool, 30, "registered")
        consul.put("/v1/catalog/deregister", {"Node": replica["Node"], "ServiceID": ID})
        assert listed() == []
        wait_for(listed, bool, 10, "registered again")
        wait_for(
            log.read_text, lambda text: f"the catalogue has lost the service id={ID}" in text, 5, "the log says so"
        )


def test_servers_that_are_all_replaced_at_other_addresses_are_found(tools: None, tmp_path: Path) -> None:  # noqa: ARG001
    with ExitStack() as programs:
        old = ExitStack()
        first = old.enter_context(server(tmp_path / "first", "-dev", "-node", "first"))
        wait_for(lambda: first.get("/v1/status/leader"), bool, 60, "a leader")
        flags = ["-node", "client", "-data-dir", str(tmp_path / "data"), "-retry-join", first.serf]
        client = programs.enter_context(server(tmp_path / "client", *flags))
        wait_for(lambda: client.get("/v1/status/leader"), bool, 60, "the agent knows the leader")
        old.close()
        second = programs.enter_context(server(tmp_path / "second", "-dev", "-node", "second"))
        wait_for(lambda: second.get("/v1/status/leader"), bool, 60, "another leader")
        servers = f"{first.serf},{second.serf}"
        programs.enter_context(staying(environment(client.port, CONSUL_SERVER=servers), tmp_path / "log"))
        wait_for(lambda: second.get("/v1/catalog/service/hello_server"), bool, 60, "the service is in the catalogue")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_deregisters_then_drains_then_ends_it(consul: Consul, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with staying(environment(consul.port, DRAIN_SECONDS="2"), log) as process:
        wait_until_registered(consul, log)
        process.send_signal(number)
        wait_for(consul.services, lambda services: ID not in services, 5, "deregistered")
        assert process.wait(30) == 0
    deregistered, draining, drained = log.read_text().splitlines()[-3:]
    assert f"deregistered id={ID}" in deregistered
    assert "draining drain_seconds=2" in draining
    assert seconds_between(draining, drained) >= 1.99
    assert consul.get("/v1/catalog/service/hello_server") == []


def test_health_is_good_for_a_registered_service(consul: Consul) -> None:
    assert registrar(environment(consul.port), "--once").returncode == 0
    assert health(consul.port) == (0, f"{ID} is healthy\n", "")


def test_health_is_bad_for_a_service_that_is_not_registered(consul: Consul) -> None:
    assert health(consul.port) == (1, "", f"{ID} is not registered\n")


def test_health_is_bad_without_an_agent() -> None:
    (port,) = free_ports(1)
    assert health(port) == (1, "", f"no agent at http://127.0.0.1:{port}\n")


def test_health_is_bad_for_a_service_that_fails_its_check(consul: Consul) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/"
    found = health(consul.port, HEALTH_CHECK_TYPE="http", HEALTH_CHECK_ENDPOINT=url)
    assert found == (1, "", f"{ID} does not pass HTTP GET {url}\n")


def test_a_signal_without_a_leader_leaves_no_registration(tools: None, tmp_path: Path) -> None:  # noqa: ARG001
    """The agent takes a registration before it updates the catalogue, which it does when there is a leader."""
    log, data = tmp_path / "log", ("-server", "-data-dir", str(tmp_path / "data"), "-node", "alone")
    with server(tmp_path / "consul", *data, "-bootstrap-expect", "2") as consul:
        wait_for(lambda: consul.get("/v1/agent/self"), bool, 60, "the agent answers")
        with staying(environment(consul.port), log) as process:
            wait_for(log.read_text, lambda text: "registered " in text, 30, "the agent was asked")
            process.terminate()
            assert process.wait(30) == 0
        # The agent answers no question while it waits for a leader.
        wait_for(lambda: consul.get("/v1/agent/services"), lambda found: found == {}, 30, "it has no service")
    with server(tmp_path / "consul", *data, "-bootstrap-expect", "1") as consul:
        wait_for(lambda: consul.get("/v1/catalog/service/consul"), bool, 60, "a leader")
        time.sleep(2)
        assert consul.get("/v1/catalog/service/hello_server") == []
