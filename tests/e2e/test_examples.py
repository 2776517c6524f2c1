"""The examples in containers, started and called as examples/README.md says."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testbed.calls import answers, open_channel, say_hello
from testbed.wait import wait_for
from tests.e2e.test_compose import compose_stack
from tests.support.drivers import ROOT, ComposeDriver, ConsulApi, run
from tests.support.missing import missing
from tests.support.scenarios import PATIENCE_SECONDS, calls_going_on, target, wait_for_replicas

pytestmark = pytest.mark.timeout(900)

PYTHON, NODE, CANARY = "examples/python.yaml", "examples/node.yaml", "examples/canary.yaml"
PORT = 25100
NUMBERS, WORDS = "examples.numbers.v1.Numbers", "examples.words.v1.Words"
# Requests as they are on the wire; the tests have no modules generated from the examples' protos.
NINE, ABC = struct.pack("<Bd", 0x09, 9), b"\x0a\x03abc"


def build_base() -> None:
    """The image that the examples' images are built on."""
    base = os.environ.get("BASE_IMAGE")
    arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    run(["docker", "build", "-t", "base", "-f", "build/dockerfiles/Dockerfile", *arguments, "."], timeout=900)


@pytest.fixture(scope="class")
def stack_by_compose_2(engine: dict[str, list[str]]) -> Iterator[ComposeDriver]:
    build_base()
    yield from compose_stack(engine, "2", "glbexamples", [PYTHON, NODE, CANARY], LB_EXTRA="xds", XDS_PORT="18000")


def tried_call(stack: ComposeDriver, application: str, method: str, data: object) -> list[dict[str, Any]]:
    """Returns the output of the client for a call through the balancer; empty while that fails."""
    command = [sys.executable, "-m", "grpc_client", "--port", str(stack.port), "--application", application]
    try:
        lines = run([*command, "--call", method, "--data", json.dumps(data)]).splitlines()
    except AssertionError:
        return []
    return [json.loads(line) for line in lines]


def call(stack: ComposeDriver, application: str, method: str, data: object) -> list[object]:
    """Returns the values of the answers of a call through the balancer; all are of the application's replica."""
    look = partial(tried_call, stack, application, method, data)
    found = wait_for(look, bool, PATIENCE_SECONDS, f"{method} is answered")
    assert {answer.pop("replica") for answer in found} == {stack.execute(application, "hostname").strip()}
    return [value for answer in found for value in answer.values()]


@contextmanager
def calls_of(stack: ComposeDriver, path: str, message: bytes) -> Iterator[Counter[str]]:
    """Calls that method in the background; afterwards the counter has the statuses."""
    with open_channel(target(stack)) as channel:
        method = channel.unary_unary(path)

        def one() -> int:
            method(message, timeout=10)
            return 1

        with calls_going_on(stack, one) as seen:
            yield seen


def scaled_without_a_lost_call(stack: ComposeDriver, application: str, path: str, message: bytes) -> None:
    """From one replica to two and back; what stops is deregistered and drained before its server ends."""
    with calls_of(stack, path, message) as seen:
        stack.compose("up", "-d", "--no-recreate", "--scale", f"{application}=2", application)
        api = ConsulApi(stack)
        passing = partial(api.get, f"/v1/health/service/{application}?passing=true")
        first, second = wait_for(passing, lambda found: len(found) == 2, PATIENCE_SECONDS, "two replicas")
        assert first["Service"]["Meta"]["grpc_services"] == second["Service"]["Meta"]["grpc_services"]
        stack.stop(application)
        lines = "\n".join(stack.logs(application))
        wait_for(passing, lambda found: len(found) == 1, PATIENCE_SECONDS, "one replica")
    assert set(seen) == {"OK"}, seen
    # In this order, with other lines between.
    registrar, own = "\nregistrar \\| .*", f"\n{application} \\| .*"
    pattern = f"{registrar}deregistered .*{registrar}drained.*{own}stopping.*{own}stopped"
    assert re.search(pattern, lines, re.DOTALL), lines


def numbers_are_answered(stack: ComposeDriver) -> None:
    """Every method of the server in Python, each of another kind, and Ping beside it."""
    some = [{"value": value} for value in (1, 2, 6)]
    assert call(stack, "numbers", f"{NUMBERS}/Square", {"value": 3}) == [9]
    assert call(stack, "numbers", f"{NUMBERS}/Count", {"value": 3}) == [1, 2, 3]
    assert call(stack, "numbers", f"{NUMBERS}/Sum", some) == [9]
    assert call(stack, "numbers", f"{NUMBERS}/Average", some) == [1, 1.5, 3]
    assert say_hello(target(stack))


def typed(title: str) -> tuple[list[str], list[str]]:
    """Returns the commands of a section of README.md, and their output."""
    (section,) = re.findall(rf"^## {title}\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    commands, answers_, end = [], [], ""
    for line in "\n".join(re.findall(r"```console\n(.*?)```", section, re.DOTALL)).splitlines():
        if end:
            commands.append(line)
            end = "" if line == end else end
        elif line.startswith("$ "):
            commands.append(line.removeprefix("$ "))
            heredoc = re.search(r"<<'(\w+)'$", line)
            end = heredoc[1] if heredoc else ""
        elif line:
            answers_.append(line)
    return commands, answers_


# A person may call before the replica has started.
AGAIN = """
python() {
    for _ in $(seq 60); do
        if command python "$@"; then return; fi
        sleep 1
    done
    return 1
}
"""


def test_five_minutes_are_as_the_readme_says(engine: dict[str, list[str]], tmp_path: Path) -> None:
    if "1" not in engine:
        missing("Compose 1.x is not here")
    files = run(["git", "ls-files"]).splitlines()
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    commands, expected = typed("Your own service in five minutes")
    base = os.environ.get("BASE_IMAGE")
    script = "\n".join(commands).replace("--port 5000", f"--port {PORT}")
    if base:
        script = script.replace("docker build ", f"docker build --build-arg BASE_IMAGE={base} ")
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COMPOSE_PROJECT_NAME": "glbminutes",
        "LB_PUBLISHED_PORT": str(PORT),
        "CONSUL_PUBLISHED_PORT": str(PORT + 1),
    }
    try:
        done = subprocess.run(
            ["bash", "-ec", AGAIN + script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        down = ["docker-compose", "-f", "docker-compose.yaml", "-f", "greeter.yaml", "down", "-v", "--rmi", "local"]
        subprocess.run(down, cwd=tmp_path, env=env, capture_output=True, check=False)
    answers_ = [line for line in done.stdout.splitlines() if line.startswith('{"value"')]
    hexadecimal = re.compile(r'"[0-9a-f]{12}"')
    assert [hexadecimal.sub("", line) for line in answers_] == [hexadecimal.sub("", line) for line in expected]
    assert len(expected) == 2


class TestCompose2:
    """Compose 2.x: all examples together."""

    def test_a_server_in_python_is_called_beside_hello_server(self, stack_by_compose_2: ComposeDriver) -> None:
        numbers_are_answered(stack_by_compose_2)

    @pytest.mark.parametrize("name", ["numbers", NUMBERS])
    def test_a_server_in_python_is_called_without_a_proxy(self, stack_by_compose_2: ComposeDriver, name: str) -> None:
        stack = stack_by_compose_2
        command = ["python3", "-m", "balancer", "bootstrap", "load-balancer.service.consul:18000"]
        file = f"GRPC_XDS_BOOTSTRAP_CONFIG={stack.execute('load-balancer', *command)}"
        call = ["numbers", "python3", "/opt/numbers/client.py", f"xds:///{name}", "3"]
        assert stack.compose("exec", "-T", "-e", file, *call) == "9.0\n"

    def test_a_server_in_python_is_scaled_without_a_lost_call(self, stack_by_compose_2: ComposeDriver) -> None:
        scaled_without_a_lost_call(stack_by_compose_2, "numbers", f"/{NUMBERS}/Square", NINE)

    def test_a_server_in_node_js_is_called_beside_hello_server(self, stack_by_compose_2: ComposeDriver) -> None:
        assert call(stack_by_compose_2, "words", f"{WORDS}/Reverse", {"text": "abc"}) == ["cba"]
        assert call(stack_by_compose_2, "words", f"{WORDS}/Split", {"text": "one two"}) == ["one", "two"]
        assert say_hello(target(stack_by_compose_2))

    def test_a_server_in_node_js_is_scaled_without_a_lost_call(self, stack_by_compose_2: ComposeDriver) -> None:
        scaled_without_a_lost_call(stack_by_compose_2, "words", f"/{WORDS}/Reverse", ABC)

    def test_a_canarys_share_is_its_weight_which_changes_at_run_time(self, stack_by_compose_2: ComposeDriver) -> None:
        stack = stack_by_compose_2
        wait_for_replicas(stack, 2)
        canary = stack.execute("hello_server_canary", "hostname").strip()
        found = ConsulApi(stack).get("/v1/catalog/service/hello_server")
        versions = {one["ServiceMeta"]["version"]: one["ServiceWeights"]["Passing"] for one in found}
        assert versions == {"1": 90, "2": 10}
        # Few at once: a replica that has more than its share in flight for a moment gets fewer calls, and should.
        share = partial(answers, target(stack), 200, concurrency=4)
        assert 16 <= share()[canary] <= 24
        with calls_going_on(stack) as seen:
            program = (ROOT / "examples/weigh.py").read_text()
            said = stack.compose("exec", "-T", "hello_server_canary", "python3", "-", "90", text=program)
            assert said == f"hello_server-{canary}-7777: weight 10, now 90\n"
            wait_for(lambda: share()[canary], lambda count: 90 <= count <= 110, 20, "half of the calls")
        assert set(seen) == {"OK"}, seen
