"""The balancer's own programs die, and its disk fills, while calls go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from testbed.calls import say_hello
from testbed.stack import BALANCER
from testbed.wait import wait_for, wait_for_death
from tests.support.balancer import Nginx, peers, wait_for_peers
from tests.support.chaos import FULL, kill_program, record, rounds
from tests.support.disk import small_disk
from tests.support.drivers import LocalDriver
from tests.support.load import CALLERS, two_clients
from tests.support.scenarios import SERVER_NAME, target, wait_for_replicas

pytestmark = pytest.mark.timeout(1800 if FULL else 600)


@pytest.mark.parametrize("program", ["balancer", "consul-template", "consul", "registrar"])
def test_killing_the_programs_beside_nginx_costs_no_call(five_replicas: LocalDriver, program: str) -> None:
    times = rounds(5, 1)
    with two_clients(five_replicas) as load:
        for _ in range(times):
            kill_program(five_replicas, BALANCER, program)
            time.sleep(1)
    record(f"the balancer's {program} killed, {times} times", load)
    load.assert_no_failed_calls()


def test_a_killed_nginx_worker_costs_its_open_calls(five_replicas: LocalDriver) -> None:
    times, nginx = rounds(5, 1), Nginx(five_replicas)
    with two_clients(five_replicas, retry=True) as load:
        for _ in range(times):
            before = nginx.workers
            os.kill(min(before), signal.SIGKILL)
            wait_for(
                lambda: nginx.workers,
                lambda now, before=before: min(before) not in now and len(now) == len(before),  # type: ignore[misc]
                10,
                "another worker is there",
            )
            time.sleep(1)
    record(f"an nginx worker killed, {times} times; grpc_client with the standard retry policy", load)
    load.assert_lost_at_most(times * CALLERS)


def test_a_killed_nginx_master_is_back_within_a_second(five_replicas: LocalDriver) -> None:
    with two_clients(five_replicas, retry=True) as load:
        before, master = Nginx(five_replicas).workers, five_replicas.pid(BALANCER, "nginx")
        os.kill(master, signal.SIGKILL)
        answered, longest, end = time.monotonic(), 0.0, time.monotonic() + 5
        while time.monotonic() < end:
            try:
                say_hello(target(five_replicas), timeout=1)
            except grpc.RpcError:
                continue
            longest = max(longest, time.monotonic() - answered)
            answered = time.monotonic()
        longest = max(longest, time.monotonic() - answered)
        wait_for(
            lambda: five_replicas.pid(BALANCER, "nginx"), lambda now: now not in (0, master), 10, "it is started again"
        )
    wait_for_death(set(before))
    record(
        "nginx's master killed; grpc_client with the standard retry policy",
        load,
        f"a new connection was answered after {longest * 1000:.0f} ms at the most",
    )
    # The short form runs on machines with other work.
    assert longest < (1 if FULL else 4), f"{longest:.2f} s"
    assert load.ours.lost == 0, load
    wait_for_replicas(five_replicas, 5)


@contextmanager
def unwritable(directory: Path, kind: str) -> Iterator[None]:
    """Mounts a file system over a directory, with the same files and no space, while the block runs."""
    kept = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    directories = [path.name for path in directory.iterdir() if path.is_dir()]
    # It is made elsewhere, so that no file is missing for a moment.
    with tempfile.TemporaryDirectory() as made, small_disk(Path(made), 64):
        for name in directories:
            Path(made, name).mkdir()
        for name, content in kept.items():
            Path(made, name).write_bytes(content)
        with contextlib.suppress(OSError), Path(made, "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", made], check=True)
        subprocess.run(["mount", "--bind", made, directory], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize(("kind", "reason"), [("full", "no space left"), ("read-only", "read-only file system")])
def test_a_disk_that_takes_nothing_keeps_the_last_good_state(
    five_replicas: LocalDriver, kind: str, reason: str
) -> None:
    run = five_replicas.home / "containers" / BALANCER / "run"
    late = f"{five_replicas.run_server(SERVER_NAME)}:7777"
    before = len(peers(five_replicas))
    try:
        with two_clients(five_replicas) as load:
            with unwritable(run, kind):
                five_replicas.register(late)
                wait_for(
                    lambda: "\n".join(five_replicas.logs(BALANCER)[-200:]).lower(),
                    lambda text: reason in text,
                    20,
                    "the log says why",
                )
                assert len(peers(five_replicas)) == before
            wait_for_peers(five_replicas, before + 1)
            five_replicas.deregister(late)
            wait_for_peers(five_replicas, before)
    finally:
        five_replicas.stop_extras()
    record(f"a {kind} disk where consul-template writes", load)
    load.assert_no_failed_calls()
