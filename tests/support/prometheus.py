"""Prometheus' own discovery, with the configuration of the monitoring profile (tests/foreign/prometheus)."""

from __future__ import annotations

import json
from pathlib import Path

from testbed.errors import MissingError
from testbed.processes import Processes
from tests.foreign import programs
from tests.support.drivers import ROOT, LocalDriver
from tests.support.missing import missing
from tests.support.secure import SecureDriver

CONFIG = ROOT / "build/config/prometheus/etc/prometheus"
TOKEN = "consul.token"
# Job, instance and URL.
Targets = set[tuple[str, str, str]]


def configure(stack: LocalDriver) -> str:
    """Returns the configuration for a stack, with the address of Consul and the secrets that it has without Docker."""
    secure = isinstance(stack, SecureDriver)
    text = (CONFIG / ("secure.yml" if secure else "prometheus.yml")).read_text()
    places = {"server: consul-ui:8500": f"server: 127.0.0.1:{stack.consul_port}"}
    if isinstance(stack, SecureDriver):
        places[" /secrets/"] = f" {stack.secrets / 'prometheus'}/"
    for place, here in places.items():
        assert place in text
        text = text.replace(place, here)
    return text


def expected_targets(stack: LocalDriver) -> Targets:
    """Returns the metrics of the balancer and of the replicas."""
    jobs = {"load-balancer": "load-balancer", **dict.fromkeys(stack.replicas(), "hello_server")}
    return {(job, name, f"http://{stack.address(name)}:9464/metrics") for name, job in jobs.items()}


class Discovery:
    """A discovery that goes on.

    Args:
        processes: what starts it.
        name: its own among the processes.
        configuration: the text of Prometheus' configuration.
    """

    def __init__(self, processes: Processes, name: str, configuration: str) -> None:
        file = processes.directory / f"{name}.yml"
        file.write_text(configuration)
        try:
            program = programs.prometheus()
        except MissingError as error:
            missing(str(error))
        self._log: Path = processes.log(name)
        processes.start(name, [program, file], cwd=processes.directory)

    def log(self) -> str:
        """Returns what it has printed."""
        return self._log.read_text()

    def targets(self) -> Targets:
        """Returns the latest targets."""
        lines = [line for line in self.log().splitlines(keepends=True) if line.startswith("[") and line.endswith("\n")]
        return {(one["job"], one["instance"], one["url"]) for one in (json.loads(lines[-1]) if lines else [])}
