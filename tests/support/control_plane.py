"""A control plane of its own, ``python -m balancer``, on what a test renders in the place of consul-template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balancer import api
from balancer.errors import BalancerError
from tests.support.drivers import ROOT
from tests.support.wait import wait_for

SOCKET = Path("run/balancer.sock")


def line(address: str, port: int, *, app: str = "test", weight: int = 1, **meta: str) -> list[Any]:
    """A registration as peers.tpl renders it."""
    return [app, address, port, weight, address, meta]


class ControlPlane:
    """One in a directory; ``close`` ends it.

    Args:
        home: the directory, of an nginx or of its own.
        environment: added to its own.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        for needed in ("run", "var/lib/load-balancer"):
            (home / needed).mkdir(parents=True, exist_ok=True)
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

    def close(self) -> None:
        """Ends it."""
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
