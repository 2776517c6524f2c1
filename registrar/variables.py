"""Checks all variables of a container before its programs start."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.environment import (
    ConfigError,
    EnvironmentReader,
    read_drain_seconds,
    read_grace_seconds,
    read_max_message_bytes,
    resolve_addresses,
)

# The configuration that each of supervisord's programs reads.
_READERS = {
    "consul": ("registrar.agent_config", "AgentConfig"),
    "registrar": ("registrar.config", "RegistrarConfig"),
    "balancer": ("balancer.config", "BalancerConfig"),
    "grpc_server": ("grpc_server.config", "ServerConfig"),
}
# Scripts and templates compare these in lower case.
_LOWER_CASE = (
    "CONSUL_BOOTSTRAP_DEBUG",
    "CONSUL_HTTP_SSL",
    "CONSUL_ROLE",
    "CONSUL_SECURE",
    "CONSUL_UI",
    "GRPC_IDEMPOTENT",
    "LB_ACCESS_LOG",
    "LB_ENGINE",
    "LB_REPLICA_TLS",
    "NGINX_UPDATE",
)
# The seconds that a registrar needs besides its drain, and a server besides its grace.
_DEREGISTER_SECONDS, _SERVER_SECONDS = 20, 20
_STOP = re.compile(r"^stopwaitsecs=(?:%\(ENV_(\w+)\)s|(\d+))$", re.MULTILINE)


class Recorder(Mapping[str, str]):
    """An environment that notes the names of the variables that are read."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self._env[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._env)

    def __len__(self) -> int:
        return len(self._env)


def check_variables(env: Mapping[str, str], programs: Path) -> dict[str, str]:
    """Checks the variables, and finds those that need another value.

    These are variables with blanks around them or in the wrong case, and the stop times, which follow from others.

    Args:
        env: the container's environment.
        programs: the directory with the configuration of the container's programs.

    Returns:
        The new values; an empty one means that the variable is to be unset.

    Raises:
        ConfigError: with a line for each wrong variable of all programs.
    """
    given, problems = env, list[str]()
    try:
        env = resolve_addresses(given)
    except ConfigError as error:
        problems += error.problems
        wrong = {problem.partition(":")[0] for problem in problems}
        env = {name: value for name, value in given.items() if name not in wrong}
    recorder = Recorder(env)
    files = sorted(programs.glob("*.conf"))
    for path in files:
        if path.stem in _READERS:
            module, name = _READERS[path.stem]
            try:
                getattr(importlib.import_module(module), name).from_env(recorder)
            except ConfigError as error:
                problems += error.problems
    # Of nginx and Envoy one has no calls, and ends at once.
    idle = "nginx" if env.get("LB_ENGINE", "").strip().lower() == "envoy" else "envoy"
    times = _find_stop_times(recorder, [path.read_text() for path in files if path.stem != idle], problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    wanted = {name: env[name].strip() for name in recorder.names & set(env)}
    if "LB_LISTEN" in wanted:
        wanted["LB_LISTEN"] = " ".join(wanted["LB_LISTEN"].split())
    wanted |= {name: wanted[name].lower() for name in _LOWER_CASE if name in wanted}
    return {name: value for name, value in wanted.items() if value != given[name] or not value} | times


def _find_stop_times(env: Mapping[str, str], programs: list[str], problems: list[str]) -> dict[str, str]:
    """Finds the seconds that supervisord gives the registrar and the server to stop.

    Args:
        env: the container's environment.
        programs: the configuration of each program.
        problems: the list to which problems are added.
    """
    reader = EnvironmentReader(env)
    times = {
        "REGISTRAR_STOP_SECONDS": round(read_drain_seconds(reader)) + _DEREGISTER_SECONDS,
        "SERVER_STOP_SECONDS": round(read_grace_seconds(reader)) + _SERVER_SECONDS,
    }
    stop = reader.integer("STOP_SECONDS", 120, low=1, high=86400)
    # Servers of other languages read it too.
    read_max_message_bytes(reader)
    # Programs stop one after the other, by their priorities.
    together = sum(times[name] if name else int(number) for text in programs for name, number in _STOP.findall(text))
    if not reader.problems and together > stop:
        problems.append(
            f"STOP_SECONDS: must be at least {together}, because a stop may take so long with DRAIN_SECONDS and "
            f"GRPC_GRACE_SECONDS (got {stop}); docker-compose.yaml has it as stop_grace_period too"
        )
    problems += reader.problems
    return {name: str(seconds) for name, seconds in times.items()}


def format_exports(variables: Mapping[str, str]) -> str:
    """Formats variables as shell commands; an empty one is unset."""
    return "\n".join(
        f"export {name}={shlex.quote(value)}" if value else f"unset {name}" for name, value in sorted(variables.items())
    )
