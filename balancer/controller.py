"""The control plane at work: from what is rendered and what replicas say to what nginx has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from balancer import document, snapshot
from balancer.catalogue import Catalogue
from balancer.config import BalancerConfig
from balancer.errors import BalancerError, RefusedError
from balancer.files import follow_text
from balancer.fleet import Fleet, Health, Replica
from balancer.nginx import Nginx
from balancer.prober import Prober
from balancer.registration import Parser, Refusal
from balancer.routes import Route, RouteMemory, compute_routes

LOG = logging.getLogger("balancer")

# How often the catalogue is asked who it is, besides each time that a replica leaves, and about one that it can't be
# asked about now.
_CATALOGUE_SECONDS, _ASK_AGAIN_SECONDS = 1.0, 0.2
# How often nginx is asked what it has, and given again what it did not take. An nginx that was started anew has its
# snapshot meanwhile.
_NGINX_SECONDS, _PUBLISH_AGAIN_SECONDS, _PAUSE_SECONDS = 1.0, 0.2, 0.005
# A held replica that is loaded may miss a health probe, and many, for some 20 s, while it has all the calls it takes.
_MISSES, _HANGS = 3, 30
_NAMES = 20


class Controller:
    """The decisions and what they follow from.

    Args:
        config: the settings.
    """

    def __init__(self, config: BalancerConfig) -> None:
        self._config = config
        self._fleet = Fleet()
        self._parser = Parser(config.networks)
        self.refused: list[Refusal] = []
        self._misses: dict[str, int] = {}
        self._encoder = document.Encoder()
        self._nginx = Nginx(config.nginx_url)
        self._prober = Prober(report=self._apply_health)
        self._dirty, self._left = asyncio.Event(), asyncio.Event()
        self._run, self._number = secrets.token_hex(4), 0
        self._changed, self._updated = time.monotonic(), time.time()
        self._routes: dict[str, Route] = {}
        self._saved: dict[str, Any] = {}
        self._catalogue = Catalogue(config.consul_url, token=config.consul_token)
        self._memory = RouteMemory({}, time.monotonic())
        self._restore()

    async def run(self, stop: asyncio.Event) -> None:
        """Works until ``stop`` is set."""
        if self._config.publishes:
            self._update_prober()
            tasks = [
                self._publish(),
                self._decide_about_absent(),
                self._watch_catalogue(),
                self._watch_nginx(),
                self._prober.run(),
            ]
        else:
            LOG.info("nginx has its replicas from consul-template mode=%s", self._config.mode)
            tasks = []
        running = [asyncio.create_task(task) for task in [*tasks, self._read_rendered()]]
        waiting = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()
        finally:
            for task in [waiting, *running]:
                task.cancel()
            await asyncio.gather(waiting, *running, return_exceptions=True)
            await self._prober.close()

    # What is asked for from outside.

    def describe(self) -> dict[str, Any]:
        """What is decided, as JSON has it: the answer to ``/replicas``."""
        return {
            "replicas": [
                {
                    "application": one.registration.application,
                    "address": one.registration.address,
                    "port": one.registration.port,
                    "weight": one.registration.weight,
                    "state": one.state,
                    "rendered": self._fleet.is_registered(one.registration.key),
                }
                for one in self._fleet
            ],
            "refused": [asdict(one) for one in self.refused],
            "catalogue": self._catalogue.to_dict(),
            "publishes": self._config.publishes,
        }

    def drop(self, target: str) -> list[str]:
        """Forgets the held replicas at ``address:port``; their keys."""
        found = [one.registration.key for one in self._fleet if one.held and one.registration.target == target]
        self._forget(found, "dropped by an operator")
        return found

    # What is rendered.

    async def _read_rendered(self) -> None:
        async for text in follow_text(self._config.rendered):
            self._apply_rendered(text)

    def _apply_rendered(self, text: str) -> None:
        parsed = self._parser.parse(text, (one.registration.key for one in self._fleet))
        if parsed is None:
            return
        rendered, refused = parsed
        before = set(self.refused)
        for one in refused:
            if one not in before:
                LOG.warning(
                    "refused app=%r address=%r port=%d reason=%s", one.application, one.address, one.port, one.reason
                )
        self.refused = refused
        if self._fleet.apply(rendered, time.monotonic()):
            self._note_change("rendered")
        if not self._config.publishes:
            self._forget([one.registration.key for one in self._fleet.absent], "no longer rendered")
        elif self._fleet.absent:
            self._left.set()

    # Replicas that are no longer registered.

    async def _decide_about_absent(self) -> None:
        """Decides about those that have left the rendered list, as soon as the catalogue can be asked."""
        reachable = True
        while True:
            await self._left.wait()
            self._left.clear()
            # Only those that were absent before the question: the answer does not know of later ones.
            absent = [one for one in self._fleet.absent if not one.held]
            if not absent:
                continue
            try:
                await self._hold_or_forget(absent)
                reachable = True
            except BalancerError as error:
                if reachable:
                    LOG.warning("the catalogue can't be asked about absent replicas, keeping them reason=%s", error)
                reachable = False
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                self._left.set()

    async def _hold_or_forget(self, absent: Iterable[Replica]) -> None:
        registrations = [one.registration for one in absent]
        vouched = await asyncio.to_thread(self._catalogue.is_complete)
        explained = set() if vouched else await asyncio.to_thread(self._catalogue.find_unserved, registrations)
        still = {one.registration.key for one in self._fleet.absent}
        keys = [one.key for one in registrations if one.key in still]
        gone = [key for key in keys if vouched or key in explained]
        self._forget(gone, "deregistered" if vouched else "in the catalogue, and not to be served")
        held = self._fleet.hold(key for key in keys if key not in gone)
        for one in held:
            LOG.warning("the catalogue is not whole, holding replica=%s", one.registration.key)
        if held:
            self._note_change("held")

    async def _watch_catalogue(self) -> None:
        """Who it is, so that a change is seen; and whether it explains the absence of those that are held."""
        while True:
            await asyncio.sleep(_CATALOGUE_SECONDS)
            held = [one.registration for one in self._fleet if one.held]
            with contextlib.suppress(BalancerError):
                await asyncio.to_thread(self._catalogue.is_complete)
                if held:
                    explained = await asyncio.to_thread(self._catalogue.find_unserved, held)
                    still = {one.registration.key for one in self._fleet if one.held}
                    self._forget(explained & still, "in the catalogue, and not to be served")
            # What is known of the catalogue is no use in memory only: data may be lost while this program is restarted.
            new = self._catalogue.to_dict() != self._saved
            if self._memory.update(self._compute_routes(), time.monotonic()) != self._routes or new:
                self._dirty.set()

    def _forget(self, keys: Iterable[str], why: str) -> None:
        if self._fleet.remove(list(keys)):
            self._note_change(why)

    # What replicas say.

    def _update_prober(self) -> None:
        if self._config.publishes:
            self._prober.update(self._fleet)

    def _apply_health(self, key: str, health: Health) -> None:
        replica = self._fleet.get(key)
        if replica is None:
            return
        self._misses[key] = 0 if health is Health.SERVING else self._misses.get(key, 0) + 1
        if replica.held and self._misses[key] >= (_HANGS if health is Health.TIMEOUT else _MISSES):
            self._forget([key], f"a held replica is {health.value}")
        elif self._fleet.set_health(key, health, time.monotonic()):
            level = logging.INFO if replica.serves else logging.WARNING
            LOG.log(level, "%s replica=%s", replica.state, key)
            self._dirty.set()

    # What nginx has.

    def _note_change(self, why: str) -> None:
        """The set of replicas has changed."""
        self._changed, self._updated = time.monotonic(), time.time()
        self._misses = {key: count for key, count in self._misses.items() if self._fleet.get(key)}
        first = itertools.islice(self._fleet, _NAMES)
        names = [one.registration.key + (" (held)" if one.held else "") for one in first]
        LOG.info("%s, replicas=%d %s", why, len(self._fleet), ", ".join(names))
        self._dirty.set()
        self._update_prober()

    def _compute_routes(self) -> dict[str, Route]:
        return compute_routes(one.registration for one in self._fleet)

    def _build(self) -> bytes:
        before, self._routes = self._routes, self._memory.update(self._compute_routes(), time.monotonic())
        for service, route in self._routes.items():
            _log_route(service, before.get(service), route)
        self._number += 1
        self._saved = self._catalogue.to_dict()
        return self._encoder.encode(
            document.Content(
                replicas=list(self._fleet),
                routes=self._routes,
                version=f"{self._run}-{self._number}",
                changed=self._changed,
                updated=self._updated,
                catalogue=self._saved,
            )
        )

    async def _publish(self) -> None:
        """Gives nginx each document, and the latest one again until it has it."""
        failed = saved = shown = ""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            began = time.monotonic()
            text = self._build()
            refused, problem = await asyncio.to_thread(_attempt, self._nginx.publish, text)
            failed = _log_once(failed, problem, "nginx has not taken the document")
            if not refused:
                _, problem = await asyncio.to_thread(_attempt, snapshot.save, self._config.current, text)
                shown = _log_once(shown, problem, "health and reflection for all applications stay as they are")
                # An nginx that starts would not take that either.
                _, problem = await asyncio.to_thread(_attempt, snapshot.save, self._config.snapshot, text)
                saved = _log_once(saved, problem, "a restart would not know the replicas")
            if failed:
                await asyncio.sleep(_PUBLISH_AGAIN_SECONDS)
                self._dirty.set()
            else:
                # What changes meanwhile is one document: longer where one costs this program and nginx's workers more.
                await asyncio.sleep(min(max(_PAUSE_SECONDS, 2 * (time.monotonic() - began)), 1.0))

    async def _watch_nginx(self) -> None:
        """An nginx that was started anew has the snapshot, or nothing."""
        self._dirty.set()
        while True:
            await asyncio.sleep(_NGINX_SECONDS)
            with contextlib.suppress(BalancerError):
                number = self._number
                version = await asyncio.to_thread(self._nginx.read_version)
                if version != f"{self._run}-{number}" and number == self._number:
                    LOG.info("nginx has another document version=%s", version or "none")
                    self._dirty.set()

    def _restore(self) -> None:
        """Takes the document of an earlier run: all of it, or nothing."""
        try:
            known = snapshot.load(self._config.snapshot)
            if known:
                replicas = document.read_replicas(known)
                for one in replicas:
                    # A machine that was started anew has a clock that began anew.
                    one.since = min(one.since, time.monotonic())
                earlier = {service: str(route["application"]) for service, route in known["routes"].items()}
                self._catalogue = Catalogue(
                    self._config.consul_url, known["catalogue"], token=self._config.consul_token
                )
                self._memory = RouteMemory(earlier, time.monotonic())
                self._fleet.restore(replicas)
        except BalancerError as error:
            LOG.warning("%s", error)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            LOG.warning("%s is not a document: %r", self._config.snapshot, error)


def _attempt(work: Callable[..., None], *arguments: Any) -> tuple[bool, str]:
    """Whether nginx refuses, and what went wrong."""
    try:
        work(*arguments)
    except BalancerError as error:
        return isinstance(error, RefusedError), str(error)
    return False, ""


def _log_once(before: str, problem: str, what: str) -> str:
    if problem and problem != before:
        LOG.warning("%s reason=%s", what, problem)
    return problem


def _log_route(service: str, before: Route | None, now: Route) -> None:
    """Says in the log what an operator should know of a route."""
    if before and before.application != now.application:
        LOG.info("service=%s goes to app=%s, before to app=%s", service, now.application, before.application)
    if now.also and (before is None or before.also != now.also):
        LOG.warning(
            "service=%s is also registered by %s; its calls go to app=%s", service, ",".join(now.also), now.application
        )
