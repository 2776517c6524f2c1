"""The control plane with a Consul whose answers are not complete: no leader, no rights, no data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.acl import ANONYMOUS, AclConsul
from tests.support.control_plane import ControlPlane
from tests.support.local import SLOT
from tests.support.server_process import NETWORK, PORT, ServerProcess

HTTP = 22000 + 10 * SLOT
OWN = "10000000-0000-0000-0000-000000000000"


class Consul(AclConsul):
    """One whose anonymous token has the rights that a test gives it."""

    def start(self) -> None:
        """Starts one without data, with the policies ``all`` and ``other`` and a token of all."""
        super().start()
        if self.leads:
            for name, prefix in (("all", ""), ("other", "other-")):
                rules = f'node_prefix "" {{ policy = "read" }} service_prefix "{prefix}" {{ policy = "read" }}'
                self.write_policy(name, rules)
            self.create_token(OWN, "all")
            self.allow("all")

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


@pytest.fixture
def consul(request: pytest.FixtureRequest, processes: Processes, tools: None) -> Consul:  # noqa: ARG001
    """A cluster of one server, or of as many as the test's parameter says."""
    return Consul(processes, HTTP, expect=getattr(request, "param", 1))


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
