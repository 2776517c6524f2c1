"""The files of examples/ against what they are copies of, and against the programs that read them."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.names import BALANCED_TAG
from local_stack.settings import ROOT
from registrar.checks import GrpcCheck
from registrar.config import RegistrarConfig

EXAMPLES = ROOT / "examples"
REPLICA = {"file": "examples/replica.yaml", "service": "replica"}
# A service of each override, and its directory where it has one of its own.
SERVICES = [("python", "numbers"), ("node", "words"), ("canary", "hello_server_canary")]


def services(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text())["services"])


def test_the_common_container_is_that_of_hello_server() -> None:
    original = services(ROOT / "docker-compose.yaml")["hello_server"]
    common = services(EXAMPLES / "replica.yaml")["replica"]
    # A path in it would be from its own directory.
    own = {"image", "build", "environment", "depends_on", "volumes"}
    assert {key: common[key] for key in common if key != "environment"} == {
        key: original[key] for key in original if key not in own
    }
    assert common["environment"].items() <= original["environment"].items()


def test_what_runs_is_not_changed_by_another_file_laid_over() -> None:
    # Compose 1.29 sorts volumes by their paths in the container then, and starts again what differs.
    for name, service in services(ROOT / "docker-compose.yaml").items():
        paths = [volume.split(":")[1] for volume in service.get("volumes", [])]
        assert paths == sorted(paths), name


@pytest.mark.parametrize(("override", "service"), SERVICES)
def test_the_registrar_takes_what_an_override_says(override: str, service: str) -> None:
    found = services(EXAMPLES / f"{override}.yaml")[service]
    assert found["extends"] == REPLICA
    original = services(ROOT / "docker-compose.yaml")["hello_server"]
    assert [found[key] for key in ("depends_on", "volumes")] == [original[key] for key in ("depends_on", "volumes")]
    common = services(EXAMPLES / "replica.yaml")["replica"]["environment"]
    own = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in found["environment"].items()}
    config = RegistrarConfig.from_env({**common, **own})
    assert BALANCED_TAG in config.tags
    assert isinstance(config.check, GrpcCheck)
    package, _, name = config.check.service.rpartition(".")
    protos = [*EXAMPLES.rglob("*.proto"), ROOT / "protos/api.proto"]
    assert any(
        f"package {package};" in proto.read_text() and f"service {name} " in proto.read_text() for proto in protos
    )


def test_a_canary_is_of_the_same_application_and_has_its_dockerfile() -> None:
    original = services(ROOT / "docker-compose.yaml")["hello_server"]
    canary = services(EXAMPLES / "canary.yaml")["hello_server_canary"]
    assert canary["environment"]["APP_NAME"] == original["environment"]["APP_NAME"]
    assert canary["build"] == original["build"]
    assert canary["image"] != original["image"]


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.conf")), ids=lambda path: path.name)
def test_a_server_is_started_and_stopped_as_the_example_server_is(file: Path) -> None:
    def settings(path: Path) -> dict[str, str]:
        parser = configparser.RawConfigParser()
        parser.read(path)
        (section,) = parser.sections()
        return dict(parser[section])

    original = settings(ROOT / "build/config/grpc_server/etc/supervisor/conf.d/grpc_server.conf")
    # For its workers, which these servers don't have.
    del original["killasgroup"]
    found = settings(file)
    assert found.pop("command").startswith(f"with-name {file.stem} ")
    del original["command"]
    assert found == original


@pytest.mark.parametrize("proto", sorted(EXAMPLES.rglob("*.proto")), ids=lambda path: path.name)
def test_the_proto_compiles(proto: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", f"--python_out={tmp_path}", str(proto)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_server_in_node_js_parses() -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("no node here; the image has one")
    done = subprocess.run([node, "--check", EXAMPLES / "node/server.js"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_that_is_named_exists() -> None:
    texts = [(EXAMPLES / "README.md").read_text(), *(path.read_text() for path in EXAMPLES.glob("*.yaml"))]
    names = set(re.findall(r"(?:-f |<|build )((?:examples|build)/[\w./-]+|docker-compose\.yaml)", "\n".join(texts)))
    assert {"examples/python.yaml", "examples/node.yaml", "examples/canary.yaml", "examples/weigh.py"} <= names
    for name in names:
        assert (ROOT / name).exists(), name
