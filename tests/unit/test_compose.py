"""The stack without Docker reads a compose file as Compose does."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from local_stack.compose import Service, image_parts, read
from local_stack.errors import LocalStackError
from local_stack.interpolation import variables
from local_stack.settings import ROOT
from local_stack.tools.tool import CONSUL_TEMPLATE_VERSION, CONSUL_VERSION

VERSIONS = {"CONSUL_VERSION": CONSUL_VERSION, "CONSUL_TEMPLATE_VERSION": CONSUL_TEMPLATE_VERSION}
# Dockerfile.consul copies configuration only.
DOCKERFILES = sorted(path for path in (ROOT / "build/dockerfiles").iterdir() if "/install " in path.read_text())


SERVICE = "services:\n  a:\n    volumes: ['./build/config/consul:/x']\n"
DURATIONS = {"90s": 90, "2m": 120, "1m30s": 90, "1h": 3600, "1h2m3s": 3723, "1.5s": 1.5, "500ms": 0.5}
SCALAR = "environment: {V: '%s'}"


def read_text(directory: Path, text: str, env: Mapping[str, str]) -> dict[str, Service]:
    """Reads the services of a compose file with this text."""
    file = directory / "docker-compose.yaml"
    file.write_text(text)
    return read(file, env)


def service(directory: Path, text: str, **env: str) -> Service:
    """Reads a service with some lines more, from line 4 on."""
    return read_text(directory, SERVICE + textwrap.indent(text, "    "), env)["a"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        *(
            (text, "yes")
            for text in ("$SET", "${SET}", "${SET:-no}", "${SET-no}", "${SET:?needed}", "${UNSET:-${SET}}")
        ),
        *((text, "no") for text in ("${UNSET:-no}", "${UNSET-no}", "${EMPTY:-no}")),
        *((text, "") for text in ("${EMPTY-no}", "${UNSET}", "$UNSET", "${EMPTY?needed}")),
        *((text, "other") for text in ("${SET:+other}", "${EMPTY+other}")),
        *((text, "") for text in ("${EMPTY:+other}", "${UNSET+other}")),
        ("$$SET", "$SET"),
        ("$${SET}", "${SET}"),
        ("a${SET}b$SET", "ayesbyes"),
        ("${UNSET:-${EMPTY:-a $SET b}}", "a yes b"),
        ("${UNSET:-a$$b}", "a$b"),
    ],
)
def test_variables_are_composes(tmp_path: Path, text: str, expanded: str) -> None:
    assert service(tmp_path, SCALAR % text, SET="yes", EMPTY="").environment == {"V": expanded}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10 $ 5", "a \\$ by itself is written \\$\\$"),
        ("${", "no variable name"),
        ("${SET", "followed by neither"),
        ("${SET:-no", "a brace is not closed"),
        ("${SET!no}", "followed by neither"),
        ("${UNSET:?give it}", "the variable UNSET is required: give it"),
        ("${EMPTY:?}", "the variable EMPTY is required: it is not set"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(LocalStackError, match=f"docker-compose.yaml, line 4: service a: .*{reason}"):
        service(tmp_path, SCALAR % text, SET="yes", EMPTY="")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB='two words'\n# C=3\nexport D=4\n", {"A": "1", "B": "two words", "D": "4", "S": "shell"}),
        ("A=1  \r\nB=2\r\n", {"A": "1", "B": "2", "S": "shell"}),
        ("S=file\nA=", {"A": "", "S": "shell"}),
        ("A=1\nB=$A-${S}-${C:-x}\nC='$A'\nS=2", {"A": "1", "B": "1-shell-x", "C": "$A", "S": "shell"}),
        ("", {"S": "shell"}),
    ],
)
def test_variables_of_a_file_are_read_and_the_shells_win(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    (tmp_path / ".env").write_text(text)
    assert variables(tmp_path, {"S": "shell"}) == found


def test_a_line_of_the_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n=2\n")
    with pytest.raises(LocalStackError, match=r"\.env, line 2: '=2' is not of the form NAME=VALUE"):
        variables(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "attribute", "found"),
    [
        ("environment: {A: off, B: on, C: yes, D: no}", "environment", {"A": "off", "B": "on", "C": "yes", "D": "no"}),
        ("environment: {A: true, B: False}", "environment", {"A": "true", "B": "false"}),
        (
            "environment: {A: 5, B: -1, C: 1.5, D: 22:22}",
            "environment",
            {"A": "5", "B": "-1", "C": "1.5", "D": "22:22"},
        ),
        ("environment: [A=1, 'B=x=y', 'C=']", "environment", {"A": "1", "B": "x=y", "C": ""}),
        ("environment: {A: , B: null, C: ''}", "environment", {"B": "of the shell", "C": ""}),
        ("environment: [A, B]", "environment", {"B": "of the shell"}),
        ("ports: ['5000:5001']", "published", {5001: 5000}),
        ("ports: ['5000:5001/tcp']", "published", {5001: 5000}),
        ("ports: ['127.0.0.1:5000:5001', '[::1]:6000:6001']", "published", {5001: 5000, 6001: 6000}),
        ("ports: [{target: 5001, published: '5000', protocol: tcp, mode: host}]", "published", {5001: 5000}),
        ("ports: [{target: 5001, published: 5000}]", "published", {5001: 5000}),
        ("ports: []", "published", {}),
        *((f"stop_grace_period: {text}", "grace_seconds", seconds) for text, seconds in DURATIONS.items()),
    ],
)
def test_a_key_is_read_as_by_compose(tmp_path: Path, text: str, attribute: str, found: object) -> None:
    assert getattr(service(tmp_path, text, B="of the shell"), attribute) == found


def test_volumes_in_long_form_are_read(tmp_path: Path) -> None:
    text = "services: {a: {volumes: [{type: bind, source: ./build/config/consul, target: /x}, 'data:/data:ro']}}"
    found = read_text(tmp_path, text, {})["a"]
    assert (found.components, found.volumes) == (("consul", "supervisord"), {"data": "/data"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ports: ['5000']", "line 4: .*must be one host port and one container port .got '5000'"),
        ("ports: [5000]", "line 4: .*must be one host port"),
        ("ports: ['5000-5005:5000-5005']", "must be one host port"),
        ("ports: ['5000:5001/udp']", "udp can't be published"),
        ("ports: ['5000:70000']", "must be integers from 1 to 65535"),
        ("init: true\nenv_file: x", "line 5: .*env_file is not known"),
        ("command: x", "command is not known"),
        ("environment: 5", "must be a mapping or a list of NAME=VALUE .got 5"),
        ("environment:", "line 4: .*must be a mapping or a list of NAME=VALUE .got None"),
        ("ports:", "line 4: .*ports: must be a list .got None"),
        ("environment: {A: [1]}", "A: must be a string"),
        ("environment: {A: 1.0}", "A: must be in quotes.*got 1.0"),
        ("environment: {A: 0755}", "A: must be in quotes.*got 0755"),
        ("environment: {A: 1, A: 2}", "A is defined twice"),
        ("stop_grace_period: soon", "must be a duration.*got 'soon'"),
        ("tmpfs: {a: 1}", "tmpfs: must be a list"),
        ("build: nowhere", "nowhere/Dockerfile"),
    ],
)
def test_a_key_or_value_that_is_not_understood_is_refused_by_name_and_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(LocalStackError, match=f"docker-compose.yaml, line .*{reason}|{reason}"):
        service(tmp_path, text)


def test_services_are_those_of_the_compose_file() -> None:
    services = read(ROOT / "docker-compose.yaml", {"LB_PUBLISHED_PORT": "5001"})
    assert services["load-balancer"].published == {5000: 5001}
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
    for service in services.values():
        for component in service.components:
            assert (ROOT / "build/config" / component).is_dir(), (service.name, component)


@pytest.mark.parametrize(
    "text", ["", "services: [", "services: []", "a: 1", "services: {a: {image: busybox}}", "include: x\nservices: {}"]
)
def test_file_that_cannot_be_carried_out_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalStackError):
        read_text(tmp_path, text, {})


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


def test_the_prometheus_of_the_monitoring_profile_is_the_one_whose_discovery_is_tried() -> None:
    image = re.search(r"prom/prometheus:v3\.(\d+)\.(\d+)\n", (ROOT / "docker-compose.yaml").read_text())
    assert image
    # As a Go module version 3.5.0 is 0.305.0.
    module = f"github.com/prometheus/prometheus v0.3{int(image[1]):02}.{image[2]}\n"
    assert module in (ROOT / "tests/foreign/prometheus/go.mod").read_text()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_sent_to_the_engine(dockerfile: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE)
    sources = {source for line in copies for source in line.split()} - {"."}
    name = dockerfile.relative_to(ROOT)
    parts = image_parts(ROOT, name)
    assert f"/src/build/install parts {name}" in dockerfile.read_text()
    sources |= {f"build/config/{part}" for part in parts} | {part for part in parts if (ROOT / part).is_dir()}
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert {source, *map(str, Path(source).parents)} & sent, source
