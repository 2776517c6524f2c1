"""``rollout`` without Docker: a new version, and one that does not work."""

from __future__ import annotations

import json

import pytest

from tests.support.chaos import record
from tests.support.drivers import LocalDriver
from tests.support.load import two_clients
from tests.support.scenarios import wait_for_replicas


def versions(stack: LocalDriver) -> dict[str, str]:
    """Returns the versions of the replicas that serve."""
    replicas = json.loads(stack.local_stack("status", "--json"))["replicas"]
    return {one["node"]: one["version"] for one in replicas if one["balancer"] == "serving"}


def test_a_rollout_replaces_every_replica_and_loses_no_call(two_replicas: LocalDriver) -> None:
    names = wait_for_replicas(two_replicas, 2)
    before = {name: two_replicas.pid(name, "grpc_server") for name in names}
    with two_clients(two_replicas) as load:
        done = two_replicas.attempt("rollout", "hello_server", HELLO_SERVER_VERSION="2")
    record("rollout of a new version to two replicas", load)
    assert done.returncode == 0, done.stderr
    load.assert_no_failed_calls()
    assert wait_for_replicas(two_replicas, 2) == names
    assert versions(two_replicas) == dict.fromkeys(names, "2")
    assert not {two_replicas.pid(name, "grpc_server") for name in names} & set(before.values())


def test_a_version_that_does_not_work_leaves_the_old_replicas_in_service(two_replicas: LocalDriver) -> None:
    names = wait_for_replicas(two_replicas, 2)
    before = {name: two_replicas.pid(name, "grpc_server") for name in names}
    with two_clients(two_replicas) as load:
        done = two_replicas.attempt("rollout", "hello_server", "--timeout", "8", GRPC_WORKERS="none")
    load.assert_no_failed_calls()
    assert done.returncode == 1
    assert "the rollout has stopped: hello_server-3 did not become healthy and is removed" in done.stderr
    assert "GRPC_WORKERS: must be an integer from 1 to 256 (got 'none')" in done.stderr
    assert "Traceback" not in done.stderr
    assert {name: two_replicas.pid(name, "grpc_server") for name in names} == before
    assert set(two_replicas.replicas()) == names


@pytest.mark.parametrize("name", ["nobody", "load-balancer", "hello_server-1"])
def test_only_a_service_that_can_be_scaled_is_rolled_out(stack: LocalDriver, name: str) -> None:
    done = stack.attempt("rollout", name)
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr
