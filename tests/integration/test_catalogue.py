"""The control plane with a Consul whose answers are not complete: no leader, no rights, no data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from testbed.processes import Processes
from testbed.programs import tool
from testbed.wait import wait_for
from tests.support.control_plane import ControlPlane
from tests.support.local import SLOT
from tests.support.server_process import NETWORK, PORT, ServerProcess

HTTP = 22000 + 10 * SLOT
TOKEN, OWN = "00000000-0000-0000-0000-000000000001", "10000000-0000-0000-0000-000000000000"
ANONYMOUS = "00000000-0000-0000-0000-000000000002"


class Consul:
    """A Consul server on loopback, whose anonymous token has the rights that a test gives it.

    Args:
        processes: what starts it.
        expect: the number of servers of its cluster; with more than one there is no leader.
    """

    def __init__(self, processes: Processes, *, expect: int = 1) -> None:
        self._processes = processes
        self._expect = expect
        self._number = 0
        self.start()

    def start(self) -> None:
        """Starts one without data."""
        self._number += 1
        home = self._processes.directory / f"consul-{self._number}"
        home.mkdir()
        ports = {"http": HTTP, "server": HTTP + 1, "serf_lan": HTTP + 2, "serf_wan": HTTP + 3, "dns": -1, "grpc": -1}
        settings = {
            "server": True,
            "bootstrap_expect": self._expect,
            "data_dir": str(home),
            "bind_addr": "127.0.0.1",
            "ports": {**ports, "grpc_tls": -1},
            "acl": {"enabled": True, "default_policy": "deny", "tokens": {"initial_management": TOKEN}},
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
        }
        (home / "config.json").write_text(json.dumps(settings))
        command: list[str | Path] = [tool("consul"), "agent", f"-config-file={home / 'config.json'}", "-node=acl"]
        self.process = self._processes.start(f"consul-{self._number}", command, cwd=home)
        if self._expect == 1:
            wait_for(self._leads, bool, 30, "it leads")
            for name, prefix in (("all", ""), ("other", "other-")):
                rules = f'node_prefix "" {{ policy = "read" }} service_prefix "{prefix}" {{ policy = "read" }}'
                self.put("/v1/acl/policy", Name=name, Rules=rules)
            self.put("/v1/acl/token", AccessorID=OWN, SecretID=OWN, Policies=[{"Name": "all"}])
            self.allow("all")

    def restart_empty(self) -> None:
        """Comes back without its data."""
        self._processes.stop(self.process)
        self.start()

    def allow(self, *policies: str, token: str = ANONYMOUS) -> None:
        """Sets the policies of the anonymous token, or of another."""
        self.put(f"/v1/acl/token/{token}", Policies=[{"Name": policy} for policy in policies])

    def put(self, path: str, **body: Any) -> None:
        """PUT with all rights."""
        url = f"http://127.0.0.1:{HTTP}{path}"
        response = requests.put(url, json=body, headers={"X-Consul-Token": TOKEN}, timeout=10)
        assert response.ok, f"{path}: {response.text}"

    def register(self, server: ServerProcess) -> None:
        """Registers a replica."""
        self.put(
            "/v1/agent/service/register",
            Name="test",
            ID=server.name,
            Address=server.address,
            Port=PORT,
            Tags=["grpc_server"],
        )

    def _leads(self) -> bool:
        try:
            url = f"http://127.0.0.1:{HTTP}/v1/acl/policies"
            answer = requests.get(url, headers={"X-Consul-Token": TOKEN}, timeout=5)
        except requests.RequestException:
            return False
        return answer.ok


@pytest.fixture
def consul(request: pytest.FixtureRequest, processes: Processes, tools: None) -> Consul:  # noqa: ARG001
    """A cluster of one server, or of as many as the test's parameter says."""
    return Consul(processes, expect=getattr(request, "param", 1))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A replica."""
    with ServerProcess("kept", f"{NETWORK}.5.1") as one:
        yield one


@pytest.fixture
def one(consul: Consul, processes: Processes) -> Iterator[ControlPlane]:  # noqa: ARG001 - it has to run
    """A control plane that asks that Consul."""
    with ControlPlane(processes.directory / "control-plane", {"CONSUL_PORT": str(HTTP)}) as made:
        yield made


def serve(consul: Consul, one: ControlPlane, server: ServerProcess) -> None:
    """Registers a replica, renders it and waits until it serves."""
    consul.register(server)
    one.render([server.line()])
    wait_for_states(one, {server.address: "serving"}, 10)
    # The control plane reads the index of the catalogue each second.
    wait_for(lambda: one.view()["catalogue"]["index"], bool, 5, "the catalogue is known")


def wait_for_states(one: ControlPlane, wanted: dict[str, str], seconds: float = 5) -> None:
    """Waits until the control plane has exactly these replicas in these states."""
    wait_for(one.states, lambda found: found == wanted, seconds, f"the states are {wanted}")


def lose_data(consul: Consul, one: ControlPlane) -> None:
    """Restarts Consul without its data, and waits until the control plane has seen the loss."""
    consul.restart_empty()
    wait_for(lambda: one.view()["catalogue"]["lost"], bool, 10, "the loss is seen")


def test_what_the_catalogue_does_not_list_is_gone(consul: Consul, one: ControlPlane, server: ServerProcess) -> None:
    serve(consul, one, server)
    consul.put(f"/v1/agent/service/deregister/{server.name}")
    one.render([])
    wait_for_states(one, {}, 2)
    assert "not whole" not in one.log()


@pytest.mark.parametrize(("token", "left"), [(OWN, ["other"]), (ANONYMOUS, [])], ids=["a token", "no token"])
def test_an_answer_that_is_filtered_by_rights_is_no_empty_fleet(
    consul: Consul, one: ControlPlane, server: ServerProcess, token: str, left: list[str]
) -> None:
    if token == OWN:
        # The agent uses it for requests without a token.
        consul.put("/v1/agent/token/default", Token=OWN)
        consul.allow()
    serve(consul, one, server)
    # Of a token Consul says that it has filtered, of the anonymous one it does not.
    consul.allow(*left, token=token)
    # What consul-template makes of an answer without services.
    one.render([])
    wait_for_states(one, {server.address: "held"})
    assert not one.view()["catalogue"]["lost"]
    # Rights are back, and the list is: it was never away.
    consul.allow("all", token=token)
    one.render([server.line()])
    wait_for_states(one, {server.address: "serving"})


def test_replicas_of_a_catalogue_that_has_lost_its_data_are_held_until_an_operator_drops_them(
    consul: Consul, one: ControlPlane, server: ServerProcess
) -> None:
    serve(consul, one, server)
    # More has happened in the old cluster than in the new one.
    for number in range(20):
        consul.put("/v1/agent/service/register", Name=f"other-{number}")
    wait_for(lambda: one.view()["catalogue"]["index"], lambda index: index > 30, 5, "the index is known")
    consul.restart_empty()
    one.render([])
    wait_for_states(one, {server.address: "held"}, 10)
    assert one.view()["catalogue"]["lost"]
    # So it is after a restart of the control plane.
    wait_for(one.snapshot, lambda kept: kept["replicas"][0]["held"], 5, "that is on disk as well")
    one.kill()
    one.start()
    assert one.states() == {server.address: "held"}
    done = one.drop(f"{server.address}:{PORT}")
    assert (done.returncode, done.stdout) == (0, f"dropped test {server.address}:{PORT}\n")
    assert one.states() == {}
    done = one.drop(f"{server.address}:{PORT}")
    assert (done.returncode, done.stderr) == (1, f"{server.address}:{PORT} is not held\n")


def test_a_replica_in_maintenance_is_never_held(consul: Consul, one: ControlPlane, server: ServerProcess) -> None:
    serve(consul, one, server)
    lose_data(consul, one)
    consul.register(server)
    consul.put(f"/v1/agent/service/maintenance/{server.name}?enable=true")
    # consul-template leaves out replicas that do not pass.
    one.render([])
    wait_for_states(one, {})


def test_a_held_replica_leaves_when_it_stops_answering(
    consul: Consul, one: ControlPlane, server: ServerProcess
) -> None:
    serve(consul, one, server)
    lose_data(consul, one)
    one.render([])
    wait_for_states(one, {server.address: "held"})
    server.kill()
    wait_for_states(one, {})
    server.start()


@pytest.mark.parametrize("consul", [3], indirect=True)
def test_without_a_leader_nothing_is_known_of_an_absence(one: ControlPlane, server: ServerProcess) -> None:
    one.render([server.line()])
    wait_for_states(one, {server.address: "serving"}, 10)
    one.render([])
    wait_for(one.log, lambda text: "can't be asked about absent replicas" in text, 20, "it says so")
    assert one.states() == {server.address: "serving"}
