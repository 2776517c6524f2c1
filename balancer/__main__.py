"""``python -m balancer``: the balancer's control plane.

``answers`` serves health and reflection of all applications, and xDS; ``bootstrap`` prints what gRPC's clients need for
xDS; ``drop`` removes a held replica.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from balancer import answers, api
from balancer.config import BalancerConfig
from balancer.controller import Controller
from balancer.errors import BalancerError
from balancer.xds.bootstrap import add_bootstrap, print_bootstrap
from common import log
from common.environment import ConfigError

LOG = logging.getLogger("balancer")


def main() -> int:
    """Runs a command, and returns the exit code: 0 done, 1 failed at run time, 2 usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m balancer",
        description="Decides which replicas get calls. Reads the variables of docs/variables.md.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="the control plane, until SIGTERM (default)")
    commands.add_parser("answers", help="gRPC's health and reflection for all applications, and xDS, until SIGTERM")
    add_bootstrap(commands)
    dropping = commands.add_parser("drop", help="remove a replica that is held; run it in the balancer's container")
    dropping.add_argument("target", metavar="ADDRESS:PORT", help="as status shows it")
    arguments = parser.parse_args()
    if arguments.command == "bootstrap":
        return print_bootstrap(arguments)
    log.configure()
    try:
        config = BalancerConfig.from_env()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "drop":
        return drop(config, arguments.target)
    asyncio.run(run_until_signal(answer(config) if arguments.command == "answers" else run(config)))
    return 0


async def answer(config: BalancerConfig) -> None:
    """Serves health and reflection of all applications, and xDS."""
    if config.publishes:
        async with asyncio.TaskGroup() as group:
            group.create_task(answers.serve(config.current, config.answers, config.copies))
            if config.xds or config.envoy:
                # It takes memory, and its package is an extra.
                from balancer.xds import server

                group.create_task(server.serve(config))
    else:
        LOG.info("not needed with NGINX_UPDATE=%s", config.mode)
        await asyncio.Event().wait()


async def run(config: BalancerConfig) -> None:
    """Runs the control plane."""
    controller = Controller(config)
    with api.serve(config.socket, controller):
        await controller.run()


async def run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine, and cancels it at SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    task = asyncio.create_task(work)
    await asyncio.wait([task, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def drop(config: BalancerConfig, target: str) -> int:
    """Drops a held replica, and returns the exit code."""
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
