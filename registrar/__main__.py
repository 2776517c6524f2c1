"""``python -m registrar``: registers a service and keeps it registered.

``health`` probes it, ``status`` shows all services, ``environment`` checks a container's variables.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from registrar import log
from registrar.agent import Agent, AgentError
from registrar.config import RegistrarConfig
from registrar.environment import ConfigError
from registrar.registration import Registration, RegistrationFailedError
from registrar.same_name import problem
from registrar.status_command import add_status_options, show_status, status_source
from registrar.variables import checked, exports

LOG = logging.getLogger("registrar")


def main() -> int:
    """Parses, wires and runs. Exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m registrar",
        description="Registers a service with the local Consul agent. Reads APP_NAME, APP_PORT, CONSUL_PORT, TAGS and "
        "the optional variables of README.md's table.",
    )
    parser.add_argument(
        "command", nargs="?", choices=("run", "health", "status", "environment"), default="run", help="default: run"
    )
    parser.add_argument("--once", action="store_true", help="register and exit; default: stay, deregister on SIGTERM")
    options = parser.add_argument_group("status: all replicas, in the catalogue and at the balancer")
    add_status_options(options)
    options.add_argument("--consul", metavar="HOST:PORT", help="default: CONSUL_ADDRESS and CONSUL_PORT, else :8500")
    options.add_argument(
        "--balancer", metavar="HOST:PORT", help="its status port; default: LB_STATUS_ADDRESS and LB_STATUS_PORT"
    )
    arguments = parser.parse_args()
    log.configure()
    if arguments.command == "environment":
        return environment()
    if arguments.command == "status":
        try:
            source = status_source(arguments.consul, arguments.balancer, os.environ)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        return show_status(source, name=arguments.why, watch=arguments.watch, as_json=arguments.json)
    try:
        config = RegistrarConfig.from_env(os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return health(config) if arguments.command == "health" else run(config, once=arguments.once)


def environment() -> int:
    """Checks the variables of all programs of this container, and prints those that are to be set otherwise."""
    try:
        print(exports(checked(os.environ, Path("etc/supervisor/conf.d"))))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(config: RegistrarConfig, *, once: bool) -> int:
    """Registers and, unless ``once``, stays until SIGTERM or SIGINT; then deregisters and drains."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    registration = Registration(config, stop)
    try:
        registered = registration.register()
        if once:
            return 0 if registered else 1
        if registered:
            registration.stay()
        if registration.attempted:
            registration.leave()
    except RegistrationFailedError as error:
        LOG.error("%s", error)  # noqa: TRY400 - an expected failure, no stack trace
        return 1
    return 0


def health(config: RegistrarConfig) -> int:
    """The probe of a container: the service passes its own check, and its agent knows it and a leader."""
    if config.check is not None and not config.check.passes():
        print(f"{config.service_id} does not pass {config.check.definition()['Name']}", file=sys.stderr)
        return 1
    try:
        agent = Agent(config)
        if not agent.leader():
            print("the Consul cluster has no leader", file=sys.stderr)
            return 1
        if other := agent.other_of_its_name():
            print(problem(agent, other), file=sys.stderr)
            return 1
        if not agent.in_gossip():
            print("the agent has left the cluster's gossip", file=sys.stderr)
            return 1
        if not agent.knows(config.service_id):
            print(f"{config.service_id} is not registered", file=sys.stderr)
            return 1
    except AgentError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config.service_id} is healthy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
