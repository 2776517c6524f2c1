"""The client's settings and its command line."""

from typing import Any

import pytest

from grpc_client.errors import UsageError
from grpc_client.options import Options, build_parser, parse_arguments


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--host", ""], "--host: must be a host name or an address without a port (got '')"),
        (["--host", "localhost:5000"], "--host: must be a host name"),
        (["--host", "dns:///x"], "--host: must be a host name"),
        (["--host", "[::1]"], "--host: must be a host name"),
        (["--host", "a\nb"], "--host: must be a host name"),
        (["--greeting", "\udcff"], "--greeting: must be valid UTF-8"),
        (["--port", "0"], "--port: must be an integer from 1 to 65535 (got '0')"),
        (["--port", "65536"], "--port: must be an integer from 1 to 65535 (got '65536')"),
        (["--port", "x"], "--port: must be an integer from 1 to 65535 (got 'x')"),
        (["--timeout", "0.0"], "--timeout: must be a number above 0 (got '0.0')"),
        (["--timeout", "nan"], "--timeout: must be a number above 0 (got 'nan')"),
        (["--duration", "-1.0"], "--duration: must be a number above 0 (got '-1.0')"),
        (["--duration", "inf"], "--duration: must be a number above 0 (got 'inf')"),
        (["--count", "0"], "--count: must be an integer of 1 or more (got '0')"),
        (["--count", "2", "--concurrency", "0"], "--concurrency: must be an integer of 1 or more (got '0')"),
        (["--count", "2", "--connections", "-3"], "--connections: must be an integer of 1 or more (got '-3')"),
        (["--count", "2", "--rate", "0.0"], "--rate: must be a number above 0 (got '0.0')"),
        (["--duration", "1", "--count", "2"], "--count: not allowed with --duration (see --help)"),
        (["--concurrency", "2"], "--concurrency: needs --count or --duration"),
        (["--rate", "5"], "--rate: needs --count or --duration"),
        (["--data", "{}"], "--data: needs --call"),
        (["--application", "a"], "--application: needs --list or --call"),
        (
            ["--call", "a/b", "--application", "a b"],
            "--application: must be 1 to 63 letters, digits, - and _ (got 'a b')",
        ),
        (["--call", "Ping"], "--call: must be package.Service/Method (got 'Ping')"),
        (["--call", "a/b/c"], "--call: must be package.Service/Method"),
        (["--call", "a/b", "--list"], "--list: not allowed with --call"),
        (["--call", "a/b", "--count", "2"], "--count: not allowed with --call"),
        (["--list", "--duration", "2"], "--duration: not allowed with --list"),
        (["--call", "a/b", "--greeting", "x"], "--greeting: is for Ping only, not for --call"),
        (["--frob"], "unrecognized arguments: --frob (see --help)"),
        (["--conc", "2"], "unrecognized arguments: --conc 2 (see --help)"),
        (["--count"], "--count: expected one argument (see --help)"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(arguments: list[str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(arguments)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(["--port", "0", "--count", "-1", "--timeout", "-1"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["--port", "--count", "--timeout"]


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "localhost:10000"), ("10.0.0.1", "10.0.0.1:10000"), ("::1", "[::1]:10000")],
)
def test_an_ipv6_address_is_put_in_brackets(host: str, address: str) -> None:
    assert Options(host=host).address == address


def test_the_application_is_sent_as_metadata() -> None:
    assert Options(method="a/b", application="shop").metadata == (("x-application", "shop"),)
    assert Options(method="a/b").metadata == ()


@pytest.mark.parametrize(
    ("given", "is_load"),
    [({}, False), ({"count": 1}, False), ({"count": 2}, True), ({"duration_seconds": 0.1}, True)],
)
def test_more_than_one_call_is_a_load(given: dict[str, Any], *, is_load: bool) -> None:
    assert Options(**given).is_load is is_load


def test_no_flags_give_the_defaults() -> None:
    assert parse_arguments([]) == Options()


def test_flags_become_settings() -> None:
    line = "--host h --port 5000 --greeting hi --timeout 2 --duration 60 --rate 500 --concurrency 16"
    assert parse_arguments([*line.split(), "--connections", "4", "--no-retry", "--json"]) == Options(
        host="h",
        port=5000,
        greeting="hi",
        timeout_seconds=2,
        duration_seconds=60,
        rate=500,
        concurrency=16,
        connections=4,
        retry=False,
        json_output=True,
    )


def test_every_flag_has_help_that_names_its_default() -> None:
    flags = [action for action in build_parser()._actions if action.dest != "help"]
    assert {action.dest for action in flags} == set(Options.__dataclass_fields__)
    assert [action.dest for action in flags if "(default: " not in (action.help or "")] == []
