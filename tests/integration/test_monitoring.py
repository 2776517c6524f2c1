"""The monitoring profile: Prometheus scrapes the stack, every panel of the dashboard has data.

Debian builds Prometheus without the discovery of services in Consul. So its targets come from a file here, with the
labels that discovery gives them (Prometheus' documentation, "consul_sd_config"), made of what Consul says; everything
else is the profile's own configuration. The discovery itself is tried with a program of Prometheus' packages.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from testbed.ports import free_ports
from testbed.processes import Processes
from testbed.wait import wait_for
from tests.support.drivers import ROOT, ConsulApi, LocalDriver
from tests.support.load import two_clients
from tests.support.missing import missing
from tests.support.prometheus import CONFIG, Discovery, configure, expected_targets

DISCOVERY = re.compile(r"^    consul_sd_configs:\n(?:      .*\n)+", re.MULTILINE)
DASHBOARD = ROOT / "build/config/grafana/etc/grafana/dashboards/grpc-load-balancing.json"


@pytest.fixture(scope="module")
def program() -> str:
    found = shutil.which("prometheus")
    if not found:
        missing("no prometheus here")
    return str(found)


class Prometheus:
    """A Prometheus that watches the stack."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """GET, the data of it; None while there is no answer."""
        try:
            response = requests.get(f"{self.url}/{path}", params=parameters, timeout=10)
        except requests.ConnectionError:
            return None
        assert response.status_code in (200, 503), response.text
        return response.json()["data"] if response.ok else None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found = self.get("query", query=expression)
        return list(found["result"]) if found else []

    def rules(self) -> list[dict[str, Any]]:
        """All rules."""
        found = self.get("rules")
        return [rule for group in (found["groups"] if found else []) for rule in group["rules"]]

    def targets(self) -> set[tuple[str, str, str]]:
        """Job, instance and health of all that is scraped."""
        found = self.get("targets", state="active")
        return {
            (target["labels"]["job"], target["labels"]["instance"], target["health"])
            for target in (found["activeTargets"] if found else [])
        }


@pytest.fixture(scope="module")
def prometheus(
    program: str, two_replicas: LocalDriver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with the profile's own configuration, but for where the targets come from."""
    directory = tmp_path_factory.mktemp("prometheus")
    (directory / "prometheus.yml").write_text(configuration())
    (directory / "targets.json").write_text(json.dumps(discovered(ConsulApi(two_replicas))))
    shutil.copy(CONFIG / "rules.yml", directory)
    (port,) = free_ports(1)
    command = [program, f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(30)


def configuration() -> str:
    """The profile's configuration with a file in the place of Consul."""
    text, count = DISCOVERY.subn(
        "    file_sd_configs:\n      - files: [targets.json]\n", (CONFIG / "prometheus.yml").read_text()
    )
    assert count == 1
    return text


def discovered(consul: ConsulApi) -> list[dict[str, Any]]:
    """All services in the catalogue, as Prometheus would find them."""
    found = []
    for name in consul.get("/v1/catalog/services"):
        for instance in consul.get(f"/v1/catalog/service/{name}"):
            address = instance["ServiceAddress"] or instance["Address"]
            labels = {"__meta_consul_service": name, "__meta_consul_node": instance["Node"]}
            meta = instance["ServiceMeta"].items()
            labels |= {f"__meta_consul_service_metadata_{key}": value for key, value in meta}
            found.append({"targets": [f"{address}:{instance['ServicePort']}"], "labels": labels})
    return found


def panels() -> dict[str, list[str]]:
    """The queries of each panel."""
    document = json.loads(DASHBOARD.read_text())
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in document["panels"]}


def promtool(program: str, directory: Path, *arguments: str) -> str:
    """Runs promtool, which is beside Prometheus, and returns its output; it must find no fault."""
    command: list[str | Path] = [Path(program).with_name("promtool"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Its program may have to be built first.
@pytest.mark.timeout(900)
def test_discovery_finds_every_replica_and_the_balancer_and_nothing_else(
    two_replicas: LocalDriver, processes: Processes
) -> None:
    found = Discovery(processes, "discovery", configure(two_replicas))
    wait_for(found.targets, expected_targets(two_replicas).__eq__, 60, "all targets")


def test_configuration_and_rules_are_prometheus_own(program: str, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(configuration())
    (tmp_path / "targets.json").write_text("[]")
    shutil.copy(CONFIG / "rules.yml", tmp_path)
    assert "7 rules found" in promtool(program, tmp_path, "check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_not_before(program: str, tmp_path: Path) -> None:
    shutil.copy(CONFIG / "rules.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.yml"), tmp_path)
    promtool(program, tmp_path, "test", "rules", "alerts.yml")


def wait_for_data(prometheus: Prometheus, title: str, expression: str) -> None:
    """Waits until the expression has numbers; a quantile of nothing is NaN."""
    wait_for(
        lambda: [one["value"][1] for one in prometheus.query(expression)],
        lambda values: bool(values) and all(re.fullmatch(r"[0-9.e+-]+", value) for value in values),
        60,
        f"data of the panel {title!r}: {expression}",
    )


def test_every_panel_has_data_and_every_replica_is_scraped(prometheus: Prometheus, two_replicas: LocalDriver) -> None:
    expected = {("load-balancer", "load-balancer", "up")}
    expected |= {("hello_server", name, "up") for name in two_replicas.replicas()}
    with two_clients(two_replicas) as load:
        wait_for(prometheus.targets, lambda found: found == expected, 60, "all are scraped, and nothing else")
        for title, expressions in panels().items():
            for expression in expressions:
                wait_for_data(
                    prometheus, title, expression.replace("$__rate_interval", "1m").replace("$balancer", ".*")
                )
    load.assert_no_failed_calls()


def test_alerts_are_quiet_while_all_is_well(prometheus: Prometheus) -> None:
    rules = wait_for(
        prometheus.rules,
        lambda found: bool(found) and all(rule["health"] == "ok" for rule in found),
        60,
        "the rules have been evaluated",
    )
    names = (
        "BalancerDown",
        "NoReplica",
        "ReplicaEjected",
        "CertificateExpires",
        "CatalogueDenied",
        "XdsRefused",
        "CallsFail",
    )
    assert {rule["name"]: rule["state"] for rule in rules} == dict.fromkeys(names, "inactive")
