"""The balancer's nginx, from outside."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path

from testbed.processes import children, pss_bytes
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.drivers import LocalDriver

# Errors of nginx itself, and of Lua.
_TROUBLE = re.compile(r"\[(alert|crit|emerg)\]|\[error\].*lua")
# Wrong bytes of a client in place of a handshake; nginx before 1.23.4 calls some of them critical.
_HANDSHAKE = re.compile(r"SSL_do_handshake\(\) failed .* while SSL handshaking, client")


def peers(stack: LocalDriver) -> list[dict[str, object]]:
    """Returns the balancer's view of its replicas."""
    return list(stack.state()["replicas"])


def wait_for_peers(stack: LocalDriver, count: int) -> None:
    """Waits until the balancer has so many replicas."""
    wait_for(lambda: len(peers(stack)), lambda found: found == count, 60, f"the balancer has {count} replicas")


def services(stack: LocalDriver) -> dict[str, dict[str, object]]:
    """Returns the balancer's gRPC services with their application, replicas and other applications."""
    return {service.pop("service"): service for service in stack.state()["services"]}


class Workers(ABC):
    """What the workers of an nginx take."""

    @property
    @abstractmethod
    def workers(self) -> list[int]:
        """Their process IDs."""

    @property
    def descriptors(self) -> int:
        return sum(descriptors(pid) for pid in self.workers)

    @property
    def memory_mib(self) -> float:
        """Memory of all workers; shared pages count once (PSS)."""
        return sum(pss_bytes(pid) for pid in self.workers) / 2**20


class Nginx(Workers):
    """The nginx of a stack."""

    def __init__(self, stack: LocalDriver) -> None:
        self._stack = stack
        self._home = stack.home / "containers" / BALANCER
        self._lines = len(stack.logs(BALANCER))

    @property
    def workers(self) -> list[int]:
        """The workers' process IDs; the master's other child names its lines in the log."""
        master = int((self._home / "run/nginx/nginx.pid").read_text())
        return sorted(pid for pid in children(master) if _title(pid).startswith(b"nginx: worker"))

    @property
    def configuration(self) -> str:
        """Its configuration."""
        return (self._home / "etc/nginx/conf.d/load-balancer.conf").read_text()

    def trouble(self) -> list[str]:
        """Returns the errors in the log since this object was made."""
        lines = self._stack.logs(BALANCER)[self._lines :]
        return [line for line in lines if _TROUBLE.search(line) and not _HANDSHAKE.search(line)]


def _title(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, no paths
