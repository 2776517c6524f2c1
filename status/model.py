"""The replicas, in the catalogue and at the balancer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from common.names import BALANCED_TAG


class StatusError(Exception):
    """The catalogue is unavailable, or has nothing of that name; the message says so."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica.

    Attributes:
        check: the worst status of its checks and its node's; empty when it is not in the catalogue.
        output: the output of the worst check.
        node_check: the status of its node's own check, which shows whether its agent is alive.
        registered: the time of its last registration, in ISO 8601; empty when unknown.
        rendered: whether consul-template has passed it to the balancer, which accepted it; None when unknown.
        balancer: its state at the balancer; empty when the balancer does not have it.
        reason: why the balancer does not accept its certificate; empty for any other state.
        difference: the difference between the two views; empty when they agree.
        last_call: the end of its last call, in seconds since 1970; 0 without a call in a day or without metrics.
        last_status: the gRPC status of that call.
    """

    application: str
    id: str = ""
    node: str = ""
    address: str
    port: int
    weight: int
    version: str = ""
    check: str = ""
    output: str = ""
    node_check: str = ""
    registered: str = ""
    rendered: bool | None = None
    balancer: str = ""
    reason: str = ""
    difference: str = ""
    last_call: float = 0.0
    last_status: str = ""


@dataclass(frozen=True, kw_only=True)
class Balancer:
    """One of several balancers.

    Attributes:
        serving: the number of replicas that get calls from it.
        difference: how its view differs from the one that is shown, or why it is unknown; empty if they agree.
    """

    node: str
    address: str
    port: int
    serving: int = 0
    difference: str = ""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Both views at one moment.

    Attributes:
        balancers: all balancers, if there are several.
        services: the balancer's gRPC services with their application, and other applications that register them.
        refused: registrations that the balancer refuses: ``application``, ``address``, ``port``, ``reason``.
        access: why Consul does not answer the balancer, or this command, in full; empty when it does.
        xds: what clients of the balancer's xDS refuse, as text.
        problem: why the balancer's view, or a part of it, is missing; empty when it is complete.
    """

    replicas: list[Replica]
    services: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    problem: str
    access: str = ""
    xds: list[str] = field(default_factory=list)
    balancers: list[Balancer] = field(default_factory=list)

    def select(self, name: str) -> Status:
        """Returns the part about an application, about the replica with that ID, or about a node's replicas.

        Raises:
            StatusError: there is nothing of that name.
        """
        found = [one for one in self.replicas if name in (one.application, one.id, one.node)]
        if not found:
            names = ", ".join(sorted({one.application for one in self.replicas})) or "nothing"
            raise StatusError(f"nothing with the tag {BALANCED_TAG} is called {name}; there is {names}")
        applications = {one.application for one in found}
        services = [one for one in self.services if one["application"] in applications]
        return replace(self, replicas=found, services=services)
