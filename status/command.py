"""The ``status`` command, of the registrar and of local_stack: tables, and why a replica gets no calls."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict

from common.consul_access import ConsulAccess
from common.environment import ConfigError, EnvironmentReader, host_port, parse_host_port
from status.model import Status, StatusError
from status.text import explain, format_tables
from status.view import Source

_WATCH_SECONDS = 1.0
# Home, and clear to the end of the screen (ECMA-48).
_CLEAR = "\x1b[H\x1b[J"


def add_status_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select the output."""
    parser.add_argument(
        "--why", metavar="NAME", help="explain why replicas get calls or not; NAME of an application, replica or node"
    )
    parser.add_argument("--watch", action="store_true", help="repeat every second until interrupted; default: once")
    parser.add_argument("--json", action="store_true", help="print JSON; default: tables")


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Adds the addresses of Consul and of the balancer."""
    parser.add_argument("--consul", metavar="HOST:PORT", help="default: CONSUL_ADDRESS and CONSUL_PORT, else :8500")
    parser.add_argument(
        "--balancer", metavar="HOST:PORT", help="its status port; default: LB_STATUS_ADDRESS and LB_STATUS_PORT"
    )


def run_status(arguments: argparse.Namespace) -> int:
    """Shows the status with the options of the command line.

    Returns:
        The exit code: that of :func:`show_status`, or 2 for a wrong address.
    """
    try:
        source = find_source(arguments.consul, arguments.balancer, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return show_status(source, arguments)


def find_source(consul: str | None, balancer: str | None, env: Mapping[str, str]) -> Source:
    """Returns the addresses of the command line, or else of the environment, and its token and TLS for Consul.

    Raises:
        ConfigError: an address has another form.
    """
    reader = EnvironmentReader(env)
    source = Source(
        *_read_address(reader, "--consul", consul, ("CONSUL_ADDRESS", "CONSUL_PORT"), 8500),
        host_port(*_read_address(reader, "--balancer", balancer, ("LB_STATUS_ADDRESS", "LB_STATUS_PORT"), 8080)),
        ConsulAccess.read(reader),
    )
    reader.raise_problems()
    return source


def _read_address(
    reader: EnvironmentReader, option: str, given: str | None, names: tuple[str, str], default_port: int
) -> tuple[str, int]:
    if given is None:
        return reader.host(names[0], "127.0.0.1"), reader.port(names[1], default_port)
    try:
        return parse_host_port(given, "127.0.0.1")
    except ValueError as error:
        reader.add_problem(option, str(error))
        return "", default_port


def show_status(source: Source, arguments: argparse.Namespace) -> int:
    """Prints the status with the options of :func:`add_status_options`.

    Returns:
        The exit code: 0, or 1 when Consul is unavailable or has nothing of that name.
    """
    try:
        while True:
            try:
                shown, code = _format_status(source.read(), arguments), 0
            except StatusError as error:
                shown, code = str(error), 1
            if arguments.watch and sys.stdout.isatty():
                print(_CLEAR, end="")
            print(shown, file=sys.stderr if code else sys.stdout, flush=True)
            if not arguments.watch:
                return code
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of `status | head` has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _format_status(found: Status, arguments: argparse.Namespace) -> str:
    if arguments.why:
        found = found.select(arguments.why)
    if arguments.json:
        return json.dumps(asdict(found), indent=2)
    return explain(found) if arguments.why else format_tables(found, datetime.datetime.now(datetime.UTC))
