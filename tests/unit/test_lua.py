"""The Lua of nginx, in LuaJIT without nginx; documents are the control plane's own."""

from __future__ import annotations

import itertools
import json
import resource
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from balancer import document
from balancer.fleet import Health, Replica
from balancer.registration import Registration
from balancer.routes import Route, compute_routes
from tests.support.lua import Shared, Worker

CALL = "/shop.A/Buy"


def replica(
    number: int,
    *services: str,
    application: str = "shop",
    weight: int = 1,
    health: Health = Health.SERVING,
    name: str = "",
    since: float = 0,
) -> Replica:
    registration = Registration(
        application=application,
        address=f"10.0.0.{number}",
        port=7777,
        weight=weight,
        services=services or ("shop.A",),
        health=name,
    )
    return Replica(registration=registration, since=since, health=health)


def build(replicas: Sequence[Replica], remembered: Iterable[str] = (), version: str = "v") -> dict[str, Any]:
    found = {service: Route(application="gone") for service in remembered}
    found |= compute_routes(one.registration for one in replicas)
    return document.build(document.Content(replicas=replicas, routes=found, version=version, changed=1, updated=2))


class Balancer:
    """A worker with a document."""

    def __init__(
        self,
        *replicas: Replica,
        number: int = 0,
        count: int = 1,
        shared: Shared | None = None,
        time: float | None = 100.0,
    ) -> None:
        self.worker = Worker(number, count, shared)
        self.worker.time = time
        self.fleet, self.picker, self.router, self.inflight, self.ejection, self.clock = (
            self.worker.module(name) for name in ("fleet", "picker", "router", "inflight", "ejection", "clock")
        )
        self.publish(replicas)

    def publish(self, replicas: Sequence[Replica], **given: Any) -> None:
        assert self.worker.post(build(replicas, **given)) == 200

    def same(self, one: object, other: object) -> bool:
        """Whether two tables are one."""
        return bool(self.worker.lua("rawequal")(one, other))

    @property
    def view(self) -> Any:
        return self.fleet.refresh()[0]

    def replica(self, number: int, application: str = "shop") -> Any:
        return self.view.by_key[f"{application} 10.0.0.{number}:7777"]

    def pool(self, path: str | bytes = CALL, application: str | None = None) -> Any:
        return self.router.route(self.view, path, application)

    def members(self, path: str | bytes = CALL, application: str | None = None) -> list[int] | None:
        pool = self.pool(path, application)
        return pool and [number_of(one) for one in pool.replicas.values()]

    def pick(self, path: str = CALL, tried: Iterable[int] = ()) -> int | None:
        """The number of the replica that a call would go to."""
        self.ejection.refresh()
        keys = {self.replica(number).key: True for number in tried}
        return number_of(self.picker.pick(self.pool(path), self.worker.table(keys) if keys else None, self.clock.now()))

    def picks(self, times: int) -> list[int | None]:
        return [self.pick() for _ in range(times)]

    def begin(self, number: int, calls: int = 1) -> None:
        """Calls to a replica begin, and do not end."""
        for _ in range(calls):
            self.inflight.enter(self.replica(number).calls)
            self.inflight.enter(self.pool().calls)

    def eject(self, *numbers: int) -> None:
        for number in numbers:
            self.ejection.eject(self.replica(number), "no connection")


def number_of(found: Any) -> int | None:
    return found and int(found.address.rpartition(".")[2])


# Picking.


def test_replicas_of_equal_weight_take_turns() -> None:
    picks = Balancer(replica(1), replica(2), replica(3)).picks(300)
    assert picks == [1, 2, 3] * 100


def test_each_worker_begins_elsewhere() -> None:
    shared = Shared()
    replicas = [replica(number) for number in range(1, 9)]
    workers = [Balancer(*replicas, number=number, count=4, shared=shared) for number in range(4)]
    assert [worker.pick() for worker in workers] == [1, 3, 5, 7]


@pytest.mark.parametrize(("heavy", "workers"), [(1, 2), (9, 2), (9, 10), (99, 4), (99, 100)])
def test_workers_together_send_a_light_replica_its_calls_evenly(heavy: int, workers: int) -> None:
    shared = Shared()
    fleet = [replica(1, weight=heavy), replica(2, weight=1)]
    total = heavy + 1
    picks = [
        Balancer(*fleet, number=number, count=workers, shared=shared).picks(2 * total) for number in range(workers)
    ]
    at = sorted(index for of_worker in picks for index, number in enumerate(of_worker) if number == 2)
    assert len(at) == 2 * workers
    assert {after - before for before, after in itertools.pairwise(at)} == {total // workers}


WEIGHTS = [(9, 1), (99, 1), (1, 99), (5, 3, 2), (1, 2, 3, 4), (9999, 1)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_over_a_whole_turn_the_shares_are_the_weights(weights: tuple[int, ...]) -> None:
    balancer = Balancer(*(replica(number, weight=weight) for number, weight in enumerate(weights, 1)))
    for _ in range(2):
        assert Counter(balancer.picks(sum(weights))) == dict(enumerate(weights, 1))


@pytest.mark.parametrize("weights", [weights for weights in WEIGHTS if sum(weights) <= 100])
@pytest.mark.parametrize("number", range(1, 8))
def test_wherever_a_worker_begins_its_shares_are_the_weights(weights: tuple[int, ...], number: int) -> None:
    fleet = [replica(one, weight=weight) for one, weight in enumerate(weights, 1)]
    balancer = Balancer(*fleet, number=number, count=8)
    picks = Counter(balancer.picks(sum(weights)))
    assert all(abs(picks[one] - weight) <= 1 for one, weight in enumerate(weights, 1)), picks
    assert Counter(balancer.picks(sum(weights))) == dict(enumerate(weights, 1))


def test_a_light_replica_gets_its_calls_evenly_and_not_in_a_row() -> None:
    picks = Balancer(replica(1, weight=9), replica(2, weight=1)).picks(100)
    at = [index for index, number in enumerate(picks) if number == 2]
    assert {after - before for before, after in itertools.pairwise(at)} == {10}


@pytest.mark.parametrize(("weights", "share"), [((99, 1), 1), ((9, 1), 10), ((1, 1), 50)])
def test_shares_survive_a_change_of_another_application_at_every_call(weights: tuple[int, int], share: int) -> None:
    shop = [replica(one, weight=weight) for one, weight in enumerate(weights, 1)]
    balancer = Balancer(*shop)
    picks: Counter[int | None] = Counter()
    for number in range(200):
        others = [replica(3 + one, "mail.B", application="mail") for one in range(number % 3)]
        balancer.publish([*shop, *others] if number % 2 else [*others, *shop])
        picks[balancer.pick()] += 1
    assert picks[2] == 2 * share, picks


def test_shares_survive_health_that_comes_and_goes() -> None:
    balancer = Balancer(replica(1, weight=9), replica(2, weight=1))
    picks: Counter[int | None] = Counter()
    for number in range(200):
        health = Health.TIMEOUT if number % 2 else Health.SERVING
        balancer.publish([replica(1, weight=9), replica(2, weight=1), replica(3, weight=1, health=health)])
        picks[balancer.pick()] += 1
    assert picks[3] <= 20
    assert picks[2] in range(17, 22), picks


def test_a_change_of_the_own_replicas_disturbs_the_rotation_by_no_more_than_a_turn() -> None:
    balancer = Balancer(replica(1), replica(2), replica(3))
    picks: Counter[int | None] = Counter()
    for number in range(300):
        balancer.publish([replica(1), replica(2), replica(3), *([replica(4)] if number % 2 else [])])
        picks[balancer.pick()] += 1
    assert min(picks[1], picks[2], picks[3]) >= 60, picks


def test_a_replica_with_more_than_its_share_of_the_calls_in_flight_gets_no_more() -> None:
    balancer = Balancer(replica(1), replica(2), replica(3))
    balancer.begin(1, 7)
    assert Counter(balancer.picks(30)) == {1: 10, 2: 10, 3: 10}
    balancer.begin(1)
    assert Counter(balancer.picks(30)) == {2: 15, 3: 15}


def test_a_share_grows_with_all_calls_and_with_the_weight() -> None:
    balancer = Balancer(replica(1, weight=2), replica(2), replica(3))
    balancer.begin(1, 20)
    balancer.begin(2, 7)
    # 1.25 times a half of 28 calls is 17.5.
    assert 1 not in balancer.picks(10)
    balancer.begin(3, 7)
    # Of 35, 21.9.
    assert 1 in balancer.picks(10)


def test_replicas_that_all_have_more_than_their_share_are_picked_all_the_same() -> None:
    balancer = Balancer(replica(1), replica(2, health=Health.TIMEOUT))
    balancer.begin(1, 100)
    assert set(balancer.picks(10)) == {1}


def test_a_stream_counts_only_in_its_first_seconds() -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.inflight.advance(100)
    balancer.begin(1, 100)
    assert set(balancer.picks(10)) == {2}
    balancer.inflight.advance(104)
    assert set(balancer.picks(10)) == {1, 2}
    assert balancer.replica(1).calls.open == 100


def test_replicas_that_do_not_serve_are_left_out() -> None:
    fleet = [replica(1), replica(2, health=Health.REFUSED), replica(3, health=Health.TIMEOUT), replica(4)]
    assert set(Balancer(*fleet).picks(20)) == {1, 4}


def test_where_none_serves_those_are_tried_that_may() -> None:
    balancer = Balancer(
        replica(1, health=Health.TIMEOUT, name="shop.A"),
        replica(2, health=Health.REFUSED, name="shop.A"),
        replica(3, health=Health.REFUSED),
    )
    assert set(balancer.picks(10)) == {1, 3}
    assert balancer.pick(tried=[1]) == 3
    assert balancer.pick(tried=[1, 3]) is None


def test_ejected_replicas_are_left_out_until_all_are() -> None:
    balancer = Balancer(replica(1), replica(2), replica(3))
    balancer.eject(1, 2)
    assert set(balancer.picks(10)) == {3}
    balancer.eject(3)
    assert set(balancer.picks(10)) == {1, 2, 3}


@pytest.mark.parametrize("weight", [1, 5])
def test_a_replica_that_was_tried_is_not_tried_again(weight: int) -> None:
    balancer = Balancer(replica(1, weight=weight), replica(2), replica(3))
    tried: list[int] = []
    while (found := balancer.pick(tried=tried)) is not None:
        tried.append(found)
    assert sorted(tried) == [1, 2, 3]


def test_an_empty_pool_has_no_replica() -> None:
    assert Balancer().pick() is None


# The view of a document.


def test_each_service_goes_to_its_pool() -> None:
    balancer = Balancer(replica(1), replica(2, "mail.B", application="mail"), replica(3, "shop.A", "shop.New"))
    assert balancer.members("/shop.A/Buy") == [1, 3]
    assert balancer.members("/shop.New/Buy") == [3]
    assert balancer.members("/mail.B/Send") == [2]


def test_a_service_without_replicas_has_a_pool_of_nobody() -> None:
    balancer = Balancer()
    balancer.publish([replica(1)], remembered=["gone.S"])
    assert balancer.members("/gone.S/Call") == []
    assert balancer.pick("/gone.S/Call") is None
    assert balancer.members("/other.S/Call") == [1]


def test_without_a_default_an_unknown_service_has_no_pool() -> None:
    balancer = Balancer(replica(1), replica(2, "mail.B", application="mail"))
    assert balancer.view.default is None
    assert balancer.pool("/other.S/Call") is None


def test_silent_applications_get_all_other_calls() -> None:
    silent = Replica(registration=Registration(application="mute", address="10.0.0.2", port=7777, weight=1), since=0)
    balancer = Balancer(replica(1), silent)
    assert balancer.members("/other.S/Call") == [2]
    assert balancer.members() == [1]


def test_a_single_application_gets_every_call_without_a_look_at_its_path() -> None:
    balancer = Balancer(replica(1), replica(2))
    assert balancer.same(balancer.view.only, balancer.view.applications["shop"])
    assert balancer.members("rubbish") == [1, 2]
    balancer.publish([replica(1), replica(2, "mail.B", application="mail")])
    assert balancer.view.only is None
    balancer.publish([replica(1)], remembered=["gone.S"])
    assert balancer.view.only is None


def test_before_the_first_document_and_without_replicas_all_calls_go_to_nobody() -> None:
    worker = Worker()
    view, changed = worker.module("fleet").refresh()
    assert not changed
    assert len(worker.module("router").route(view, CALL, None).replicas) == 0
    assert Balancer().members() == []


def test_a_document_is_taken_once() -> None:
    balancer = Balancer(replica(1))
    assert balancer.fleet.refresh()[1]
    assert not balancer.fleet.refresh()[1]
    balancer.publish([replica(1)])
    assert balancer.fleet.refresh()[1]


def test_replicas_and_their_calls_in_flight_survive_a_new_document() -> None:
    balancer = Balancer(replica(1), replica(2))
    before, pool = balancer.replica(1), balancer.pool()
    balancer.begin(1, 3)
    balancer.publish([replica(3), replica(1, weight=7), replica(4, "mail.B", application="mail")])
    assert balancer.same(balancer.replica(1), before)
    assert balancer.replica(1).calls.open == 3
    assert balancer.same(balancer.pool().calls, pool.calls)
    assert balancer.inflight.count(balancer.pool().calls) == 3
    assert balancer.replica(2) is None


def test_a_replica_that_comes_back_begins_without_calls() -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.begin(1, 3)
    balancer.publish([replica(2)])
    assert balancer.view
    balancer.publish([replica(1), replica(2)])
    assert balancer.replica(1).calls.open == 0


def test_weights_states_and_health_are_those_of_the_last_document() -> None:
    balancer = Balancer(replica(1, weight=9), replica(2))
    assert Counter(balancer.picks(100)) == {1: 90, 2: 10}
    balancer.publish([replica(1, weight=1), replica(2, weight=3)])
    assert Counter(balancer.picks(100)) == {1: 25, 2: 75}
    balancer.publish([replica(1), replica(2, health=Health.TIMEOUT)])
    assert set(balancer.picks(10)) == {1}
    assert balancer.replica(2).state == "ejected: timeout"


@pytest.mark.parametrize("calls", [1, 3000, 32_768])
def test_small_weights_after_large_ones_are_shares_at_once(calls: int) -> None:
    balancer = Balancer(replica(1, weight=65535), replica(2, weight=65534), replica(3))
    balancer.picks(calls)
    balancer.publish([replica(1, weight=2), replica(2, weight=1), replica(3)])
    picks = Counter(balancer.picks(40))
    assert abs(picks[1] - 20) <= 2, picks
    assert abs(picks[2] - 10) <= 2, picks


def test_a_pool_of_all_replicas_and_one_of_some_count_an_applications_calls_together() -> None:
    balancer = Balancer(replica(1), replica(2, "shop.A", "shop.New"), replica(3, "mail.B", application="mail"))
    balancer.begin(1, 5)
    assert balancer.inflight.count(balancer.pool("/shop.New/Buy").calls) == 5
    assert balancer.inflight.count(balancer.pool("/mail.B/Send").calls) == 0


def test_addresses_of_both_families_are_known_in_bytes() -> None:
    parse = Worker().module("tcp").parse_address
    assert (parse("10.0.0.1").family, parse("10.0.0.1").length) == (2, 4)
    assert (parse("fd00::1").family, parse("fd00::1").length) == (10, 16)
    assert parse("host") is None


# How a document comes.


@pytest.mark.parametrize(
    "text", ["", "{", "null", "5", "[]", "{}", '{"version": 5}', json.dumps({**build([]), "pools": 5})]
)
def test_what_is_no_document_is_refused_and_the_last_one_stays(text: str) -> None:
    balancer = Balancer(replica(1))
    assert balancer.worker.post(text) == 400
    assert balancer.members() == [1]


def test_a_document_that_nginx_has_written_to_a_file_is_refused() -> None:
    balancer = Balancer(replica(1))
    balancer.worker.ngx.req.get_body_data = balancer.worker.lua("function() end")
    assert balancer.worker.post(build([])) == 413
    assert balancer.members() == [1]


def test_a_document_that_another_worker_has_accepted_meanwhile_counts() -> None:
    shared = Shared()
    mine, other = Worker(0, 2, shared), Worker(1, 2, shared)
    assert mine.post(build([replica(1)])) == 200
    assert other.post(build([replica(1), replica(2)])) == 200
    for worker in (mine, other):
        view, changed = worker.module("fleet").refresh()
        assert changed
        assert len(view.replicas) == 2


def test_a_document_that_is_accepted_again_is_another_view() -> None:
    worker = Worker()
    first, second = build([replica(1)]), build([replica(1), replica(2)])
    for text, count in ((first, 1), (second, 2), (first, 1)):
        assert worker.post(text) == 200
        view, changed = worker.module("fleet").refresh()
        assert changed
        assert len(view.replicas) == count


def test_nginx_tells_the_version_that_it_has() -> None:
    worker = Worker()
    for version in ("", "x-1", "x-2"):
        if version:
            worker.post(build([], version=version))
        worker.method = "GET"
        worker.module("configuration").serve()
        assert json.loads(worker.said[-1]) == {"version": version}
    worker.method = "PUT"
    worker.module("configuration").serve()
    assert worker.ngx.status == 405


def started(tmp_path: Path, text: str | None, shared: Shared | None = None) -> Worker:
    """A worker of an nginx that has started with a snapshot."""
    snapshot = tmp_path / "var" / "lib" / "load-balancer" / "snapshot.json"
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        snapshot.write_text(text)
    worker = Worker(shared=shared, prefix=f"{tmp_path}/etc/nginx/")
    (tmp_path / "etc" / "nginx").mkdir(parents=True, exist_ok=True)
    worker.module("configuration").init()
    return worker


def test_nginx_starts_with_the_snapshot(tmp_path: Path) -> None:
    worker = started(tmp_path, json.dumps(build([replica(1)])))
    view, changed = worker.module("fleet").refresh()
    assert changed
    assert len(view.replicas) == 1
    assert not worker.lines


def test_after_a_reload_the_latest_document_counts_not_the_snapshot(tmp_path: Path) -> None:
    shared = Shared()
    Balancer(replica(1), replica(2), shared=shared)
    view, _ = started(tmp_path, json.dumps(build([])), shared).module("fleet").refresh()
    assert len(view.replicas) == 2


@pytest.mark.parametrize("text", [None, "", "{", "{}", "5"])
def test_nginx_starts_without_a_snapshot_and_with_a_damaged_one(tmp_path: Path, text: str | None) -> None:
    worker = started(tmp_path, text)
    view, _ = worker.module("fleet").refresh()
    assert len(view.replicas) == 0
    assert ["the snapshot is not used" in line for line in worker.lines] == ([] if text is None else [True])


# Ejections.


def test_an_ejection_lasts_a_second_of_the_monotonic_clock() -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.eject(1)
    balancer.worker.time = 100.99
    assert set(balancer.picks(4)) == {2}
    balancer.worker.time = 101.01
    assert set(balancer.picks(4)) == {1, 2}


@pytest.mark.parametrize("step", [-3600, 3600])
def test_an_ejection_does_not_depend_on_the_wall_clock(step: float) -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.eject(1)
    balancer.worker.wall += step
    assert set(balancer.picks(4)) == {2}
    balancer.worker.time = 101.01
    balancer.worker.wall -= step
    assert set(balancer.picks(4)) == {1, 2}


def test_an_ejection_ends_when_the_replica_was_found_to_serve_since() -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.eject(1)
    balancer.publish([replica(1, since=99.9), replica(2)])
    assert set(balancer.picks(4)) == {2}
    balancer.publish([replica(1, since=100.1), replica(2)])
    assert set(balancer.picks(4)) == {1, 2}


def test_an_ejection_by_one_worker_is_one_by_all_once_each_has_looked() -> None:
    shared = Shared()
    first, second = (Balancer(replica(1), replica(2), number=number, count=2, shared=shared) for number in range(2))
    first.eject(1)
    assert set(second.picks(4)) == {2}
    second.eject(2)
    assert set(first.picks(4)) == {1, 2}
    first.worker.time = second.worker.time = 101.01
    assert set(first.picks(4)) == set(second.picks(4)) == {1, 2}


def test_a_replica_that_is_ejected_again_is_told_once() -> None:
    balancer = Balancer(replica(1))
    for _ in range(3):
        balancer.eject(1)
    balancer.worker.time = 102
    balancer.eject(1)
    assert balancer.worker.lines == ["ejected replica=shop 10.0.0.1:7777 seconds=1 reason=no connection"] * 2


# Routing.


def two_applications() -> Balancer:
    return Balancer(replica(1, "shop.A", "shop.B"), replica(2, "mail.B", application="mail"))


def test_a_caller_names_the_application_for_a_service_that_all_have() -> None:
    balancer = two_applications()
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    assert balancer.members(path, "mail") == [2]
    assert balancer.members(path, "shop") == [1]
    for other in (None, "", "other", "Shop", "__index", "shop "):
        assert balancer.pool(path, other) is None


def test_a_named_application_takes_no_calls_of_a_service_that_has_a_route() -> None:
    balancer = two_applications()
    for _ in range(2):
        assert balancer.members("/mail.B/Send", "shop") == [2]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "///",
        "shop.A/Buy",
        "/shop.A",
        "//shop.A/Buy",
        "/shop.A\0/Buy",
        "/SHOP.A/Buy",
        "/shopxA/Buy",
        "/shop%2EA/Buy",
        "/%a+/x",
        "/[/x",
        "/%",
        "/%1/x",
        "/__index/x",
        "/../shop.A/Buy",
        "/ shop.A/Buy",
        b"/\xff\xfe/\xff",
        b"/shop.A\xc3/Buy",
        "/" + "x" * 100_000 + "/y",
        "/" * 100_000,
    ],
)
def test_a_path_of_another_form_is_of_no_service(path: str | bytes) -> None:
    balancer = two_applications()
    for _ in range(2):
        assert balancer.pool(path) is None
        assert balancer.members(path, "mail") == [2]


@pytest.mark.parametrize(
    "path", ["/shop.A/", "/shop.A//", "/shop.A/../mail.B/Send", "/shop.A/" + "x" * 100_000, b"/shop.A/\xff"]
)
def test_whatever_follows_a_service_does_not_change_where_the_call_goes(path: str | bytes) -> None:
    assert two_applications().members(path) == [1]


@pytest.mark.parametrize("size", [100, 5000])
def test_callers_fill_no_memory_with_paths(size: int) -> None:
    balancer = two_applications()
    route_many = balancer.worker.lua(
        """function(router, view, count, size)
            local rest = string.rep("x", size)
            for number = 1, count do
                router.route(view, "/shop.A/" .. number .. rest)
                router.route(view, "/none.A/" .. number .. rest, "none")
            end
            collectgarbage()
            return collectgarbage("count") / 1024
        end"""
    )
    before = route_many(balancer.router, balancer.view, 1, size)
    after = route_many(balancer.router, balancer.view, 2_000_000 // size, size)
    assert after - before < 2.5


def test_a_new_document_changes_where_a_known_path_goes() -> None:
    balancer = two_applications()
    assert balancer.members("/mail.B/Send") == [2]
    balancer.publish([replica(1, "mail.B"), replica(2, "other.C", application="other")])
    assert balancer.members("/mail.B/Send") == [1]


# Calls in flight.


def test_calls_are_counted_for_two_to_four_seconds() -> None:
    inflight = Worker().module("inflight")
    counter = inflight.new()
    inflight.advance(100)
    inflight.enter(counter)
    counts = []
    for now in (100, 101.9, 102, 103.9, 104, 200):
        inflight.advance(now)
        counts.append(inflight.count(counter))
    assert counts == [1, 1, 1, 1, 0, 0]
    assert counter.open == 1


@pytest.mark.parametrize("left", [100, 101.9, 102, 103.9, 104, 106, 10_000])
def test_a_call_that_ends_is_not_counted_whenever_it_ends(left: float) -> None:
    inflight = Worker().module("inflight")
    counter = inflight.new()
    inflight.advance(100)
    entered = inflight.enter(counter)
    inflight.advance(left)
    inflight.enter(counter)
    inflight.leave(counter, entered)
    assert inflight.count(counter) == 1
    assert counter.open == 1
    inflight.advance(left + 10)
    assert inflight.count(counter) == 0


# The clock.


def test_the_clock_is_the_control_planes() -> None:
    clock = Worker().module("clock")
    before = time.monotonic()
    seen = [clock.now() for _ in range(100)]
    after = time.monotonic()
    # Lua's numbers have the same 53 bits.
    assert before - 1e-6 <= seen[0]
    assert seen[-1] <= after + 1e-6
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


# The life of a call.


class Calls:
    """Calls through balancer.lua."""

    def __init__(self, *replicas: Replica) -> None:
        self.balancer = Balancer(*replicas)
        self.worker = self.balancer.worker
        self.lua = self.worker.module("balancer")
        self.worker.ngx.var.uri = CALL

    def begin(self, request: int) -> None:
        self.worker.request = request
        self.lua.accept()

    def balance(self, request: int) -> str | None:
        """The address that a try of a call goes to."""
        self.worker.request = request
        self.worker.connected.clear()
        # nginx's time goes on in each iteration.
        self.worker.wall += 0.001
        self.lua.balance()
        return self.worker.connected[-1][0] if self.worker.connected else None

    def finish(self, request: int) -> None:
        self.worker.request = request
        self.lua.finish()

    def open(self) -> list[int]:
        """The calls in flight of each replica and of the pool."""
        view = self.balancer.view
        return [int(one.calls.open) for one in view.replicas.values()] + [int(self.balancer.pool().calls.open)]


def test_a_call_is_in_flight_at_its_replica_until_it_ends() -> None:
    calls = Calls(replica(1), replica(2))
    calls.begin(1)
    calls.begin(2)
    assert calls.open() == [0, 0, 0]
    assert [calls.balance(1), calls.balance(2)] == ["10.0.0.1", "10.0.0.2"]
    assert calls.open() == [1, 1, 2]
    calls.finish(1)
    assert calls.open() == [0, 1, 1]
    calls.finish(2)
    assert calls.open() == [0, 0, 0]


def test_a_call_that_reaches_no_replica_is_tried_at_each_once() -> None:
    calls = Calls(*(replica(number) for number in range(1, 4)))
    calls.begin(1)
    seen = [calls.balance(1) for _ in range(4)]
    assert sorted(filter(None, seen)) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert seen[3] is None
    assert calls.worker.ngx.status == -1
    assert calls.worker.more_tries == 2
    calls.finish(1)
    assert calls.open() == [0, 0, 0, 0]


def test_an_address_that_nginx_does_not_take_is_passed_over() -> None:
    calls = Calls(replica(1), replica(2))
    calls.worker.refusing = {"10.0.0.1"}
    calls.begin(1)
    assert calls.balance(1) == "10.0.0.2"
    calls.finish(1)
    assert calls.open() == [0, 0, 0]


def test_a_call_of_an_unknown_service_is_unimplemented() -> None:
    calls = Calls(replica(1), replica(2, "mail.B", application="mail"))
    calls.worker.ngx.var.uri = "/other.S/Call"
    calls.begin(1)
    assert calls.balance(1) is None
    assert calls.worker.ngx.var.lb_grpc_status == 12
    assert calls.worker.ngx.var.lb_grpc_message == "no application has the service other.S"
    calls.finish(1)


def test_a_call_whose_replica_leaves_ends_in_order() -> None:
    calls = Calls(replica(1), replica(2))
    calls.begin(1)
    calls.balance(1)
    calls.balancer.publish([replica(2)])
    calls.finish(1)
    assert calls.open() == [0, 0]


def test_a_request_that_was_refused_before_it_was_a_call_ends_as_well() -> None:
    calls = Calls(replica(1))
    calls.finish(7)
    calls.begin(7)
    calls.finish(7)
    calls.finish(7)
    assert calls.open() == [0, 0]


def test_a_worker_has_a_limited_number_of_calls() -> None:
    # A part of the connections that nginx may have, or of the files that the process may.
    most = int(0.36 * min(32768, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    calls = Calls(replica(1))
    for request in range(1, most + 1):
        calls.begin(request)
    assert calls.worker.ngx.status == 200
    calls.begin(most + 1)
    assert calls.worker.ngx.status == 429
    calls.finish(most + 1)
    calls.finish(1)
    calls.worker.ngx.status = 200
    calls.begin(1)
    assert calls.worker.ngx.status == 200


# Metrics.


def test_callers_choose_no_more_than_so_many_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_PORT", "9464")
    calls = Calls(replica(1))
    metrics, ngx = calls.worker.module("metrics"), calls.worker.ngx
    ngx.var.upstream_trailer_grpc_status = "0"
    for number in range(1000):
        ngx.var.uri = f"/shop.A/Method{number}"
        metrics.ended(calls.balancer.replica(1), 0.001)
    # One that no replica knows is not told apart either.
    ngx.var.upstream_trailer_grpc_status, ngx.var.uri = "12", "/shop.A/Unknown"
    metrics.ended(calls.balancer.replica(1), 0.001)
    calls.lua.metrics()
    counted = [
        line for line in "".join(f"{one}\n" for one in calls.worker.said).splitlines() if "handled_total{" in line
    ]
    assert len({line.split('grpc_method="')[1].split('"')[0] for line in counted}) == 501
    assert 'grpc_service="other",grpc_method="other",application="shop"' in "".join(counted)
    assert sum(int(line.rpartition(" ")[2].removesuffix(".0")) for line in counted) == 1001
