"""The balancer's metrics, read from nginx."""

from __future__ import annotations

import re
import time

import requests

from testbed.stack import BALANCER
from tests.support.drivers import LocalDriver

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>[0-9.e+-]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def samples(stack: LocalDriver, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its labels' values, in the order of the labels."""
    answer = requests.get(f"http://{stack.address(BALANCER)}:9464/metrics", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            if match["name"] == name:
                found[tuple(value for _, value in _LABEL.findall(match["labels"] or ""))] = float(match["value"])
    return found


def handled(stack: LocalDriver) -> dict[tuple[str, str, str], float]:
    """Calls by service, method and status."""
    found: dict[tuple[str, str, str], float] = {}
    for (service, method, _, _, code), value in samples(stack, "grpc_lb_handled_total").items():
        found[service, method, code] = found.get((service, method, code), 0) + value
    return found


def handled_so_far(stack: LocalDriver) -> dict[tuple[str, str, str], float]:
    """Counts calls when all workers have added theirs, which they do once a second."""
    time.sleep(1.5)
    return handled(stack)
