"""Two containers with one name: the cluster keeps the first one, and the second one gets no calls.

The name is HOSTNAME, which Docker makes unique unless the compose file sets it. The second container's Consul agent
logs that its name is taken, and continues. Its registrar logs it too, fails the container's health check, and stores a
note, which ``status`` shows. When the name is free the registrar restarts the agent, because an agent that has lost its
name leaves the cluster's gossip for good (serf's resolveNodeConflict).
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict

from common.name_conflict import KEYS, Note
from registrar.agent import Agent, Node
from registrar.agent_api import AgentError
from registrar.config import RegistrarConfig
from registrar.stored_value import StoredValue
from registrar.supervision import SupervisionError, restart

LOG = logging.getLogger("registrar")

# The shortest TTL of a Consul session is 10 s; the session may last twice its TTL.
_NOTE_SECONDS = 15
_CHECK_SECONDS = 5.0
# So many checks, which are _CHECK_SECONDS apart, take longer than the vote of serf's members on a name.
_VOTE_CHECKS = 4
# Without a conflict the agent's gossip is examined in the first checks and in each twelfth after that, because for it
# the agent exchanges its whole state with itself.
_FIRST_CHECKS, _INTERVAL_CHECKS = 6, 12
_RESTART_SECONDS = 15.0
_AGENT_PROGRAM = "consul"


def describe_conflict(agent: Agent, other: Node) -> str:
    """Describes the conflict of names in one sentence.

    Raises:
        AgentError: the agent is out of reach.
    """
    name = agent.read_name()
    if agent.is_in_gossip():
        return f"the catalogue has an earlier container of this one's name, {name}, which was at {other.address}"
    return (
        f"another container, at {other.address}, has the name of this one, {name}: this one gets no calls; give each a "
        "HOSTNAME of its own"
    )


class SameName:
    """Finds another container with this one's name, and resolves the conflict.

    Attributes:
        lost: whether the agent has left the cluster's gossip because another has its name.
    """

    def __init__(self, agent: Agent, config: RegistrarConfig) -> None:
        self._agent = agent
        self._config = config
        self._note = StoredValue(agent.api)
        self.lost = False
        self._checked_at, self._taken = -_CHECK_SECONDS, False
        self._checks = self._with_other = 0
        self._restart_at = 0.0

    def is_taken(self) -> bool:
        """Returns the result of :meth:`check_name`, which is called at its interval."""
        if time.monotonic() >= self._checked_at + _CHECK_SECONDS:
            self._checked_at = time.monotonic()
            self._taken = self.check_name()
        return self._taken

    def check_name(self) -> bool:
        """Returns whether the catalogue has another container of this name; without an answer, the last result."""
        try:
            other = self._agent.find_namesake()
            self._checks += 1
            if other is None:
                self._with_other = 0
                if not self.lost and self._checks > _FIRST_CHECKS and self._checks % _INTERVAL_CHECKS:
                    return False
            if not self._agent.is_in_gossip():
                self._handle_lost_name(other)
            elif other is not None:
                self._remove_earlier(other)
            elif self.lost:
                LOG.info("this container has the name now")
                self.lost = False
                self._note.remove()
        except AgentError as error:
            LOG.debug("the name was not checked reason=%s", error)
            return self.lost
        return other is not None

    def expect_conflict(self) -> None:
        """Checks often again: the agent was restarted, and may lose its name in the next seconds."""
        self._checks = 0

    def withdraw_note(self) -> None:
        """Removes the note."""
        try:
            self._note.remove()
        except AgentError as error:
            LOG.debug("the note was not removed reason=%s", error)

    def _handle_lost_name(self, other: Node | None) -> None:
        if other is not None and not self.lost:
            LOG.error("%s", describe_conflict(self._agent, other))
        self.lost = True
        if other is None or not other.alive:
            self._restart_agent()
            return
        name, address = self._agent.read_name(), self._agent.read_address()
        note = Note(
            application=self._config.app_name,
            id=self._config.service_id,
            node=name,
            address=address,
            port=self._config.app_port,
            holder=other.address,
        )
        self._note.store(f"{KEYS}/{name}/{address}", json.dumps(asdict(note)), _NOTE_SECONDS)

    def _remove_earlier(self, other: Node) -> None:
        """Removes an earlier container of this name from the catalogue.

        The vote on the name is over by then, and the cluster's gossip has this container under it. The catalogue's
        entry is of an earlier container, as after a restart of the machine in which Docker assigned other addresses.
        Consul does not remove it, because the name is in use.
        """
        self._with_other += 1
        if self._with_other >= _VOTE_CHECKS:
            self._with_other = 0
            LOG.warning("removing an earlier container of this name from the catalogue address=%s", other.address)
            self._agent.remove_node()

    def _restart_agent(self) -> None:
        """Restarts the agent, at most once in the time in which the cluster may keep the name for its last holder."""
        if time.monotonic() < self._restart_at:
            return
        self._restart_at = time.monotonic() + _RESTART_SECONDS
        LOG.info("the agent has left the cluster's gossip and its name is free, restarting it")
        try:
            restart(_AGENT_PROGRAM)
        except SupervisionError as error:
            LOG.warning("the agent was not restarted reason=%s", error)
