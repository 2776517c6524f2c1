"""The balancer's nginx, looked at from outside."""

from __future__ import annotations

import os
import re
from pathlib import Path

from testbed.processes import children, pss_bytes
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.drivers import LocalDriver

# What nginx says when something of it is wrong, and what Lua says through it.
_TROUBLE = re.compile(r"\[(alert|crit|emerg)\]|\[error\].*lua")


def peers(stack: LocalDriver) -> list[dict[str, object]]:
    """The balancer's own view of its replicas."""
    return list(stack.state()["replicas"])


def wait_for_peers(stack: LocalDriver, count: int) -> None:
    """Waits until the balancer has so many replicas."""
    wait_for(lambda: len(peers(stack)), lambda found: found == count, 60, f"the balancer has {count} replicas")


def services(stack: LocalDriver) -> dict[str, dict[str, object]]:
    """The balancer's gRPC services: whose they are, of how many replicas, and who registers them as well."""
    return {service.pop("service"): service for service in stack.state()["services"]}


class Nginx:
    """The nginx of a stack."""

    def __init__(self, stack: LocalDriver) -> None:
        self._stack = stack
        self._home = stack.home / "containers" / BALANCER
        self._lines = len(stack.logs(BALANCER))

    @property
    def workers(self) -> list[int]:
        """The workers' process IDs; the master has another child, which names its lines in the log."""
        master = int((self._home / "run/nginx/nginx.pid").read_text())
        return sorted(pid for pid in children(master) if _title(pid).startswith(b"nginx: worker"))

    @property
    def configuration(self) -> str:
        """The configuration that it runs with."""
        return (self._home / "etc/nginx/conf.d/load-balancer.conf").read_text()

    @property
    def descriptors(self) -> int:
        """Open file descriptors of all workers."""
        return sum(descriptors(pid) for pid in self.workers)

    @property
    def memory_mib(self) -> float:
        """Memory of all workers; what is shared counts once (PSS)."""
        return sum(pss_bytes(pid) for pid in self.workers) / 2**20

    def trouble(self) -> list[str]:
        """The lines of the log since this object was made that tell of a fault of its own."""
        return [line for line in self._stack.logs(BALANCER)[self._lines :] if _TROUBLE.search(line)]


def _title(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, no paths
