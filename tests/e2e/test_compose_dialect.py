"""local_stack reads a compose file as ``docker-compose config`` of both major versions does."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_stack.compose import Service, read
from local_stack.errors import LocalStackError
from local_stack.interpolation import variables
from tests.support.drivers import ROOT, compose_commands
from tests.support.missing import missing

SHELL = {"SET": "yes", "EMPTY": "", "B": "of the shell"}
HEAD = "services:\n  a:\n    image: busybox\n    volumes: ['./build/config/consul:/x']\n"
# Both versions read these.
DOCUMENTS = {
    "variables": """
        environment:
          A: $SET ${SET} ${SET:-no} ${SET-no}
          B: ${UNSET:-no} ${UNSET-no} ${EMPTY:-no} ${EMPTY-no}.
          C: ${UNSET}.$UNSET.$$SET.$${SET}
          D: ${SET:?needed} ${EMPTY?needed}.
        """,
    "numbers and texts": """environment: {A: 5, B: -1, C: 1.5, D: "off", E: 'true', F: a b, G: ""}""",
    "a list": "environment: [A=1, 'B=x=y', 'C=', B2=$SET]",
    "names of the shell": "environment: {A: , B: null, C: ''}",
    "names of the shell in a list": "environment: [A, B]",
    "several lines": """
        environment:
          A: >-
            one
            two
          B: |
            one
            two
        """,
    "anchors": """
        environment: &all {A: one, B: two}
        labels: {<<: *all}
        """,
    "short ports": "ports: ['5000:5001', '5002:5003/tcp', '127.0.0.1:5004:5005']",
    "long ports": "ports: [{target: 5001, published: 5000, protocol: tcp, mode: host}]",
    "minutes": "stop_grace_period: 2m",
    "minutes and seconds": "stop_grace_period: 1m30s",
    "hours": "stop_grace_period: 1h2m3s",
    "milliseconds": "stop_grace_period: 500ms",
}
# Only version 2 knows these; version 1 takes a boolean for wrong.
DOCUMENTS_2 = {
    "booleans": "environment: {A: true, B: False, C: off, D: yes, E: on}",
    "replacements": "environment: {A: '${SET:+other}', B: '${EMPTY:+other}.', C: '${EMPTY+other}', D: '${UNSET+x}.'}",
    "nested": "environment: {A: '${UNSET:-${SET}}', B: '${UNSET:-${EMPTY:-a $SET b}}'}",
}
REFUSED = {
    "a variable that is required": "environment: {A: '${UNSET:?give it}'}",
    "an empty environment": "environment:",
    "an empty list of ports": "ports:",
    "an environment of another kind": "environment: 5",
    "an open brace": "environment: {A: '${SET'}",
    "an unknown key": "enviroment: {A: 1}",
    "no YAML": "environment: {A: [}",
}
# One version takes these: a port and a duration that it looks at later, a dollar sign as it stands.
REFUSED_BY_ONE = {
    "2": {"a port out of range": "ports: ['5000:70000']", "a duration": "stop_grace_period: soon"},
    "1": {"a dollar sign": "environment: {A: '10 $ 5'}"},
}
UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6}


def command_of(version: str) -> list[str]:
    """The command of a version; it needs no engine for this."""
    if version not in compose_commands():
        missing(f"Compose {version}.x is not here")
    return compose_commands()[version]


@pytest.fixture(scope="module", params=["1", "2"])
def compose(request: pytest.FixtureRequest) -> list[str]:
    """The command of each version."""
    return command_of(str(request.param))


def config(compose: list[str], file: Path) -> subprocess.CompletedProcess[str]:
    """``config`` of a file, with the variables of SHELL."""
    return subprocess.run(
        [*compose, "-f", str(file), "config"],
        env={"PATH": os.environ["PATH"], "HOME": str(file.parent), **SHELL},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed(compose: list[str], file: Path) -> dict[str, Any]:
    """The services of a file as ``config`` prints them."""
    done = config(compose, file)
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout)["services"])


def document(tmp_path: Path, text: str) -> Path:
    """A compose file with a service of these lines."""
    file = tmp_path / "docker-compose.yaml"
    file.write_text(HEAD + textwrap.indent(textwrap.dedent(text).strip("\n") + "\n", "    "))
    return file


def seconds(text: str) -> float:
    """A duration as Compose prints it."""
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|us|h|m|s)", text))


def published(given: Any) -> tuple[int, int]:
    """The container's port and the host's, in one of the forms that Compose prints."""
    if isinstance(given, dict):
        return int(given["target"]), int(given["published"])
    host, container = str(given).partition("/")[0].split(":")[-2:]
    return int(container), int(host)


def same(ours: Service, theirs: dict[str, Any]) -> None:
    """The two have read the same."""
    # A dollar sign of the result is written twice there, and a name that is not set stands there without a value.
    environment = {
        name: str(value).replace("$$", "$")
        for name, value in (theirs.get("environment") or {}).items()
        if value is not None
    }
    assert dict(ours.environment) == environment
    assert dict(ours.published) == dict(map(published, theirs.get("ports") or []))
    assert ours.grace_seconds == seconds(theirs.get("stop_grace_period") or "10s")


def is_read_alike(compose: list[str], file: Path, given: Mapping[str, str] = SHELL) -> None:
    """Both have read the same from a file."""
    same(read(file, given)["a"], printed(compose, file)["a"])


def is_refused(compose: list[str], file: Path) -> None:
    """Both refuse a file."""
    assert config(compose, file).returncode != 0
    with pytest.raises(LocalStackError):
        read(file, SHELL)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_both_versions_read_what_is_read_here(tmp_path: Path, compose: list[str], name: str) -> None:
    is_read_alike(compose, document(tmp_path, DOCUMENTS[name]))


@pytest.mark.parametrize("name", DOCUMENTS_2)
def test_version_2_reads_what_is_read_here(tmp_path: Path, name: str) -> None:
    is_read_alike(command_of("2"), document(tmp_path, DOCUMENTS_2[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_both_versions_refuse_what_is_refused_here(tmp_path: Path, compose: list[str], name: str) -> None:
    is_refused(compose, document(tmp_path, REFUSED[name]))


@pytest.mark.parametrize(("version", "name"), [(one, name) for one, texts in REFUSED_BY_ONE.items() for name in texts])
def test_one_version_refuses_what_is_refused_here(tmp_path: Path, version: str, name: str) -> None:
    is_refused(command_of(version), document(tmp_path, REFUSED_BY_ONE[version][name]))


@pytest.mark.parametrize(
    "text",
    ["A=1\nB='two words'\nexport C=3\nS=file\n", "A=1 \r\nB=2\r\n", "A=\n\n# B=2\n", "A=1\nB=${A}-${SET}\nC='$A'\n"],
)
def test_a_file_of_variables_is_read_alike(tmp_path: Path, compose: list[str], text: str) -> None:
    (tmp_path / ".env").write_bytes(text.encode())
    file = document(tmp_path, "environment: ['A=${A-none}', 'B=${B-none}', 'C=${C-none}', 'S=${SET}']")
    is_read_alike(compose, file, variables(tmp_path, SHELL))


def test_the_stacks_own_file_is_read_alike(compose: list[str]) -> None:
    theirs = printed(compose, ROOT / "docker-compose.yaml")
    ours = read(ROOT / "docker-compose.yaml", variables(ROOT, SHELL))
    # Version 1 shows those of a profile too.
    assert set(ours) == {name for name, service in theirs.items() if not service.get("profiles")}
    for name, service in ours.items():
        same(service, theirs[name])
