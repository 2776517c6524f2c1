"""The settings of the control plane, from its environment."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from balancer.config import BalancerConfig
from balancer.engine import EnvoySettings
from common.environment import ConfigError
from tests.support.certificates import Authority


def config(**variables: str) -> BalancerConfig:
    return BalancerConfig.from_env(variables)


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(**variables)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def test_nothing_is_required() -> None:
    made = config()
    assert made == BalancerConfig(
        mode="dynamic",
        networks=tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))),
        own=(("0.0.0.0", 5000), ("127.0.0.1", 8080), ("0.0.0.0", 0)),
        consul_url="http://127.0.0.1:8500",
        nginx_url="http://127.0.0.1:8080",
    )
    assert made.publishes


def test_the_balancers_own_addresses_are_those_that_nginx_listens_on() -> None:
    listen = "5000 grpc://10.0.0.1:5001 [fd00::1]:5002"
    made = config(LB_LISTEN=listen, LB_STATUS_ADDRESS="10.0.0.1", BIND_ADDRESS="10.0.0.2", METRICS_PORT="9464")
    assert made.own == (
        *(("0.0.0.0", 5000), ("10.0.0.1", 5001), ("fd00::1", 5002)),
        *(("10.0.0.1", 8080), ("10.0.0.2", 9464)),
    )


def test_blank_is_as_missing() -> None:
    names = ("NGINX_UPDATE", "PEER_CIDR", "CONSUL_ADDRESS", "CONSUL_PORT", "LB_STATUS_ADDRESS", "LB_STATUS_PORT")
    assert config(**dict.fromkeys(names, " ")) == config()


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.1.0.0/16", ["10.1.0.0/16"]),
        ("fd00::/8", ["fd00::/8"]),
        ("10.0.0.0/8,fd00::/8", ["10.0.0.0/8", "fd00::/8"]),
        (" 10.0.0.0/8 , fd00::/8,,127.0.0.0/8  ::1 ", ["10.0.0.0/8", "fd00::/8", "127.0.0.0/8", "::1/128"]),
        ("10.1.2.3", ["10.1.2.3/32"]),
        ("10.1.2.3/8", ["10.0.0.0/8"]),
        ("0.0.0.0/0 ::/0", ["0.0.0.0/0", "::/0"]),
        (",", []),
    ],
)
def test_peer_cidr_is_networks_of_both_families_separated_by_commas_or_spaces(text: str, networks: list[str]) -> None:
    assert config(PEER_CIDR=text).networks == tuple(ip_network(network) for network in networks)


@pytest.mark.parametrize(
    "wrong",
    [
        ["10.0.0.0/33", "private", "fd00::/129"],
        *([text] for text in ("10.0.0.0/8;", "10.0.0", "10.0.0.0/", "/8", "10.0.0.0/-1", "[fd00::]/8", "a.b/8")),
    ],
)
def test_each_wrong_network_is_named(wrong: list[str]) -> None:
    assert problems(PEER_CIDR=f"10.0.0.0/8 {','.join(wrong)}") == [
        f"PEER_CIDR: must be networks such as 10.0.0.0/8 or fd00::/8 (got {one!r})" for one in wrong
    ]


@pytest.mark.parametrize(
    ("text", "mode"), [("dynamic", "dynamic"), ("Dynamic", "dynamic"), ("reload", "reload"), ("RESTART", "restart")]
)
def test_only_the_dynamic_mode_publishes(text: str, mode: str) -> None:
    made = config(NGINX_UPDATE=text)
    assert (made.mode, made.publishes) == (mode, mode == "dynamic")


def test_another_mode_is_refused_with_the_known_ones() -> None:
    assert problems(NGINX_UPDATE="hot") == ["NGINX_UPDATE: must be one of dynamic, reload, restart (got 'hot')"]


@pytest.mark.parametrize(
    ("address", "shown"), [("10.0.0.1", "10.0.0.1"), ("::1", "[::1]"), ("fd00::2", "[fd00::2]"), ("agent_1", "agent_1")]
)
def test_an_address_is_of_either_family_or_a_name(address: str, shown: str) -> None:
    made = config(CONSUL_ADDRESS=address, CONSUL_PORT="1", LB_STATUS_ADDRESS=address, LB_STATUS_PORT="65535")
    assert (made.consul_url, made.nginx_url) == (f"http://{shown}:1", f"http://{shown}:65535")


def test_every_problem_has_a_line() -> None:
    wrong = {
        "NGINX_UPDATE": "x",
        "PEER_CIDR": "x",
        "CONSUL_ADDRESS": "a/b",
        "CONSUL_PORT": "0",
        "LB_STATUS_ADDRESS": "1.2.3",
        "LB_STATUS_PORT": "65536",
    }
    assert {line.split(":")[0] for line in problems(**wrong)} == set(wrong)


def test_the_limit_of_connections_needs_the_dynamic_mode() -> None:
    assert config(LB_MAX_CONNECTIONS_PER_ADDRESS="7").max_connections == 7
    assert problems(LB_MAX_CONNECTIONS_PER_ADDRESS="7", NGINX_UPDATE="reload") == [
        "LB_MAX_CONNECTIONS_PER_ADDRESS: needs NGINX_UPDATE=dynamic (got NGINX_UPDATE=reload)"
    ]


@pytest.fixture
def envoy_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "envoy"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("envoy_on_path")
def test_envoy_has_the_listeners_the_networks_and_the_log_of_nginx() -> None:
    made = config(LB_ENGINE="Envoy", LB_LISTEN="5000 grpc://10.0.0.1:5001", LB_ALLOW="10.0.0.0/8", LB_ACCESS_LOG="off")
    addresses = (("0.0.0.0", 5000), ("10.0.0.1", 5001))
    assert made.envoy == EnvoySettings(addresses=addresses, allowed=(ip_network("10.0.0.0/8"),), access_log=False)
    assert config(LB_ENGINE="nginx").envoy is None


@pytest.mark.usefixtures("envoy_on_path")
def test_envoy_has_the_tls_of_nginx(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("load-balancer")
    files = {"CERTIFICATE": pair.certificate, "KEY": pair.key}
    variables = {f"LB_{side}_{name}": str(path) for side in ("TLS", "REPLICA") for name, path in files.items()}
    variables |= {"LB_TLS_CLIENT_CA": str(authority.path), "LB_REPLICA_CA": str(authority.path)}
    made = config(LB_ENGINE="envoy", LB_LISTEN="5000 grpc://10.0.0.1:5001", **variables)
    assert made.envoy == EnvoySettings(
        addresses=(("0.0.0.0", 5000), ("10.0.0.1", 5001)),
        tls_addresses=frozenset({("0.0.0.0", 5000)}),
        verifies=True,
        replica_certificate=True,
    )
    assert made.refused_kinds == {}


@pytest.mark.usefixtures("envoy_on_path")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LB_MAX_CALLS_PER_ADDRESS", "100"),
        ("LB_MAX_CALLS_PER_SECOND_PER_ADDRESS", "100"),
        ("LB_MAX_CONNECTIONS_PER_ADDRESS", "100"),
        ("LB_LISTEN", "localhost:5000"),
    ],
)
def test_what_envoy_does_not_have_is_refused(name: str, value: str) -> None:
    (problem,) = problems(LB_ENGINE="envoy", **{name: value})
    assert problem.startswith(f"{name}: ")
    assert "LB_ENGINE=envoy" in problem


def test_envoy_must_be_there_and_needs_a_dynamic_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = problems(LB_ENGINE="envoy", NGINX_UPDATE="reload")
    assert "LB_ENGINE: envoy needs NGINX_UPDATE=dynamic (got NGINX_UPDATE=reload)" in found
    assert any(one.startswith("LB_ENGINE: envoy is not on PATH") for one in found)
