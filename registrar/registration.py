"""The life of a registration: register, stay registered, deregister, drain."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from registrar import reflection
from registrar.agent import Agent
from registrar.agent_api import AgentError
from registrar.config import RegistrarConfig, services_fit
from registrar.same_name import SameName

LOG = logging.getLogger("registrar")

# As in the original: ten attempts, one second apart.
ATTEMPTS = 10
ATTEMPT_INTERVAL_SECONDS = 1.0
# The time in which a service must pass its check, or it is registered as critical. Consul's own check corrects that
# within one interval.
_START_SECONDS = 5.0
_START_POLL_SECONDS = 0.05
_WATCH_SECONDS = 1.0
# The catalogue is read less often than the local agent because the whole cluster shares it.
_CATALOGUE_SECONDS = 5.0
_REFLECTION_SECONDS = 1.0
_ASK_AGAIN_MOST_SECONDS = 60.0
# The time in which the catalogue must remove a deregistered replica. Without a leader it never does.
_REMOVE_SECONDS = 5.0
_REMOVE_POLL_SECONDS = 0.05


class RegistrationFailedError(Exception):
    """All attempts to register failed."""


class Registration:
    """One replica at its local agent.

    Args:
        config: what to register.
        stop: set by a signal; every wait ends when it is set.

    Attributes:
        attempted: whether a registration was sent. The agent may have the service even if it did not answer: it takes a
            registration before it updates the catalogue, which needs a leader.
    """

    def __init__(self, config: RegistrarConfig, stop: threading.Event) -> None:
        self._config = config
        self._agent = Agent(config)
        self._same_name = SameName(self._agent, config)
        self._stop = stop
        self.attempted = False
        # None until the server has answered.
        self._services: Sequence[str] | None = None if config.asks_for_services else config.grpc_services
        self._waited_for_services = False
        self._ask_again_seconds, self._ask_again_at = 0.5, 0.0

    def register(self) -> bool:
        """Registers, in up to ten attempts; False when stopped before one succeeded.

        Attempts while another container has the name don't count. The agent may then fail each of them: it takes the
        other's services for deleted ones of its own, and the answer to a registration of the same ID is a panic
        (updateSyncState and setServiceStateLocked in Consul's agent/local/state.go).

        Raises:
            RegistrationFailedError: no attempt succeeded.
        """
        passing = self._wait_until_passing()
        if self._services is None and not self._waited_for_services:
            self._wait_for_services()
        attempt = 1
        while attempt <= ATTEMPTS:
            if self._stop.is_set():
                return False
            self.attempted = True
            try:
                self._agent.register(self._config, self._services or (), passing=passing)
            except AgentError as error:
                if not self._same_name.is_taken():
                    LOG.warning("not registered attempt=%d/%d reason=%s", attempt, ATTEMPTS, error)
                    attempt += 1
            else:
                status = "passing" if passing else "critical"
                services = ",".join(self._services or ())
                LOG.info("registered id=%s status=%s grpc_services=%s", self._config.service_id, status, services)
                return True
            if attempt <= ATTEMPTS:
                self._stop.wait(ATTEMPT_INTERVAL_SECONDS)
        raise RegistrationFailedError(f"no registration of {self._config.service_id} in {ATTEMPTS} attempts")

    def stay(self) -> None:
        """Registers again when the agent or the catalogue has lost the service, until stopped.

        Raises:
            RegistrationFailedError: the agent answers, but all attempts failed.
        """
        reachable = True
        self._rejoin_gossip()
        catalogue_at = time.monotonic() + _CATALOGUE_SECONDS
        while not self._stop.wait(_WATCH_SECONDS):
            try:
                known = self._agent.has_service(self._config.service_id)
            except AgentError as error:
                if reachable:
                    LOG.warning("the agent is unavailable, waiting for it reason=%s", error)
                reachable = False
                continue
            if not reachable:
                LOG.info("the agent is available again")
            reachable = True
            if not known:
                LOG.warning("the agent has lost the service id=%s", self._config.service_id)
                # The agent was restarted.
                self._same_name.expect_conflict()
                self._rejoin_gossip()
                self.register()
                catalogue_at = time.monotonic() + _CATALOGUE_SECONDS
            elif time.monotonic() >= catalogue_at:
                catalogue_at = time.monotonic() + _CATALOGUE_SECONDS
                if not self._same_name.check_name():
                    self._check_catalogue()
            elif self._services is None and time.monotonic() >= self._ask_again_at:
                # The interval doubles while a server starts slowly.
                self._ask_again_seconds = min(2 * self._ask_again_seconds, _ASK_AGAIN_MOST_SECONDS)
                self._ask_again_at = time.monotonic() + self._ask_again_seconds
                if self._ask_for_services():
                    self.register()

    def leave(self) -> None:
        """Deregisters, waits until the catalogue has removed the replica, then waits for the drain.

        An unreachable agent is logged and does not shorten the drain, because the balancer may still send calls.
        """
        if self._same_name.check_name():
            # A deregistration by name would remove the other container.
            self._same_name.withdraw_note()
            LOG.info("not deregistered because another container has the name")
            return
        try:
            self._agent.deregister(self._config.service_id)
            LOG.info("deregistered id=%s", self._config.service_id)
            self._wait_until_removed()
        except AgentError as error:
            LOG.warning("not deregistered reason=%s", error)
        LOG.info("draining drain_seconds=%g", self._config.drain_seconds)
        time.sleep(self._config.drain_seconds)
        LOG.info("drained")

    def _rejoin_gossip(self) -> None:
        try:
            self._agent.rejoin_gossip()
        except AgentError as error:
            LOG.warning("the agent did not rejoin the gossip reason=%s", error)

    def _check_catalogue(self) -> None:
        """Registers again if the catalogue has lost the service; looks for the servers if it is unavailable."""
        try:
            known = self._agent.is_in_catalogue(self._config.service_id)
        except AgentError:
            self._agent.join_server(self._config.consul_servers)
            return
        if not known:
            LOG.warning("the catalogue has lost the service id=%s", self._config.service_id)
            self._rejoin_gossip()
            self.register()

    def _wait_until_passing(self) -> bool:
        """Waits, at most for the start time, and returns whether the service passes its check, or has none."""
        if self._config.check is None:
            return True
        deadline = time.monotonic() + _START_SECONDS
        while not self._stop.is_set() and time.monotonic() < deadline:
            if self._config.check.passes():
                return True
            self._stop.wait(_START_POLL_SECONDS)
        return False

    def _wait_for_services(self) -> None:
        """Asks until the server answers or the start time is over; then :meth:`stay` continues to ask."""
        self._waited_for_services = True
        deadline = time.monotonic() + _START_SECONDS
        while not self._ask_for_services() and not self._stop.is_set() and time.monotonic() < deadline:
            self._stop.wait(_START_POLL_SECONDS)

    def _ask_for_services(self) -> bool:
        self._services = reflection.find_services(self._config.target, _REFLECTION_SECONDS, self._config.tls)
        if self._services and not services_fit(self._services):
            LOG.warning("too many gRPC services for the catalogue, the last ones are left out")
        return self._services is not None

    def _wait_until_removed(self) -> None:
        deadline = time.monotonic() + _REMOVE_SECONDS
        while time.monotonic() < deadline:
            if not self._agent.is_in_catalogue(self._config.service_id):
                return
            time.sleep(_REMOVE_POLL_SECONDS)
        LOG.warning("the catalogue still has the replica after seconds=%g", _REMOVE_SECONDS)
