"""The tables and explanations of ``status``."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import replace

import pytest

from common.environment import ConfigError
from status.command import find_source
from status.model import Replica, Status, StatusError
from status.text import align_columns, explain, format_age, format_tables
from status.view import Source

NOW = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def replica(**given: object) -> Replica:
    serving = Replica(
        application="shop",
        id="shop-box-7777",
        node="box",
        address="10.0.0.2",
        port=7777,
        weight=9,
        version="2",
        check="passing",
        output="fine",
        node_check="passing",
        registered="2026-01-02T11:59:00+00:00",
        rendered=True,
        balancer="serving",
    )
    return replace(serving, **given)  # type: ignore[arg-type]


def status(*replicas: Replica, problem: str = "", refused: Sequence[dict[str, object]] = ()) -> Status:
    return Status(replicas=list(replicas), services=[], refused=list(refused), problem=problem)


@pytest.mark.parametrize(
    ("registered", "shown"),
    [
        ("2026-01-02T11:59:48+00:00", "12 s"),
        ("2026-01-02T11:58:01+00:00", "119 s"),
        ("2026-01-02T11:58:00+00:00", "2 min"),
        ("2026-01-02T09:00:00+00:00", "3 h"),
        ("2025-12-30T12:00:00+00:00", "3 d"),
        ("2026-01-02T12:00:05+00:00", "0 s"),
        ("", "-"),
        ("yesterday", "-"),
        ("2026-01-02T12:00:00", "-"),
    ],
)
def test_age_is_how_long_ago_it_was_registered(registered: str, shown: str) -> None:
    assert format_age(registered, NOW) == shown


def test_columns_are_aligned_and_end_without_spaces() -> None:
    assert align_columns([("A", "BB", ""), ("aaa", "b", "")]) == "A    BB\naaa  b"


def test_a_replica_in_which_the_views_differ_is_marked() -> None:
    shown = format_tables(status(replica(), replica(node="other", balancer="", difference="it is missing")), NOW)
    assert shown.splitlines() == [
        "   APPLICATION  REPLICA  ADDRESS        WEIGHT  VERSION  CHECK    AGE   BALANCER",
        "   shop         box      10.0.0.2:7777  9       2        passing  60 s  serving",
        "!  shop         other    10.0.0.2:7777  9       2        passing  60 s  -         it is missing",
    ]


def test_without_a_balancer_its_view_is_unknown() -> None:
    shown = format_tables(status(replica(balancer="", rendered=None), problem="no balancer"), NOW)
    assert shown.splitlines()[1].endswith("60 s  ?")
    assert shown.splitlines()[-1] == "! no balancer"


LOST = {"id": "", "check": "", "rendered": False}


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({}, "  it gets its share of the calls"),
        ({"node_check": "critical", "check": "critical", "balancer": ""}, "it gets no calls because of: agent"),
        ({"check": "critical", "rendered": False, "balancer": ""}, "it gets no calls because of: check"),
        ({**LOST, "node_check": "", "balancer": ""}, "it gets no calls because of: catalogue"),
        ({"rendered": False, "balancer": ""}, "it gets no calls because of: rendered list"),
        ({"balancer": "ejected: refused"}, "it gets no calls because of: balancer"),
        ({"check": "critical"}, "it still gets its share of the calls, in spite of: check"),
        ({**LOST, "balancer": "held"}, "it still gets its share of the calls, in spite of: catalogue"),
    ],
)
def test_an_explanation_ends_with_the_first_step_that_is_missing(given: dict[str, object], end: str) -> None:
    assert explain(status(replica(**given))).endswith(end)


def test_the_reason_for_a_certificate_that_is_not_accepted_is_named() -> None:
    shown = explain(status(replica(balancer="ejected: certificate", reason="certificate has expired")))
    assert "balancer       ejected: certificate: certificate has expired\n" in shown


def test_a_refusal_is_found_by_application_address_and_port() -> None:
    reason = "10.0.0.2 is not in PEER_CIDR"
    entry = {"application": "shop", "address": "10.0.0.2", "port": 7777, "reason": reason}
    other = {**entry, "port": 1, "reason": "other"}
    shown = explain(status(replica(rendered=False, balancer=""), refused=[other, entry]))
    assert reason in shown
    assert "other" not in shown
    assert reason not in explain(status(replica(address="0.0.0.2"), refused=[entry]))


def test_rights_that_are_missing_at_consul_have_lines_of_their_own() -> None:
    found = dataclasses.replace(status(replica()), access="Consul filters\x07\nConsul refuses")
    assert format_tables(found, NOW).endswith("\n\n! Consul filters?\n\n! Consul refuses")


def test_registered_text_has_no_effect_on_the_terminal() -> None:
    shown = format_tables(status(replica(version="1\x1b[2J\nfake", difference="\x07")), NOW)
    assert "1?[2J?fake" in shown
    assert not [character for character in shown if character != "\n" and not character.isprintable()]


def test_a_name_is_of_an_application_a_replica_or_a_node() -> None:
    found = status(replica(), replica(application="other", id="other-1", node="elsewhere"))
    for name in ("shop", "shop-box-7777", "box"):
        assert [one.application for one in found.select(name).replicas] == ["shop"]
    with pytest.raises(StatusError, match="is called nothing; there is other, shop"):
        found.select("nothing")


def test_addresses_come_from_the_options_then_from_the_environment() -> None:
    env = {"CONSUL_ADDRESS": "agent", "CONSUL_PORT": "8501", "LB_STATUS_PORT": "81"}
    assert find_source(None, None, {}) == Source("127.0.0.1", 8500, "127.0.0.1:8080")
    assert find_source(None, None, env) == Source("agent", 8501, "127.0.0.1:81")
    assert find_source(":1", "[::1]:2", env) == Source("127.0.0.1", 1, "[::1]:2")


@pytest.mark.parametrize("address", ["host", "host:", "host:x", ":0", "a b:1"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        find_source(address, None, {})
