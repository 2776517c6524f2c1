"""The health command of a container."""

from __future__ import annotations

import sys
from pathlib import Path

from registrar.agent import Agent
from registrar.agent_api import AgentError
from registrar.config import RegistrarConfig
from registrar.same_name import describe_conflict

# Exists in a container that was healthy.
_HEALTHY = Path("run/healthy")


def check_health(config: RegistrarConfig, *, liveness: bool = False) -> int:
    """Checks that the service passes its health check, is registered, and that the cluster has a leader.

    Args:
        config: the service.
        liveness: once all of that was true in this container, only the service's own health check counts. This is for
            Docker Swarm, which restarts unhealthy containers: a restart does not bring back Consul, and would end the
            calls that need no Consul.

    Returns:
        The exit code: 0, or 1 with the reason on stderr.
    """
    problem = _find_problem_of_service(config)
    if not problem and not (liveness and _HEALTHY.exists()):
        problem = _find_problem_of_registration(config)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    if liveness:
        _HEALTHY.touch()
    print(f"{config.service_id} is healthy")
    return 0


def _find_problem_of_service(config: RegistrarConfig) -> str:
    if config.check is not None and not config.check.passes():
        return f"{config.service_id} does not pass {config.check.build_definition()['Name']}"
    return ""


def _find_problem_of_registration(config: RegistrarConfig) -> str:
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
