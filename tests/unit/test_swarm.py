"""swarm.yaml and replicas.yaml start what docker-compose.yaml starts; every difference is here, with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from local_stack.interpolation import interpolate
from local_stack.settings import ROOT

# Variables of swarm.yaml that docker-compose.yaml does not have, or has with another value.
NETWORK = "10.214.0.0/16"
DIFFERENT = {
    # A task has several networks.
    "APP_ADDRESS": NETWORK,
    "CONSUL_BIND": NETWORK,
    # One service with three tasks, which Swarm places on different nodes.
    "CONSUL_SERVER": "consul-server",
    "PEER_CIDR": NETWORK,
    # With APP_ADDRESS the default endpoint would be there, and the status port is on 127.0.0.1.
    "HEALTH_CHECK_ENDPOINT": "http://127.0.0.1:8080/health",
}
# Swarm has no .env, and TLS comes from secrets.
LEFT_OUT = {
    "GRPC_IDEMPOTENT", "GRPC_WORKERS", "LB_ACCESS_LOG", "LB_ENGINE", "LB_TLS_CERTIFICATE", "LB_TLS_CLIENT_CA",
    "LB_TLS_KEY", "NGINX_UPDATE", "VERSION", "XDS_ALLOW", "XDS_PORT",
}  # fmt: skip


def services(name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / name).read_text())["services"]
    return {service: spec for service, spec in found.items() if not spec.get("profiles")}


COMPOSE, SWARM = services("docker-compose.yaml"), services("swarm.yaml")


SERVERS = {"server-1", "server-2", "server-3"}


def in_swarm(name: str) -> dict[str, Any]:
    """The service of swarm.yaml for one of docker-compose.yaml."""
    return dict(SWARM["consul-server" if name in SERVERS else name])


def test_the_services_are_the_same() -> None:
    assert SWARM.keys() == COMPOSE.keys() - SERVERS | {"consul-server"}
    assert SWARM["consul-server"]["deploy"]["replicas"] == len(SERVERS)


@pytest.mark.parametrize("name", COMPOSE)
def test_the_environment_is_the_same_but_for_what_is_listed(name: str) -> None:
    def expand(spec: dict[str, Any]) -> dict[str, str]:
        return {variable: interpolate(str(value), {}) for variable, value in spec["environment"].items()}

    ours, swarm = expand(COMPOSE[name]), expand(in_swarm(name))
    assert swarm.keys() - ours.keys() <= DIFFERENT.keys()
    assert ours.keys() - swarm.keys() <= LEFT_OUT
    differing = {variable for variable in swarm if swarm[variable] != ours.get(variable)}
    assert {variable: swarm[variable] for variable in differing} == {
        variable: DIFFERENT[variable] for variable in differing
    }


@pytest.mark.parametrize("name", COMPOSE)
def test_hosts_stop_times_and_volumes_are_the_same(name: str) -> None:
    ours, swarm = COMPOSE[name], in_swarm(name)
    assert swarm.get("hostname") == ("server-{{.Task.Slot}}" if name in SERVERS else ours.get("hostname"))
    assert swarm["stop_grace_period"] == interpolate(ours["stop_grace_period"], {})
    assert swarm["read_only"] is ours["read_only"] is True
    assert swarm.get("sysctls") == ours.get("sysctls")
    named = {one for one in ours["volumes"] if not one.startswith(".")}
    own = {one.replace(f"{name}:", "server:") if name in SERVERS else one for one in named}
    assert {one for one in swarm["volumes"] if isinstance(one, str)} == own
    tmpfs = {str(one).split(":")[0] for one in ours["tmpfs"]}
    assert {one["target"] for one in swarm["volumes"] if isinstance(one, dict)} >= tmpfs - {"/etc/nginx/conf.d"}


def test_only_the_balancers_port_is_published_on_its_own_node() -> None:
    assert {name for name, spec in SWARM.items() if spec.get("ports")} == {"load-balancer"}
    assert [port["mode"] for port in SWARM["load-balancer"]["ports"]] == ["host"]


def test_no_call_goes_through_a_virtual_address() -> None:
    # Its table forgets idle connections after 15 minutes.
    assert {spec["deploy"]["endpoint_mode"] for spec in SWARM.values()} == {"dnsrr"}


def test_replicas_of_another_host_are_those_of_the_first() -> None:
    ours, theirs = COMPOSE["hello_server"], services("replicas.yaml")["hello_server"]
    assert theirs["extends"] == {"file": "examples/replica.yaml", "service": "replica"}
    common = services("examples/replica.yaml")["replica"]["environment"]
    environment = common | theirs["environment"]
    assert ours["environment"].keys() - environment.keys() <= LEFT_OUT
    differing = {name for name, value in environment.items() if value != ours["environment"][name]}
    assert differing == {"CONSUL_SERVER"}
    assert {key: theirs[key] for key in ("image", "build", "volumes")} == {
        key: ours[key] for key in ("image", "build", "volumes")
    }


def test_all_hosts_have_one_network() -> None:
    first, second = (yaml.safe_load((ROOT / name).read_text())["networks"] for name in ("lan.yaml", "replicas.yaml"))
    assert first == second
