"""The life of a registration: register, stay registered, deregister, drain."""

from __future__ import annotations

import logging
import threading
import time

from registrar.agent import Agent, AgentError
from registrar.config import RegistrarConfig

LOG = logging.getLogger("registrar")

# Ten tries, one second apart, as the original's.
ATTEMPTS = 10
ATTEMPT_INTERVAL_SECONDS = 1.0
# How long a service gets to answer its check before it is registered as critical. After that Consul's own check
# finds out within one interval.
_START_SECONDS = 5.0
_START_POLL_SECONDS = 0.05
_WATCH_SECONDS = 1.0
# How long the catalogue gets to forget a deregistered instance; without a leader it doesn't.
_FORGET_SECONDS = 5.0
_FORGET_POLL_SECONDS = 0.05


class RegistrationFailedError(Exception):
    """The agent took no registration in all attempts."""


class Registration:
    """One service instance at its local agent.

    Args:
        config: what to register.
        stop: set by a signal; every wait ends when it is set.
    """

    def __init__(self, config: RegistrarConfig, stop: threading.Event) -> None:
        self._config = config
        self._agent = Agent(config)
        self._stop = stop

    def register(self) -> bool:
        """Registers, in up to ten attempts; False when stopped before one succeeded.

        Raises:
            RegistrationFailedError: no attempt succeeded.
        """
        passing = self._wait_until_passing()
        for attempt in range(1, ATTEMPTS + 1):
            if self._stop.is_set():
                return False
            try:
                self._agent.register(self._config, passing=passing)
            except AgentError as error:
                LOG.warning("not registered attempt=%d/%d reason=%s", attempt, ATTEMPTS, error)
            else:
                status = "passing" if passing else "critical"
                LOG.info("registered id=%s status=%s", self._config.service_id, status)
                return True
            if attempt < ATTEMPTS:
                self._stop.wait(ATTEMPT_INTERVAL_SECONDS)
        raise RegistrationFailedError(f"no registration of {self._config.service_id} in {ATTEMPTS} attempts")

    def stay(self) -> None:
        """Registers again whenever the agent has lost the service, until stopped.

        Raises:
            RegistrationFailedError: the agent is there but took no registration in all attempts.
        """
        reachable = True
        while not self._stop.wait(_WATCH_SECONDS):
            try:
                known = self._agent.knows(self._config.service_id)
            except AgentError as error:
                if reachable:
                    LOG.warning("agent lost, waiting for it reason=%s", error)
                reachable = False
                continue
            if not reachable:
                LOG.info("agent is back")
            reachable = True
            if not known:
                LOG.warning("the agent has lost the service id=%s", self._config.service_id)
                self.register()

    def leave(self) -> None:
        """Deregisters, waits until the catalogue has forgotten the instance, then waits the drain.

        An agent out of reach is logged and does not shorten the drain: the balancer may still send calls.
        """
        try:
            self._agent.deregister(self._config.service_id)
            LOG.info("deregistered id=%s", self._config.service_id)
            self._wait_until_forgotten()
        except AgentError as error:
            LOG.warning("not deregistered reason=%s", error)
        LOG.info("draining drain_seconds=%g", self._config.drain_seconds)
        time.sleep(self._config.drain_seconds)
        LOG.info("drained")

    def _wait_until_passing(self) -> bool:
        """Whether the service passes its check within the start time; without a check, at once."""
        if self._config.check is None:
            return True
        deadline = time.monotonic() + _START_SECONDS
        while not self._stop.is_set() and time.monotonic() < deadline:
            if self._config.check.passes():
                return True
            self._stop.wait(_START_POLL_SECONDS)
        return False

    def _wait_until_forgotten(self) -> None:
        deadline = time.monotonic() + _FORGET_SECONDS
        while time.monotonic() < deadline:
            if not self._agent.in_catalogue(self._config.app_name, self._config.service_id):
                return
            time.sleep(_FORGET_POLL_SECONDS)
        LOG.warning("the catalogue still lists the instance after seconds=%g", _FORGET_SECONDS)
