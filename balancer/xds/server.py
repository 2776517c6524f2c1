"""Serves the aggregated discovery service (ADS), state of the world, from the file of the control plane's document."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from balancer.files import follow_text
from balancer.xds import resources
from balancer.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE, TYPES, Resources

LOG = logging.getLogger("balancer.xds")

# Envoy sends a PING each 30 s, and gRPC's clients may send one each 10 s, also while nothing changes.
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
]


@dataclass
class _Subscription:
    """What a stream wants of one type, and what it has."""

    names: tuple[str, ...]
    sent: str = ""
    nonce: int = 0


@dataclass(eq=False)
class Stream:
    """One client: what it wants and has of each type; ``changed`` is set when that may differ."""

    subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, request: Any) -> None:
        """Takes a subscription, or the answer to a response."""
        kind = request.type_url
        if kind not in TYPES:
            return
        known = self.subscriptions.get(kind)
        if request.HasField("error_detail"):
            LOG.error("refused by %s: %s", request.node.id or "a client", request.error_detail.message[:500])
        if known is None or known.names != tuple(request.resource_names):
            # A change of the names is answered also when the resources are the same.
            self.subscriptions[kind] = _Subscription(tuple(request.resource_names), nonce=known.nonce if known else 0)
            self.changed.set()

    def answers(self, current: Resources) -> Iterator[Any]:
        """Yields the responses that are due, in the order of types."""
        for kind in TYPES:
            if kind in (LISTENER, ROUTE) and self._lacks_endpoints(current):
                return
            subscription = self.subscriptions.get(kind)
            if subscription is None:
                continue
            found = current.select(kind, subscription.names)
            version = resources.version(found)
            if version == subscription.sent:
                continue
            subscription.sent, subscription.nonce = version, subscription.nonce + 1
            if kind == CLUSTER and ENDPOINTS in self.subscriptions:
                # Envoy waits for the endpoints of a changed cluster, also for the same.
                self.subscriptions[ENDPOINTS].sent = ""
            yield discovery_pb2.DiscoveryResponse(
                version_info=version, type_url=kind, resources=found, nonce=str(subscription.nonce)
            )

    def _lacks_endpoints(self, current: Resources) -> bool:
        """Whether Envoy has a new cluster to ask the endpoints of; until then a route to it would lose calls."""
        clusters, endpoints = self.subscriptions.get(CLUSTER), self.subscriptions.get(ENDPOINTS)
        if clusters is None or not resources.is_wildcard(clusters.names):
            return False
        wanted = current.wildcard.get(CLUSTER, current.found[CLUSTER])
        return not wanted.keys() <= set(endpoints.names if endpoints else ())


class Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc] # it ships no types
    """The service; it answers nothing before the first document."""

    def __init__(self) -> None:
        self._current: Resources | None = None
        self._streams: set[Stream] = set()

    def publish(self, current: Resources) -> None:
        """Sends the resources to all streams."""
        self._current = current
        for stream in self._streams:
            stream.changed.set()

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802, ARG002
        """Answers the subscriptions of one client now and at each change."""
        stream = Stream()

        async def read() -> None:
            async for request in requests:
                stream.take(request)

        reader = asyncio.create_task(read())
        self._streams.add(stream)
        try:
            while not reader.done():
                stream.changed.clear()
                if self._current is not None:
                    for answer in stream.answers(self._current):
                        yield answer
                waiting = asyncio.create_task(stream.changed.wait())
                await asyncio.wait([waiting, reader], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            self._streams.discard(stream)
            reader.cancel()


async def serve(
    document: Path, addresses: Sequence[str], build: Callable[[Mapping[str, Any]], Resources] = resources.build
) -> None:
    """Serves the document in a file until the task is cancelled.

    Args:
        document: the file.
        addresses: where to serve.
        build: makes the resources of a document.
    """
    discovery = Discovery()
    server = grpc.aio.server(options=_OPTIONS)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
    for address in addresses:
        server.add_insecure_port(address)
    started = False
    try:
        async for text in follow_text(document):
            try:
                discovery.publish(build(json.loads(text)))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                LOG.error("%s is not a document: %r", document, error)  # noqa: TRY400 - an expected failure
                continue
            if not started:
                # A client that finds nothing would believe that there is nothing.
                await server.start()
                started = True
                LOG.info("serving xDS address=%s", ",".join(addresses))
    finally:
        await server.stop(0)
