"""What breaks by itself, while calls go on."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from grpc_client.load import run_load
from grpc_client.options import Options
from grpc_client.report import LoadReport
from tests.integration.test_balancer import BALANCER, peers
from tests.support.drivers import ConsulApi, LocalDriver
from tests.support.scenarios import wait_for_replicas
from tests.support.wait import wait_for

# Gossip and Raft take their time on a busy machine.
pytestmark = pytest.mark.timeout(900)

SERVERS = ("server-1", "server-2", "server-3")


class Load:
    """A load that a test stops; ``report`` is there afterwards."""

    report: LoadReport


@contextmanager
def load(driver: LocalDriver, *, retry: bool) -> Iterator[Load]:
    """Sixteen callers on eight connections all the while."""
    result = Load()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    options = Options(
        host="127.0.0.1",
        port=driver.port,
        duration_seconds=300,
        concurrency=16,
        connections=8,
        rate=300,
        retry=retry,
    )

    def run() -> None:
        result.report = loop.run_until_complete(run_load(options, stop=stop))

    caller = threading.Thread(target=run)
    caller.start()
    try:
        yield result
    finally:
        loop.call_soon_threadsafe(stop.set)
        caller.join()
        loop.close()
    print(result.report.ok, "answered,", result.report.failed, "failed", result.report.errors)


@pytest.fixture
def three_replicas(stack: LocalDriver) -> Iterator[LocalDriver]:
    stack.up(3)
    wait_for_replicas(stack, 3)
    yield stack
    stack.up(1)
    wait_for_replicas(stack, 1)


def instances(api: ConsulApi) -> int:
    """How many instances the catalogue has; none while it can't be asked."""
    try:
        return len(api.instances("hello_server"))
    except requests.RequestException:
        return 0


@pytest.mark.parametrize("program", ["consul-template", "consul", "registrar"])
def test_killing_the_programs_beside_nginx_costs_no_call(three_replicas: LocalDriver, program: str) -> None:
    def pid() -> int:
        row = next(row for row in three_replicas.rows() if row["name"] == BALANCER)
        return next(int(entry["pid"]) for entry in row["programs"] if entry["name"] == program)

    with load(three_replicas, retry=False) as result:
        before = pid()
        three_replicas.execute(BALANCER, "supervisorctl", "-c", "etc/supervisord.conf", "signal", "KILL", program)
        wait_for(pid, lambda now: now not in (0, before), 30, f"{program} is started again")
    assert result.report.failed == 0, result.report.errors
    assert result.report.ok > 0


def test_a_replica_killed_outright_costs_no_call_with_the_standard_retry_policy(three_replicas: LocalDriver) -> None:
    name = three_replicas.replicas()[-1]
    with load(three_replicas, retry=True) as result:
        three_replicas.local_stack("kill", name)
        wait_for(lambda: peers(three_replicas), lambda found: len(found) == 2, 60, "the catalogue has dropped it")
        three_replicas.start(name)
        wait_for_replicas(three_replicas, 3)
    assert result.report.failed == 0, result.report.errors


def test_consul_servers_that_come_back_without_their_data_cost_no_call(three_replicas: LocalDriver) -> None:
    api = ConsulApi(three_replicas)
    with load(three_replicas, retry=False) as result:
        three_replicas.local_stack("kill", *SERVERS)
        for server in SERVERS:
            volume = three_replicas.home / "volumes" / server
            shutil.rmtree(volume)
            volume.mkdir()
        three_replicas.local_stack("start", *SERVERS)
        # Whether a replica is held for a moment depends on who is first, its agent or consul-template.
        wait_for(
            lambda: "\n".join(three_replicas.logs(BALANCER)),
            lambda text: "the catalogue has lost its data: cluster=" in text,
            60,
            "the balancer has noticed",
        )
        wait_for(lambda: instances(api), lambda count: count == 3, 120, "all have registered again")
        wait_for(
            lambda: [peer["state"] for peer in peers(three_replicas)],
            lambda states: states == ["in service"] * 3,
            30,
            "none is held any longer",
        )
    assert result.report.failed == 0, result.report.errors
