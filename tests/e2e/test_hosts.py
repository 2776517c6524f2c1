"""The stack of lan.yaml on one host and replicas.yaml on another, each an engine in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_stack.tools import TOOLS
from testbed.calls import answers
from tests.support.drivers import ComposeDriver
from tests.support.load import round_robin
from tests.support.local import SLOT, short_home
from tests.support.missing import missing
from tests.support.nodes import Nodes, need_programs, wait_for_replicas

pytestmark = pytest.mark.timeout(900)
NETWORK = f"10.213.{SLOT}"
FIRST, SECOND = f"{NETWORK}.40:5000", f"{NETWORK}.41:5000"
ENVIRONMENT = {
    "LAN_SUBNET": f"{NETWORK}.0/24",
    **{f"SERVER_{number}": f"{NETWORK}.{30 + number}" for number in (1, 2, 3)},
    "CONSUL_SERVER": ",".join(f"{NETWORK}.{30 + number}" for number in (1, 2, 3)),
}
STACK = ["-f", "docker-compose.yaml", "-f", "lan.yaml"]


def driver(compose: list[str], files: list[str], node: int, nodes: Nodes) -> ComposeDriver:
    """Compose with the engine of a node, from 0, and with addresses of its own in the network of all."""
    found = ComposeDriver([*compose, *files], "glbhosts", port=0, consul_port=0)
    host = {"DOCKER_HOST": nodes.nodes[node].socket, "LAN_RANGE": f"{NETWORK}.{64 + 32 * node}/27"}
    found.env |= {**ENVIRONMENT, **host, "LB_ADDRESS": f"{NETWORK}.{40 + node}"}
    return found


@pytest.fixture(scope="module", params=["1", "2"])
def compose(engine: dict[str, list[str]], request: pytest.FixtureRequest) -> list[str]:
    """The command of a major version of Compose."""
    if request.param not in engine:
        missing(f"Compose {request.param}.x is not here")
    return engine[request.param]


@pytest.fixture(scope="module")
def hosts(images: None) -> Iterator[Nodes]:  # noqa: ARG001
    """Two hosts with this checkout's images."""
    need_programs()
    with Nodes(short_home("hosts"), 2, ["lb", "server", f"hashicorp/consul:{TOOLS['consul'].version}"]) as nodes:
        yield nodes


def test_replicas_and_a_balancer_of_another_host_join(hosts: Nodes, compose: list[str]) -> None:
    first = driver(compose, STACK, 0, hosts)
    first.up(1)
    wait_for_replicas([FIRST], 1)
    with round_robin(f"ipv4:{FIRST}") as outcome:
        second = driver(compose, ["-f", "replicas.yaml"], 1, hosts)
        second.up(3)
        wait_for_replicas([FIRST], 4)
        balancer = driver(compose, STACK, 1, hosts)
        balancer.compose("up", "-d", "--no-deps", "load-balancer")
        wait_for_replicas([FIRST, SECOND], 4)
        shares = answers(SECOND, 200)
        second.compose("stop", "hello_server")
        wait_for_replicas([FIRST, SECOND], 1)
    assert outcome.lost == 0, outcome
    assert min(shares.values()) >= 45, shares
    for one in (balancer, first):
        one.hurry()
        one.compose("down", "-v")
