"""The health command of a container."""

from __future__ import annotations

import sys

from registrar.agent import Agent
from registrar.agent_api import AgentError
from registrar.config import RegistrarConfig
from registrar.same_name import describe_conflict


def check_health(config: RegistrarConfig) -> int:
    """Checks that the service passes its health check, is registered, and that the cluster has a leader.

    Returns:
        The exit code: 0, or 1 with the reason on stderr.
    """
    problem = _find_problem(config)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{config.service_id} is healthy")
    return 0


def _find_problem(config: RegistrarConfig) -> str:
    """The reason why the container is not healthy; empty when it is."""
    if config.check is not None and not config.check.passes():
        return f"{config.service_id} does not pass {config.check.definition()['Name']}"
    try:
        agent = Agent(config)
        if not agent.leader():
            return "the Consul cluster has no leader"
        if other := agent.other_of_its_name():
            return describe_conflict(agent, other)
        if not agent.in_gossip():
            return "the agent has left the cluster's gossip"
        if not agent.knows(config.service_id):
            return f"{config.service_id} is not registered"
    except AgentError as error:
        return str(error)
    return ""
