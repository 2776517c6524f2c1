"""Serves the aggregated discovery service (ADS), state of the world, from the file of the control plane's document."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from balancer.certificates import wait_for_copies
from balancer.config import BalancerConfig
from balancer.engine import EnvoySettings
from balancer.files import follow_text
from balancer.xds import resources
from balancer.xds.report import Report
from balancer.xds.resource_set import CLUSTER, Resources
from balancer.xds.rights import Allowed, Rights, find_rights
from balancer.xds.stream import Stream
from common.environment import host_port
from common.grpc_tls import make_credentials

LOG = logging.getLogger("balancer.xds")

# Envoy sends a PING each 30 s, and gRPC's clients may send one each 10 s, also while nothing changes.
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
]
_LINGER_SECONDS = 10.0


class Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc] # it ships no types
    """The service; it answers nothing before the first document.

    Args:
        report: gets the clients and what they refuse.
        allowed: the applications by the names of clients; empty for all to all.

    Attributes:
        current: what clients get; None before the first document.
        streams: those that are open.
    """

    def __init__(self, report: Report, allowed: Allowed) -> None:
        self._report = report
        self._allowed = allowed
        self.current: Resources | None = None
        self.streams: set[Stream] = set()
        self._gone: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def publish(self, newest: Resources) -> None:
        """Sends the resources to all streams; clusters that are gone stay for 10 s if their application does.

        Routes are sent after clusters, so that for a moment a route may lead to a cluster that is gone.
        """
        loop = asyncio.get_running_loop()
        before, self.current = self.current or newest, newest
        now = loop.time()
        applications = set(newest.owners[CLUSTER].values())
        gone = {
            name
            for name, application in before.owners[CLUSTER].items()
            if name not in newest.owners[CLUSTER] and application in applications
        }
        since = {name: self._gone.get(name, now) for name in gone}
        self._gone = {name: at for name, at in since.items() if now < at + _LINGER_SECONDS}
        if self._timer:
            self._timer.cancel()
        if self._gone:
            self.current = newest.keep(before, self._gone)
            self._timer = loop.call_at(min(self._gone.values()) + _LINGER_SECONDS, self.publish, newest)
        for stream in self.streams:
            stream.changed.set()

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answers the subscriptions of one client now and at each change."""
        stream = Stream(name=context.peer(), rights=await self._find_rights(context))

        async def read() -> None:
            async for request in requests:
                stream.take(request)
                self._report.note()

        reader = asyncio.create_task(read())
        self.streams.add(stream)
        self._report.add(stream)
        try:
            ended = False
            while not ended:
                # The last request is answered too.
                ended = reader.done()
                stream.changed.clear()
                if self.current is not None:
                    for answer in stream.answers(self.current):
                        yield answer
                waiting = asyncio.create_task(stream.changed.wait())
                await asyncio.wait([waiting, reader], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            self.streams.discard(stream)
            self._report.remove(stream)
            reader.cancel()

    async def _find_rights(self, context: Any) -> Rights:
        """Returns the rights of the client, and ends the call of one that has none."""
        identity = context.auth_context()
        keys = ("x509_subject_alternative_name", "x509_common_name")
        names = [name.decode("utf-8", "replace") for key in keys for name in identity.get(key, ())]
        rights = find_rights(self._allowed, names)
        if not rights.applications:
            LOG.warning("refused client=%r names=%r reason=none of them is in XDS_ALLOW", context.peer(), names)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the certificate has no name that XDS_ALLOW has")
        return rights


class Server:
    """Serves the resources of documents at an address.

    Args:
        discovery: the service.
        build: makes the resources of a document.
    """

    def __init__(self, discovery: Discovery, build: Callable[[Mapping[str, Any]], Resources]) -> None:
        self._discovery = discovery
        self._build = build
        self.grpc = grpc.aio.server(options=_OPTIONS)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, self.grpc)

    def publish(self, document: Mapping[str, Any]) -> None:
        """Sends the resources of a document; raises as ``build`` does."""
        self._discovery.publish(self._build(document))


def make_client_server(config: BalancerConfig, address: tuple[str, int], report: Report) -> Server:
    """Returns the server of gRPC's clients; it has TLS if port 5000 has, with the same files."""
    server = Server(Discovery(report, config.xds_allowed), resources.build)
    if config.certificates.certificate:
        server.grpc.add_secure_port(host_port(*address), make_credentials(config.certificates, LOG))
    else:
        server.grpc.add_insecure_port(host_port(*address))
    return server


def make_envoy_server(config: BalancerConfig, settings: EnvoySettings, report: Report) -> Server:
    """Returns the server of Envoy, at a Unix socket."""
    # It takes memory.
    from balancer.xds import envoy

    server = Server(Discovery(report, {}), partial(envoy.build, settings=settings))
    # A program that was killed leaves its socket.
    config.xds_socket.unlink(missing_ok=True)
    server.grpc.add_insecure_port(f"unix:{config.xds_socket}")
    return server


async def serve(config: BalancerConfig) -> None:
    """Serves the document in the file ``config.current`` until the task is cancelled."""
    report = Report(config.xds_report)
    servers = {}
    if config.xds:
        servers[host_port(*config.xds)] = make_client_server(config, config.xds, report)
    if config.envoy:
        servers[str(config.xds_socket)] = make_envoy_server(config, config.envoy, report)
    started = False
    writing = asyncio.create_task(report.write())
    try:
        async for text in follow_text(config.current):
            try:
                document = json.loads(text)
                for server in servers.values():
                    server.publish(document)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                LOG.error("%s is not a document: %r", config.current, error)  # noqa: TRY400 - an expected failure
                continue
            if not started:
                if config.envoy:
                    # Envoy reads them.
                    await wait_for_copies(config.copies, config.certificates, config.replica_certificates)
                # A client that finds nothing would believe that there is nothing.
                for server in servers.values():
                    await server.grpc.start()
                started = True
                tls = "on" if config.certificates.certificate else "off"
                LOG.info("serving xDS address=%s tls=%s", ",".join(servers), tls)
    finally:
        writing.cancel()
        for server in servers.values():
            await server.grpc.stop(0)
