"""``python -m registrar``: registers a service and keeps it registered."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from common import log
from common.environment import ConfigError, resolve_addresses
from registrar.config import RegistrarConfig
from registrar.health import check_health
from registrar.registration import Registration, RegistrationFailedError
from registrar.variables import check_variables, format_exports
from status.command import add_address_options, add_status_options, run_status

LOG = logging.getLogger("registrar")
_ONCE = "register and exit; default: stay, deregister on SIGTERM"


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser; its ``command`` is the subcommand, None for ``run``."""
    result = argparse.ArgumentParser(
        prog="python -m registrar",
        description="Registers a service with the local Consul agent. Reads APP_NAME, APP_PORT, CONSUL_PORT, TAGS and "
        "the optional variables of docs/variables.md. Without a command: run.",
    )
    result.add_argument("--once", action="store_true", help=_ONCE)
    commands = result.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="register the service and keep it registered (default)")
    # Without a default of its own, which would hide a --once in front of the command.
    run.add_argument("--once", action="store_true", default=argparse.SUPPRESS, help=_ONCE)
    commands.add_parser("health", help="check the service, its registration and the cluster")
    commands.add_parser("environment", help="check the container's variables, print those to change")
    status = commands.add_parser("status", help="show all replicas, in the catalogue and at the balancer")
    add_status_options(status)
    add_address_options(status)
    return result


def main() -> int:
    """Parses, wires and runs. Exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    options = make_parser()
    arguments = options.parse_args()
    command = arguments.command or "run"
    if arguments.once and command != "run":
        options.error(f"--once is an option of run, not of {command}")
    log.configure()
    try:
        # A health check has the container's own environment, not that of supervisord's programs.
        env = resolve_addresses(os.environ)
        match command:
            case "environment":
                # The variables of all programs of this container.
                print(format_exports(check_variables(os.environ, Path("etc/supervisor/conf.d"))))
                return 0
            case "status":
                return run_status(arguments)
            case "health":
                return check_health(RegistrarConfig.from_env(env))
            case _:
                return run_registrar(RegistrarConfig.from_env(env), once=arguments.once)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def run_registrar(config: RegistrarConfig, *, once: bool) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
