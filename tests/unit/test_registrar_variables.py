"""What is checked before anything of a container starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from registrar.environment import ConfigError
from registrar.variables import checked, exports

GOOD = {
    "APP_NAME": "hello_server",
    "APP_PORT": "7777",
    "TAGS": "grpc_server",
    "CONSUL_PORT": "8500",
    "CONSUL_SERVER": "server-1,server-2",
    "HOSTNAME": "box",
}
BALANCER = ("balancer", "consul", "nginx", "registrar")
SERVER = ("consul", "grpc_server", "registrar")


def programs(tmp_path: Path, *names: str) -> Path:
    """A directory of supervisord's programs, as they are in the images."""
    for name in names:
        (file,) = ROOT.glob(f"build/config/*/etc/supervisor/conf.d/{name}.conf")
        shutil.copy(file, tmp_path)
    return tmp_path


def problems(tmp_path: Path, *names: str, **variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked({**GOOD, **variables}, programs(tmp_path, *names))
    return [line.split(":")[0] for line in caught.value.problems]


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    found = checked(GOOD, programs(tmp_path, *SERVER))
    assert found == {"REGISTRAR_STOP_SECONDS": "22", "SERVER_STOP_SECONDS": "40"}


def test_blanks_of_other_systems_files_go(tmp_path: Path) -> None:
    found = checked(
        {**GOOD, "APP_PORT": "7777\r", "LB_LISTEN": " 0.0.0.0:5000   [::]:5001\r"}, programs(tmp_path, *BALANCER)
    )
    assert found["APP_PORT"] == "7777"
    assert found["LB_LISTEN"] == "0.0.0.0:5000 [::]:5001"


def test_the_problems_of_all_programs_are_told_at_once(tmp_path: Path) -> None:
    wrong = {
        "APP_PORT": "70000",
        "CONSUL_ROLE": "king",
        "CONSUL_DNS_PORT": "x",
        "LB_LISTEN": "somewhere",
        "LB_ACCESS_LOG": "perhaps",
        "LB_MAX_CALLS_PER_ADDRESS": "many",
        "NGINX_WORKERS": "0",
        "BIND_ADDRESS": "h/e",
        "PEER_CIDR": "10.0.0.0/99",
        "NGINX_UPDATE": "never",
    }
    assert set(problems(tmp_path, *BALANCER, **wrong)) == set(wrong)


@pytest.mark.parametrize("address", ["localhost", "replica-1"])
def test_a_replica_has_an_ip_address(tmp_path: Path, address: str) -> None:
    assert problems(tmp_path, *SERVER, APP_ADDRESS=address) == ["APP_ADDRESS"]


@pytest.mark.parametrize("address", ["::1", "fd00::2", "0.0.0.0"])
def test_an_address_of_ipv6_is_one_too(tmp_path: Path, address: str) -> None:
    checked({**GOOD, "BIND_ADDRESS": address, "LB_STATUS_ADDRESS": address}, programs(tmp_path, *BALANCER))


def test_a_stop_has_its_time(tmp_path: Path) -> None:
    path = programs(tmp_path, *SERVER)
    assert problems(path, DRAIN_SECONDS="90") == ["STOP_SECONDS"]
    assert problems(path, GRPC_GRACE_SECONDS="80") == ["STOP_SECONDS"]
    longest = {**GOOD, "DRAIN_SECONDS": "90", "GRPC_GRACE_SECONDS": "70s"}
    # The registrar, the server and the agent, one after the other.
    found = checked({**longest, "STOP_SECONDS": "215"}, path)
    assert found == {"REGISTRAR_STOP_SECONDS": "110", "SERVER_STOP_SECONDS": "90"}
    with pytest.raises(ConfigError, match=r"STOP_SECONDS: must be at least 215, .* \(got 214\)"):
        checked({**longest, "STOP_SECONDS": "214"}, path)


def test_what_no_program_reads_is_left_alone_and_what_is_blank_is_unset(tmp_path: Path) -> None:
    given = {
        **GOOD,
        "SEPARATOR": " ",
        "LB_LISTEN": "  ",
        "BIND_ADDRESS": "",
        "NGINX_UPDATE": "Reload",
        "LB_ACCESS_LOG": "OFF",
    }
    found = checked(given, programs(tmp_path, *BALANCER))
    changed = {"LB_LISTEN": "", "BIND_ADDRESS": "", "NGINX_UPDATE": "reload", "LB_ACCESS_LOG": "off"}
    assert {name: value for name, value in found.items() if not name.endswith("STOP_SECONDS")} == changed


@pytest.mark.parametrize(
    ("address", "fine"),
    [("10.0.0.1", True), ("127.0.0.1 ::1", True), ('{{ GetInterfaceIP "eth0" }}', True), ("eth0", False)],
)
def test_an_agents_address_is_what_consul_takes(tmp_path: Path, address: str, fine: bool) -> None:
    if fine:
        checked({**GOOD, "CONSUL_CLIENT": address}, programs(tmp_path, *SERVER))
    else:
        assert problems(tmp_path, *SERVER, CONSUL_CLIENT=address) == ["CONSUL_CLIENT"]


def test_a_shell_reads_what_is_printed() -> None:
    assert exports({"B": "it's", "A": "a b", "C": ""}) == "export A='a b'\nexport B='it'\"'\"'s'\nunset C"
