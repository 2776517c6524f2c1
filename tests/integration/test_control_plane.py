"""The control plane and nginx under what anybody can do to them, with real replicas and what a test renders."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from balancer.registration import MAX_REPLICAS
from testbed.calls import answers, open_channel, status, wait_for_answers
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.control_plane import Balancer, ControlPlane, line
from tests.support.drivers import ROOT, LocalDriver
from tests.support.local import SLOT
from tests.support.registered import probe_server
from tests.support.server import SERVICE
from tests.support.server_process import HEALTH, NETWORK, PORT, ServerProcess, dripping

Start = Callable[..., Balancer]
Servers = list[ServerProcess]
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Three of them."""
    with ExitStack() as leave:
        found = [ServerProcess(f"server-{number}", f"{NETWORK}.1.{number}") for number in (1, 2, 3)]
        yield [leave.enter_context(one) for one in found]


@pytest.fixture
def start(processes: Processes, tools: None) -> Iterator[Start]:  # noqa: ARG001
    """Starts a balancer with some variables."""
    with ExitStack() as leave:

        def make(environment: dict[str, str] | None = None, *, open_files: int = 0) -> Balancer:
            return leave.enter_context(Balancer(processes, 21000 + 4 * SLOT, environment, open_files=open_files))

        yield make


@pytest.fixture
def consul(stack: LocalDriver) -> dict[str, str]:
    """The variables for the complete catalogue of the shared stack."""
    return {"CONSUL_ADDRESS": "127.0.0.1", "CONSUL_PORT": str(stack.consul_port)}


def serve(one: Balancer, servers: Servers, *more: list[Any], seconds: float = 10) -> None:
    """Renders the servers and more, and waits until nginx has the servers, serving, and no other server."""
    one.control_plane.render([*(server.line() for server in servers), *more])
    wanted = {server.address for server in servers}
    others = {str(entry[1]) for entry in more}
    wait_for(
        lambda: {address for address, state in one.states().items() if state == "serving"} - others,
        lambda found: found == wanted,
        seconds,
        "nginx has what is rendered",
    )


def many(count: int, port: int) -> list[list[Any]]:
    """Makes registrations of another application at loopback addresses of their own, each with a health service."""
    crowd = {**HEALTH, "app": "crowd", "grpc_services": "shop.Crowd"}
    return [line(f"{NETWORK}.{10 + number // 250}.{1 + number % 250}", port, **crowd) for number in range(count)]


def test_registrations_that_drip_stop_no_update(start: Start, servers: Servers, consul: dict[str, str]) -> None:
    one = start(consul)
    with dripping() as port:
        drips = many(1100, port)
        serve(one, servers[:1], *drips)
        # The probes of all of them are under way.
        wait_for(lambda: Counter(one.states().values())["ejected: timeout"], lambda count: count > 100, 20, "it drips")
        for wanted in (servers, servers[:2], servers[1:], servers):
            serve(one, wanted, *drips, seconds=2)
        assert set(answers(one.target, 60, 4)) == {server.name for server in servers}


def test_addresses_where_nobody_listens_delay_the_return_of_no_replica(start: Start, servers: Servers) -> None:
    one = start()
    dead = many(150, 1)
    serve(one, servers, *dead)
    wait_for(lambda: Counter(one.states().values())["ejected: refused"], lambda count: count == 150, 20, "all are dead")
    for server in servers:
        server.kill()
    wait_for(lambda: Counter(one.states().values())["ejected: refused"], lambda count: count == 153, 5, "these too")
    for server in servers:
        server.start()
    back = time.monotonic()
    wait_for(lambda: Counter(one.states().values())["serving"], lambda count: count == 3, 10, "they are back")
    assert time.monotonic() - back < 2
    assert set(answers(one.target, 60, 4)) == {server.name for server in servers}


def test_calls_that_never_end_take_no_connection_that_an_update_needs(
    start: Start, servers: Servers, consul: dict[str, str]
) -> None:
    one = start(consul, open_files=600)
    address = f"{NETWORK}.2.1"
    with probe_server(address), ExitStack() as leave:
        hanging = line(address, PORT, app="probe", grpc_services=SERVICE)
        one.control_plane.render([hanging])
        wait_for(one.states, lambda found: found == {address: "serving"}, 10, "it is served")
        # Each call on a connection of its own, until the workers take no more.
        refused: list[grpc.RpcError] = []
        for _ in range(500):
            channel = leave.enter_context(open_channel(one.target))
            call = channel.unary_unary(f"/{SERVICE}/Hang").future(b"", timeout=120)
            call.add_done_callback(lambda ended: refused.append(ended.exception()))
        wait_for(lambda: len(refused), lambda count: count > 20, 30, "the limit is reached")
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {error.details() for error in refused} == {"too many calls at once at this balancer"}
        for wanted in (servers, servers[:1], servers):
            one.control_plane.render([hanging, *(server.line(app="ping") for server in wanted)])
            addresses = {address, *(server.address for server in wanted)}
            wait_for(lambda: set(one.states()), partial(eq, addresses), 2, "nginx has the update")
    wait_for(lambda: status(one.target)[0], lambda code: code == "OK", 10, "calls are answered again")


def test_small_weights_are_shares_while_another_application_changes(start: Start, servers: Servers) -> None:
    one = start()
    heavy, light, other = servers
    fleet = [heavy.line(weight=99), light.line()]
    ended = threading.Event()

    def churn() -> None:
        while not ended.wait(0.5):
            for more in ([other.line(app="other", grpc_services="shop.Orders")], []):
                one.control_plane.render([*fleet, *more])
                ended.wait(0.5)

    one.control_plane.render(fleet)
    wait_for(lambda: len(one.states()), lambda count: count == 2, 10, "both are served")
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with open_channel(one.target) as channel:
            call: Any = channel.unary_unary("/protos.Ping/SayHello")
            seen: Counter[bool] = Counter()
            begin = time.monotonic()
            for number in range(800):
                time.sleep(max(0.0, begin + number / 40 - time.monotonic()))
                seen[light.name.encode() in call(b"\n\5hello", timeout=5)] += 1
    finally:
        ended.set()
        thread.join()
    assert 5 <= seen[True] <= 11, seen


def test_nginx_goes_on_without_a_control_plane_which_picks_up_where_it_was(
    start: Start, servers: Servers, consul: dict[str, str]
) -> None:
    one = start(consul)
    dead = line(f"{NETWORK}.3.1", 1, **HEALTH)
    serve(one, servers, dead)
    wait_for(one.states, lambda found: found[dead[1]] == "ejected: refused", 10, "it is ejected")
    # nginx has a document before the disk has it.
    wait_for(one.control_plane.snapshot, lambda kept: kept["version"] == one.state()["version"], 5, "the disk has it")
    before, names = one.states(), {server.name for server in servers}
    for ends in (signal.SIGSTOP, signal.SIGKILL):
        one.control_plane.process.send_signal(ends)
        assert set(answers(one.target, 60, 4)) == names
        assert one.states() == before
    one.control_plane.process.wait()
    # Consul has changed meanwhile: the list is read before anything else.
    one.control_plane.render([servers[0].line(), servers[1].line(), dead])
    version = one.state()["version"]
    one.control_plane.start()
    wait_for(lambda: one.state()["version"], lambda now: now != version, 5, "it has published")
    wait_for(lambda: set(one.states()), lambda found: servers[2].address not in found, 5, "the one that left is gone")
    assert one.control_plane.states()[dead[1]] == "ejected: refused"
    assert "restored" not in one.control_plane.log()
    assert set(answers(one.target, 60, 4)) == names - {servers[2].name}


def test_an_nginx_that_starts_serves_before_a_control_plane_is_there(start: Start, servers: Servers) -> None:
    one = start()
    serve(one, servers)
    wait_for(one.control_plane.snapshot, lambda kept: len(kept["replicas"]) == 3, 5, "the snapshot is there")
    one.control_plane.kill()
    one.nginx.restart()
    wait_for_answers(one.target, 1, 10)
    assert set(answers(one.target, 60, 4)) == {server.name for server in servers}
    # And one that has lost its snapshot is given the document again.
    one.control_plane.start()
    one.nginx.restart(snapshot=False)
    wait_for_answers(one.target, 1, 10)


@pytest.mark.skipif(not LIBFAKETIME.exists(), reason="libfaketime is not installed: apt-get install faketime")
def test_a_wall_clock_that_is_set_changes_nothing(start: Start, servers: Servers, tmp_path: Path) -> None:
    offset = tmp_path / "offset"

    def step(text: str) -> None:
        new = offset.with_suffix(".new")
        new.write_text(text)
        new.rename(offset)

    step("+0")
    one = start(
        {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
    )
    serve(one, servers)
    names = {server.name for server in servers}
    for text in ("+1h", "-1h", "+0"):
        step(text)
        victim = servers[0]
        victim.kill()
        # Some calls meet the dead one: nginx ejects it too.
        assert set(answers(one.target, 30, 4)) == names - {victim.name}
        victim.start()
        began = time.monotonic()
        wait_for(lambda: set(answers(one.target, 30, 4)), lambda seen: seen == names, 5, f"it is back at {text}")
        assert time.monotonic() - began < 2.5
        step("+30m" if text == "+1h" else "+0")
        assert set(answers(one.target, 60, 4)) == names
    updated = one.state()["updated"]
    step("+1h")
    serve(one, servers, line(f"{NETWORK}.3.1", 1, **HEALTH))
    wait_for(lambda: one.state()["updated"] - updated, lambda seconds: seconds > 3000, 5, "the control plane's was set")
    wait_for(lambda: one.date() - time.time(), lambda seconds: seconds > 3000, 5, "nginx's was set")


def test_more_registrations_than_there_is_room_for_are_refused_by_name(
    start: Start, servers: Servers, consul: dict[str, str]
) -> None:
    one = start(consul)
    serve(one, servers)
    crowd = [
        line(f"{NETWORK}.{10 + number // 250}.{1 + number % 250}", 1000 + number % 7, app="crowd")
        for number in range(12_000)
    ]
    one.control_plane.render([*(server.line() for server in servers), *crowd])
    wait_for(lambda: len(one.states()), lambda count: count == MAX_REPLICAS, 20, "nginx has as many as there may be")
    refused = one.control_plane.view()["refused"]
    assert len(refused) == len(crowd) + len(servers) - MAX_REPLICAS
    assert {one["reason"] for one in refused} == {f"there are more than {MAX_REPLICAS} replicas"}
    assert {one["application"] for one in refused} == {"crowd"}
    assert set(answers(one.target, 60, 4)) == {server.name for server in servers}
    began = time.monotonic()
    serve(one, servers[:2], seconds=20)
    assert time.monotonic() - began < 10
    assert one.control_plane.view()["refused"] == []


def test_ipv6_works_for_listeners_the_status_port_and_replicas(start: Start) -> None:
    with ServerProcess("six", "::1") as server:
        port = 21000 + 4 * SLOT
        listen = {"LB_LISTEN": f"127.0.0.1:{port} [::1]:{port}", "LB_STATUS_ADDRESS": "::1"}
        one = start({**listen, "BIND_ADDRESS": "::1", "METRICS_PORT": str(port + 2)})
        one.control_plane.render([server.line()])
        wait_for(one.states, lambda found: found == {"::1": "serving"}, 10, "it is served")
        for target in (one.target, f"[::1]:{port}"):
            assert set(answers(target, 20, 4)) == {"six"}
        assert "grpc_lb_handled_total" in requests.get(f"http://[::1]:{port + 2}/metrics", timeout=10).text
        server.kill()
        wait_for(one.states, lambda found: found == {"::1": "ejected: refused"}, 5, "its end is seen")
        server.start()
        wait_for(one.states, lambda found: found == {"::1": "serving"}, 5, "it is back")
        assert set(answers(one.target, 20, 4)) == {"six"}


def test_networks_that_are_none_are_refused_at_the_start_in_one_line(processes: Processes, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PEER_CIDR": "10.0.0.0/8,fd00::/999"}
    done = processes.attempt([sys.executable, "-m", "balancer"], cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "PEER_CIDR: must be networks such as 10.0.0.0/8 or fd00::/8 (got 'fd00::/999')\n"


def test_an_address_that_can_not_be_connected_to_is_ejected_and_the_call_goes_to_another(
    start: Start, servers: Servers
) -> None:
    one = start({"PEER_CIDR": "0.0.0.0/0,127.0.0.0/8"})
    # The broadcast address: connect(2) refuses it (EACCES). It has no health service, so it is tried.
    serve(one, servers[:1], line("255.255.255.255", PORT))
    assert set(answers(one.target, 40, 4)) == {servers[0].name}
    wait_for(one.states, lambda found: found["255.255.255.255"].startswith("ejected: "), 5, "it is ejected")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_replica_that_leaves_is_gone_whatever_the_agents_name_is(
    start: Start, servers: Servers, consul: dict[str, str], name: str
) -> None:
    one = start({**consul, "CONSUL_ADDRESS": name})
    serve(one, servers)
    serve(one, servers[:1], seconds=2)
    one.control_plane.render([])
    wait_for(one.states, lambda found: not found, 2, "an empty fleet is one")
    assert status(one.target)[0] == "UNAVAILABLE"


def test_without_the_catalogue_a_replica_that_leaves_the_list_stays(start: Start, servers: Servers) -> None:
    one = start()
    serve(one, servers)
    one.control_plane.render([servers[0].line()])
    wait_for(one.control_plane.log, lambda text: "can't be asked about absent replicas" in text, 5, "it says so")
    assert set(answers(one.target, 60, 4)) == {server.name for server in servers}


def test_two_control_planes_agree_on_routes_whatever_they_saw_first(tmp_path: Path) -> None:
    early, late = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    fleet = [
        line(f"{NETWORK}.4.1", 1, app="new", grpc_services="shop.Orders,shop.Carts", grpc_since=late),
        line(f"{NETWORK}.4.2", 1, app="old", grpc_services="shop.Orders", grpc_since=early),
        line(f"{NETWORK}.4.3", 1, app="by-hand", grpc_services="shop.Orders,shop.Carts"),
    ]
    found = []
    for number, order in enumerate((fleet, fleet[::-1])):
        with ControlPlane(tmp_path / str(number), {}) as one:
            for count in range(1, len(order) + 1):
                one.render(order[:count])
                wait_for(one.states, lambda seen, count=count: len(seen) == count, 10, "it is taken")  # type: ignore[misc]
            whole = wait_for(one.snapshot, lambda kept: len(kept.get("replicas", ())) == len(fleet), 10, "all is saved")
            found.append(whole["routes"])
    routes = {service: (route["application"], route["also"]) for service, route in found[0].items()}
    assert found[0] == found[1]
    assert routes == {"shop.Orders": ("old", "by-hand,new"), "shop.Carts": ("new", "by-hand")}


@pytest.mark.parametrize("damage", ["", "[]", "5", "catalogue", "since"])
def test_a_control_plane_starts_with_any_snapshot(tmp_path: Path, damage: str) -> None:
    with ControlPlane(tmp_path, {}) as one:
        one.render([line(f"{NETWORK}.4.1", 1, grpc_services="shop.Orders")])
        wait_for(one.states, bool, 10, "it is taken")
        document = wait_for(one.snapshot, lambda kept: len(kept.get("replicas", ())) == 1, 10, "it is saved")
        one.kill()
        if damage == "catalogue":
            document["catalogue"] = {"index": "x"}
        elif damage == "since":
            # Of a machine that had run for long.
            document["replicas"][0]["since"] = 1e9
        one.kept.write_text(json.dumps(document) if damage in ("catalogue", "since") else damage)
        one.start()
        assert set(one.states()) == {f"{NETWORK}.4.1"}
        wait_for(
            one.snapshot,
            lambda kept: isinstance(kept, dict) and bool(kept) and kept["replicas"][0]["since"] <= time.monotonic(),
            10,
            "it is saved again",
        )
