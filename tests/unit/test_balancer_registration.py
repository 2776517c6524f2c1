"""The registrations that the control plane takes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from balancer import registration
from balancer.addresses import Addresses
from balancer.registration import Parser, Refusal, Registration
from tests.support.fleet import registration as make_registration

NETWORKS = ("10.0.0.0/8", "fd00::/8")
NODE = "10.9.0.1"
# As the template renders them.
FIELDS = {"name": "shop", "address": "10.0.0.2", "port": 7777, "weight": 1, "node": NODE, "meta": {}}
WHOLE = make_registration("shop", 2)
SINCE = "2026-01-02T03:04:05+00:00"
CONSUL_PORTS = (8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600)


def make_parser() -> Parser:
    return Parser(Addresses(map(ip_network, NETWORKS)))


def line(**given: object) -> str:
    return json.dumps(list({**FIELDS, **given}.values()))


def file(lines: Iterable[str]) -> str:
    return "".join(f"{one}\n" for one in (*lines, "# end"))


def parse(
    *lines: str, parser: Parser | None = None, present: Iterable[str] = ()
) -> tuple[list[Registration], list[Refusal]]:
    found = (parser or make_parser()).parse(file(lines), present)
    assert found is not None
    return found


def take(**given: object) -> Registration:
    found, refused = parse(line(**given))
    assert not refused
    return found[0]


def refuse(**given: object) -> Refusal:
    found, refused = parse(line(**given))
    assert not found
    return refused[0]


def pair(**values: Iterable[object]) -> list[tuple[str, object]]:
    """Returns each value with the name of its field."""
    return [(name, value) for name, several in values.items() for value in several]


def test_a_registration_of_the_usual_form_is_taken() -> None:
    meta = {"grpc_services": "shop.B,shop.A", "grpc_health": "shop.A", "grpc_since": SINCE, "version": "2"}
    expected = replace(WHOLE, weight=9, services=("shop.A", "shop.B"), health="shop.A", since=SINCE)
    assert take(weight=9, meta=meta) == expected


def test_a_key_tells_applications_and_addresses_apart() -> None:
    assert WHOLE.key == "shop 10.0.0.2:7777"
    assert take(address="fd00::2").key == "shop [fd00::2]:7777"


@pytest.mark.parametrize(
    ("field", "value"),
    pair(name=["a", "A-b_c", "9", "a" * 63], port=[1, 80, 7777, 65535], weight=[1, 65535]),
)
def test_a_value_of_the_expected_form_is_taken(field: str, value: object) -> None:
    assert getattr(take(**{field: value}), "application" if field == "name" else field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    pair(
        name=["", "a" * 64, "a b", "-a", "a-", "a.b", "a\n", "ä", "a;b", '"', "../a", None, 5, True, [], {}, ["a"]],
        port=[0, -1, 65536, *CONSUL_PORTS, "7777", 7777.0, None, True, [7777], {}],
        weight=[-1, 65536, "1", 1.5, None, True, False, [], {}],
    ),
)
def test_a_value_of_another_form_is_refused_with_the_reason(field: str, value: object) -> None:
    reasons = {
        "name": "the name is not of 1 to 63 letters, digits, - and _",
        "port": "a replica's port must be from 1 to 65535 and none of Consul's own (got ",
        "weight": "the weight must be from 0 to 65535 (got ",
    }
    reason, got, _ = refuse(**{field: value}).reason.partition("(got ")
    assert reason + got == reasons[field]


def test_a_replica_of_weight_0_is_neither_taken_nor_refused() -> None:
    assert parse(line(weight=0)) == ([], [])


@pytest.mark.parametrize(
    ("given", "node", "address"),
    [
        ("10.255.255.255", NODE, "10.255.255.255"),
        ("fd00:0:0::00A2", NODE, "fd00::a2"),
        ("FD00::1", NODE, "fd00::1"),
        (NODE, NODE, NODE),
        ("", NODE, NODE),
        (None, NODE, NODE),
        ("FD01:DB8::1", "fd01:db8:0::1", "fd01:db8::1"),
    ],
)
def test_an_address_is_taken_in_its_canonical_form_and_without_one_the_nodes(
    given: object, node: str, address: str
) -> None:
    assert take(address=given, node=node).address == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        *((text, repr(text)) for text in ("localhost", "10.0.0.2 ", "10.0.0.02", "10.0.0.2:80", "10.0.0.0/8")),
        *((text, repr(text)) for text in ("[fd00::1]", "fd00::1%eth0", "unix:/run/x", 167772162)),
        (["10.0.0.2"], "a list"),
    ],
)
def test_an_address_of_another_form_is_refused(address: object, shown: str) -> None:
    assert refuse(address=address).reason == f"the address must be an IP address (got {shown})"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_an_address_of_many_hosts_is_refused(address: str) -> None:
    assert refuse(address=address).reason == f"{address} is not the address of one host"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "11.0.0.1", "2001:db8::1", "::ffff:b00:1"])
def test_an_address_outside_of_the_networks_is_refused_even_if_it_is_its_nodes(address: str) -> None:
    for given in ({"address": address}, {"address": address, "node": address}, {"address": "", "node": address}):
        assert refuse(**given).reason == f"{address} is not in PEER_CIDR"


@pytest.mark.parametrize(
    ("address", "node", "reason"),
    [
        ("0.0.0.0", "0.0.0.0", "0.0.0.0 is not the address of one host"),
        ("", "", "the address must be an IP address (got '')"),
        ("", None, "the address must be an IP address (got None)"),
    ],
)
def test_a_node_whose_address_stands_for_no_host_does_not_help(address: str, node: object, reason: str) -> None:
    assert refuse(address=address, node=node).reason == reason


def test_without_networks_nothing_is_taken() -> None:
    found, refused = parse(line(), line(address=NODE), parser=Parser(Addresses([])))
    assert not found
    assert [one.address for one in refused] == ["10.0.0.2", NODE]


def repeat(value: object) -> dict[str, object]:
    return dict.fromkeys(("grpc_services", "grpc_health", "grpc_since"), value)


@pytest.mark.parametrize(
    "meta",
    [
        *(None, {}, [], [1, 2], 5, "grpc_services", True, {"other": "x"}, {"grpc_services": None}),
        *map(repeat, (None, "", 0, False, [], {})),
    ],
)
def test_metadata_of_another_form_or_without_values_is_ignored(meta: object) -> None:
    assert take(meta=meta) == WHOLE


def test_services_of_several_values_are_one_sorted_list() -> None:
    meta = {
        "grpc_services_8": "z.Z",
        "grpc_services": "b.B, a.A,,b.B",
        "grpc_services_2": "c",
        "grpc_services_9": "no.No",
    }
    assert take(meta=meta).services == ("a.A", "b.B", "c", "z.Z")


SERVICES = ["a b", "a;", "a.", ".a", "1a", "a\n.b", "a/b", "ä", "a,$(x)", "\ud800", True, 5, [1], {"a": 1}]


@pytest.mark.parametrize(
    ("key", "value"),
    pair(
        grpc_services=SERVICES,
        grpc_services_8=SERVICES,
        grpc_health=["a b", "a,b", "a.", "\ud800", "ä", True, 5, ["a"], {"a": 1}],
    ),
)
def test_metadata_with_something_else_than_names_is_refused(key: str, value: object) -> None:
    names = "a gRPC service's name" if key == "grpc_health" else "gRPC services' names"
    assert refuse(meta={key: value}).reason.startswith(f"{key} must be {names} (got ")


@pytest.mark.parametrize(
    "since",
    [
        *(f"2026-01-02T03:04:05{zone}" for zone in ("Z", "+01:00", ".5+00:00", "+00:00\n")),
        *("2026-01-02 03:04:05+00:00", "٢٠٢٦-01-02T03:04:05+00:00", "0", "", 0, True, [SINCE]),
    ],
)
def test_a_time_of_another_form_is_ignored(since: object) -> None:
    assert take(meta={"grpc_since": since}).since == ""


def test_a_refusal_shows_the_registration_and_the_reason() -> None:
    assert refuse(name="a b", address="10.0.0.9", port=80) == Refusal(
        application="a b", address="10.0.0.9", port=80, reason="the name is not of 1 to 63 letters, digits, - and _"
    )
    assert refuse(name="a b", address="").address == NODE
    assert refuse(port=70000).port == 70000


def test_a_refusal_is_of_limited_size() -> None:
    vast = "x" * 10**6
    metas = [{key: vast + "!"} for key in ("grpc_services", "grpc_health")]
    for field, value in pair(address=[vast], port=[vast, 10**4000], weight=[vast, 10**4000], meta=metas):
        assert len(json.dumps(vars(refuse(**{field: value})))) < 1000
    assert len(json.dumps(vars(refuse(name=vast, address=vast)))) < 1000
    _, refusals = parse(vast)
    assert len(refusals[0].reason) < 200


AFTER = ("", "\n", "\n# end", "\n# en", f"\n# end\n{line()[:9]}", f"\n# end\n{line()}\n", "\n#end\n")


@pytest.mark.parametrize(
    "text", ["", "\n", "# end", "# end\n\n", "# end\n\n# end", line()[:20], *(line() + after for after in AFTER)]
)
def test_a_file_that_is_not_whole_is_not_read(text: str) -> None:
    assert make_parser().parse(text) is None


@pytest.mark.parametrize("lines", [[], [""], ["", "  ", "\t"]])
def test_a_file_of_no_registration_is_whole(lines: list[str]) -> None:
    assert parse(*lines) == ([], [])


def test_registrations_come_in_the_order_of_their_keys() -> None:
    found, _ = parse(*(line(name=name, address=address) for name in "cab" for address in ("10.0.0.3", "10.0.0.1")))
    assert [one.key for one in found] == sorted(one.key for one in found)
    assert len(found) == 6


def test_of_two_with_the_same_key_the_same_one_is_taken_in_any_order() -> None:
    duplicates = [line(weight=1), line(weight=2), line(meta={"grpc_health": "a.A"}), line(address="fd00::1")]
    results = [parse(*order) for order in itertools.permutations(duplicates)]
    assert all(result == results[0] for result in results)
    assert [one.key for one in results[0][0]] == ["shop 10.0.0.2:7777", "shop [fd00::1]:7777"]


def test_the_same_address_may_have_several_applications_and_ports() -> None:
    found, _ = parse(line(), line(name="other"), line(port=1))
    assert len(found) == 3


def many(count: int) -> list[str]:
    return [line(address=f"10.0.{number // 250}.{number % 250}") for number in range(count)]


def test_replicas_beyond_the_limit_are_refused_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MAX_REPLICAS", 3)
    found, refusals = parse(*many(5))
    assert [one.address for one in found] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert refusals == [
        Refusal(application="shop", address=address, port=7777, reason="there are more than 3 replicas")
        for address in ("10.0.0.3", "10.0.0.4")
    ]


def test_present_replicas_stay_when_new_ones_exceed_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "MAX_REPLICAS", 3)
    present = iter(["shop 10.0.0.4:7777", "shop 10.0.0.3:7777", "shop 10.9.9.9:7777"])
    found, refusals = parse(*many(5), line(name="a", address="10.0.0.0"), present=present)
    assert [one.key for one in found] == ["a 10.0.0.0:7777", "shop 10.0.0.3:7777", "shop 10.0.0.4:7777"]
    assert len(refusals) == 3


def test_lists_of_services_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_MAX_LISTS", 6)
    lists = enumerate(("a.A", "b.B", "c.C", "a.A"), 1)
    lines = [line(port=port, meta={"grpc_services": services}) for port, services in lists]
    found, refusals = parse(*lines, present=["shop 10.0.0.2:3"])
    assert [one.port for one in found] == [1, 3, 4]
    assert [(one.port, one.reason) for one in refusals] == [(2, "there are too many lists of services")]


def test_a_whole_fleet_is_taken() -> None:
    found, refusals = parse(*many(registration.MAX_REPLICAS + 1))
    assert (len(found), len(refusals)) == (registration.MAX_REPLICAS, 1)


def test_a_line_is_parsed_again_only_after_a_whole_file_without_it() -> None:
    parser = make_parser()
    [first], _ = parse(line(), parser=parser)
    assert parser.parse(line()) is None
    found, _ = parse(line(), line(port=1), parser=parser)
    assert next(one for one in found if one.port == 7777) is first
    assert parse(parser=parser) == ([], [])
    [again], _ = parse(line(), parser=parser)
    assert again == first
    assert again is not first


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


LIMIT = sys.getrecursionlimit()


@pytest.mark.parametrize("depth", [10, LIMIT // 2, *range(LIMIT - 120, LIMIT + 5, 3), 10**5])
def test_json_of_any_depth_is_refused(depth: int) -> None:
    template = line(name="NAME", port=0)
    deep = [nested(depth), template.replace('"NAME"', nested(depth)), template.replace(" 0,", f" {nested(depth)},")]
    deep += [line(address="X").replace('"X"', nested(depth)), line(weight="X").replace('"X"', nested(depth))]
    deep += [line(meta={key: "X"}).replace('"X"', nested(depth)) for key in ("grpc_services", "grpc_health")]
    found, refusals = parse(*deep)
    assert not found
    assert len(refusals) == len(set(deep))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x",
            "null",
            "5",
            '"text"',
            "{}",
            "[]",
            "[1,2,3,4,5]",
            "[1,2,3,4,5,6,7]",
            "[,,,,,]",
            "\0",
            "# another comment",
        ),
        *("9" * 5000, line()[:-1], line() + line(), "\ufeff" + line()),
        *(f"[{','.join([value] * 6)}]" for value in ("9" * 4300, "9" * 5000, "NaN", "null", "{}", '"\\ud800"')),
        "[Infinity, -Infinity, 1e999, -1e999, null, null]",
        "[false, true, false, true, false, true]",
    ],
)
def test_a_line_of_another_form_is_refused_and_can_be_shown_as_json(text: str) -> None:
    found, refusals = parse(line(), text)
    assert found == [WHOLE]
    assert len(refusals) == 1
    assert json.loads(json.dumps(vars(refusals[0]))) == vars(refusals[0])


def test_tls_is_in_the_metadata_and_may_be_refused() -> None:
    assert [take(meta={"grpc_tls": value}).tls for value in ("true", "false", "")] == [True, False, False]
    assert not take(meta={}).tls
    assert refuse(meta={"grpc_tls": "yes"}).reason == "grpc_tls must be true or false (got 'yes')"
    parser = Parser(Addresses([ip_network("10.0.0.0/8")]), {True: "it has TLS, and LB_REPLICA_CA is not set"})
    found, refused = parse(line(meta={"grpc_tls": "true"}), line(name="other"), parser=parser)
    assert [one.application for one in found] == ["other"]
    assert [one.reason for one in refused] == ["it has TLS, and LB_REPLICA_CA is not set"]
    parser = Parser(Addresses([ip_network("10.0.0.0/8")]), {False: "it has no TLS"})
    found, refused = parse(line(meta={"grpc_tls": "true"}), line(name="other"), parser=parser)
    assert ([one.tls for one in found], [one.reason for one in refused]) == ([True], ["it has no TLS"])
