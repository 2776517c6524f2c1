"""The settings of one run, and the command line that gives them."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NoReturn, TypeAlias

from common.environment import host_port, is_address
from grpc_client.errors import UsageError

_Type: TypeAlias = Callable[[str], Any]

_EPILOG = """\
Calls protos.Ping/SayHello once and prints the answer. More than one call (--count, --duration) ends with a
report: answers by replica, calls a second, latency and errors. On a terminal a live view shows the last
seconds. SIGINT and SIGTERM end the load and print the report; a second one ends the program at once.

exit codes: 0 every call OK; 1 a call failed or the server can't be reached; 2 wrong usage
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one run; ``--help`` describes them.

    Attributes:
        count: the number of calls; one call if neither this nor ``duration_seconds`` is given.
        duration_seconds: no call starts after this time.
        method: the method that is called instead of Ping, ``package.Service/Method``.
        data: the request of ``method`` in JSON.
    """

    host: str = "localhost"
    port: int = 10000
    greeting: str = "Hello"
    timeout_seconds: float = 5.0
    count: int | None = None
    duration_seconds: float | None = None
    concurrency: int = 1
    connections: int = 1
    rate: float | None = None
    retry: bool = True
    json_output: bool = False
    list_services: bool = False
    method: str | None = None
    data: str | None = None
    application: str | None = None
    tls: bool = False
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    target: str | None = None

    @property
    def address(self) -> str:
        """The target, or ``host:port`` with an IPv6 address in brackets."""
        return self.target or host_port(self.host, self.port)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of the calls of ``list_services`` and ``method``; the balancer chooses an application by it."""
        return (("x-application", self.application),) if self.application else ()

    @property
    def is_load(self) -> bool:
        """Whether the settings ask for more than one call."""
        return self.duration_seconds is not None or (self.count or 1) > 1


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Parses the command line, without the program's name.

    Raises:
        UsageError: with every problem found.
    """
    parser = build_parser()
    values = vars(parser.parse_args(arguments))
    problems = parser.problems or list(_missing_flags(values))
    hosts = values["host"] or [Options.host]
    if len(hosts) > 1 and not problems:
        try:
            values["target"] = build_target(hosts, values["port"])
        except ValueError as error:
            problems.append(f"--host: {error}")
    if problems:
        raise UsageError(*problems)
    return Options(**{**values, "host": hosts[0]})


def build_target(hosts: Sequence[str], port: int) -> str:
    """Returns gRPC's target for several addresses (doc/naming.md).

    Raises:
        ValueError: they are not IP addresses of one family.
    """
    versions = {ip_address(host).version if is_address(host) else 0 for host in hosts}
    if versions not in ({4}, {6}):
        raise ValueError(f"several must be IP addresses of one family; see --target (got {', '.join(hosts)})")
    return f"ipv{versions.pop()}:{','.join(host_port(host, port) for host in hosts)}"


class _Parser(argparse.ArgumentParser):
    """Collects the problems of all values, where argparse prints its usage and the first problem and exits."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.problems: list[str] = []

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self.problems.append(_without_argument(str(error)))
            return None

    def error(self, message: str) -> NoReturn:
        raise UsageError(*self.problems, f"{_without_argument(message)} (see --help)")


def _without_argument(message: str) -> str:
    return message.removeprefix("argument ").replace("with argument ", "with ")


def _form(description: str, convert: _Type, is_valid: Callable[[Any], object]) -> _Type:
    """Returns argparse's type of the values that ``convert`` takes and that are valid."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if is_valid(value := convert(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be {description} (got {text!r})")

    return parse


_HOST = _form(
    "a host name or an address without a port",
    str,
    lambda host: host and host.isprintable() and host.count(":") != 1 and not set(host) & set("/[] "),
)
_TARGET = _form("a target such as dns:///name:5000", str, re.compile(r"[a-z0-9+.-]+:[\x21-\x7e]+").fullmatch)
_PORT = _form("an integer from 1 to 65535", int, lambda port: 1 <= port <= 65535)
_COUNT = _form("an integer of 1 or more", int, lambda count: count >= 1)
_ABOVE_ZERO = _form("a number above 0", float, lambda number: 0 < number < math.inf)
# Python reads a byte of another encoding as a surrogate, which str.encode refuses.
_UTF8 = _form("valid UTF-8", str, lambda text: text.encode() is not None)
_METHOD = _form(
    "package.Service/Method", str, lambda method: method.isascii() and re.fullmatch(r"/?[^/]+/[^/]+", method)
)
_APPLICATION = _form("1 to 63 letters, digits, - and _", str, re.compile(r"[A-Za-z0-9_-]{1,63}").fullmatch)


def build_parser() -> _Parser:
    """Returns the parser, whose values are the fields of :class:`Options`."""
    parser = _Parser(
        prog="python -m grpc_client",
        description="Calls a gRPC server once or many times and reports the replicas that answered.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_call_flags(parser)
    _add_tls_flags(parser.add_argument_group("TLS"))
    _add_exclusive_flags(parser.add_argument_group("at most one of").add_mutually_exclusive_group())
    load = parser.add_argument_group("with --count or --duration")
    _add(load, "--concurrency", "N", _COUNT, "calls in flight at a time")
    _add(load, "--connections", "N", _COUNT, "HTTP/2 connections that the calls take in turn")
    _add(load, "--rate", "CALLS_PER_SECOND", _ABOVE_ZERO, "start no more calls a second than this", "unlimited")
    reflection = parser.add_argument_group("with --list or --call")
    data = "the request of --call; for a method that takes a stream, an array or one message a line"
    _add(reflection, "--data", "JSON", str, data, "{}")
    application = "ask the reflection of this application"
    _add(reflection, "--application", "NAME", _APPLICATION, application, "the reflection of all applications")
    return parser


def _add_call_flags(parser: argparse.ArgumentParser) -> None:
    host = "name or address of the server; several addresses take the calls in turn (default: localhost)"
    parser.add_argument("--host", metavar="HOST", type=_HOST, action="append", help=host)
    _add(parser, "--port", "PORT", _PORT, "its TCP port")
    target = "gRPC's name of the servers, which take the calls in turn, such as dns:///balancer:5000"
    _add(parser, "--target", "TARGET", _TARGET, target, "--host and --port")
    _add(parser, "--greeting", "TEXT", _UTF8, "the text sent")
    timeout = "deadline of a call, retries included"
    _add(parser, "--timeout", "SECONDS", _ABOVE_ZERO, timeout, dest="timeout_seconds")
    retry = "fail at the first UNAVAILABLE (default: gRPC's retry policy, up to 5 attempts)"
    parser.add_argument("--no-retry", dest="retry", action="store_false", help=retry)
    json = (
        "print one JSON document and nothing else: calls, ok, failed, seconds, calls_per_second, latency_ms, replicas, "
        "errors, error_samples (default: text)"
    )
    parser.add_argument("--json", dest="json_output", action="store_true", help=json)


def _add_tls_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tls", action="store_true", help="speak TLS (default: clear text)")
    _add(group, "--cacert", "FILE", str, "certificates of the CAs to trust, in PEM", "those of gRPC")
    _add(group, "--cert", "FILE", str, "the client's certificate, in PEM", "none")
    _add(group, "--key", "FILE", str, "the key of --cert, in PEM", "none")
    name = "the name that the server's certificate must have"
    _add(group, "--server-name", "NAME", _HOST, name, "--host decides", dest="server_name")


def _add_exclusive_flags(group: argparse._MutuallyExclusiveGroup) -> None:
    _add(group, "--count", "N", _COUNT, "end after N calls of Ping", "1")
    duration = "start calls of Ping for so long, then wait for their answers"
    _add(group, "--duration", "SECONDS", _ABOVE_ZERO, duration, "--count decides", dest="duration_seconds")
    services = "list the server's services and methods by server reflection (default: call Ping)"
    group.add_argument("--list", dest="list_services", action="store_true", help=services)
    method = "call this method by server reflection, print each answer as a line of JSON"
    _add(group, "--call", "SERVICE/METHOD", _METHOD, method, "call Ping", dest="method")


def _add(
    group: argparse._ActionsContainer,
    flag: str,
    metavar: str,
    form: _Type,
    description: str,
    default: str = "%(default)s",
    *,
    dest: str = "",
) -> None:
    """Adds a flag with a value, whose default is that of the field ``dest``; ``default`` describes it."""
    dest = dest or flag.removeprefix("--")
    help_text = f"{description} (default: {default})"
    group.add_argument(flag, dest=dest, metavar=metavar, type=form, default=getattr(Options, dest), help=help_text)


def _missing_flags(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields a problem for each flag without the flag that it belongs to."""
    load = values["count"] or values["duration_seconds"]
    reflection = values["list_services"] or values["method"]
    if values["target"] and (values["host"] or values["port"] != Options.port):
        yield "--target: needs neither --host nor --port"
    for name, needed, is_given in (
        ("concurrency", "--count or --duration", load),
        ("connections", "--count or --duration", load),
        ("rate", "--count or --duration", load),
        ("data", "--call", values["method"]),
        ("application", "--list or --call", reflection),
        ("cacert", "--tls", values["tls"]),
        ("cert", "--tls", values["tls"]),
        ("key", "--tls", values["tls"]),
        ("server_name", "--tls", values["tls"]),
        ("cert", "--key", values["key"]),
        ("key", "--cert", values["cert"]),
    ):
        if values[name] != getattr(Options, name) and not is_given:
            yield f"--{name.replace('_', '-')}: needs {needed}"
    if reflection and values["greeting"] != Options.greeting:
        yield f"--greeting: is for Ping only, not for {'--list' if values['list_services'] else '--call'}"
