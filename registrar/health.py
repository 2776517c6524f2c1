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
    """Returns the reason why the container is not healthy; empty when it is."""
    if config.check is not None and not config.check.passes():
        return f"{config.service_id} does not pass {config.check.build_definition()['Name']}"
    try:
        agent = Agent(config)
        if not agent.find_leader():
            return "the Consul cluster has no leader"
        if other := agent.find_namesake():
            return describe_conflict(agent, other)
        if not agent.is_in_gossip():
            return "the agent has left the cluster's gossip"
        if not agent.has_service(config.service_id):
            return f"{config.service_id} is not registered"
    except AgentError as error:
        return str(error)
    return ""
