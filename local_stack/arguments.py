"""The command line of ``python -m local_stack``: the verbs and flags of docker-compose."""

from __future__ import annotations

import argparse
import datetime
import re
import signal

from registrar.status_command import add_status_options


def _scale(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isascii() or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SERVICE=NUMBER, such as hello_server=5")
    return name, int(count)


def _signal(text: str) -> signal.Signals:
    if text.isdigit() and int(text) in {number.value for number in signal.Signals}:
        return signal.Signals(int(text))
    try:
        return signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no signal, such as KILL, TERM, HUP") from error


def _lines(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def _since(text: str) -> datetime.datetime:
    now = datetime.datetime.now(datetime.UTC)
    ago = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", text, re.ASCII)
    if ago and text:
        hours, minutes, seconds = (int(part or 0) for part in ago.groups())
        return now - datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    try:
        # Without a time zone it is the machine's, as docker-compose has it.
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2026-01-02T15:04:05Z, and not of the form 1h30m, 90s"
        ) from error


def parser() -> argparse.ArgumentParser:
    """The parser; ``command`` is the verb."""
    result = argparse.ArgumentParser(
        prog="python -m local_stack", description="Runs the services of docker-compose.yaml without Docker."
    )
    verbs = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = verbs.add_parser("up", help="start the stack and wait until it answers")
    up.add_argument("-d", "--detach", action="store_true", help="return when it answers; default: follow the logs")
    up.add_argument("--wait", action="store_true", help="detached, when it answers: what -d does here in any case")
    up.add_argument("--scale", type=_scale, action="append", default=[], metavar="SERVICE=N", help="default: 1 each")
    up.add_argument("--address-base", help="first of the loopback addresses to use (default: 127.16.0.0)")
    up.add_argument("--port", type=int, help="the balancer's port on 127.0.0.1 (default: 5000)")
    up.add_argument("--consul-port", type=int, help="the Consul UI's port on 127.0.0.1 (default: 8500)")
    up.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="to be ready in (default: 60)")

    ps = verbs.add_parser("ps", help="list containers with their programs")
    ps.add_argument("--json", action="store_true", help="the same as --format json")
    ps.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    status = verbs.add_parser("status", help="show the replicas, in the catalogue and at the balancer")
    add_status_options(status)

    logs = verbs.add_parser("logs", help="show what the containers print")
    logs.add_argument("names", nargs="*", metavar="SERVICE", help="SERVICE or SERVICE-N (default: all)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until interrupted; default: what is there")
    logs.add_argument("-n", "--tail", type=_lines, metavar="LINES", help="of each container (default: all)")
    logs.add_argument(
        "--since", type=_since, metavar="TIME", help="a time such as 2026-01-02T15:04:05Z, or how long ago: 1h30m, 90s"
    )

    scale = verbs.add_parser("scale", help="change the number of replicas and wait until they answer")
    scale.add_argument("scale", type=_scale, nargs="+", metavar="SERVICE=N", help="such as hello_server=5")
    scale.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="to be ready in (default: 60)")

    rollout = verbs.add_parser("rollout", help="replace a service's replicas one after the other, losing no call")
    rollout.add_argument("name", metavar="SERVICE", help="such as hello_server")
    rollout.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="for each new one (default: 60)")

    kill = verbs.add_parser("kill", help="send a signal to containers; SIGKILL ends all of a container")
    kill.add_argument("names", nargs="+", metavar="SERVICE[-N]", help="which")
    kill.add_argument("-s", "--signal", type=_signal, default=signal.SIGKILL, help="default: SIGKILL")

    for verb, text in (
        ("stop", "stop containers gracefully, to be started again"),
        ("start", "start containers that were stopped or killed"),
        ("restart", "stop and start containers"),
        ("pause", "stop every process of containers where it is"),
        ("unpause", "let paused containers go on"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("names", nargs="*", metavar="SERVICE[-N]", help="which (default: all)")

    execute = verbs.add_parser("exec", help="run a command in a container: its directory, its environment")
    execute.add_argument("name", metavar="SERVICE[-N]", help="which; of a service its first container")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="such as consul members")

    down = verbs.add_parser("down", help="stop and remove everything")
    down.add_argument("-v", "--volumes", action="store_true", help="also what is kept on disk; default: keep it")
    return result
