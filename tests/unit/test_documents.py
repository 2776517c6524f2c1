"""The documents against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from balancer.config import BalancerConfig
from common.environment import ConfigError
from grpc_server.config import ServerConfig
from registrar.config import RegistrarConfig
from registrar.variables import Recorder

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented() -> set[str]:
    """The variables of the table."""
    return set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "variables.md").read_text(), re.MULTILINE))


def read_by_code() -> set[str]:
    """The variables that the programs, scripts, templates and the compose file read."""
    recorder = Recorder({})
    ServerConfig.from_env(recorder)
    BalancerConfig.from_env(recorder)
    with pytest.raises(ConfigError):
        RegistrarConfig.from_env(recorder)
    names = set(recorder.names)
    sources = [path for path in (ROOT / "build" / "config").rglob("*") if path.is_file()]
    for path in [*sources, ROOT / "docker-compose.yaml", ROOT / "secure.yaml"]:
        for groups in re.findall(r'\$\{([A-Z_]+)|envOrDefault "([A-Z_]+)"|getenv\("([A-Z_]+)"\)', path.read_text()):
            names |= set(filter(None, groups))
    return names


def test_every_variable_that_is_read_is_in_the_table_and_no_other() -> None:
    # supervisord sets the first for its programs, with-name the second for what it becomes.
    found = read_by_code() - {"SUPERVISOR_ENABLED", "CONTAINER_STDOUT"}
    # consul-template and consul read the first themselves; local_stack the second.
    assert documented() == found | {"CONSUL_HTTP_ADDR", "LOCAL_STACK_HOME"}


def test_every_path_of_the_structure_exists() -> None:
    structure = (ROOT / "docs" / "structure.md").read_text()
    names = re.findall(r"^ *([\w./-]+?/?) {2,}\S", structure, re.MULTILINE)
    names += re.findall(r"`((?:\w+/)+\w+\.\w+)`", structure)
    assert len(names) > 30
    places = [ROOT, ROOT / "build" / "config", ROOT / "build" / "config" / "nginx" / "etc" / "nginx"]
    for name in names:
        assert any((place / name).exists() for place in places), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_links_exists(document: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
        assert (document.parent / link).exists(), link
