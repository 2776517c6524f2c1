"""The command line of ``python -m local_stack``: the verbs and flags of docker-compose."""

from __future__ import annotations

import argparse
import datetime
import re
import signal

from security.options import add_create_options
from status.command import add_status_options


def _scale(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isascii() or not count.isdigit():
        raise argparse.ArgumentTypeError(f"must be SERVICE=NUMBER (got {text!r})")
    return name, int(count)


def _signal(text: str) -> signal.Signals:
    if text.isdigit() and int(text) in {number.value for number in signal.Signals}:
        return signal.Signals(int(text))
    try:
        return signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"must be a signal such as KILL, TERM or HUP (got {text!r})") from error


def _lines(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a number of lines (got {text!r})")
    return int(text)


def _since(text: str) -> datetime.datetime:
    now = datetime.datetime.now(datetime.UTC)
    ago = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", text, re.ASCII)
    if ago and text:
        hours, minutes, seconds = (int(part or 0) for part in ago.groups())
        return now - datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    try:
        # A time without a time zone is in the machine's, as in docker-compose.
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a time such as 2026-01-02T15:04:05Z, or a duration such as 1h30m or 90s (got {text!r})"
        ) from error


def parser() -> argparse.ArgumentParser:
    """Returns the parser; ``command`` is the verb."""
    result = argparse.ArgumentParser(
        prog="python -m local_stack", description="Runs the services of docker-compose.yaml without Docker."
    )
    verbs = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = verbs.add_parser("up", help="start the stack and wait until it answers")
    up.add_argument("-d", "--detach", action="store_true", help="return when it answers; default: follow the logs")
    up.add_argument("--wait", action="store_true", help="the same as -d, which waits too")
    up.add_argument("--scale", type=_scale, action="append", default=[], metavar="SERVICE=N", help="default: 1 each")
    up.add_argument("--address-base", help="first of the loopback addresses to use (default: 127.16.0.0)")
    up.add_argument("--port", type=int, help="the balancer's port on 127.0.0.1 (default: 5000)")
    up.add_argument("--consul-port", type=int, help="the Consul UI's port on 127.0.0.1 (default: 8500)")

    up.add_argument("--secure", action="store_true", default=None, help="with TLS and Consul's ACLs (secure.yaml)")

    secure = verbs.add_parser("secure", help="make the secrets for up --secure")
    add_create_options(secure)

    ps = verbs.add_parser("ps", help="list containers with their programs")
    ps.add_argument("--json", action="store_true", help="the same as --format json")
    ps.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    status = verbs.add_parser("status", help="show the replicas, in the catalogue and at the balancer")
    add_status_options(status)

    logs = verbs.add_parser("logs", help="show the logs of the containers")
    logs.add_argument("names", nargs="*", metavar="SERVICE", help="SERVICE or SERVICE-N (default: all)")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more lines until interrupted")
    logs.add_argument("-n", "--tail", type=_lines, metavar="LINES", help="last lines of each container (default: all)")
    logs.add_argument("--since", type=_since, metavar="TIME", help="2026-01-02T15:04:05Z, or a duration such as 1h30m")

    scale = verbs.add_parser("scale", help="change the number of replicas and wait until they answer")
    scale.add_argument("scale", type=_scale, nargs="+", metavar="SERVICE=N", help="a service and its number")

    rollout = verbs.add_parser("rollout", help="replace a service's replicas one after the other, with no failed calls")
    rollout.add_argument("name", metavar="SERVICE", help="its name in docker-compose.yaml")

    for verb in (up, scale, rollout):
        verb.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="to become ready (default: 60)")

    kill = verbs.add_parser("kill", help="send a signal to containers; SIGKILL ends all their processes")
    kill.add_argument("names", nargs="+", metavar="SERVICE[-N]", help="the containers")
    kill.add_argument("-s", "--signal", type=_signal, default=signal.SIGKILL, help="default: SIGKILL")

    for name, text in (
        ("stop", "stop containers gracefully"),
        ("start", "start containers that were stopped or killed"),
        ("restart", "stop and start containers"),
        ("pause", "stop every process of containers where it is"),
        ("unpause", "continue paused containers"),
    ):
        one = verbs.add_parser(name, help=text)
        one.add_argument("names", nargs="*", metavar="SERVICE[-N]", help="the containers (default: all)")

    execute = verbs.add_parser("exec", help="run a command in a container's directory, with its environment")
    execute.add_argument("name", metavar="SERVICE[-N]", help="the container; of a service the first one")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="such as consul members")

    down = verbs.add_parser("down", help="stop and remove everything")
    down.add_argument("-v", "--volumes", action="store_true", help="remove the volumes too")
    return result
