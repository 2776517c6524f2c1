"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from grpc_client.errors import UsageError
from grpc_client.options import Options

_EPILOG = """\
Calls protos.Ping/SayHello once and prints the answer. More than one call (--count, --duration) ends with a
report: answers by replica, calls a second, latency and errors. On a terminal a live view shows the last
seconds. SIGINT and SIGTERM end the load and print the report; a second one ends the program at once.

exit codes: 0 every call OK; 1 a call failed or the server can't be reached; 2 wrong usage
"""


class _OneLineParser(argparse.ArgumentParser):
    """argparse prints the usage and then the error; here an error is an exception for the caller to print."""

    def error(self, message: str) -> NoReturn:
        raise UsageError([f"{message.removeprefix('argument ')} (see --help)"])


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Parse the command line, without the program's name.

    Raises:
        UsageError: with every problem found.

    """
    return Options(**vars(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m grpc_client",
        description="Calls a gRPC server, alone or many times, and reports who answered.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_call_flags(parser)
    _add_load_flags(parser.add_argument_group("load"))
    _add_reflection_flags(parser.add_argument_group("any other method, by server reflection"))
    return parser


def _add_call_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=Options.host, help="name or address of the server (default: %(default)s)")
    parser.add_argument("--port", type=int, default=Options.port, help="its TCP port (default: %(default)s)")
    parser.add_argument(
        "--greeting", metavar="TEXT", default=Options.greeting, help="the text sent (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        dest="timeout_seconds",
        metavar="SECONDS",
        type=float,
        default=Options.timeout_seconds,
        help="deadline of a call, retries included (default: %(default)s)",
    )
    parser.add_argument(
        "--no-retry",
        dest="retry",
        action="store_false",
        help="fail at the first UNAVAILABLE (default: gRPC's retry policy, up to 5 attempts)",
    )
    parser.add_argument(
        "--json",
        dest="json_output",
        action="store_true",
        help="print one JSON document and nothing else: calls, ok, failed, seconds, calls_per_second, "
        "latency_ms, replicas, errors, error_samples (default: text)",
    )


def _add_load_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--count", metavar="N", type=int, help="end after N calls (default: 1)")
    group.add_argument(
        "--duration",
        dest="duration_seconds",
        metavar="SECONDS",
        type=float,
        help="start calls for so long, then wait for their answers (default: --count decides)",
    )
    group.add_argument(
        "--concurrency",
        metavar="N",
        type=int,
        default=Options.concurrency,
        help="calls in flight at a time (default: %(default)s)",
    )
    group.add_argument(
        "--connections",
        metavar="N",
        type=int,
        default=Options.connections,
        help="HTTP/2 connections that the calls take in turn (default: %(default)s)",
    )
    group.add_argument(
        "--rate",
        metavar="CALLS_PER_SECOND",
        type=float,
        help="start no more calls a second than this (default: unlimited)",
    )


def _add_reflection_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--list",
        dest="list_services",
        action="store_true",
        help="list the server's services and methods (default: call Ping)",
    )
    group.add_argument(
        "--call",
        dest="method",
        metavar="SERVICE/METHOD",
        help="call this method, print each answer as a line of JSON (default: call Ping)",
    )
    group.add_argument(
        "--data",
        metavar="JSON",
        help="its request; for a method that takes a stream, an array or one message a line (default: {})",
    )
    group.add_argument(
        "--application",
        metavar="NAME",
        help="ask the reflection of this application (default: whatever answers for all of them)",
    )
