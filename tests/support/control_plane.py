"""A control plane of its own, ``python -m balancer``, on what a test renders in the place of consul-template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self

import requests

from balancer import api
from balancer.errors import BalancerError
from common.environment import host_port
from testbed.balancers import LuaNginx
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.drivers import ROOT

SOCKET = Path("run/balancer.sock")


def line(address: str, port: int, *, app: str = "test", weight: int = 1, **meta: str) -> list[Any]:
    """A registration as peers.tpl renders it."""
    return [app, address, port, weight, address, meta]


class ControlPlane:
    """One in a directory; leaving the ``with`` block ends it.

    Args:
        home: the directory, of an nginx or of its own.
        environment: added to its own.

    Attributes:
        kept: the file of the snapshot.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self.kept = home / "var/lib/load-balancer/snapshot.json"
        for needed in (home / "run", self.kept.parent):
            needed.mkdir(parents=True, exist_ok=True)
        # Nobody is there, unless the test says so.
        self._environment = {
            "CONSUL_PORT": "1",
            "LB_STATUS_PORT": "1",
            "PEER_CIDR": "127.0.0.0/8,::1/128",
            **environment,
            "PYTHONPATH": str(ROOT),
        }
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, again too."""
        with (self.home / "control-plane.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "balancer"],
                cwd=self.home,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, bool, 20, "the control plane answers")
        return self.process

    def kill(self) -> None:
        """Kills it outright."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def render(self, lines: Iterable[Sequence[Any]]) -> None:
        """Replaces the list, as consul-template does it."""
        text = "".join(json.dumps(one) + "\n" for one in lines) + "# end\n"
        (self.home / "run/peers.new").write_text(text)
        (self.home / "run/peers.new").rename(self.home / "run/peers")

    def view(self) -> dict[str, Any]:
        """What it has decided."""
        return api.call(self.home / SOCKET, "GET", "/replicas")

    def states(self) -> dict[str, str]:
        """The states of its replicas, by address."""
        return {str(one["address"]): str(one["state"]) for one in self.view()["replicas"]}

    def snapshot(self) -> Any:
        """Reads the snapshot on disk; empty where there is none."""
        return json.loads((self.kept.exists() and self.kept.read_text()) or "{}")

    def drop(self, target: str) -> subprocess.CompletedProcess[str]:
        """``python -m balancer drop``."""
        return subprocess.run(
            [sys.executable, "-m", "balancer", "drop", target],
            cwd=self.home,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self) -> str:
        """What it has printed."""
        return (self.home / "control-plane.log").read_text(errors="replace")

    def _answers(self) -> bool:
        try:
            self.view()
        except BalancerError:
            return False
        return True


class _Nginx(LuaNginx):
    """The stack's nginx without a replica, in an environment of its own."""

    def __init__(self, processes: Processes, port: int, environment: Mapping[str, str], open_files: int) -> None:
        super().__init__(processes, port)
        self.variables = {**LuaNginx.variables, **environment}
        self._open_files = open_files

    def _configure(self, env: Mapping[str, str], peers: Sequence[str]) -> None:  # noqa: ARG002 - it has none
        self._started_with = env
        # nginx clears its environment, but for what is named.
        main = self.directory / "etc/nginx/nginx.conf"
        main.write_text("".join(f"env {name};\n" for name in self.variables) + main.read_text())
        self._render(env)

    def _spawn(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        limit = f"ulimit -n {self._open_files}; " if self._open_files else ""
        super()._spawn(["sh", "-c", f'{limit}exec "$@"', "sh", *command], env)

    def launch(self) -> None:
        """Starts it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._launch([])

    def restart(self, *, snapshot: bool = True) -> None:
        """Stops it and starts it again, with the control plane's snapshot or without."""
        kept = self.directory / "var/lib/load-balancer/snapshot.json"
        self.stop()
        if not snapshot:
            kept.unlink()
        self._spawn(["nginx-start"], self._started_with)


class Balancer:
    """nginx and its control plane, without Consul and consul-template; leaving the ``with`` block ends both.

    Attributes:
        nginx: the data plane.
        control_plane: what decides; a test renders for it.
        target: where calls go.
    """

    def __init__(
        self, processes: Processes, port: int, environment: Mapping[str, str] | None = None, *, open_files: int = 0
    ) -> None:
        environment = dict(environment or {})
        self._host = environment.setdefault("LB_STATUS_ADDRESS", "127.0.0.1")
        self.port = port
        self.nginx = _Nginx(processes, port, environment, open_files)
        self.target = self.nginx.target
        self.nginx.launch()
        self.control_plane = ControlPlane(self.nginx.directory, {**environment, "LB_STATUS_PORT": str(port + 1)})
        wait_for(self._configured, bool, 20, "nginx has the control plane's document")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control_plane.__exit__()
        self.nginx.stop()

    def state(self) -> dict[str, Any]:
        """What nginx balances over."""
        return dict(requests.get(f"http://{host_port(self._host, self.port + 1)}/state", timeout=5).json())

    def states(self) -> dict[str, str]:
        """The states of nginx's replicas, by address."""
        return {str(one["address"]): str(one["state"]) for one in self.state()["replicas"]}

    def date(self) -> float:
        """The time that nginx has, in seconds since 1970."""
        response = requests.get(f"http://{host_port(self._host, self.port + 1)}/health", timeout=5)
        return parsedate_to_datetime(response.headers["Date"]).timestamp()

    def _configured(self) -> bool:
        try:
            return bool(self.state()["version"])
        except (requests.RequestException, ValueError):
            return False
