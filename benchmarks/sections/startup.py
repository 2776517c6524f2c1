"""From nothing to the first answer, and from one replica to five."""

from __future__ import annotations

import shutil
import subprocess
import time

from benchmarks import report
from benchmarks.bench import Bench
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError
from testbed.programs import ROOT
from testbed.stats import Spread

_MOST_SECONDS = 60.0
_COMPOSE_SECONDS = 300.0
_PROJECT = "glbbench"
_REPLICAS = 5


def run(bench: Bench) -> report.Section:
    """Starts the stack in an empty home, scales it, ends it, again and again; the last one is left up."""
    ups, scales = [], []
    for number in range(bench.plan.long_rounds):
        bench.say(f"start: round {number + 1} of {bench.plan.long_rounds}")
        bench.stack.kill()
        began = time.monotonic()
        command = bench.stack.begin_up(1)
        wait_for_answers(bench.stack.target, 1, _MOST_SECONDS)
        ups.append(time.monotonic() - began)
        bench.stack.finish_up(command)
        began = time.monotonic()
        command = bench.stack.begin_up(_REPLICAS)
        wait_for_answers(bench.stack.target, _REPLICAS, _MOST_SECONDS)
        scales.append(time.monotonic() - began)
        bench.stack.finish_up(command)
    section = report.Section(
        title="Start and scale",
        method=(
            "`up -d`: from the start of `python -m local_stack up -d` in an empty home to the first answered call "
            f"through the balancer. Scale: from the start of the command for {_REPLICAS} replicas instead of 1 until "
            "each of them has answered. All programs are installed; nothing is downloaded or built."
        ),
    )
    up, scale = Spread.of(ups), Spread.of(scales)
    section.targets = [
        report.judge("`up -d` without Docker to the first answer", up, "s", "under 6 s", lambda value: value < 6),
        report.judge("Scale 1 to 5 without Docker, all serve", scale, "s", "under 3 s", lambda value: value < 3),
        _compose(bench),
    ]
    return section


def _compose(bench: Bench) -> report.Target:
    what = "`docker-compose up -d` to the first answer"
    if shutil.which("docker") is None or shutil.which("docker-compose") is None:
        return report.absent(what, report.NO_TARGET, "docker-compose is not installed")
    inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", "lb", "server"]
    try:
        bench.processes.run(inspect, cwd=ROOT, timeout_seconds=20)
    except BenchmarkError:
        return report.absent(what, report.NO_TARGET, "no engine, or no images lb and server")
    port = bench.port + 28
    env = {"LB_PUBLISHED_PORT": str(port), "CONSUL_PUBLISHED_PORT": str(port - 1)}
    compose = ["docker-compose", "-p", _PROJECT]
    seconds = []
    for number in range(bench.plan.long_rounds):
        bench.say(f"docker-compose: round {number + 1} of {bench.plan.long_rounds}")
        try:
            began = time.monotonic()
            up = bench.processes.start("compose", [*compose, "up", "-d", "--no-build"], cwd=ROOT, env=env)
            _answered(bench, f"127.0.0.1:{port}", up)
            seconds.append(time.monotonic() - began)
            up.wait(_COMPOSE_SECONDS)
        finally:
            down = [*compose, "down", "-v", "--timeout", "1"]
            bench.processes.run(down, cwd=ROOT, env=env, timeout_seconds=_COMPOSE_SECONDS)
    spread = Spread.of(seconds)
    measured = report.number(spread.median, "s")
    return report.Target(
        what=what,
        target=report.NO_TARGET,
        measured=measured,
        spread=report.spread(spread, "s"),
        verdict=report.NO_TARGET,
    )


def _answered(bench: Bench, target: str, up: subprocess.Popen[bytes]) -> None:
    """Waits for an answer; docker-compose that fails ends the wait."""
    deadline = time.monotonic() + _COMPOSE_SECONDS
    while True:
        try:
            wait_for_answers(target, 1, 1)
        except BenchmarkError as error:
            if up.poll() or time.monotonic() > deadline:
                raise BenchmarkError(f"docker-compose up: {error}\n{bench.processes.tail('compose')}") from error
        else:
            return
