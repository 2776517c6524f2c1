"""Finds out whether Consul's catalogue is complete, so that a replica that it does not list is deregistered.

Servers that come back without their data answer 200 with no service for 2 to 34 s. They show it by another cluster ID
(the trust domain of the cluster's certificate authority, made once when a cluster is bootstrapped), or by an
X-Consul-Index below one that had been read before the question was sent. An answer that Consul's ACL system has
filtered is not complete either (rights.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import requests

from balancer.errors import BalancerError, ForbiddenError
from balancer.registration import Registration
from balancer.rights import Rights
from common.consul_access import PLAIN, ConsulAccess
from common.environment import host_port
from common.names import BALANCED_TAG

LOG = logging.getLogger("balancer")

_TIMEOUT_SECONDS = 1.0
# A catalogue that has lost its data may be incomplete for this time: agents register again within 34 s, and
# consul-template sees it up to block_query_wait later.
HOLD_SECONDS = 60.0
_INDEX = "X-Consul-Index"
_SERVICES = "/v1/catalog/services"


class Catalogue:
    """The catalogue, asked through the local agent. Several threads may call its methods.

    Args:
        url: of the agent's HTTP API.
        known: the result of :meth:`to_dict` in an earlier run.
        clock: seconds of a monotonic clock.
        access: the token and the TLS of the requests.
    """

    def __init__(
        self,
        url: str,
        known: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        access: ConsulAccess = PLAIN,
    ) -> None:
        known = known or {}
        self._url = url
        self._clock = clock
        self._access = access
        self._rights = Rights(access.token_source, clock)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._cluster = str(known.get("cluster", ""))
        self._index = int(known.get("index", 0))
        # The time starts again, because an earlier run's clock may have been another machine's.
        self._lost_until = clock() + HOLD_SECONDS if known.get("lost") else float("-inf")

    @property
    def lost(self) -> bool:
        """Whether the catalogue has lost its data within the last ``HOLD_SECONDS``."""
        return self._clock() < self._lost_until

    def to_dict(self) -> dict[str, Any]:
        """Returns the state for a later run: ``cluster``, ``index`` and ``lost``."""
        return {"cluster": self._cluster, "index": self._index, "lost": self.lost}

    def describe(self) -> dict[str, Any]:
        """Returns the state, with ``access``: why Consul does not answer in full; empty if it does."""
        return {**self.to_dict(), "access": self._rights.problem}

    def is_complete(self) -> bool:
        """Asks Consul, and returns whether a replica that the catalogue does not list is deregistered.

        Raises:
            BalancerError: the catalogue can't be asked.
        """
        # Read before the question is sent, because answers may overtake each other.
        before = self._index
        services = self._read_services()
        cluster = self._read_cluster()
        try:
            index = int(services.headers[_INDEX])
        except (KeyError, ValueError) as error:
            raise self._make_error(_SERVICES, error) from error
        self._record(before, index, cluster)
        return self._rights.whole and not self.lost

    def _read_services(self) -> requests.Response:
        """Asks for all services, and notes whether Consul answers in full."""
        try:
            services = self._get(_SERVICES)
            with self._lock:
                self._rights.note_answer(services)
        except ForbiddenError as error:
            with self._lock:
                self._rights.note_refusal(str(error))
            raise
        except ValueError as error:
            raise self._make_error(_SERVICES, error) from error
        return services

    def _record(self, before: int, index: int, cluster: str) -> None:
        with self._lock:
            other = bool(cluster and self._cluster and cluster != self._cluster)
            if other or index < before:
                text = "the catalogue has lost its data cluster=%s index=%d before=%s %d"
                LOG.warning(text, cluster, index, self._cluster, before)
                self._lost_until = self._clock() + HOLD_SECONDS
                self._index = index
            else:
                self._index = max(self._index, index)
            self._cluster = cluster or self._cluster

    def find_unserved(self, absent: Iterable[Registration]) -> set[str]:
        """Returns the keys of replicas that are in the catalogue, but critical, in maintenance or of weight 0.

        A replica whose checks pass has come back, and consul-template has not seen it yet.

        Raises:
            BalancerError: the catalogue can't be asked.
        """
        wanted: dict[str, set[str]] = {}
        for one in absent:
            wanted.setdefault(one.application, set()).add(one.target)
        found: set[str] = set()
        for application, targets in wanted.items():
            path = f"/v1/health/service/{application}"
            try:
                listed = {_read_target(instance) for instance in self._get(path).json() if not _is_served(instance)}
            except (ValueError, KeyError, TypeError) as error:
                raise self._make_error(path, error) from error
            found |= {f"{application} {target}" for target in targets & listed}
        return found

    def _read_cluster(self) -> str:
        """Returns the cluster ID; empty if Consul Connect is off, which Consul answers with 500.

        Servers that are not ready yet answer 500 too.
        """
        path = "/v1/connect/ca/roots"
        try:
            return str(self._get(path).json().get("TrustDomain") or "")
        except BalancerError:
            if self._cluster:
                raise
            return ""
        except (ValueError, AttributeError) as error:
            raise self._make_error(path, error) from error

    def _make_error(self, path: str, error: Exception) -> BalancerError:
        return BalancerError(f"{self._url}{path}: not of the expected form: {error!r}")

    def _get(self, path: str) -> requests.Response:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._access.make_session()
        try:
            response = session.get(self._url + path, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise BalancerError(f"Consul at {self._url} is out of reach: {type(error).__name__}") from error
        if response.status_code != requests.codes.ok:
            kind = ForbiddenError if response.status_code == requests.codes.forbidden else BalancerError
            raise kind(f"{self._url}{path}: {response.status_code} {response.text.strip()[:200]}")
        return response


def _is_served(instance: Mapping[str, Any]) -> bool:
    """Returns whether peers.tpl lists an instance."""
    service = instance["Service"]
    statuses = {check["Status"] for check in instance["Checks"]}
    weight = service["Weights"]["Warning" if "warning" in statuses else "Passing"]
    return statuses <= {"passing", "warning"} and weight > 0 and BALANCED_TAG in (service["Tags"] or ())


def _read_target(instance: Mapping[str, Any]) -> str:
    """Returns the ``address:port`` of an instance as :attr:`Registration.target` has it."""
    address = str(instance["Service"]["Address"] or instance["Node"]["Address"])
    with contextlib.suppress(ValueError):
        address = str(ip_address(address))
    return host_port(address, instance["Service"]["Port"])
