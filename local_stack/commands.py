"""The commands of ``python -m local_stack``; each takes the stack and the parsed command line.

Modules that only some commands need are imported there: the clients of gRPC and Consul take a third of a second, in
which `up` has started the containers.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace

from local_stack import logs
from local_stack.errors import LocalStackError, say
from local_stack.settings import BALANCER_PORT
from local_stack.stack import Stack


def up(stack: Stack, arguments: Namespace) -> None:
    """Starts the stack, waits until it answers, and follows its logs unless detached."""
    names = ("address_base", "port", "consul_port", "secure")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    settings = replace(stack.settings, **given)
    detached = arguments.detach or arguments.wait
    try:
        stack.up(dict(arguments.scale), settings)
        _wait_ready(stack, arguments)
        scheme = "https" if settings.secure else "http"
        ports = ", ".join(f"127.0.0.1:{port}" for port in stack.balancer_ports())
        say(f"gRPC on {ports}, Consul UI on {scheme}://127.0.0.1:{settings.consul_port}/ui/dc1/services")
        if not detached:
            logs.show(stack, follow=True)
    except KeyboardInterrupt:
        if not detached:
            say("stopping")
            stack.stop(stack.containers())
        raise


def secure(stack: Stack, arguments: Namespace) -> None:
    """Makes the secrets of the secure stack."""
    from security.errors import SecurityError
    from security.options import create

    try:
        create(stack.secrets, arguments)
    except SecurityError as error:
        raise LocalStackError(str(error)) from error


def scale(stack: Stack, arguments: Namespace) -> None:
    """Changes the number of replicas and waits until they answer."""
    stack.scale(dict(arguments.scale))
    _wait_ready(stack, arguments)


def rollout(stack: Stack, arguments: Namespace) -> None:
    """Replaces the replicas of a service."""
    from local_stack.rollout import replace_replicas

    stack.require_up()
    replace_replicas(stack, arguments.name, arguments.timeout)


def ps(stack: Stack, arguments: Namespace) -> None:
    """Lists the containers and their programs."""
    from local_stack import listing

    rows = listing.rows(stack)
    if arguments.json or arguments.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        listing.print_table(rows)


def status(stack: Stack, arguments: Namespace) -> int:
    """Shows the replicas, in the catalogue and at the balancer."""
    from local_stack.readiness import read_access
    from status.command import show_status
    from status.view import Source

    stack.require_up()
    balancer = stack.publisher(BALANCER_PORT)
    port = balancer.service.environment.get("LB_STATUS_PORT", "8080")
    return show_status(
        Source("127.0.0.1", stack.settings.consul_port, f"{balancer.address}:{port}", read_access(stack)), arguments
    )


def show_logs(stack: Stack, arguments: Namespace) -> None:
    """Shows the logs of the containers."""
    logs.show(stack, arguments.names, follow=arguments.follow, lines=arguments.tail, since=arguments.since)


def execute(stack: Stack, arguments: Namespace) -> None:
    """Becomes the command, in the container's directory and with its environment."""
    stack.require_up()
    container = stack.containers([arguments.name])[0]
    if not arguments.argv:
        raise LocalStackError("exec: no command given, such as: consul members")
    os.chdir(container.path)
    shell = ["sh", "-c", '. ./environment; exec "$@"', "sh", *arguments.argv]
    os.execv("/bin/sh", shell)  # noqa: S606 - the user's own command


def control(stack: Stack, arguments: Namespace) -> None:
    """Stops, starts or signals containers."""
    stack.require_up()
    containers = stack.containers(arguments.names)
    match arguments.command:
        case "stop":
            stack.stop(containers)
        case "start":
            stack.start(containers)
        case "restart":
            stack.stop(containers)
            stack.start(containers)
        case "kill":
            for container in containers:
                container.kill(arguments.signal)
        case "pause" | "unpause" as verb:
            for container in containers:
                container.pause() if verb == "pause" else container.unpause()


def _wait_ready(stack: Stack, arguments: Namespace) -> None:
    from local_stack.readiness import wait_ready

    wait_ready(stack, arguments.timeout)


# By the name on the command line; the result is the exit code, None is 0.
COMMANDS: dict[str, Callable[[Stack, Namespace], int | None]] = {
    "up": up,
    "down": lambda stack, arguments: stack.down(volumes=arguments.volumes),
    "secure": secure,
    "scale": scale,
    "rollout": rollout,
    "ps": ps,
    "status": status,
    "logs": show_logs,
    "exec": execute,
    **dict.fromkeys(("kill", "pause", "unpause", "stop", "start", "restart"), control),
}
