"""The clients of gRPC's libraries have their replicas from the control plane by xDS, and lose no call to its changes.

None of them has a retry policy: a client's own does not hold with xDS. All go through the same faults together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from testbed.wait import wait_for
from tests.foreign.conftest import GREETING, built, wait_until_listening
from tests.foreign.programs import Command, Library
from tests.support.chaos import kill_program
from tests.support.drivers import LocalDriver
from tests.support.greeter import Greeters, errors, greeting, wait_for_each
from tests.support.local import SLOT
from tests.support.xds import PORT, bootstrap, serving_xds

pytest.importorskip("xds", reason="xds-protos is not installed")
APPLICATION, SERVICE = "xds:///hello_server", "xds:///protos.Ping"


@pytest.fixture(scope="module")
def xds(tools: None) -> Iterator[LocalDriver]:  # noqa: ARG001
    base, port = f"127.{140 + SLOT}.0.0", 16300 + 2 * SLOT
    with serving_xds("xds-foreign", address_base=base, port=port, consul_port=port + 1) as driver:
        yield driver


@pytest.fixture(scope="module")
def environment(xds: LocalDriver, directory: Path) -> dict[str, str]:
    return bootstrap(xds, directory)


@pytest.fixture(scope="module")
def callers(xds: LocalDriver, environment: Mapping[str, str], greeters: Mapping[str, Command]) -> Iterator[Greeters]:
    """All clients, which call the application through all the changes of it."""
    with greeting(greeters, [APPLICATION], environment, xds.home / "logs") as started:
        yield started


@contextmanager
def no_call_lost(callers: Greeters) -> Iterator[None]:
    """Asserts that the block costs the callers of the application no call."""
    for caller in callers.values():
        caller.begin(APPLICATION)
    yield
    print({name: caller.total(APPLICATION) for name, caller in callers.items()})
    assert_no_call_lost(callers, APPLICATION)


def assert_no_call_lost(greeters: Greeters, *targets: str) -> None:
    lost = {
        name: errors for name, greeter in greeters.items() for target in targets if (errors := greeter.errors(target))
    }
    assert not lost, lost


def wait_for_replicas(greeters: Greeters, count: int, target: str = APPLICATION) -> None:
    """Waits until each client has its answers from so many replicas."""
    wait_for_each(greeters, target, lambda calls: len(calls) == count, f"{count} replicas answer")


def answers(stack: LocalDriver, calls: Counter[str]) -> Counter[str]:
    """Returns the calls by the names of the replicas, which some clients know by their addresses."""
    names = {f"{stack.address(name)}:7777": name for name in stack.replicas()}
    found = Counter[str]()
    for replica, count in calls.items():
        found[names.get(replica, replica)] += count
    return found


@contextmanager
def registered(stack: LocalDriver, application: str, weights: Mapping[str, int]) -> Iterator[None]:
    """Registers servers as replicas of an application, with these weights, by their addresses."""
    for address, weight in weights.items():
        stack.register(f"{address}:7777", application=application, Weights={"Passing": weight, "Warning": 1})
    try:
        wait_for(lambda: served(stack, application), sorted(weights.values()).__eq__, 30, f"{application} is served")
        yield
    finally:
        for address in weights:
            stack.deregister(f"{address}:7777", application=application)


def start_server(stack: LocalDriver, name: str) -> str:
    """Starts a server beside the replicas; returns its address when it listens."""
    address = stack.run_server(name)
    wait_until_listening(f"{address}:7777")
    return address


def served(stack: LocalDriver, application: str) -> list[int]:
    """Returns the weights of an application's replicas at the balancer."""
    return sorted(one["weight"] for one in stack.state()["replicas"] if one["application"] == application)


@pytest.mark.parametrize("library", GREETING, ids=lambda one: one.name)
def test_an_application_and_a_service_are_called(
    xds: LocalDriver, environment: Mapping[str, str], library: Library
) -> None:
    assert library.greeter
    command = {library.name: built(library.greeter)}
    with greeting(command, [APPLICATION, SERVICE], environment, xds.home / "logs") as greeters:
        for target in (APPLICATION, SERVICE):
            wait_for_replicas(greeters, 2, target)
    for calls in greeters[library.name].calls.values():
        assert answers(xds, calls).keys() == {"hello_server-1", "hello_server-2"}


def test_the_next_server_is_asked_if_the_first_is_gone(
    xds: LocalDriver, tmp_path: Path, greeters: Mapping[str, Command]
) -> None:
    # @grpc/grpc-js-xds asks the first one only.
    asking = {name: command for name, command in greeters.items() if name != "grpc-js"}
    environment = bootstrap(xds, tmp_path, f"{xds.own_address(250, 1)}:{PORT}")
    with greeting(asking, [APPLICATION], environment, xds.home / "logs") as started:
        wait_for_replicas(started, 2)
    assert_no_call_lost(started, APPLICATION)


def test_several_applications_are_called_at_once_by_their_weights(
    xds: LocalDriver, environment: Mapping[str, str], greeters: Mapping[str, Command]
) -> None:
    weighted, alone = "xds:///weighted", "xds:///other"
    targets = (APPLICATION, weighted, alone)
    often, seldom = (xds.address(f"hello_server-{number}") for number in (1, 2))
    other = start_server(xds, "other")
    with (
        registered(xds, "weighted", {often: 9, seldom: 1}),
        registered(xds, "other", {other: 1}),
        greeting(greeters, targets, environment, xds.home / "logs") as started,
    ):
        for name, greeter in started.items():
            wait_for(partial(greeter.total, weighted), (300).__le__, 60, f"300 calls of {name}", 0.3)
    assert_no_call_lost(started, *targets)
    for greeter in started.values():
        calls = answers(xds, greeter.calls[weighted])
        # Four and a half standard deviations of 300 random choices.
        assert 0.82 <= calls["hello_server-1"] / calls.total() <= 0.98, calls
        assert len(greeter.calls[alone]) == 1
        assert greeter.calls[alone].keys() <= {"other", f"{other}:7777"}
        assert answers(xds, greeter.calls[APPLICATION]).keys() == {"hello_server-1", "hello_server-2"}
    xds.stop_extras()


def test_an_application_that_comes_later_is_found(
    xds: LocalDriver, environment: Mapping[str, str], greeters: Mapping[str, Command]
) -> None:
    later = "xds:///later"
    with (
        greeting(greeters, [APPLICATION, later], environment, xds.home / "logs") as started,
        # Such a client has no resource left when its only application goes.
        greeting(greeters, [later], environment, xds.home / "logs") as others,
    ):
        for _ in range(2):
            with registered(xds, "later", {xds.address("hello_server-1"): 1}):
                for some in (started, others):
                    wait_for_each(some, later, lambda calls: bool(calls) and not errors(calls), "is answered")
            for some in (started, others):
                wait_for_each(some, later, lambda calls: bool(errors(calls)), "is no longer answered")
    assert_no_call_lost(started, APPLICATION)
    for name, greeter in (*started.items(), *others.items()):
        found = [error.upper() for error in greeter.errors(later)]
        # In Node.js the first calls of a channel wait until their deadline.
        ends = ("UNAVAILABLE", "WAITING FOR NAME RESOLUTION")
        assert all(any(end in error for end in ends) for error in found), (name, found)


def test_scaling_loses_no_call(xds: LocalDriver, callers: Greeters) -> None:
    with no_call_lost(callers):
        for count in (1, 4, 2):
            xds.scale(count)
            wait_for_replicas(callers, count)


def test_a_rollout_loses_no_call(xds: LocalDriver, callers: Greeters) -> None:
    before = {name: xds.pid(name, "grpc_server") for name in xds.replicas()}
    with no_call_lost(callers):
        xds.local_stack("rollout", "hello_server", HELLO_SERVER_VERSION="2")
        wait_for_replicas(callers, 2)
    after = {name: xds.pid(name, "grpc_server") for name in xds.replicas()}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())


def test_clients_go_on_without_the_control_plane(xds: LocalDriver, callers: Greeters) -> None:
    with no_call_lost(callers):
        for program in ("balancer", "answers"):
            kill_program(xds, "load-balancer", program)
        wait_for_replicas(callers, 2)
        with no_control_plane(xds):
            third = start_server(xds, "third")
            xds.register(f"{third}:7777")
            wait_for_replicas(callers, 2)
        wait_for_replicas(callers, 3)
        xds.deregister(f"{third}:7777")
        wait_for_replicas(callers, 2)
    xds.stop_extras()


@contextmanager
def no_control_plane(stack: LocalDriver) -> Iterator[None]:
    """Stops the control plane and its xDS, until the block ends."""
    control = ("supervisorctl", "-c", "etc/supervisord.conf")
    stack.execute("load-balancer", *control, "stop", "balancer", "answers")
    try:
        yield
    finally:
        stack.execute("load-balancer", *control, "start", "balancer", "answers")
