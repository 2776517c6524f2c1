"""Makes registrations, replicas and documents for unit tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from balancer import document
from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route, compute_routes


def registration(application: str = "shop", number: int = 1, *services: str, **given: Any) -> Registration:
    """Makes a registration at the address 10.0.0.NUMBER."""
    fields = {"address": f"10.0.0.{number}", "port": 7777, "weight": 1, **given}
    return Registration(application=application, services=services, **fields)


def replica(application: str, number: int, *services: str, health: Health = Health.SERVING, **given: Any) -> Replica:
    """Makes a replica at the address 10.0.0.NUMBER."""
    return Replica(registration=registration(application, number, *services), since=5, health=health, **given)


def build(replicas: Sequence[Replica], routes: Mapping[str, Route] | None = None, **given: Any) -> dict[str, Any]:
    """Builds a document, as nginx gets it."""
    if routes is None:
        routes = compute_routes(one.registration for one in replicas)
    content = document.Content(**{"replicas": replicas, "routes": routes, "version": "v-1", **given})
    return dict(json.loads(json.dumps(document.build(content))))
