"""The balancer's metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from testbed.calls import say_hello
from testbed.wait import wait_for
from tests.support.drivers import LocalDriver
from tests.support.metrics import handled, handled_so_far, samples
from tests.support.registered import running_server
from tests.support.scenarios import target
from tests.support.server import SERVICE


@contextmanager
def channel_to(stack: LocalDriver) -> Iterator[Any]:
    """A channel through the balancer; its methods' types are of each call."""
    with grpc.insecure_channel(target(stack)) as channel:
        yield channel


def more(before: dict[Any, float], after: dict[Any, float]) -> dict[Any, float]:
    """Returns the calls that were counted between the two."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def wait_for_more(stack: LocalDriver, before: dict[Any, float], expected: dict[Any, float]) -> None:
    """Waits until these calls have been counted, and no others."""
    wait_for(lambda: more(before, handled(stack)), lambda found: found == expected, 10, f"counted: {expected}")


def wait_for_in_flight(stack: LocalDriver, label: tuple[str, str], count: int) -> None:
    """Waits until a replica has so many calls in flight."""
    look = partial(samples, stack, "grpc_lb_in_flight")
    wait_for(look, lambda found: found.get(label) == count, 10, f"{count} in flight")


def test_calls_are_counted_by_method_replica_and_status(two_replicas: LocalDriver) -> None:
    say_hello(target(two_replicas))
    before, replicas = handled_so_far(two_replicas), samples(two_replicas, "grpc_lb_handled_total")
    timed = samples(two_replicas, "grpc_lb_handling_seconds_count")
    for _ in range(20):
        say_hello(target(two_replicas))
    wait_for_more(two_replicas, before, {("protos.Ping", "SayHello", "OK"): 20})
    by_replica = more(replicas, samples(two_replicas, "grpc_lb_handled_total"))
    assert {key[3] for key in by_replica} == {f"{two_replicas.address(name)}:7777" for name in two_replicas.replicas()}
    assert {key[2] for key in by_replica} == {"hello_server"}
    assert more(timed, samples(two_replicas, "grpc_lb_handling_seconds_count")) == {("protos.Ping", "SayHello"): 20}
    buckets = samples(two_replicas, "grpc_lb_handling_seconds_bucket")
    values = [value for (_, method, _), value in buckets.items() if method == "SayHello"]
    assert values == sorted(values)
    assert samples(two_replicas, "grpc_lb_replicas") == {("hello_server", "serving"): 2}
    wait_for(
        lambda: set(samples(two_replicas, "grpc_lb_in_flight").values()), lambda found: found == {0}, 10, "none is open"
    )
    assert len(samples(two_replicas, "grpc_lb_last_update_age_seconds")) == 1


def test_methods_that_no_replica_knows_are_one(two_replicas: LocalDriver) -> None:
    before = handled_so_far(two_replicas)
    with channel_to(two_replicas) as channel:
        for number in range(30):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/made.Up{number}/Method{number}")(b"", timeout=10)
    wait_for_more(two_replicas, before, {("other", "other", "Unimplemented"): 30})


def test_every_end_of_a_call_has_its_status(two_replicas: LocalDriver) -> None:
    def counted(before: dict[Any, float]) -> dict[str, float]:
        return {code: value for (_, _, code), value in more(before, handled(two_replicas)).items()}

    with running_server(two_replicas, 1) as server, channel_to(two_replicas) as channel:
        hang = channel.unary_unary(f"/{SERVICE}/Hang")
        before = handled_so_far(two_replicas)
        with pytest.raises(grpc.RpcError):
            hang(b"first", timeout=0.5)
        hanging = hang.future(b"second", timeout=20)
        label = ("probe", f"{server.address}:7777")
        wait_for_in_flight(two_replicas, label, 1)
        hanging.cancel()
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/Fail")(json.dumps({"code": 5, "details": "no"}).encode(), timeout=10)
        expected = {"DeadlineExceeded": 1, "Canceled": 1, "NotFound": 1}
        wait_for(lambda: counted(before), lambda found: found == expected, 10, "each has its status")
        wait_for_in_flight(two_replicas, label, 0)
        before = handled(two_replicas)
        server.deregister()
        with pytest.raises(grpc.RpcError):
            hang(b"third", timeout=5)
        wait_for(lambda: counted(before), lambda found: found == {"Unavailable": 1}, 10, "nobody is there")


# Last: it leaves one replica.
def test_a_replica_that_has_left_leaves_the_metrics(two_replicas: LocalDriver) -> None:
    for _ in range(4):
        say_hello(target(two_replicas))
    leaver = two_replicas.replicas()[-1]
    label = f"{two_replicas.address(leaver)}:7777"
    wait_for(
        lambda: {key[3] for key in samples(two_replicas, "grpc_lb_handled_total")},
        lambda found: label in found,
        10,
        "it is counted",
    )
    total = sum(handled_so_far(two_replicas).values())
    two_replicas.stop(leaver)
    left = wait_for(
        lambda: samples(two_replicas, "grpc_lb_handled_total"),
        lambda found: label not in {key[3] for key in found},
        10,
        "it has left",
    )
    assert sum(left.values()) == total
    assert "gone" in {key[3] for key in left}
    assert label not in {key[1] for key in samples(two_replicas, "grpc_lb_in_flight")}
