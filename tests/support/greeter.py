"""The clients of gRPC's libraries that call targets of protos.Ping until they are told to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testbed.wait import wait_for
from tests.foreign.programs import Command
from tests.support.drivers import ROOT

# A replica by its address or its name; everything else that a client counts is an error.
_REPLICA = re.compile(r"[\w.-]+(:\d+)?")
# More than a call's deadline; a busy machine takes long for the first one.
_WAIT_SECONDS = 60.0
Calls = dict[str, Counter[str]]


def errors(calls: Counter[str]) -> dict[str, int]:
    """Returns the errors among calls."""
    return {what: count for what, count in calls.items() if not _REPLICA.fullmatch(what)}


class Greeter:
    """A client that calls each of some targets 50 times a second.

    Attributes:
        calls: all calls so far, by target and then by replica or error.
    """

    def __init__(self, process: subprocess.Popen[str], targets: Sequence[str]) -> None:
        self._process = process
        self.calls: Calls = {target: Counter() for target in targets}

    def latest(self, target: str) -> Counter[str]:
        """Returns the calls of a target since the last question, by replica or error."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._take(self._process.stdout.readline()).get(target, Counter())

    def begin(self, target: str) -> None:
        """Begins to count the calls of a target anew."""
        self.latest(target)
        self.calls[target].clear()

    def total(self, target: str) -> int:
        """Returns the number of calls of a target so far."""
        self.latest(target)
        return self.calls[target].total()

    def end(self) -> None:
        """Lets it end its calls, and takes their number."""
        self._take(self._process.communicate(timeout=_WAIT_SECONDS)[0])

    def errors(self, target: str) -> dict[str, int]:
        """Returns the errors of a target so far."""
        return errors(self.calls[target])

    def _take(self, line: str) -> Calls:
        found = {target: Counter(calls) for target, calls in json.loads(line).items()}
        for target, calls in found.items():
            self.calls[target] += calls
        return found


Greeters = Mapping[str, Greeter]


@contextmanager
def greeting(
    commands: Mapping[str, Command], targets: Sequence[str], env: Mapping[str, str], logs: Path
) -> Iterator[dict[str, Greeter]]:
    """Runs clients until the block ends; it begins when each has called the first target.

    Args:
        commands: what starts each client, by its name.
        targets: what they call.
        env: more of their environment.
        logs: a directory for what they print besides.
    """
    with ExitStack() as leave:
        greeters = {}
        for name, command in commands.items():
            log = leave.enter_context((logs / f"greeter-{name}.log").open("ab"))
            process = subprocess.Popen(
                [*map(str, command), *targets],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **env},
                cwd=ROOT,
                text=True,
            )
            leave.enter_context(process)
            leave.callback(process.kill)
            greeters[name] = Greeter(process, targets)
        wait_for_each(greeters, targets[0], bool, "calls")
        yield greeters
        for greeter in greeters.values():
            greeter.end()


def wait_for_each(greeters: Greeters, target: str, wanted: Callable[[Counter[str]], bool], what: str) -> None:
    """Waits until what each client has counted of a target since the last question is as wanted."""
    for name, greeter in greeters.items():
        wait_for(lambda: greeter.latest(target), wanted, _WAIT_SECONDS, f"{name}: {what}", 0.3)  # noqa: B023 - it is called here
