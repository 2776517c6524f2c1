"""Runs ``python -m balancer`` with registrations that a test renders in place of consul-template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import requests

from balancer import api
from balancer.errors import BalancerError
from common.environment import host_port
from testbed import programs
from testbed.balancers import FedEnvoy, LuaNginx
from testbed.ports import listens
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.drivers import ROOT

if TYPE_CHECKING:
    from tests.support.server_process import ServerProcess

SOCKET = Path("run/balancer.sock")
# Has a test twice, with each; the fixture ``lb_engine`` has the variables.
engines = pytest.mark.parametrize("lb_engine", ["nginx", "envoy"], indirect=True)
_COMMAND = [sys.executable, "-m", "balancer"]


def line(address: str, port: int, *, app: str = "test", weight: int = 1, **meta: str) -> list[Any]:
    """Returns a registration as peers.tpl renders it."""
    return [app, address, port, weight, address, meta]


class ControlPlane:
    """A control plane in a directory; leaving the ``with`` block ends it.

    Args:
        home: the directory, of an nginx or of its own.
        environment: added to its own. Without it there is no Consul and no nginx.

    Attributes:
        kept: the file of the snapshot.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self.kept = home / "var/lib/load-balancer/snapshot.json"
        for needed in (home / "run", self.kept.parent):
            needed.mkdir(parents=True, exist_ok=True)
        defaults = {"CONSUL_PORT": "2", "LB_STATUS_PORT": "2", "PEER_CIDR": "127.0.0.0/8,::1/128"}
        self._environment = {**os.environ, **defaults, **environment, "PYTHONPATH": str(ROOT)}
        self.start()

    def start(self) -> None:
        """Starts it, also after :meth:`kill`."""
        with (self.home / "control-plane.log").open("ab") as log:
            self.process = subprocess.Popen(_COMMAND, cwd=self.home, env=self._environment, stdout=log, stderr=log)
        wait_for(self._answers, bool, 20, "the control plane answers")

    def kill(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def render(self, lines: Iterable[Sequence[Any]]) -> None:
        """Replaces the list of registrations, as consul-template does."""
        text = "".join(json.dumps(one) + "\n" for one in lines) + "# end\n"
        (self.home / "run/peers.new").write_text(text)
        (self.home / "run/peers.new").rename(self.home / "run/peers")

    def view(self) -> dict[str, Any]:
        """Returns its decisions."""
        return api.call(self.home / SOCKET, "GET", "/replicas")

    def states(self) -> dict[str, str]:
        """Returns the states of its replicas by address."""
        return {str(one["address"]): str(one["state"]) for one in self.view()["replicas"]}

    def snapshot(self) -> Any:
        """Reads the snapshot on disk; empty where there is none."""
        return json.loads((self.kept.exists() and self.kept.read_text()) or "{}")

    def drop(self, target: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m balancer drop``."""
        command = [*_COMMAND, "drop", target]
        return subprocess.run(
            command, cwd=self.home, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )

    def log(self) -> str:
        """Returns its output."""
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
        self.started_with = env
        # nginx keeps only the variables that its configuration names.
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
        self._spawn(["nginx-start"], self.started_with)


class _Envoy(FedEnvoy):
    """The stack's Envoy beside a control plane that writes its document."""

    def __init__(self, processes: Processes, port: int, directory: Path, environment: Mapping[str, str]) -> None:
        super().__init__(processes, port)
        self.directory = directory
        self.variables = {**FedEnvoy.variables, **environment}
        self._run()


class Balancer:
    """nginx and its control plane, without Consul and consul-template; leaving the ``with`` block ends both.

    With ``LB_ENGINE=envoy`` Envoy runs too, and has the calls.

    Attributes:
        nginx: the data plane.
        control_plane: the control plane, for which a test renders registrations.
        target: the address of calls.
    """

    def __init__(
        self, processes: Processes, port: int, environment: Mapping[str, str] | None = None, *, open_files: int = 0
    ) -> None:
        environment = dict(environment or {})
        is_envoy = environment.get("LB_ENGINE") == "envoy"
        own = {"LB_STATUS_PORT": str(port + 1)}
        if is_envoy:
            environment.setdefault("LB_LISTEN", f"127.0.0.1:{port}")
            # The control plane looks for it.
            own["PATH"] = os.pathsep.join([str(programs.program("envoy").parent), os.environ["PATH"]])
        self._host = environment.setdefault("LB_STATUS_ADDRESS", "127.0.0.1")
        self.port = port
        self.nginx = _Nginx(processes, port, environment, open_files)
        self.target = self.nginx.target
        self.nginx.launch()
        self.control_plane = ControlPlane(self.nginx.directory, {**environment, **own})
        wait_for(self._configured, bool, 20, "nginx has the control plane's document")
        self._envoy = None
        if is_envoy:
            self._envoy = _Envoy(processes, port, self.nginx.directory, environment)
            wait_for(lambda: listens("127.0.0.1", port), bool, 20, "Envoy has the control plane's document")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._envoy:
            self._envoy.stop()
        self.control_plane.__exit__()
        self.nginx.stop()

    def state(self) -> dict[str, Any]:
        """Returns the answer of nginx to ``/state``."""
        return dict(self._get("/state").json())

    def states(self) -> dict[str, str]:
        """Returns the states of nginx's replicas by address."""
        return {str(one["address"]): str(one["state"]) for one in self.state()["replicas"]}

    def date(self) -> float:
        """Returns the time at nginx, in seconds since 1970."""
        return parsedate_to_datetime(self._get("/health").headers["Date"]).timestamp()

    def _get(self, path: str) -> requests.Response:
        return requests.get(f"http://{host_port(self._host, self.port + 1)}{path}", timeout=5)

    def _configured(self) -> bool:
        try:
            return bool(self.state()["version"])
        except (requests.RequestException, ValueError):
            return False


@contextmanager
def serving(
    processes: Processes, port: int, environment: Mapping[str, str], server: ServerProcess
) -> Iterator[Balancer]:
    """Runs a balancer in front of a server, which gets calls already."""
    with Balancer(processes, port, environment) as one:
        one.control_plane.render([server.line()])
        wait_for(one.states, {server.address: "serving"}.__eq__, 10, "the server serves")
        yield one
