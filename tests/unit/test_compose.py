"""What the stack without Docker reads from a compose file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from local_stack.compose import read
from local_stack.errors import LocalStackError
from local_stack.settings import ROOT
from local_stack.tools.catalogue import CONSUL_TEMPLATE_VERSION, CONSUL_VERSION

VERSIONS = {"CONSUL_VERSION": CONSUL_VERSION, "CONSUL_TEMPLATE_VERSION": CONSUL_TEMPLATE_VERSION}
DOCKERFILES = sorted((ROOT / "build/dockerfiles").iterdir())


def value(tmp_path: Path, text: str, **env: str) -> str:
    """What an environment variable of a service becomes."""
    file = tmp_path / "docker-compose.yaml"
    file.write_text(f"services: {{a: {{volumes: ['./build/config/consul:/x'], environment: {{V: '{text}'}}}}}}\n")
    return read(file, env)["a"].environment["V"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$SET", "yes"),
        ("${SET}", "yes"),
        ("${SET:-no}", "yes"),
        ("${SET-no}", "yes"),
        ("${UNSET:-no}", "no"),
        ("${UNSET-no}", "no"),
        ("${EMPTY:-no}", "no"),
        ("${UNSET}", ""),
        ("$UNSET", ""),
        ("$$SET", "$SET"),
        ("$${SET}", "${SET}"),
        ("a${SET}b$SET", "ayesbyes"),
        ("10 $ 5", "10 $ 5"),
    ],
)
def test_variables_are_composes(tmp_path: Path, text: str, expanded: str) -> None:
    assert value(tmp_path, text, SET="yes", EMPTY="") == expanded


def test_services_are_those_of_the_compose_file() -> None:
    services = read(ROOT / "docker-compose.yaml", {})
    assert list(services) == ["server-1", "server-2", "server-3", "consul-ui", "load-balancer", "hello_server"]
    assert [name for name, service in services.items() if service.scalable] == ["hello_server"]
    assert services["load-balancer"].published == {5000: 5000}
    assert services["consul-ui"].published == {8500: 8500}
    assert services["server-1"].components == ("consul", "supervisord")
    assert {"consul", "registrar", "grpc_server", "supervisord"} <= set(services["hello_server"].components)
    assert {"consul", "registrar", "nginx", "consul-template"} <= set(services["load-balancer"].components)
    assert services["server-1"].volumes == {"server-1": "/consul/data"}
    assert services["hello_server"].tmpfs == ("/run", "/tmp", "/consul/data", "/etc/nginx/conf.d")  # noqa: S108
    assert services["hello_server"].grace_seconds == 120


def test_published_port_comes_from_the_environment() -> None:
    services = read(ROOT / "docker-compose.yaml", {"LB_PUBLISHED_PORT": "5001"})
    assert services["load-balancer"].published == {5000: 5001}


def test_every_component_is_a_directory_of_the_configuration() -> None:
    for service in read(ROOT / "docker-compose.yaml", {}).values():
        for component in service.components:
            assert (ROOT / "build/config" / component).is_dir(), (service.name, component)


@pytest.mark.parametrize("text", ["", "services: [", "services: []", "a: 1", "services: {a: {image: busybox}}"])
def test_file_that_cannot_be_carried_out_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "docker-compose.yaml"
    file.write_text(text)
    with pytest.raises(LocalStackError):
        read(file, {})


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="can't be read"):
        read(tmp_path / "docker-compose.yaml", {})


def test_consuls_version_is_the_catalogues_in_the_compose_file() -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    assert set(re.findall(r"consul:(\d+\.\d+\.\d+\S*)", text)) == {CONSUL_VERSION}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_versions_are_the_catalogues_in_the_dockerfile(dockerfile: Path) -> None:
    found = dict(re.findall(r"^ARG (\w+_VERSION)=(\S+)$", dockerfile.read_text(), re.MULTILINE))
    assert "CONSUL_VERSION" in found
    assert found.items() <= VERSIONS.items()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_sent_to_the_engine(dockerfile: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE)
    sources = [source for line in copies for source in line.split()]
    assert sources
    for source in sources:
        assert {source, *map(str, Path(source).parents)} & sent, source
