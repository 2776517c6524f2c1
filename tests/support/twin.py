"""A second nginx with the balancer's configuration and replicas, at an address of its own: the other victim."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from testbed.processes import Processes
from testbed.stack import BALANCER
from testbed.wait import wait_for
from tests.support.drivers import LocalDriver


def _serves(address: str) -> bool:
    try:
        return requests.get(f"http://{address}:8080/health", timeout=5).ok
    except requests.ConnectionError:
        return False


@contextmanager
def twin(stack: LocalDriver, home: Path, *, modules: bool = True) -> Iterator[tuple[str, int]]:
    """Runs it in the directory ``home``, with nginx's modules or without; gives the address that it listens on."""
    container = stack.home / "containers" / BALANCER
    shutil.copytree(container / "etc/nginx", home / "etc/nginx")
    shutil.copytree(container / "run/nginx", home / "run/nginx", symlinks=True, ignore=shutil.ignore_patterns("*.pid"))
    # It starts with the replicas that the first has, and no control plane changes them.
    (home / "var/lib/load-balancer").mkdir(parents=True)
    snapshot = "var/lib/load-balancer/snapshot.json"
    if (container / snapshot).exists():
        shutil.copy(container / snapshot, home / snapshot)
    address = stack.own_address(202, 1)
    structure = home / "etc/nginx/conf.d/load-balancer.conf"
    # The first of its addresses becomes the new one, the others go.
    listens = re.findall(r"    listen \S+ http2[^;]*;\n", structure.read_text())
    text = structure.read_text().replace(listens[0], f"    listen {address}:5000 http2 backlog=4096;\n")
    for line in listens[1:]:
        text = text.replace(line, "")
    text = re.sub(r"listen \S+:(8080|9464);", rf"listen {address}:\1;", text)
    structure.write_text(text)
    if not modules:
        main = home / "etc/nginx/nginx.conf"
        main.write_text(re.sub(r"^include /etc/nginx/modules.*\n", "", main.read_text(), flags=re.MULTILINE))
    command = ["nginx", "-e", "stderr", "-p", str(home / "run/nginx"), "-c", str(home / "etc/nginx/nginx.conf")]
    directives = "daemon off;" + (" user root;" if os.getuid() == 0 else "")
    command += ["-g", f"worker_processes auto; {directives}"]
    with Processes(home) as started:
        # Like the balancer it counts its calls.
        started.start("nginx", command, cwd=home, env={"METRICS_PORT": "9464"})
        wait_for(lambda: _serves(address), bool, 20, "the second nginx serves")
        yield address, 5000
