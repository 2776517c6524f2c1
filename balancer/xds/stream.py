"""What a client of xDS has asked for, what it has been sent, and what it has refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from balancer.xds.resource_set import CLUSTER, ENDPOINTS, LISTENER, ROUTE, TYPES, Resources, version
from balancer.xds.rights import ALL, Rights

LOG = logging.getLogger("balancer.xds")

# A client writes what it likes.
_MESSAGE_LENGTH = 300


@dataclass
class _Subscription:
    """What a client wants of one type, and what it has.

    Attributes:
        names: those of the resources; None for all, as Envoy asks for listeners and clusters.
        sent: the version of the latest response.
        nonce: its number.
        refusal: why the client has refused that response; empty if it has not.
    """

    names: tuple[str, ...] | None
    sent: str = ""
    nonce: int = 0
    refusal: str = ""


@dataclass(eq=False)
class Stream:
    """One client.

    Attributes:
        name: for messages.
        rights: what it may have.
        subscriptions: by type.
        changed: set when a response may be due.
        refused: the number of responses that it has refused.
    """

    name: str = "a client"
    rights: Rights = ALL
    subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    refused: int = 0

    def take(self, request: Any) -> None:
        """Takes a subscription, or the answer to a response."""
        kind = request.type_url
        if kind not in TYPES:
            return
        # Only the first request of a stream must have it.
        self.name = request.node.id[:_MESSAGE_LENGTH] or self.name
        subscription = self.subscriptions.get(kind)
        names = _read_names(request, subscription)
        if subscription is None:
            subscription = self.subscriptions[kind] = _Subscription(names)
            self.changed.set()
        elif subscription.names != names:
            # A change of the names is answered also when the resources are the same.
            subscription.names, subscription.sent = names, ""
            self.changed.set()
        # The answer to an earlier response says nothing about the latest.
        if request.response_nonce == str(subscription.nonce):
            subscription.refusal = request.error_detail.message[:_MESSAGE_LENGTH]
            if request.HasField("error_detail"):
                subscription.refusal = subscription.refusal or "no reason is given"
                self.refused += 1
                LOG.error("%r refuses a %s: %r", self.name, _shorten(kind), subscription.refusal)

    def answers(self, current: Resources) -> Iterator[Any]:
        """Yields the responses that are due, in the order of types."""
        for kind in TYPES:
            if kind in (LISTENER, ROUTE) and self._lacks_endpoints(current):
                return
            subscription = self.subscriptions.get(kind)
            # A client that has unsubscribed from its last resource waits for nothing.
            if subscription is None or subscription.names == ():
                continue
            found = current.select(kind, subscription.names, self.rights)
            newest = version(found)
            if newest == subscription.sent:
                continue
            subscription.sent, subscription.nonce = newest, subscription.nonce + 1
            if kind == CLUSTER and ENDPOINTS in self.subscriptions:
                # Envoy waits for the endpoints of a changed cluster, also for the same.
                self.subscriptions[ENDPOINTS].sent = ""
            yield discovery_pb2.DiscoveryResponse(
                version_info=newest, type_url=kind, resources=found, nonce=str(subscription.nonce)
            )

    def _lacks_endpoints(self, current: Resources) -> bool:
        """Whether Envoy has a new cluster to ask the endpoints of; until then a route to it would lose calls."""
        clusters, endpoints = self.subscriptions.get(CLUSTER), self.subscriptions.get(ENDPOINTS)
        if clusters is None or clusters.names is not None:
            return False
        asked = endpoints.names if endpoints else ()
        return asked is not None and not current.found[CLUSTER].keys() <= set(asked)

    @property
    def refusals(self) -> list[str]:
        """The latest responses that it has refused, as text."""
        known = ((kind, one.refusal) for kind, one in self.subscriptions.items())
        return [f"{self.name} refuses a {_shorten(kind)}: {refusal}" for kind, refusal in known if refusal]


def _read_names(request: Any, before: _Subscription | None) -> tuple[str, ...] | None:
    """Returns the names of a request; None for all resources of the type.

    No names mean all listeners or clusters as long as the stream has named none, and no resource afterwards ("How the
    client specifies what resources to return" in Envoy's description of the protocol).
    """
    names = tuple(request.resource_names)
    if "*" in names:
        return None
    if not names and request.type_url in (LISTENER, CLUSTER) and (before is None or before.names is None):
        return None
    return names


def _shorten(kind: str) -> str:
    return kind.rpartition(".")[2]
