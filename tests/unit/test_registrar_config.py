"""The registrar's settings, and the registrations that it makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.environment import ConfigError
from registrar.agent import build_registration
from registrar.checks import GrpcCheck, HttpCheck
from registrar.config import RegistrarConfig
from tests.support.certificates import Authority

GOOD = {"APP_NAME": "hello_server", "APP_PORT": "7777", "CONSUL_PORT": "8500", "TAGS": "grpc_server", "HOSTNAME": "box"}


def config(**variables: str) -> RegistrarConfig:
    return RegistrarConfig.from_env({**GOOD, **variables})


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(**variables)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def test_the_four_variables_are_enough() -> None:
    made = config()
    assert (made.app_name, made.app_port) == ("hello_server", 7777)
    assert (made.consul_address, made.consul_port) == ("127.0.0.1", 8500)
    assert (made.tags, made.weight, made.check, made.drain_seconds) == (("grpc_server",), 1, None, 2)
    assert made.service_id == "hello_server-box-7777"


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RegistrarConfig.from_env({})
    assert sorted(caught.value.problems) == [
        f"{name}: must be set" for name in ("APP_NAME", "APP_PORT", "CONSUL_PORT", "TAGS")
    ]


def test_blank_is_as_missing() -> None:
    assert problems(APP_NAME=" ", TAGS="\t") == ["APP_NAME: must be set", "TAGS: must be set"]


def test_every_problem_has_a_line() -> None:
    wrong = {
        "APP_NAME": "a b",
        "APP_PORT": "x",
        "APP_ADDRESS": "1.2.3",
        "TAGS": "a b",
        "WEIGHT": "0",
        "CONSUL_ADDRESS": "a/b",
        "CONSUL_PORT": "0",
        "HEALTH_CHECK_TYPE": "tcp",
        "HEALTH_CHECK_INTERVAL": "0",
        "HEALTH_CHECK_TIMEOUT": "1h",
        "DRAIN_SECONDS": "-1",
    }
    assert {line.split(":")[0] for line in problems(**wrong)} == set(wrong)
    assert len(problems(**wrong)) == len(wrong)


TAKEN: dict[str, dict[str, object]] = {
    "APP_PORT": {"1": 1, "65535": 65535, " 80 ": 80},
    "APP_NAME": {name: name for name in ("a", "hello_server", "load-balancer", "7", "a" * 63)},
    "TAGS": {"a": ("a",), "a, b": ("a", "b"), ",a,,b,": ("a", "b"), "v=1:x": ("v=1:x",), ",": ()},
    "DRAIN_SECONDS": {"0": 0, "2.5": 2.5, "10s": 10, "3600": 3600},
}
# By variable: the form that its message names, and texts of another form.
REFUSED = {
    "APP_PORT": ("an integer from 1 to 65535", ["-1", "0", "65536", "x", "80.0", "0x50", "+80", "1_0", "٨٠"]),
    "CONSUL_PORT": ("an integer from 1 to 65535", ["-1", "0", "65536", "x", "80.0", "0x50", "+80", "1_0", "٨٠"]),
    "WEIGHT": ("an integer from 1 to 65535", ["0", "-1", "65536", "1.5", "x"]),
    # DNS or nginx can't carry these.
    "APP_NAME": (
        "1 to 63 letters, digits, - and _",
        ["a b", "-a", "a-", "_a", "a.b", "a/b", 'a"b', "a;b", "a{b", "a$b", "é", "a" * 64],
    ),
    "APP_ADDRESS": (
        "a host name or an IP address",
        ["1.2.3", "256.1.1.1", "a b", "a/b", "[::1]", "a..b", "-a", "http://a"],
    ),
    "DRAIN_SECONDS": ("a number of seconds from 0 to 3600", ["-1", "3601", "nan", "inf", "1e3", "2m", "s"]),
    "HEALTH_CHECK_TYPE": ("one of http, grpc", ["tcp"]),
}


@pytest.mark.parametrize(
    ("variable", "text", "value"), [(name, *pair) for name, pairs in TAKEN.items() for pair in pairs.items()]
)
def test_a_value_of_its_variables_form_is_taken(variable: str, text: str, value: object) -> None:
    assert getattr(config(**{variable: text}), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "form", "text"), [(name, form, text) for name, (form, texts) in REFUSED.items() for text in texts]
)
def test_a_value_of_another_form_is_refused_with_the_form(variable: str, form: str, text: str) -> None:
    assert problems(**{variable: text}) == [f"{variable}: must be {form} (got {text!r})"]


@pytest.mark.parametrize("variable", ["APP_NAME", "TAGS", "APP_ADDRESS", "CONSUL_ADDRESS", "WEIGHT", "APP_PORT"])
@pytest.mark.parametrize("character", ["\n", "\0", "\x1b", "\x7f"])
def test_control_character_is_refused_in_one_line(variable: str, character: str) -> None:
    text = f"1{character}1"
    assert problems(**{variable: text}) == [f"{variable}: must not contain control characters (got {text!r})"]


def test_each_wrong_tag_has_a_line() -> None:
    assert [line.split(" ")[0] for line in problems(TAGS="a b,fine,é," + "x" * 129)] == ["TAGS:"] * 3


def test_endpoint_without_a_type_is_refused() -> None:
    assert [line.split(":")[0] for line in problems(HEALTH_CHECK_ENDPOINT="/health")] == ["HEALTH_CHECK_TYPE"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("", "http://127.0.0.1:7777/"),
        ("/health", "http://127.0.0.1:7777/health"),
        (":8080/health", "http://127.0.0.1:8080/health"),
        ("http://a:1/b?c=d", "http://a:1/b?c=d"),
        ("https://[::1]/b", "https://[::1]/b"),
    ],
)
def test_http_endpoint_is_a_path_a_port_with_a_path_or_a_url(endpoint: str, url: str) -> None:
    check = config(HEALTH_CHECK_TYPE="HTTP", HEALTH_CHECK_ENDPOINT=endpoint).check
    assert check == HttpCheck(url=url, interval_seconds=1, timeout_seconds=1)


def test_http_endpoint_without_a_host_is_at_the_services_address() -> None:
    made = config(HEALTH_CHECK_TYPE="http", HEALTH_CHECK_ENDPOINT=":8080/health", APP_ADDRESS="::1")
    assert isinstance(made.check, HttpCheck)
    assert made.check.url == "http://[::1]:8080/health"


@pytest.mark.parametrize(
    ("endpoint", "target", "service"),
    [
        ("", "127.0.0.1:7777", ""),
        ("/", "127.0.0.1:7777", ""),
        ("/protos.Ping", "127.0.0.1:7777", "protos.Ping"),
        ("box:7778", "box:7778", ""),
        ("box:7778/protos.Ping", "box:7778", "protos.Ping"),
        (":7778", "127.0.0.1:7778", ""),
        ("[::1]:7777", "[::1]:7777", ""),
        ("[::1]:7777/Ping", "[::1]:7777", "Ping"),
    ],
)
def test_grpc_endpoint_is_a_target_a_service_or_both(endpoint: str, target: str, service: str) -> None:
    check = config(HEALTH_CHECK_TYPE="grpc", HEALTH_CHECK_ENDPOINT=endpoint).check
    assert check == GrpcCheck(target=target, service=service, interval_seconds=1, timeout_seconds=1)


WRONG_ENDPOINTS = {
    "http": (
        *("health", "ftp://a/b", "http://", "http:///x", ":0/x"),
        *(":65536/x", ":x/y", "http://a:x/", "/a b", "http://[::1/"),
    ),
    "grpc": (
        *("box", "box:0", "box:65536", "box:x", "::1:7777", "[::1]"),
        *("[box", "[:1", "a b:1", "/a/b", "/1a", "/a-b", "/.a"),
    ),
}


@pytest.mark.parametrize(("kind", "endpoint"), [(kind, one) for kind, all_ in WRONG_ENDPOINTS.items() for one in all_])
def test_an_endpoint_of_another_form_is_refused(kind: str, endpoint: str) -> None:
    lines = problems(HEALTH_CHECK_TYPE=kind, HEALTH_CHECK_ENDPOINT=endpoint)
    assert [line.split(":")[0] for line in lines] == ["HEALTH_CHECK_ENDPOINT"]


def test_registration_without_a_check_has_none() -> None:
    assert build_registration(config(TAGS="a,b", WEIGHT="7"), (), passing=True) == {
        "ID": "hello_server-box-7777",
        "Name": "hello_server",
        "Port": 7777,
        "Tags": ["a", "b"],
        "Weights": {"Passing": 7, "Warning": 1},
        "Meta": {},
    }


@pytest.mark.parametrize(
    ("endpoint", "metadata"),
    [
        ("/protos.Ping", {"grpc_health": "protos.Ping"}),
        (":7777/protos.Ping", {"grpc_health": "protos.Ping"}),
        ("", {}),
        (":7778/protos.Ping", {}),
        ("10.0.0.2:7777/protos.Ping", {}),
    ],
)
def test_a_grpc_check_of_the_replica_itself_tells_the_balancer_the_name_to_ask_for(
    endpoint: str, metadata: dict[str, str]
) -> None:
    made = config(HEALTH_CHECK_TYPE="grpc", HEALTH_CHECK_ENDPOINT=endpoint)
    assert build_registration(made, (), passing=True)["Meta"] == metadata


def test_services_and_version_are_metadata() -> None:
    made = config(GRPC_SERVICES=" shop.Orders , shop.Prices", VERSION="1.2.0-rc.1")
    assert made.grpc_services == ("shop.Orders", "shop.Prices")
    assert not made.asks_for_services
    assert build_registration(made, made.grpc_services, passing=True)["Meta"] == {
        "grpc_services": "shop.Orders,shop.Prices",
        "version": "1.2.0-rc.1",
    }


def test_a_balanced_service_that_names_none_is_asked_for_its_services() -> None:
    assert config(TAGS="grpc_server").asks_for_services
    assert not config(TAGS="other").asks_for_services


def test_a_long_list_of_services_goes_on_in_the_next_value() -> None:
    names = [f"shop.v1.Service{number:03}" for number in range(60)]
    found = config().build_metadata(names)
    assert list(found) == ["grpc_services", "grpc_services_2", "grpc_services_3"]
    assert all(len(value) <= 512 for value in found.values())
    assert ",".join(found.values()).split(",") == names


def test_more_services_than_the_catalogue_takes_are_refused() -> None:
    text = ",".join(f"shop.v1.Service{number:05}" for number in range(300))
    assert problems(GRPC_SERVICES=text) == ["GRPC_SERVICES: must fit into 8 values of 512 characters (got 300 names)"]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("GRPC_SERVICES", text) for text in ("a-b", "1a", "a..b", "a b", "a.b/c", "a,b-")),
        *(("VERSION", text) for text in ("-1", "1 2", 'v1"', 129 * "1")),
    ],
)
def test_services_and_versions_of_another_form_are_refused(variable: str, text: str) -> None:
    assert [line.split(":")[0] for line in problems(**{variable: text})] == [variable]


def test_registration_carries_the_address_that_was_given() -> None:
    assert build_registration(config(APP_ADDRESS="10.0.0.1"), (), passing=True)["Address"] == "10.0.0.1"


def test_registration_with_an_http_check_is_consuls() -> None:
    made = config(HEALTH_CHECK_TYPE="http", HEALTH_CHECK_ENDPOINT="/h", HEALTH_CHECK_INTERVAL="2.5s")
    assert build_registration(made, (), passing=True)["Check"] == {
        "Name": "HTTP GET http://127.0.0.1:7777/h",
        "HTTP": "http://127.0.0.1:7777/h",
        "Interval": "2500ms",
        "Timeout": "1000ms",
        "FailuresBeforeCritical": 3,
        "Status": "passing",
    }


def test_registration_with_a_grpc_check_is_consuls() -> None:
    made = config(HEALTH_CHECK_TYPE="grpc", HEALTH_CHECK_ENDPOINT="/protos.Ping", HEALTH_CHECK_TIMEOUT="0.1")
    assert build_registration(made, (), passing=False)["Check"] == {
        "Name": "gRPC health of 127.0.0.1:7777/protos.Ping",
        "GRPC": "127.0.0.1:7777/protos.Ping",
        "GRPCUseTLS": False,
        "Interval": "1000ms",
        "Timeout": "100ms",
        "FailuresBeforeCritical": 3,
        "Status": "critical",
    }


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """The variables of a server with TLS."""
    authority = Authority(tmp_path)
    pair = authority.issue("hello_server")
    files = {"CERTIFICATE": pair.certificate, "KEY": pair.key, "CLIENT_CA": authority.path}
    return {f"GRPC_TLS_{name}": str(path) for name, path in files.items()}


def test_a_service_with_tls_says_so_and_its_check_uses_it(tls: dict[str, str]) -> None:
    made = config(**tls, HEALTH_CHECK_TYPE="grpc", HEALTH_CHECK_ENDPOINT="/protos.Ping")
    body = build_registration(made, ["protos.Ping"], passing=True)
    assert body["Meta"]["grpc_tls"] == "true"
    assert (body["Check"]["GRPCUseTLS"], body["Check"]["TLSServerName"]) == (True, "hello_server")


def test_a_check_of_another_server_has_no_tls(tls: dict[str, str]) -> None:
    made = config(**tls, HEALTH_CHECK_TYPE="grpc", HEALTH_CHECK_ENDPOINT="127.0.0.1:7778")
    body = build_registration(made, [], passing=True)
    assert body["Check"]["GRPCUseTLS"] is False
    assert "TLSServerName" not in body["Check"]


def test_without_tls_there_is_no_word_of_it() -> None:
    assert "grpc_tls" not in build_registration(config(), [], passing=True)["Meta"]


def test_a_wrong_file_of_tls_is_one_line(tls: dict[str, str]) -> None:
    assert problems(**tls, GRPC_TLS_CA="/nowhere") == [
        "GRPC_TLS_CA: must be a readable file: No such file or directory (got '/nowhere')"
    ]
    del tls["GRPC_TLS_CLIENT_CA"]
    assert problems(**tls) == ["GRPC_TLS_CA: must be set, because GRPC_TLS_CERTIFICATE is"]
    del tls["GRPC_TLS_KEY"]
    assert "GRPC_TLS_KEY: must be set, because GRPC_TLS_CERTIFICATE is" in problems(**tls)
