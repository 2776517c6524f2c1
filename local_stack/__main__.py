"""``python -m local_stack``: the stack of docker-compose.yaml without Docker."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import xmlrpc.client
from dataclasses import replace
from typing import NoReturn

from local_stack import logs
from local_stack.arguments import parser
from local_stack.errors import LocalStackError
from local_stack.settings import Directory
from local_stack.stack import Stack, say


def main() -> int:
    """Parses, wires and runs. Exit code: 0 done, 1 failed, 2 usage."""
    arguments = parser().parse_args()
    # `kill` of a foreground stack is an end as orderly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments)
    except LocalStackError as error:
        print(f"local_stack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of `logs | head` is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Of the machine: a full disk, another user's file. What is meant to fail has a message of its own.
        print(f"local_stack: {error}", file=sys.stderr)
        return 1
    except xmlrpc.client.Fault as fault:
        print(f"local_stack: supervisord: {fault.faultString}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    """Carries out one command; the exit code.

    Raises:
        LocalStackError: it can't be done; the message says why.
    """
    stack = Stack(Directory(), os.environ)
    match arguments.command:
        case "up":
            up(stack, arguments)
        case "down":
            stack.down(volumes=arguments.volumes)
        case "scale":
            stack.scale(dict(arguments.scale))
            wait(stack, arguments.timeout)
        case "rollout":
            from local_stack.rollout import rollout

            rollout(stack, arguments.name, arguments.timeout)
        case "ps":
            ps(stack, as_json=arguments.json or arguments.format == "json")
        case "status":
            return status(stack, arguments)
        case "logs":
            logs.show(
                stack,
                arguments.names,
                sys.stdout,
                follow=arguments.follow,
                lines=arguments.tail,
                since=arguments.since,
            )
        case "exec":
            execute(stack, arguments.name, arguments.argv)
        case _:
            signals(stack, arguments)
    return 0


def wait(stack: Stack, seconds: float) -> None:
    """Waits until the stack is ready."""
    # The clients of gRPC and Consul take a third of a second to import, in which the containers start.
    from local_stack.readiness import wait_ready

    wait_ready(stack, seconds)


def ps(stack: Stack, *, as_json: bool) -> None:
    """``ps``: the containers and their programs."""
    from rich.console import Console

    from local_stack import listing

    rows = listing.rows(stack)
    if as_json:
        print(json.dumps(listing.as_json(rows), indent=2))
    else:
        listing.table(rows, Console(soft_wrap=not sys.stdout.isatty()))


def status(stack: Stack, arguments: argparse.Namespace) -> int:
    """``status``: the replicas, in the catalogue and at the balancer."""
    from registrar.status_command import show_status, status_source

    stack.require_up()
    (balancer,) = stack.containers(["load-balancer"])
    port = balancer.service.environment.get("LB_STATUS_PORT", "8080")
    source = status_source(f"127.0.0.1:{stack.settings.consul_port}", f"{balancer.address}:{port}", os.environ)
    return show_status(source, name=arguments.why, watch=arguments.watch, as_json=arguments.json)


def execute(stack: Stack, name: str, argv: list[str]) -> NoReturn:
    """``exec``: becomes the command, in the container's directory and with its environment."""
    stack.require_up()
    container = stack.containers([name])[0]
    if not argv:
        raise LocalStackError("exec: no command given, such as: consul members")
    os.chdir(container.path)
    os.execv("/bin/sh", ["sh", "-c", '. ./environment; exec "$@"', "sh", *argv])  # noqa: S606 - the user's own words


def signals(stack: Stack, arguments: argparse.Namespace) -> None:
    """The commands that stop, start or signal containers."""
    stack.require_up()
    containers = stack.containers(arguments.names)
    match arguments.command:
        case "kill":
            stack.kill(containers, arguments.signal)
        case "stop":
            stack.stop(containers)
        case "start":
            stack.start(containers)
        case "restart":
            stack.stop(containers)
            stack.start(containers)
        case "pause" | "unpause":
            stack.pause(containers, resume=arguments.command == "unpause")


def up(stack: Stack, arguments: argparse.Namespace) -> None:
    """``up``: starts the stack, waits until it answers, follows its logs unless detached."""
    given = {
        "address_base": arguments.address_base,
        "port": arguments.port,
        "consul_port": arguments.consul_port,
    }
    settings = replace(stack.settings, **{name: value for name, value in given.items() if value is not None})
    try:
        stack.up(dict(arguments.scale), settings)
        wait(stack, arguments.timeout)
        say(f"gRPC on 127.0.0.1:{settings.port}, Consul UI on http://127.0.0.1:{settings.consul_port}/ui/dc1/services")
        if not (arguments.detach or arguments.wait):
            logs.show(stack, (), sys.stdout, follow=True, lines=None)
    except KeyboardInterrupt:
        if not (arguments.detach or arguments.wait):
            say("stopping")
            stack.stop(stack.containers())
        raise


if __name__ == "__main__":
    sys.exit(main())
