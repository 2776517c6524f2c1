"""Two containers with one name: the cluster knows the one that came first, and nobody sees the other.

Names are HOSTNAME, which Docker makes one of its kind for each container unless the compose file gives it. Consul's
agent of the other logs that its name is taken, and goes on as if nothing were. Its registrar says so too, fails the
container's health check, and leaves a note in the key-value store, by which ``status`` shows it. Once the name is
free the agent is started anew: one that has lost its name leaves the cluster's gossip for good (serf's
resolveNodeConflict).
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict

from registrar.agent import Agent, AgentError, Node
from registrar.config import RegistrarConfig
from registrar.status import KEYS, Note
from registrar.supervision import SupervisionError, restart

LOG = logging.getLogger("registrar")

# Consul's least for a session is 10 s; it may take twice as long to forget it.
_NOTE_SECONDS = 15
# Of the registrar's looks, which are 5 s apart, so many are longer than the vote of serf's members on a name.
_LOOKS = 4
# Where nothing is wrong the agent is asked about its gossip in the first looks, and seldom after that: it exchanges
# its whole state with itself for it.
_FIRST_LOOKS, _SELDOM = 6, 12
_RESTART_SECONDS = 15.0
AGENT_PROGRAM = "consul"


def problem(agent: Agent, other: Node) -> str:
    """What is wrong, for people.

    Raises:
        AgentError: the agent is out of reach.
    """
    name = agent.name()
    if agent.in_gossip():
        return f"the catalogue has an earlier container of this one's name, {name}, which was at {other.address}"
    return (
        f"another container, at {other.address}, has the name of this one, {name}: this one gets no calls; give each a "
        "HOSTNAME of its own"
    )


class SameName:
    """Looks whether another container has this one's name, and does what is to be done about it.

    Attributes:
        lost: whether the agent has left the cluster's gossip because another has its name.
    """

    def __init__(self, agent: Agent, config: RegistrarConfig) -> None:
        self._agent = agent
        self._config = config
        self.lost = False
        self._looks = self._with_other = 0
        self._restart_at = 0.0

    def look(self) -> bool:
        """Whether the catalogue has another container of this name; False when the agent can't be asked."""
        try:
            other = self._agent.other_of_its_name()
            self._looks += 1
            if other is None:
                self._with_other = 0
                if not self.lost and self._looks > _FIRST_LOOKS and self._looks % _SELDOM:
                    return False
            if not self._agent.in_gossip():
                self._lose(other)
            elif other is not None:
                self._outlive(other)
            elif self.lost:
                LOG.info("the name is this container's")
                self.lost = False
                self._agent.forget()
        except AgentError as error:
            LOG.debug("not known whether another container has the name reason=%s", error)
            return self.lost
        return other is not None

    def begin(self) -> None:
        """The agent was started anew, and may lose its name in the next seconds."""
        self._looks = 0

    def end(self) -> None:
        """Takes the note back."""
        try:
            self._agent.forget()
        except AgentError as error:
            LOG.debug("the note stays for a while reason=%s", error)

    def _lose(self, other: Node | None) -> None:
        if other is not None and not self.lost:
            LOG.error("%s", problem(self._agent, other))
        self.lost = True
        if other is None or not other.alive:
            self._restart_agent()
            return
        name, address = self._agent.name(), self._agent.address()
        note = Note(
            application=self._config.app_name,
            id=self._config.service_id,
            node=name,
            address=address,
            port=self._config.app_port,
            holder=other.address,
        )
        self._agent.keep(f"{KEYS}/{name}/{address}", json.dumps(asdict(note)), _NOTE_SECONDS)

    def _outlive(self, other: Node) -> None:
        """The cluster's gossip has this container under the name, for if it were not so it would be told by now.

        What the catalogue has is then of an earlier container, as after a restart of the machine in which Docker gave
        out the addresses otherwise. Nobody else removes it: the name is in use.
        """
        self._with_other += 1
        if self._with_other >= _LOOKS:
            self._with_other = 0
            LOG.warning("removing an earlier container of this name from the catalogue address=%s", other.address)
            self._agent.remove_node()

    def _restart_agent(self) -> None:
        """At most once in the time in which the cluster may keep the name for its last holder."""
        if time.monotonic() < self._restart_at:
            return
        self._restart_at = time.monotonic() + _RESTART_SECONDS
        LOG.info("the agent is out of the cluster's gossip and its name is free, starting it anew")
        try:
            restart(AGENT_PROGRAM)
        except SupervisionError as error:
            LOG.warning("the agent is not started anew reason=%s", error)
