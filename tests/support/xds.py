"""A stack that serves xDS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.drivers import ROOT, LocalDriver
from tests.support.local import short_home
from tests.support.scenarios import wait_for_replicas

PORT = 18000


@contextmanager
def serving_xds(name: str, *, address_base: str, port: int, consul_port: int) -> Iterator[LocalDriver]:
    """Runs a stack with xDS and two replicas."""
    with LocalDriver(short_home(name), address_base=address_base, port=port, consul_port=consul_port) as driver:
        driver.env["XDS_PORT"] = str(PORT)
        driver.up(2)
        wait_for_replicas(driver, 2)
        yield driver


def bootstrap(stack: LocalDriver, directory: Path, *before: str, flags: Sequence[str] = ()) -> dict[str, str]:
    """Writes the bootstrap file of gRPC's clients, and returns the environment that names it.

    Args:
        stack: the stack, whose balancer comes last in the file.
        directory: the file's.
        before: other servers.
        flags: of the command.
    """
    file = directory / "bootstrap.json"
    servers = [*before, f"{stack.address('load-balancer')}:{PORT}"]
    command = [sys.executable, "-m", "balancer", "bootstrap", *servers, *flags]
    file.write_bytes(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return {"GRPC_XDS_BOOTSTRAP": str(file)}
