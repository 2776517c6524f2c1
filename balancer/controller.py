"""Decides which replicas get calls: from the registrations, the catalogue and the health of the replicas."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from balancer import document, snapshot
from balancer.addresses import Addresses
from balancer.catalogue import Catalogue
from balancer.certificates import CALLERS_COPIES, REPLICAS_COPIES, Certificates
from balancer.config import BalancerConfig
from balancer.connections import Connections
from balancer.consul_template import ConsulTemplate
from balancer.errors import BalancerError
from balancer.files import follow_text
from balancer.fleet import Fleet, Health, Replica
from balancer.prober import Prober
from balancer.publisher import Publisher
from balancer.registration import Parser, Refusal
from balancer.replica_tls import ReplicaTls
from balancer.routes import Route, RouteMemory, compute_routes

LOG = logging.getLogger("balancer")

# The interval of questions to the catalogue, and the pause after a failed one about absent replicas.
_CATALOGUE_SECONDS, _AGAIN_SECONDS = 1.0, 0.2
# A held replica is dropped after so many failed probes in a row; of timeouts it takes more, because a replica under
# load may miss many probes for some 20 s.
_FAILURES, _TIMEOUTS = 3, 30
_LOGGED_REPLICAS = 20


class Controller:
    """The decisions and their inputs.

    Args:
        config: the settings.
    """

    def __init__(self, config: BalancerConfig) -> None:
        self._config = config
        self._fleet = Fleet()
        addresses = Addresses(config.networks, config.consul_port, config.own)
        self._parser = Parser(addresses, config.refused_kinds)
        self._refused: list[Refusal] = []
        self._failures: dict[str, int] = {}
        self._encoder = document.Encoder()
        self._publisher = Publisher(config, self._encode)
        callers, replicas = ([config.copies / name for name in names] for names in (CALLERS_COPIES, REPLICAS_COPIES))
        self._certificates = Certificates(config.certificates, (callers[0], callers[1]), self._publisher.request)
        self._replica_certificates = Certificates(
            config.replica_certificates, (replicas[0], replicas[1]), self._apply_replica_certificates
        )
        self._consul_template = ConsulTemplate(config.access.files, config.consul_template_pid)
        self._connections = Connections(config.max_connections, config.listeners, self._publisher.request)
        self._prober = Prober(report=self._apply_health)
        self._left = asyncio.Event()
        self._changed, self._updated = time.monotonic(), time.time()
        self._routes: dict[str, Route] = {}
        self._denied = False
        self._xds: dict[str, Any] = {}
        self._published_catalogue: dict[str, Any] = {}
        self._catalogue = Catalogue(config.consul_url, access=config.access)
        self._memory = RouteMemory({}, time.monotonic())
        self._restore()

    async def run(self) -> None:
        """Works until the task is cancelled."""
        tasks = [self._follow_rendered(), self._consul_template.follow()]
        tasks += [self._certificates.follow(), self._replica_certificates.follow()]
        if self._config.publishes:
            self._prober.update(self._fleet)
            tasks += [self._publisher.run(), self._publisher.watch(), self._prober.run()]
            tasks += [self._follow_absent(), self._watch_catalogue(), self._connections.follow()]
            tasks += [self._follow_xds()] if self._config.xds or self._config.envoy else []
        else:
            LOG.info("nginx has its replicas from consul-template mode=%s", self._config.mode)
        try:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(task)
        finally:
            await self._prober.close()

    def describe(self) -> dict[str, Any]:
        """Returns the decisions as the answer to ``/replicas``."""
        return {
            "replicas": [
                {
                    "application": one.registration.application,
                    "address": one.registration.address,
                    "port": one.registration.port,
                    "weight": one.registration.weight,
                    "state": one.state,
                    "reason": self._prober.find_reason(one.registration.key),
                    "rendered": self._fleet.is_registered(one.registration.key),
                }
                for one in self._fleet
            ],
            "refused": [asdict(one) for one in self._refused],
            "catalogue": self._catalogue.describe(),
            "publishes": self._config.publishes,
            **({"xds": self._xds} if self._xds else {}),
        }

    def drop(self, target: str) -> list[str]:
        """Removes the held replicas at ``address:port``, and returns their keys."""
        keys = [one.registration.key for one in self._fleet.held if one.registration.target == target]
        self._remove(keys, "dropped by an operator")
        return keys

    # Registrations.

    async def _follow_rendered(self) -> None:
        async for text in follow_text(self._config.rendered):
            self._apply_rendered(text)

    def _apply_rendered(self, text: str) -> None:
        parsed = self._parser.parse(text, (one.registration.key for one in self._fleet))
        if parsed is None:
            return
        registrations, refused = parsed
        before, self._refused = set(self._refused), refused
        for one in refused:
            if one not in before:
                LOG.warning(
                    "refused app=%r address=%r port=%d reason=%s", one.application, one.address, one.port, one.reason
                )
        if self._fleet.apply(registrations, time.monotonic()):
            self._note_change("rendered")
        if not self._config.publishes:
            self._remove((one.registration.key for one in self._fleet.absent), "no longer rendered")
        elif self._fleet.absent:
            self._left.set()

    # Replicas that are no longer registered.

    async def _follow_absent(self) -> None:
        """Decides about absent replicas as soon as the catalogue can be asked."""
        reachable = True
        while True:
            await self._left.wait()
            self._left.clear()
            # The answer does not cover a replica that leaves after the question.
            absent = [one for one in self._fleet.absent if not one.held]
            if not absent:
                continue
            try:
                await self._hold_or_remove(absent)
                reachable = True
            except BalancerError as error:
                if reachable:
                    LOG.warning("the catalogue can't be asked about absent replicas, keeping them reason=%s", error)
                reachable = False
                await asyncio.sleep(_AGAIN_SECONDS)
                self._left.set()

    async def _hold_or_remove(self, absent: Iterable[Replica]) -> None:
        registrations = [one.registration for one in absent]
        complete = await asyncio.to_thread(self._catalogue.is_complete)
        unserved = set() if complete else await asyncio.to_thread(self._catalogue.find_unserved, registrations)
        keys = {one.key for one in registrations} & {one.registration.key for one in self._fleet.absent}
        gone = keys if complete else keys & unserved
        self._remove(gone, "deregistered" if complete else "in the catalogue, and not to be served")
        held = self._fleet.hold(sorted(keys - gone))
        for one in held:
            LOG.warning("the catalogue is not whole, holding replica=%s", one.registration.key)
        if held:
            self._note_change("held")

    async def _watch_catalogue(self) -> None:
        """Finds a loss of the catalogue's data, and held replicas that the catalogue has again."""
        while True:
            await asyncio.sleep(_CATALOGUE_SECONDS)
            held = [one.registration for one in self._fleet.held]
            with contextlib.suppress(BalancerError):
                await asyncio.to_thread(self._catalogue.is_complete)
                unserved = await asyncio.to_thread(self._catalogue.find_unserved, held)
                still = {one.registration.key for one in self._fleet.held}
                self._remove(unserved & still, "in the catalogue, and not to be served")
            self._notice_rights()
            # The document keeps the state of the catalogue, whose data may be lost while this program restarts.
            noted = self._catalogue.describe() == self._published_catalogue
            if not noted or self._update_routes() != self._routes:
                self._publisher.request()

    def _notice_rights(self) -> None:
        """Has consul-template read the catalogue again when Consul answers in full again.

        Without a change of the catalogue the index of an answer is that of the filtered one, and consul-template takes
        it for the same.
        """
        denied = bool(self._catalogue.describe()["access"])
        if self._denied and not denied:
            self._consul_template.reload()
        self._denied = denied

    def _remove(self, keys: Iterable[str], why: str) -> None:
        if self._fleet.remove(keys):
            self._note_change(why)

    # The health of replicas.

    def _apply_health(self, key: str, health: Health) -> None:
        replica = self._fleet.get(key)
        if replica is None:
            return
        self._failures[key] = 0 if health is Health.SERVING else self._failures.get(key, 0) + 1
        if replica.held and self._failures[key] >= (_TIMEOUTS if health is Health.TIMEOUT else _FAILURES):
            self._remove([key], f"a held replica is {health.value}")
        elif self._fleet.set_health(key, health, time.monotonic()):
            level = logging.INFO if replica.serves else logging.WARNING
            reason = self._prober.find_reason(key)
            LOG.log(level, "%s replica=%s%s", replica.state, key, f" reason={reason}" if reason else "")
            self._publisher.request()

    def _apply_replica_certificates(self) -> None:
        self._prober.tls = ReplicaTls.read(self._config.copies)
        self._publisher.request()

    async def _follow_xds(self) -> None:
        """Passes on what xDS's clients refuse, to status and to the metrics."""
        async for text in follow_text(self._config.xds_report):
            with contextlib.suppress(ValueError):
                self._xds = dict(json.loads(text))
                self._publisher.request()

    # The document.

    def _note_change(self, why: str) -> None:
        """Logs and publishes a change of the set of replicas."""
        self._changed, self._updated = time.monotonic(), time.time()
        self._failures = {key: count for key, count in self._failures.items() if self._fleet.get(key)}
        first = itertools.islice(self._fleet, _LOGGED_REPLICAS)
        names = [one.registration.key + (" (held)" if one.held else "") for one in first]
        LOG.info("%s, replicas=%d %s", why, len(self._fleet), ", ".join(names))
        self._publisher.request()
        if self._config.publishes:
            self._prober.update(self._fleet)

    def _update_routes(self) -> dict[str, Route]:
        return self._memory.update(compute_routes(one.registration for one in self._fleet), time.monotonic())

    def _encode(self, version: str) -> bytes:
        before, self._routes = self._routes, self._update_routes()
        for service, route in self._routes.items():
            _log_route(service, before.get(service), route)
        self._published_catalogue = self._catalogue.describe()
        content = document.Content(
            replicas=list(self._fleet),
            routes=self._routes,
            version=version,
            changed=self._changed,
            updated=self._updated,
            catalogue=self._published_catalogue,
            certificates=self._certificates.expiries | self._replica_certificates.expiries,
            crowded=self._connections.crowded,
            xds={name: self._xds[name] for name in ("clients", "refusing", "refused") if name in self._xds},
        )
        return self._encoder.encode(content)

    def _restore(self) -> None:
        """Takes the whole snapshot of an earlier run, or nothing."""
        try:
            known = snapshot.load(self._config.snapshot)
            if known:
                known_replicas = document.read_replicas(known)
                refused = self._config.refused_kinds
                replicas = [one for one in known_replicas if one.registration.tls not in refused]
                for one in replicas:
                    # The monotonic clock of a restarted machine begins at 0.
                    one.since = min(one.since, time.monotonic())
                earlier = {service: str(route["application"]) for service, route in known["routes"].items()}
                self._catalogue = Catalogue(self._config.consul_url, known["catalogue"], access=self._config.access)
                self._memory = RouteMemory(earlier, time.monotonic())
                self._fleet.restore(replicas)
        except BalancerError as error:
            LOG.warning("%s", error)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            LOG.warning("%s is not a document: %r", self._config.snapshot, error)


def _log_route(service: str, before: Route | None, now: Route) -> None:
    if before and before.application != now.application:
        LOG.info("service=%s goes to app=%s, before to app=%s", service, now.application, before.application)
    if now.also and (before is None or before.also != now.also):
        LOG.warning(
            "service=%s is also registered by %s; its calls go to app=%s", service, ",".join(now.also), now.application
        )
