"""The addresses and ports of a stack."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from local_stack.compose import read
from local_stack.errors import LocalStackError
from local_stack.settings import ROOT, Directory, Settings


@pytest.mark.parametrize("base", ["127.16.0.0", "127.0.0.0", "127.255.239.0"])
def test_addresses_of_all_services_and_100_replicas_are_distinct_loopback_ones(base: str) -> None:
    services = read(ROOT / "docker-compose.yaml", {})
    settings = Settings(address_base=base)
    found = [
        settings.address(services, name, number)
        for name, service in services.items()
        for number in range(1, 101 if service.scalable else 2)
    ]
    assert len(found) == len(set(found)) == 105
    assert all(IPv4Address(address) in IPv4Network("127.0.0.0/8") for address in found)


@pytest.mark.parametrize(
    "base", ["", "x", "127.1", "::1", "10.0.0.0", "126.255.255.0", "128.0.0.0", "127.16.0.1", "127.255.240.0"]
)
def test_address_base_outside_the_loopback_network_is_refused(base: str) -> None:
    with pytest.raises(LocalStackError, match="--address-base"):
        Settings(address_base=base)


@pytest.mark.parametrize(
    ("ports", "reason"),
    [
        *(
            ({name: port}, f"{flag}: must be an integer from 1 to 65535 .got {port}")
            for name, flag in (("port", "--port"), ("consul_port", "--consul-port"))
            for port in (-1, 0, 65536)
        ),
        ({"port": 5000, "consul_port": 5000}, "both 5000"),
    ],
)
def test_port_outside_1_to_65535_or_used_twice_is_refused(ports: dict[str, int], reason: str) -> None:
    with pytest.raises(LocalStackError, match=reason):
        Settings(**ports)  # type: ignore[arg-type]


def test_settings_are_found_again(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "stack")
    assert directory.load() == Settings()
    settings = Settings(address_base="127.17.0.0", port=5001, consul_port=8501)
    directory.save(settings)
    assert directory.load() == settings


@pytest.mark.parametrize("text", ["", "{", "[]", '{"other": 1}'])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(LocalStackError, match="can't be read"):
        Directory(tmp_path).load()
