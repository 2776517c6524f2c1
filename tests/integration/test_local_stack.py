"""``python -m local_stack`` misused, interrupted and killed: it reports the error and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from local_stack import processes
from local_stack.readiness import passing_nodes
from local_stack.settings import Directory
from local_stack.stack import Stack
from local_stack.supervisor import Supervisor
from testbed.calls import say_hello
from testbed.processes import Processes
from testbed.wait import wait_for, wait_for_death
from tests.support.chaos import record
from tests.support.disk import small_disk
from tests.support.drivers import ROOT, LocalDriver
from tests.support.load import two_clients
from tests.support.local import SLOT, short_home
from tests.support.scenarios import PATIENCE_SECONDS, target, wait_for_replicas

REPLICA = "hello_server-1"
IDLE_PORT = 15200 + SLOT
BAD_BASES = ("10.0.0.0", "127.1.2.3", "127.255.255.0", "x")
NOT_UP = "local_stack: the stack is not up; start it with: python -m local_stack up -d\n"


@pytest.fixture(scope="module")
def idle() -> LocalDriver:
    """A stack that is never up."""
    return LocalDriver(short_home("idle"), address_base="127.44.64.0", port=IDLE_PORT, consul_port=18700 + SLOT)


@pytest.fixture(scope="module")
def misused(tools: None) -> Iterator[LocalDriver]:  # noqa: ARG001 - skips without the programs
    """A stack with one replica, which tests may leave broken: the next test repairs it by ``up``."""
    driver = LocalDriver(
        short_home("misuse"), address_base=f"127.{200 + SLOT}.0.0", port=15300 + SLOT, consul_port=18800 + SLOT
    )
    driver.down()
    yield driver
    driver.down()


@pytest.fixture
def up(misused: LocalDriver) -> LocalDriver:
    """That stack, with its replica answering."""
    misused.up(1)
    return misused


def call(driver: LocalDriver, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of local_stack that may fail, but never with a stack trace."""
    done = driver.attempt(*arguments, **env)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def call_up(driver: LocalDriver, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``up -d`` with the driver's addresses; ``arguments`` come later and so win."""
    return call(driver, "up", "-d", *driver.flags, *arguments, **env)


def row(driver: LocalDriver, name: str) -> dict[str, Any]:
    """A container as ``ps --json`` shows it."""
    return next(row for row in driver.rows() if row["name"] == name)


def pids(driver: LocalDriver, name: str = REPLICA) -> set[int]:
    """The processes of a container."""
    return set(processes.of_stack(driver.home).get(name, []))


def programs(driver: LocalDriver) -> dict[str, dict[str, int]]:
    """The process ids of all programs, by container."""
    return {row["name"]: {item["name"]: item["pid"] for item in row["programs"]} for row in driver.rows()}


def test_up_names_a_port_in_use_and_its_flag(tools: None, idle: LocalDriver) -> None:  # noqa: ARG001
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", idle.port))
        other.listen()
        done = call_up(idle)
    assert done.returncode == 1
    assert done.stderr.count("already in use") == 1, done.stderr
    assert f"--port {idle.port}: 127.0.0.1:{idle.port} is already in use" in done.stderr
    assert idle.leftovers() == []


@pytest.mark.parametrize(
    ("arguments", "code", "messages"),
    [
        ("--scale hello_server", 2, ["must be SERVICE=NUMBER"]),
        ("--scale hello_server=x", 2, ["must be SERVICE=NUMBER"]),
        ("--scale hello_server=-1", 2, ["must be SERVICE=NUMBER"]),
        ("--scale nosuch=2", 1, ["no service nosuch; services: "]),
        (
            "--scale server-1=2",
            1,
            ["--scale server-1: must be 1, because it has a fixed name (got 2)"],
        ),
        ("--scale hello_server=101", 1, ["must be an integer from 0 to 100 (got 101)"]),
        *((f"--address-base {base}", 1, ["--address-base: ", base]) for base in BAD_BASES),
        *((f"{flag} {port}", 1, [flag, port]) for flag in ("--port", "--consul-port") for port in ("0", "65536", "-1")),
        ("--port x", 2, ["--port", "x"]),
        ("--consul-port x", 2, ["--consul-port", "x"]),
        (f"--consul-port {IDLE_PORT}", 1, [f"--port and --consul-port are both {IDLE_PORT}"]),
    ],
)
def test_up_explains_a_bad_value(idle: LocalDriver, arguments: str, code: int, messages: list[str]) -> None:
    done = call_up(idle, *arguments.split())
    assert (done.returncode, idle.leftovers()) == (code, [])
    assert [message for message in messages if message not in done.stderr] == [], done.stderr


def test_up_says_that_too_few_files_may_be_open(tools: None, idle: LocalDriver) -> None:  # noqa: ARG001
    command = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", sys.executable, "-m", "local_stack", "up", "-d"]
    done = idle.processes.attempt(command, cwd=ROOT, env=idle.env)
    message = "local_stack: ulimit -n: 512 open files are allowed, 1024 are needed\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert idle.leftovers() == []


def test_down_names_the_directory_that_it_can_not_remove(idle: LocalDriver) -> None:
    """As after `sudo python -m local_stack up` and, as oneself, `down -v`."""
    kept = idle.home / "containers" / "server-1"
    kept.mkdir(parents=True)
    (kept / "file").touch()
    # Root may remove everything except mounted or immutable files.
    held = (["chattr", "+i", str(kept)], ["chattr", "-i", str(kept)]) if os.geteuid() == 0 else None
    subprocess.run(held[0] if held else ["chmod", "500", str(kept)], check=True)
    try:
        done = call(idle, "down", "-v")
    finally:
        subprocess.run(held[1] if held else ["chmod", "700", str(kept)], check=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"local_stack: {idle.home} can't be removed: ")
    assert call(idle, "down", "-v").returncode == 0
    assert idle.leftovers() == []


def test_readiness_does_not_wait_for_a_consul_that_never_answers(idle: LocalDriver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        whole = Stack(Directory(idle.home), {**os.environ, **idle.env})
        whole.settings = replace(whole.settings, consul_port=silent.getsockname()[1])
        began = time.monotonic()
        assert passing_nodes(whole, "hello_server") == set()
        assert time.monotonic() - began < 20


@pytest.fixture
def checkout(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of this checkout in a directory of that name."""
    path = short_home("odd") / str(request.param)
    ignored = shutil.ignore_patterns(".git", ".venv", ".local_stack", "tests", "docs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, path, ignore=ignored)
    yield path
    shutil.rmtree(path.parent)


def in_checkout(path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the local_stack of a checkout, for a stack in the checkout."""
    variables = ["-u", "LOCAL_STACK_HOME", "-u", "PYTHONPATH", *(f"{name}={value}" for name, value in env.items())]
    command = ["env", *variables, sys.executable, "-m", "local_stack", *arguments]
    return Processes(path.parent).attempt(command, cwd=path)


@pytest.mark.parametrize("checkout", [r"f%2Fx a[1];b\c*$d"], indirect=True)
def test_a_checkout_may_be_anywhere_and_the_shell_may_have_anything(tools: None, checkout: Path) -> None:  # noqa: ARG001
    shell = {
        "LOCAL_STACK_HOME": "here",
        "CONSUL_HTTP_ADDR": "127.0.0.1:1",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_TOKEN": "none",
        "http_proxy": "http://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
        "grpc_proxy": "http://127.0.0.1:1",
        "ENV": "/dev/null",
    }
    ports = ["--address-base", f"127.{60 + SLOT}.0.0", "--port", str(15600 + SLOT)]
    compose = checkout / "docker-compose.yaml"
    longer = 'APP_NAME: hello_server\n      DRAIN_SECONDS: "90"\n      GRPC_GRACE_SECONDS: 70'
    compose.write_text(compose.read_text().replace("APP_NAME: hello_server", longer))
    up = ("up", "-d", *ports, "--consul-port", str(19000 + SLOT))
    local_stack = partial(in_checkout, checkout, **shell)
    try:
        done = local_stack(*up, "--timeout", "5")
        assert done.returncode == 1
        assert "STOP_SECONDS: must be at least 215" in done.stderr
        (checkout / ".env").write_text("STOP_SECONDS=220\r\n")
        done = local_stack(*up)
        assert done.returncode == 0, done.stderr
        supervisor = Supervisor(checkout / "here/containers" / REPLICA / "run/supervisor.sock")
        waits = {one["name"]: one["stopwaitsecs"] for one in supervisor.call("getAllConfigInfo")}
        assert (waits["registrar"], waits["grpc_server"]) == (110, 90)
        assert (checkout / "here" / "settings.json").exists()
        assert say_hello(f"127.0.0.1:{15600 + SLOT}") == REPLICA
        done = local_stack("status")
        assert (done.returncode, done.stderr) == (0, "")
        assert "serving" in done.stdout
    finally:
        # Its drain would take 90 s.
        local_stack("kill", "hello_server")
        done = local_stack("down", "-v")
    assert done.returncode == 0, done.stderr
    assert not (checkout / "here").exists()


@pytest.mark.parametrize("checkout", ["a:b"], indirect=True)
def test_a_checkout_whose_path_path_can_not_hold_is_refused(tools: None, checkout: Path) -> None:  # noqa: ARG001
    done = in_checkout(checkout, "up", "-d")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "PATH can't hold a path with ':'" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "stderr"),
    [
        *((command, 1, NOT_UP) for command in ("scale hello_server=2", "stop hello_server", "start", "restart")),
        *((command, 1, NOT_UP) for command in ("kill hello_server", "pause", "exec server-1 true")),
        *((command, 0, "") for command in ("ps", "ps --json", "logs", "down", "down -v")),
    ],
)
def test_commands_that_need_the_stack_say_that_it_is_not_up(
    idle: LocalDriver, command: str, code: int, stderr: str
) -> None:
    done = call(idle, *command.split())
    assert (done.returncode, done.stderr, idle.leftovers()) == (code, stderr, [])


def test_up_says_which_tool_is_missing(idle: LocalDriver, tmp_path: Path) -> None:
    # Go may be found outside of PATH, so it gets no module to build.
    done = call_up(
        idle,
        PATH=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        LOCAL_STACK_RELEASES_URL="http://127.0.0.1:1",
        GOPROXY="off",
        GOMODCACHE=str(tmp_path / "modules"),
    )
    assert done.returncode == 1
    assert "was not found:" in done.stderr
    assert idle.leftovers() == []


def test_ps_has_every_container_with_its_programs(up: LocalDriver) -> None:
    rows = {row["name"]: row for row in up.rows()}
    assert set(rows) >= {"server-1", "server-2", "server-3", "consul-ui", "load-balancer", REPLICA}
    for found in rows.values():
        assert found["address"].startswith(up.address_base.removesuffix("0.0")), found
        assert (found["state"], found["health"]) == ("running", "passing"), found
        assert found["programs"]
        for program in found["programs"]:
            assert program["state"] == "RUNNING", found
            assert program["pid"] in pids(up, found["name"]), found
    assert {program["name"] for program in rows[REPLICA]["programs"]} == {"consul", "grpc_server", "registrar"}


def test_a_second_up_keeps_every_process(up: LocalDriver) -> None:
    before = programs(up)
    assert call_up(up).returncode == 0
    assert programs(up) == before


def test_up_refuses_other_settings_while_it_is_up(up: LocalDriver) -> None:
    before = programs(up)
    done = call_up(up, "--port", "15402")
    assert done.returncode == 1
    assert "the stack is up with " in done.stderr
    assert programs(up) == before


def test_logs_name_the_container_and_are_limited(up: LocalDriver) -> None:
    lines = call(up, "logs", "hello_server").stdout.splitlines()
    assert len(lines) > 3
    assert all(line.startswith(f"{REPLICA} | ") for line in lines)
    limited = call(up, "logs", "-n", "3").stdout.splitlines()
    counts = {name: sum(line.split(" | ")[0].rstrip() == name for line in limited) for name in programs(up)}
    assert set(counts.values()) == {3}, counts
    assert call(up, "logs", "-n", "0").stdout == ""
    assert call(up, "logs", "-n", "x").returncode == 2


def test_a_log_of_ten_megabytes_is_truncated(up: LocalDriver) -> None:
    log = up.home / "logs" / f"{REPLICA}.log"
    with log.open("a") as file:
        file.write("a line of a test\n" * 700_000)
    wait_for(log.with_name(f"{log.name}.1").exists, bool, 20, "it is kept")
    wait_for(lambda: log.stat().st_size, lambda size: size < 1_000_000, 20, "it is short")
    up.execute(REPLICA, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "registrar")
    wait_for(log.read_text, lambda text: "registrar | " in text, 20, "its programs continue in it")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_followed_logs_show_new_lines_until_a_signal(up: LocalDriver, tmp_path: Path, number: signal.Signals) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-m", "local_stack", "logs", "-f", "-n", "1", "hello_server"]
        follower = subprocess.Popen(command, env={**os.environ, **up.env}, cwd=ROOT, stdout=stdout, stderr=stderr)
    try:
        wait_for(out.read_text, lambda text: REPLICA in text, 20, "the last line that was there")
        up.execute(REPLICA, "supervisorctl", "-c", "etc/supervisord.conf", "restart", "registrar")
        wait_for(out.read_text, lambda text: f"{REPLICA} | registrar | " in text, 20, "the registrar's line")
        follower.send_signal(number)
        assert follower.wait(10) == 130
    finally:
        follower.kill()
        follower.wait()
    assert err.read_text() == ""


def test_a_killed_container_stays_down_until_start(up: LocalDriver) -> None:
    before = pids(up)
    assert call(up, "kill", REPLICA).returncode == 0
    assert not any(processes.is_alive(pid) for pid in before)
    assert pids(up) == set()
    # supervisord leaves a stopped program alone; one that exited it would start again.
    assert row(up, REPLICA)["state"] == "stopped"
    assert call(up, "start", REPLICA).returncode == 0
    assert wait_for_replicas(up, 1) == {REPLICA}
    assert not pids(up) & before


def test_kill_refuses_an_unknown_signal(up: LocalDriver) -> None:
    before = pids(up)
    done = call(up, "kill", "-s", "NOSUCH", REPLICA)
    assert done.returncode == 2
    assert "must be a signal such as KILL, TERM or HUP (got 'NOSUCH')" in done.stderr
    assert pids(up) == before


def test_up_says_why_a_paused_replica_is_not_ready_and_unpause_fixes_it(up: LocalDriver) -> None:
    before = pids(up)
    assert call(up, "pause", REPLICA).returncode == 0
    try:
        done = call_up(up, "--timeout", "1")
        assert done.returncode == 1
        assert re.search(rf"(not passing in Consul|no answer through port {up.port} from): hello_server-1", done.stderr)
        assert f"last lines of {REPLICA}:\n    " in done.stderr
    finally:
        assert call(up, "unpause", REPLICA).returncode == 0
    wait_for_replicas(up, 1)
    assert pids(up) == before


def test_a_container_whose_supervisord_is_killed_comes_back_whole(up: LocalDriver) -> None:
    before = pids(up)
    program = Supervisor(up.home / "supervisor.sock").state(REPLICA)
    assert program is not None
    assert program.pid in before
    os.kill(program.pid, signal.SIGKILL)
    wait_for_death(before)
    wait_for(lambda: row(up, REPLICA)["health"], lambda health: health == "passing", PATIENCE_SECONDS, "health")
    assert wait_for_replicas(up, 1) == {REPLICA}
    assert len(pids(up)) >= len(programs(up)[REPLICA])


def test_up_repairs_a_stack_that_lost_its_supervisord(up: LocalDriver) -> None:
    before = set().union(*processes.of_stack(up.home).values())
    os.kill(int((up.home / "supervisord.pid").read_text()), signal.SIGKILL)
    done = call_up(up)
    assert done.returncode == 0, done.stderr
    assert re.search(r"ended \d+ processes of an earlier stack that had lost its supervisord", done.stderr)
    assert not any(processes.is_alive(pid) for pid in before)
    assert wait_for_replicas(up, 1) == {REPLICA}


def test_nothing_of_the_shell_reaches_a_container(up: LocalDriver) -> None:
    environ = Path(f"/proc/{up.pid(REPLICA, 'registrar')}/environ").read_bytes()
    assert b"\0APP_NAME=hello_server\0" in environ
    # pytest has this one.
    assert b"PYTEST_CURRENT_TEST" not in environ


def test_ps_shows_a_container_that_is_stopping(up: LocalDriver) -> None:
    stopping = up.begin("stop", REPLICA)
    states = set()
    while stopping.poll() is None:
        done = call(up, "ps", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        states |= {one["state"] for one in json.loads(done.stdout) if one["name"] == REPLICA}
    assert "stopping" in states
    assert call(up, "start", REPLICA).returncode == 0


def test_a_hang_up_causes_no_failed_calls(up: LocalDriver) -> None:
    before = programs(up)
    with two_clients(up) as load:
        assert call(up, "kill", "-s", "HUP", "load-balancer", REPLICA).returncode == 0
        time.sleep(2)
    assert load.lost == 0, load
    assert programs(up) == before


def test_a_service_may_be_scaled_to_0_twice(up: LocalDriver) -> None:
    assert [call(up, "scale", "hello_server=0").returncode for _ in range(2)] == [0, 0]
    assert REPLICA not in programs(up)


def test_down_with_volumes_leaves_no_process_and_no_file(up: LocalDriver) -> None:
    assert call(up, "down", "-v").returncode == 0
    assert up.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_disk_full_of_logs_causes_no_failed_calls(misused: LocalDriver) -> None:
    logs = misused.home / "logs"
    logs.mkdir(parents=True)
    with small_disk(logs, 200):
        try:
            misused.up(2, LB_ACCESS_LOG="on")
            with two_clients(misused) as load:
                wait_for(lambda: os.statvfs(logs).f_bavail, lambda free: free == 0, 20, "it is full")
                before = programs(misused)
                misused.scale(3)
                misused.scale(2)
            assert load.lost == 0, load
            assert programs(misused) == before
            # With free space lines are written again, after a second in which nginx and with-name do not try.
            for log in logs.iterdir():
                os.truncate(log, 0)
            for name, program in (("load-balancer", "nginx"), (REPLICA, "grpc_server")):

                def lines(log: Path = logs / f"{name}.log") -> str:
                    say_hello(target(misused))
                    return log.read_text()

                wait_for(lines, lambda text, program=program: f"{program} | " in text, 20, "it is written to")  # type: ignore[misc]
        finally:
            misused.local_stack("kill", *{row["service"] for row in misused.rows()})
            # The mounted directory stays.
            assert "can't be removed" in call(misused, "down", "-v").stderr
    misused.down()
    record("a disk full of logs, without Docker", load)
