"""Whether Consul's catalogue can vouch for the absence of a replica.

Servers that come back without their data answer 200 with no service for 2 to 34 s. The sign of it is another cluster
ID (the trust domain of the cluster's certificate authority, made once when a cluster is bootstrapped), or an
X-Consul-Index below one that had been read before the question was sent. An answer that is filtered by Consul's ACL
system says so in X-Consul-Results-Filtered-By-ACLs, and is not the whole catalogue either.
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

from balancer.errors import BalancerError
from balancer.registration import Registration
from common.environment import host_port
from common.names import BALANCED_TAG

LOG = logging.getLogger("balancer")

_TIMEOUT_SECONDS = 1.0
# How long a catalogue that has lost its data may be incomplete: agents register again within 34 s, and
# consul-template sees it up to block_query_wait later.
HOLD_SECONDS = 60.0
_FILTERED = "X-Consul-Results-Filtered-By-ACLs"
_INDEX = "X-Consul-Index"
_SERVICES = "/v1/catalog/services"


class Catalogue:
    """The catalogue, asked through the local agent. Its methods may be called by several threads.

    Args:
        url: of the agent's HTTP API.
        known: what :meth:`knowledge` gave in an earlier run.
        clock: seconds of a monotonic clock.
        token: of Consul's ACL system; empty for the agent's own.
    """

    def __init__(
        self,
        url: str,
        known: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        token: str = "",
    ) -> None:
        known = known or {}
        self._url = url
        self._clock = clock
        self._headers = {"X-Consul-Token": token} if token else {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._cluster = str(known.get("cluster", ""))
        self._index = int(known.get("index", 0))
        # An earlier run's clock may have been another machine's: the time begins anew.
        self._lost_until = clock() + HOLD_SECONDS if known.get("lost") else float("-inf")

    @property
    def lost(self) -> bool:
        """Whether the catalogue has lost its data within the last ``HOLD_SECONDS``."""
        return self._clock() < self._lost_until

    def knowledge(self) -> dict[str, Any]:
        """What a later run has to know: ``cluster``, ``index`` and ``lost``."""
        return {"cluster": self._cluster, "index": self._index, "lost": self.lost}

    def vouches(self) -> bool:
        """Asks who the catalogue is; whether what it does not list is gone.

        Raises:
            BalancerError: it can't be asked, so nothing is known.
        """
        # Read before the question is sent: answers may overtake each other.
        before = self._index
        services = self._get(_SERVICES)
        cluster = self._cluster_id()
        try:
            index = int(services.headers[_INDEX])
            # Consul does not tell callers without a token of their own that an answer is filtered. One that lists
            # nothing at all, not even Consul itself, is.
            filtered = services.headers.get(_FILTERED, "").lower() == "true" or not services.json()
        except (KeyError, ValueError) as error:
            raise BalancerError(f"{self._url}{_SERVICES}: not of the expected form: {error!r}") from error
        self._note(before, index, cluster)
        return not filtered and not self.lost

    def _note(self, before: int, index: int, cluster: str) -> None:
        with self._lock:
            other = bool(cluster and self._cluster and cluster != self._cluster)
            if other or index < before:
                LOG.warning(
                    "the catalogue has lost its data cluster=%s index=%d before=%s %d",
                    cluster,
                    index,
                    self._cluster,
                    before,
                )
                self._lost_until = self._clock() + HOLD_SECONDS
                self._index = index
            else:
                self._index = max(self._index, index)
            self._cluster = cluster or self._cluster

    def explained(self, absent: Iterable[Registration]) -> set[str]:
        """The keys of those that the catalogue lists, but not to be served: in maintenance, ill, or without weight.

        One that it lists as passing has come back, and consul-template has not seen it yet.

        Raises:
            BalancerError: it can't be asked.
        """
        wanted: dict[str, set[str]] = {}
        for one in absent:
            wanted.setdefault(one.application, set()).add(one.target)
        found: set[str] = set()
        for application, targets in wanted.items():
            path = f"/v1/health/service/{application}"
            try:
                listed = {_target(instance) for instance in self._get(path).json() if not _serves(instance)}
            except (ValueError, KeyError, TypeError) as error:
                raise BalancerError(f"{self._url}{path}: not of the expected form: {error!r}") from error
            found |= {f"{application} {target}" for target in targets & listed}
        return found

    def _cluster_id(self) -> str:
        """Empty where Consul Connect is off, which Consul says with 500; as servers do too that are not ready yet."""
        path = "/v1/connect/ca/roots"
        try:
            return str(self._get(path).json().get("TrustDomain") or "")
        except BalancerError:
            if self._cluster:
                raise
            return ""
        except (ValueError, AttributeError) as error:
            raise BalancerError(f"{self._url}{path}: not of the expected form: {error!r}") from error

    def _get(self, path: str) -> requests.Response:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            # A proxy of the environment is not for the agent next door.
            session.trust_env = False
        try:
            response = session.get(self._url + path, headers=self._headers, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise BalancerError(f"Consul at {self._url} is out of reach: {type(error).__name__}") from error
        if response.status_code != requests.codes.ok:
            raise BalancerError(f"{self._url}{path}: {response.status_code} {response.text.strip()[:200]}")
        return response


def _serves(instance: Mapping[str, Any]) -> bool:
    """Whether peers.tpl has an instance."""
    service = instance["Service"]
    statuses = {check["Status"] for check in instance["Checks"]}
    weight = service["Weights"]["Warning" if "warning" in statuses else "Passing"]
    return statuses <= {"passing", "warning"} and weight > 0 and BALANCED_TAG in (service["Tags"] or ())


def _target(instance: Mapping[str, Any]) -> str:
    """The ``address:port`` of an instance as registrations have it."""
    address = str(instance["Service"]["Address"] or instance["Node"]["Address"])
    with contextlib.suppress(ValueError):
        address = str(ip_address(address))
    return host_port(address, instance["Service"]["Port"])
