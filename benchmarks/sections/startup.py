"""The time from nothing to the first answer, and from one replica to five."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import partial
from operator import ge

from benchmarks import report
from benchmarks.bench import Bench
from testbed.calls import wait_for_answers
from testbed.errors import BenchmarkError, MissingError
from testbed.programs import ROOT
from testbed.stats import Spread

_MOST_SECONDS = 60.0
_COMPOSE_SECONDS = 300.0
_PROJECT = "glbbench"
_REPLICAS = 5
_UP_SECONDS = 4
_UP_TARGET = f"at most {_UP_SECONDS} s"
_COMPOSE = "`docker-compose up -d` to the first answer"
_IMAGES = ("lb", "server")
_MEGA = 1_000_000


def run(bench: Bench) -> report.Section:
    """Starts the stack in an empty home, scales it and ends it in each round; the last one stays up."""
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
            "each of them has answered. All programs are installed and images built; nothing is downloaded or built."
        ),
    )
    up, scale = Spread.of(ups), Spread.of(scales)
    section.targets = [
        report.judge("`up -d` without Docker to the first answer", up, "s", _UP_TARGET, partial(ge, _UP_SECONDS)),
        report.judge("Scale 1 to 5 without Docker, all serve", scale, "s", "under 3 s", lambda value: value < 3),
    ]
    try:
        sizes = _find_images(bench)
    except MissingError as error:
        section.targets.append(report.absent(_COMPOSE, _UP_TARGET, str(error)))
        return section
    section.targets.append(_compose(bench))
    rows = [[name, report.number(size / _MEGA)] for name, size in sizes.items()]
    section.tables.append(report.Table(columns=["image", "MB"], rows=rows))
    return section


def _find_images(bench: Bench) -> dict[str, int]:
    """Returns the sizes of the images in bytes, by name.

    Raises:
        MissingError: there is no engine, or it does not have the images.
    """
    if shutil.which("docker") is None or shutil.which("docker-compose") is None:
        raise MissingError("docker-compose is not installed")
    inspect = ["docker", "image", "inspect", "--format", "{{.Size}}", *_IMAGES]
    try:
        sizes = bench.processes.run(inspect, cwd=ROOT, timeout_seconds=20).split()
    except BenchmarkError:
        raise MissingError(f"no engine, or no images {' and '.join(_IMAGES)}") from None
    return dict(zip(_IMAGES, map(int, sizes), strict=True))


def _compose(bench: Bench) -> report.Target:
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
    return report.judge(_COMPOSE, Spread.of(seconds), "s", _UP_TARGET, partial(ge, _UP_SECONDS))


def _answered(bench: Bench, target: str, up: subprocess.Popen[bytes]) -> None:
    """Waits for an answer, or until docker-compose fails."""
    deadline = time.monotonic() + _COMPOSE_SECONDS
    while True:
        try:
            wait_for_answers(target, 1, 1)
        except BenchmarkError as error:
            if up.poll() or time.monotonic() > deadline:
                raise BenchmarkError(f"docker-compose up: {error}\n{bench.processes.tail('compose')}") from error
        else:
            return
