"""The check of a container's variables before its programs start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.environment import ConfigError
from local_stack.settings import ROOT
from registrar.variables import check_variables, format_exports

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
        check_variables({**GOOD, **variables}, programs(tmp_path, *names))
    return [line.split(":")[0] for line in caught.value.problems]


def test_correct_variables_are_not_changed(tmp_path: Path) -> None:
    found = check_variables(GOOD, programs(tmp_path, *SERVER))
    assert found == {"REGISTRAR_STOP_SECONDS": "22", "SERVER_STOP_SECONDS": "40"}


def test_blanks_and_carriage_returns_are_removed(tmp_path: Path) -> None:
    found = check_variables(
        {**GOOD, "APP_PORT": "7777\r", "LB_LISTEN": " 0.0.0.0:5000   [::]:5001\r"}, programs(tmp_path, *BALANCER)
    )
    assert found["APP_PORT"] == "7777"
    assert found["LB_LISTEN"] == "0.0.0.0:5000 [::]:5001"


def test_the_problems_of_all_programs_are_reported_at_once(tmp_path: Path) -> None:
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
def test_an_ipv6_address_is_an_address_too(tmp_path: Path, address: str) -> None:
    check_variables({**GOOD, "BIND_ADDRESS": address, "LB_STATUS_ADDRESS": address}, programs(tmp_path, *BALANCER))


def test_stop_seconds_must_cover_the_stop_of_all_programs(tmp_path: Path) -> None:
    path = programs(tmp_path, *SERVER)
    assert problems(path, DRAIN_SECONDS="90") == ["STOP_SECONDS"]
    assert problems(path, GRPC_GRACE_SECONDS="80") == ["STOP_SECONDS"]
    longest = {**GOOD, "DRAIN_SECONDS": "90", "GRPC_GRACE_SECONDS": "70s"}
    # The registrar, the server and the agent stop one after the other.
    found = check_variables({**longest, "STOP_SECONDS": "215"}, path)
    assert found == {"REGISTRAR_STOP_SECONDS": "110", "SERVER_STOP_SECONDS": "90"}
    with pytest.raises(ConfigError, match=r"STOP_SECONDS: must be at least 215, .* \(got 214\)"):
        check_variables({**longest, "STOP_SECONDS": "214"}, path)


def test_unread_variables_are_not_changed_and_blank_ones_are_unset(tmp_path: Path) -> None:
    blank = {"SEPARATOR": " ", "LB_LISTEN": "  ", "BIND_ADDRESS": ""}
    given = {**GOOD, **blank, "NGINX_UPDATE": "Reload", "LB_ACCESS_LOG": "OFF"}
    found = check_variables(given, programs(tmp_path, *BALANCER))
    changed = {"LB_LISTEN": "", "BIND_ADDRESS": "", "NGINX_UPDATE": "reload", "LB_ACCESS_LOG": "off"}
    assert {name: value for name, value in found.items() if not name.endswith("STOP_SECONDS")} == changed


@pytest.mark.parametrize(
    ("address", "fine"),
    [("10.0.0.1", True), ("127.0.0.1 ::1", True), ('{{ GetInterfaceIP "eth0" }}', True), ("eth0", False)],
)
def test_an_agents_address_has_consuls_form(tmp_path: Path, address: str, fine: bool) -> None:
    if fine:
        check_variables({**GOOD, "CONSUL_CLIENT": address}, programs(tmp_path, *SERVER))
    else:
        assert problems(tmp_path, *SERVER, CONSUL_CLIENT=address) == ["CONSUL_CLIENT"]


def test_the_output_is_shell_commands() -> None:
    assert format_exports({"B": "it's", "A": "a b", "C": ""}) == "export A='a b'\nexport B='it'\"'\"'s'\nunset C"
