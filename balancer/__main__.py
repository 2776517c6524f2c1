"""``python -m balancer``: the balancer's control plane; ``drop`` has it forget a replica that it holds."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from balancer import api
from balancer.config import BalancerConfig
from balancer.controller import Controller
from balancer.errors import BalancerError
from registrar import log
from registrar.environment import ConfigError


def main() -> int:
    """Parses, wires and runs. Exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m balancer", description="Decides which replicas get calls. Reads the variables of README.md."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="the control plane, until SIGTERM (default)")
    dropping = commands.add_parser("drop", help="forget a replica that is held; run it in the balancer's container")
    dropping.add_argument("target", metavar="ADDRESS:PORT", help="as status shows it")
    arguments = parser.parse_args()
    log.configure()
    try:
        config = BalancerConfig.from_env()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "drop":
        return drop(config, arguments.target)
    asyncio.run(run(config))
    return 0


async def run(config: BalancerConfig) -> None:
    """Runs the control plane until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    controller = Controller(config)
    with api.serving(config.socket, controller):
        await controller.run(stop)


def drop(config: BalancerConfig, target: str) -> int:
    """Drops a held replica."""
    try:
        dropped = api.drop(config.socket, target)
    except BalancerError as error:
        print(error, file=sys.stderr)
        return 1
    if not dropped:
        print(f"{target} is not held", file=sys.stderr)
        return 1
    print("\n".join(f"dropped {key}" for key in dropped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
