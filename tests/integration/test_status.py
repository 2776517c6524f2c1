"""``status``, of the registrar and of local_stack: the catalogue's view and the balancer's, side by side."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from testbed.calls import say_hello
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.drivers import ROOT, LocalDriver
from tests.support.registered import Registration, running_server
from tests.support.scenarios import target, wait_for_replicas


@pytest.fixture(autouse=True)
def one_replica(stack: LocalDriver) -> None:
    wait_for_replicas(stack, 1)


def status(stack: LocalDriver) -> dict[str, Any]:
    return dict(json.loads(stack.local_stack("status", "--json")))


def registrar_status(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "registrar", "status", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_both_views_are_shown_and_agree(stack: LocalDriver) -> None:
    shown = stack.local_stack("status")
    heading, replica = shown.splitlines()[:2]
    assert heading.split() == ["APPLICATION", "REPLICA", "ADDRESS", "WEIGHT", "VERSION", "CHECK", "AGE", "BALANCER"]
    cells = replica.split()
    assert cells[0] == "hello_server"
    assert cells[3:6] == ["1", "-", "passing"]
    assert replica.endswith("serving")
    assert "protos.Ping" in shown
    assert "!" not in shown
    (found,) = status(stack)["replicas"]
    assert (found["check"], found["balancer"], found["difference"]) == ("passing", "serving", "")


def test_why_shows_all_steps_of_a_replica_that_serves(stack: LocalDriver) -> None:
    say_hello(target(stack))
    text = wait_for(
        lambda: stack.local_stack("status", "--why", "hello_server"),
        lambda shown: re.search(r"ok  last call      [0-2] s ago, OK\n", shown) is not None,
        10,
        "the call is seen",
    )
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == ["ok"] * 6
    assert lines[-1] == "  it gets its share of the calls"


def test_a_replica_that_fails_its_check_is_explained(stack: LocalDriver) -> None:
    address = stack.address(BALANCER)
    # The output of a check goes to the catalogue at once only when its status changes.
    check = {"TCP": f"{address}:7777", "Interval": "1s", "Timeout": "1s", "Status": "passing"}
    ill = Registration(stack=stack, address=address, app="ill", service="", more={"Check": check})
    with ill.registered(wait=False):
        shown = wait_for(
            lambda: stack.local_stack("status", "--why", "ill"),
            # The balancer has the change a moment after the catalogue.
            lambda text: "connection refused" in text and "it still gets" not in text,
            20,
            "the check has run",
        )
        assert "  NO  check          critical: " in shown
        assert shown.rstrip().endswith("it gets no calls because of: check")


def test_a_replica_that_the_balancer_refuses_is_explained_and_marked(stack: LocalDriver) -> None:
    with Registration(stack=stack, address="203.0.113.9", app="far", service="").registered(wait=False):
        shown = wait_for(
            lambda: stack.local_stack("status", "--why", "far"), lambda text: "PEER_CIDR" in text, 20, "it is refused"
        )
        assert "it gets no calls because of: rendered list" in shown
        marked, refused = [line for line in stack.local_stack("status").splitlines() if "203.0.113.9:7777" in line]
        assert marked.startswith("!")
        assert marked.endswith("the balancer does not have it")
        assert refused.startswith("! refused: far 203.0.113.9:7777: 203.0.113.9 is not in PEER_CIDR")


def test_a_replica_that_would_be_the_balancer_itself_is_refused(stack: LocalDriver) -> None:
    address = stack.address(BALANCER)
    more = {"Port": 5000}
    with Registration(stack=stack, address=address, app="loop", service="", more=more).registered(wait=False):
        expected = f"! refused: loop {address}:5000: port 5000 of {address} is the balancer's own"
        wait_for(lambda: stack.local_stack("status").splitlines(), lambda lines: expected in lines, 20, "it is refused")


def test_a_replica_that_is_ejected_is_marked(stack: LocalDriver) -> None:
    with running_server(stack, 41) as server:
        server.process.kill()
        found = wait_for(
            lambda: [one for one in status(stack)["replicas"] if one["application"] == "probe"],
            lambda replicas: replicas[0]["balancer"] == "ejected: refused",
            10,
            "the balancer has ejected it",
        )
        assert found[0]["difference"] == "the balancer has ejected it: refused"
        assert "NO  balancer" in stack.local_stack("status", "--why", "probe")


def test_an_unknown_name_is_reported_with_the_known_ones(stack: LocalDriver) -> None:
    done = registrar_status("--consul", f"127.0.0.1:{stack.consul_port}", "--why", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nothing with the tag grpc_server is called nobody; there is hello_server\n"


def test_without_a_balancer_the_catalogue_is_still_shown(stack: LocalDriver) -> None:
    done = registrar_status("--consul", f"127.0.0.1:{stack.consul_port}", "--balancer", "127.0.0.1:1")
    assert done.returncode == 0
    assert "hello_server-1" in done.stdout
    assert done.stdout.rstrip().endswith("! no balancer at 127.0.0.1:1: its view is missing")


def test_without_consul_it_is_one_line() -> None:
    done = registrar_status("--consul", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Consul at 127.0.0.1:1 is unavailable: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--consul", "--balancer"])
@pytest.mark.parametrize("address", ["nowhere", "host:", "host:0", "host:x", "a b:1"])
def test_an_address_of_another_form_is_a_usage_error(option: str, address: str) -> None:
    done = registrar_status(option, address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_the_balancers_own_container_has_it_too(stack: LocalDriver) -> None:
    shown = stack.execute(BALANCER, "python3", "-m", "registrar", "status")
    assert "serving" in shown
    assert "!" not in shown


@pytest.mark.parametrize("module", [["status"], ["registrar", "status"]])
def test_a_reader_that_ends_early_sees_no_traceback(stack: LocalDriver, module: list[str]) -> None:
    addresses = ["--consul", f"127.0.0.1:{stack.consul_port}", "--balancer", f"{stack.address(BALANCER)}:8080"]
    command = [sys.executable, "-m", *module, *addresses, "--watch"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(("   APPLICATION", "  "))
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
