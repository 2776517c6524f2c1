"""The stack of swarm.yaml on three nodes, each an engine in namespaces of its own (tests/support/nodes.py).

`make test` has the short tests; `make chaos-swarm` also has those marked `full`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import api_pb2_grpc
from testbed.calls import answers, greet, open_channel
from testbed.wait import wait_for
from tests.support import chaos
from tests.support.certificates import Authority
from tests.support.drivers import run
from tests.support.load import round_robin
from tests.support.local import short_home
from tests.support.nodes import IMAGES, PORT, STACK, Swarm, need_programs, wait_for_replicas

chaos.introduction = """Faults and changes of a Docker Swarm of three nodes while calls went on. {where}
The nodes are three engines in namespaces of one machine, joined by a bridge, and share its cores with the clients. Each
has a balancer, three of nine replicas and one of three Consul servers.

The load: two `grpc_client`, each with 12 callers and 100 calls a second to all balancers in turn, deadline 60 s, one
with gRPC's standard retry policy and one without. A call is lost when its status is not OK. The last column has the
seconds until every balancer that was reachable had answered from all replicas.

`make test` runs the tests of scaling and draining."""
pytestmark = pytest.mark.timeout(1200)
REPLICAS = 9
# Of each client: calls wait for a dead machine, first for the PING (10 s and 5 s), then for the balancer's TCP (13 s).
DEADLINE_SECONDS = 60.0
# The callers of a client; so many calls are in flight at most.
CALLERS = 12


@pytest.fixture(scope="module")
def swarm(images: None) -> Iterator[Swarm]:  # noqa: ARG001
    """The stack with nine replicas, from this checkout's images."""
    need_programs()
    run(["docker", "build", "--tag", IMAGES[-1], "--file", "build/dockerfiles/Dockerfile.consul", "."])
    with Swarm(short_home("swarm")) as started:
        started.deploy()
        wait_for_replicas(started.targets, 2)
        started.scale(REPLICAS)
        wait_for_replicas(started.targets, REPLICAS)
        yield started


@contextmanager
def two_loads(targets: list[str], fault: str, lost: int = 0) -> Iterator[None]:
    """Calls these balancers in turn, with and without the retry policy; the client with it loses no call.

    Args:
        targets: the balancers.
        fault: what the block does, for the table.
        lost: the most calls that the client without a retry policy may lose.
    """
    begin = time.monotonic()
    with ExitStack() as clients:
        with_retries, without = (
            clients.enter_context(round_robin(f"ipv4:{','.join(targets)}", retry=retry, deadline=DEADLINE_SECONDS))
            for retry in (True, False)
        )
        yield
        seconds = time.monotonic() - begin
    chaos.note(
        fault,
        with_retries.calls + without.calls,
        f"{with_retries.lost}, without retries {without.lost}" if without.lost else with_retries.lost,
        f"{max(one.slowest_seconds for one in (with_retries, without)) * 1000:.0f} ms",
        f"{seconds:.0f} s",
    )
    assert with_retries.lost == 0, with_retries
    assert without.lost <= lost, without


def test_each_node_gives_each_replica_its_share(swarm: Swarm) -> None:
    assert swarm.spread() == {node.name: REPLICAS // 3 for node in swarm.nodes}
    calls = 50 * REPLICAS
    for node in swarm.nodes:
        # A replica that a busy machine keeps from answering its probe is ejected for a moment.
        wait_for(
            lambda node=node: sorted(answers(node.target, calls).values()),  # type: ignore[misc]
            lambda shares: len(shares) == REPLICAS and shares[0] >= 45 and shares[-1] <= 55,
            60,
            f"even shares of {calls} calls through {node.name}",
        )


def test_scaling_loses_no_call(swarm: Swarm) -> None:
    with two_loads(swarm.targets, "scaled to 3 and back"):
        for replicas in (3, REPLICAS):
            swarm.scale(replicas)
            wait_for_replicas(swarm.targets, replicas)


def test_a_drained_node_costs_at_most_the_calls_in_flight_of_its_balancer(swarm: Swarm) -> None:
    drained = swarm.nodes[1]
    left = [node.target for node in swarm.nodes if node is not drained]
    with two_loads(swarm.targets, "a node drained", CALLERS):
        swarm.docker("node", "update", "--availability", "drain", drained.name)
        wait_for(lambda: drained.docker("ps", "--quiet"), "".__eq__, 120, "the node is empty")
        wait_for_replicas(left, REPLICAS)
    assert drained.name not in swarm.spread()
    swarm.docker("node", "update", "--availability", "active", drained.name)
    wait_for_replicas([drained.target], REPLICAS)


@pytest.mark.full
def test_an_update_loses_no_call_and_a_bad_one_is_rolled_back(swarm: Swarm) -> None:
    def update(*flags: str) -> str:
        swarm.docker("service", "update", "--detach", *flags, f"{STACK}_hello_server")
        form = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}"
        return wait_for(
            lambda: swarm.docker("service", "inspect", "--format", form, f"{STACK}_hello_server").strip(),
            lambda state: state in {"completed", "rollback_completed", "paused", "rollback_paused"},
            600,
            "the end of the update",
            1,
        )

    before = wait_for_replicas(swarm.targets, REPLICAS)
    with two_loads(swarm.targets, "an update of all replicas, and a bad one"):
        assert update("--env-add", "VERSION=2") == "completed"
        after = wait_for_replicas(swarm.targets, REPLICAS)
        assert not after & before
        assert update("--env-add", "GRPC_WORKERS=none") == "rollback_completed"
        assert wait_for_replicas(swarm.targets, REPLICAS) >= set()
    assert "GRPC_WORKERS" not in swarm.docker("service", "inspect", f"{STACK}_hello_server")


@pytest.mark.full
def test_a_certificate_is_a_secret_of_the_swarm(swarm: Swarm, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("balancer", [node.address for node in swarm.nodes])
    flags = []
    for variable, path in {"LB_TLS_CERTIFICATE": pair.certificate, "LB_TLS_KEY": pair.key}.items():
        swarm.docker("secret", "create", path.name, str(path))
        flags += ["--secret-add", path.name, "--env-add", f"{variable}=/run/secrets/{path.name}"]
    swarm.docker("service", "update", "--detach", *flags, f"{STACK}_load-balancer")
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
    for target in swarm.targets:
        wait_for(lambda target=target: answers_over_tls(target, credentials), bool, 120, f"{target}: TLS")  # type: ignore[misc]
    swarm.docker("service", "rollback", "--detach", f"{STACK}_load-balancer")
    wait_for_replicas(swarm.targets, REPLICAS)


def answers_over_tls(target: str, credentials: grpc.ChannelCredentials) -> bool:
    """Returns whether a balancer answers a call with TLS."""
    with open_channel(target, credentials) as channel:
        try:
            return bool(greet(api_pb2_grpc.PingStub(channel)))
        except grpc.RpcError:
            return False


@pytest.mark.full
def test_a_dead_node_costs_at_most_the_calls_in_flight_at_it(swarm: Swarm) -> None:
    dead = swarm.nodes[2]
    left = [node.target for node in swarm.nodes if node is not dead]
    # Both clients wait for the dead node's connection; then they have the calls of 100 a second that waited.
    with two_loads(swarm.targets, "a node dies without a goodbye and comes back", 2 * CALLERS):
        dead.set_link("down")
        dead.kill()
        # Consul says that they are dead after 5 s or more, Swarm after 20 s.
        wait_for(lambda: dead.name not in swarm.spread(), bool, 60, "Swarm knows it")
        wait_for_replicas(left, REPLICAS, 30)
        dead.set_link("up")
        dead.start()
        wait_for_replicas(swarm.targets, REPLICAS)


@pytest.mark.full
def test_a_minute_without_consul_restarts_no_container(swarm: Swarm) -> None:
    def containers() -> set[str]:
        names = [part for name in ("hello_server", "load-balancer") for part in ("--filter", f"name={STACK}_{name}")]
        return {one for node in swarm.nodes for one in node.docker("ps", "--quiet", *names).split()}

    def servers(count: int) -> None:
        swarm.docker("service", "scale", "--detach", f"{STACK}_consul-server={count}")

    before = containers()
    with two_loads(swarm.targets, "all Consul servers away for 60 s"):
        servers(0)
        time.sleep(60)
        servers(3)
        wait_for_replicas(swarm.targets, REPLICAS)
        assert containers() == before
        swarm.scale(REPLICAS + 1)
        wait_for_replicas(swarm.targets, REPLICAS + 1)
    swarm.scale(REPLICAS)
    wait_for_replicas(swarm.targets, REPLICAS)


@pytest.mark.full
def test_a_node_that_is_cut_off_serves_what_it_can_reach(swarm: Swarm) -> None:
    cut = swarm.nodes[1]
    left = [node.target for node in swarm.nodes if node is not cut]
    running = set(cut.docker("ps", "--quiet", "--filter", f"name={STACK}_hello_server").split())
    # Without one that is stopping, as those of an earlier test may be.
    own = running & wait_for_replicas(swarm.targets, REPLICAS)
    assert own
    command = [sys.executable, "-m", "grpc_client", "--host", cut.address, "--port", str(PORT), "--json"]
    command += ["--rate", "50", "--duration", "10"]

    def call_from_within() -> dict[str, Any]:
        return dict(json.loads(run(["nsenter", f"--net=/run/netns/{cut.namespace}", *command])))

    # Nothing can answer or repeat a call that was on its way to a replica there; each caller has one of them at most.
    with two_loads(left, "a node is cut off for 60 s", CALLERS):
        cut.set_link("down")
        begin = time.monotonic()
        # By then its balancer has ejected the other nodes' replicas.
        time.sleep(10)
        while time.monotonic() < begin + 60:
            report = call_from_within()
            assert report["failed"] == 0, report
            assert set(report["replicas"]) == own, report
        wait_for_replicas(left, REPLICAS)
        cut.set_link("up")
        begin = time.monotonic()
        wait_for_replicas(swarm.targets, REPLICAS)
    print(f"as before {time.monotonic() - begin:.0f} s after the cut")
