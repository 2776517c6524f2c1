"""All variables of a container, checked once before anything of it starts."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from registrar.environment import ConfigError, EnvironmentReader

# By supervisord's program: what reads its variables.
_READERS = {
    "consul": ("registrar.agent_config", "AgentConfig"),
    "registrar": ("registrar.config", "RegistrarConfig"),
    "balancer": ("balancer.config", "BalancerConfig"),
    "grpc_server": ("grpc_server.config", "ServerConfig"),
}
# Scripts and templates compare them as they are written here.
_IN_SMALL_LETTERS = ("CONSUL_BOOTSTRAP_DEBUG", "CONSUL_ROLE", "CONSUL_UI", "LB_ACCESS_LOG", "NGINX_UPDATE")
# What a registrar needs beside its drain, and a server beside its grace, in seconds.
_DEREGISTER_SECONDS, _SERVER_SECONDS = 20, 20
_STOP = re.compile(r"^stopwaitsecs=(?:%\(ENV_(\w+)\)s|(\d+))$", re.MULTILINE)


class _Asked(Mapping[str, str]):
    """An environment that notes which variables were asked for."""

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


def checked(env: Mapping[str, str], programs: Path) -> dict[str, str]:
    """The variables that are to be set otherwise than they are.

    Those of the programs without blanks around them, and those that follow from others. One that is to be unset is
    empty here.

    Args:
        env: the container's environment.
        programs: the directory of supervisord's programs, which says what the container runs.

    Raises:
        ConfigError: with a line for each variable that is wrong, of all programs.
    """
    asked = _Asked(env)
    problems: list[str] = []
    files = sorted(programs.glob("*.conf"))
    for path in files:
        if path.stem in _READERS:
            module, name = _READERS[path.stem]
            try:
                getattr(importlib.import_module(module), name).from_env(asked)
            except ConfigError as error:
                problems += error.problems
    times = _stop_times(asked, [path.read_text() for path in files], problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    wanted = {name: env[name].strip() for name in asked.names & set(env)}
    if "LB_LISTEN" in wanted:
        wanted["LB_LISTEN"] = " ".join(wanted["LB_LISTEN"].split())
    wanted |= {name: wanted[name].lower() for name in _IN_SMALL_LETTERS if name in wanted}
    return {name: value for name, value in wanted.items() if value != env[name] or not value} | times


def _stop_times(env: Mapping[str, str], programs: list[str], problems: list[str]) -> dict[str, str]:
    """The time that supervisord has for each program that has one of its own.

    Args:
        env: the container's environment.
        programs: the configuration of each program.
        problems: where a stop that takes too long is noted.
    """
    reader = EnvironmentReader(env)
    times = {
        "REGISTRAR_STOP_SECONDS": round(reader.seconds("DRAIN_SECONDS", 2, low=0, high=3600)) + _DEREGISTER_SECONDS,
        "SERVER_STOP_SECONDS": round(reader.seconds("GRPC_GRACE_SECONDS", 20, low=0, high=3600)) + _SERVER_SECONDS,
    }
    stop = reader.integer("STOP_SECONDS", 120, low=1, high=86400)
    # Servers of other languages read it too.
    reader.integer("GRPC_MAX_MESSAGE_BYTES", 1, low=1, high=2**31 - 1)
    # One after the other, by their priorities.
    together = sum(times[name] if name else int(number) for text in programs for name, number in _STOP.findall(text))
    if not reader.problems and together > stop:
        problems.append(
            f"STOP_SECONDS: must be at least {together}, for a stop may take so long with DRAIN_SECONDS and "
            f"GRPC_GRACE_SECONDS (got {stop}); docker-compose.yaml has it as stop_grace_period too"
        )
    problems += reader.problems
    return {name: str(seconds) for name, seconds in times.items()}


def exports(variables: Mapping[str, str]) -> str:
    """The variables as a shell reads them; an empty one is unset."""
    return "\n".join(
        f"export {name}={shlex.quote(value)}" if value else f"unset {name}" for name, value in sorted(variables.items())
    )
