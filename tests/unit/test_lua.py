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

from balancer.fleet import Health, Replica
from balancer.routes import Route, compute_routes
from tests.support.fleet import build as build_document
from tests.support.fleet import registration
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
    registered = registration(application, number, *(services or ("shop.A",)), weight=weight, health=name)
    return Replica(registration=registered, since=since, health=health)


def mail(number: int) -> Replica:
    """Returns a replica of another application."""
    return replica(number, "mail.B", application="mail")


def weighted(weights: Iterable[int]) -> list[Replica]:
    return [replica(number, weight=weight) for number, weight in enumerate(weights, 1)]


def build(replicas: Sequence[Replica], remembered: Iterable[str] = (), version: str = "v") -> dict[str, Any]:
    found = {service: Route(application="gone") for service in remembered}
    found |= compute_routes(one.registration for one in replicas)
    return build_document(replicas, found, version=version, changed=1, updated=2)


class Balancer:
    """A worker with a document."""

    def __init__(self, *replicas: Replica, number: int = 0, count: int = 1, shared: Shared | None = None) -> None:
        self.worker = Worker(number, count, shared)
        self.worker.time = 100.0
        self.fleet, self.picker, self.router, self.inflight, self.ejection, self.clock = (
            self.worker.module(name) for name in ("fleet", "picker", "router", "inflight", "ejection", "clock")
        )
        self.publish(replicas)

    def publish(self, replicas: Sequence[Replica], **given: Any) -> None:
        assert self.worker.post(build(replicas, **given)) == 200

    def same(self, one: object, other: object) -> bool:
        """Whether both are the same table."""
        return bool(self.worker.lua("rawequal")(one, other))

    @property
    def view(self) -> Any:
        return self.fleet.refresh()[0]

    def replica(self, number: int, application: str = "shop") -> Any:
        return self.view.by_key[f"{application}\t10.0.0.{number}:7777"]

    def pool(self, path: str | bytes = CALL, application: str | None = None) -> Any:
        return self.router.route(self.view, path, application)

    def members(self, path: str | bytes = CALL, application: str | None = None) -> list[int] | None:
        pool = self.pool(path, application)
        return pool and [number_of(one) for one in pool.replicas.values()]

    def pick(self, path: str = CALL, tried: Iterable[int] = ()) -> int | None:
        """Returns the number of the replica that gets a call."""
        self.ejection.refresh()
        keys = {self.replica(number).key: True for number in tried}
        return number_of(self.picker.pick(self.pool(path), self.worker.table(keys) if keys else None, self.clock.now()))

    def picks(self, times: int) -> list[int | None]:
        return [self.pick() for _ in range(times)]

    def picks_of(self, documents: Iterable[Sequence[Replica]]) -> Counter[int | None]:
        """Counts the picks of one call after each document."""
        picks: Counter[int | None] = Counter()
        for replicas in documents:
            self.publish(replicas)
            picks[self.pick()] += 1
        return picks

    def begin(self, number: int, calls: int = 1) -> None:
        """Begins calls to a replica that do not end."""
        for _ in range(calls):
            self.inflight.enter(self.replica(number).calls)
            self.inflight.enter(self.pool().calls)

    def eject(self, *numbers: int) -> None:
        for number in numbers:
            self.ejection.eject(self.replica(number), "no connection")


def number_of(found: Any) -> int | None:
    return found and int(found.address.rpartition(".")[2])


def count_replicas(worker: Worker, *, changed: bool = True) -> int:
    """Has a worker look for a document, and counts the replicas of its view."""
    view, fresh = worker.module("fleet").refresh()
    assert fresh is changed
    return len(view.replicas)


# Picking.


def test_replicas_of_equal_weight_take_turns() -> None:
    picks = Balancer(replica(1), replica(2), replica(3)).picks(300)
    assert picks == [1, 2, 3] * 100


def test_each_worker_begins_elsewhere() -> None:
    shared = Shared()
    workers = [Balancer(*weighted([1] * 8), number=number, count=4, shared=shared) for number in range(4)]
    assert [worker.pick() for worker in workers] == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("heavy", "workers", "turns"), [(9, 1, 10), (1, 2, 2), (9, 2, 2), (9, 10, 2), (99, 4, 2), (99, 100, 2)]
)
def test_workers_together_send_a_light_replica_its_calls_evenly(heavy: int, workers: int, turns: int) -> None:
    shared, total = Shared(), heavy + 1
    balancers = [Balancer(*weighted((heavy, 1)), number=one, count=workers, shared=shared) for one in range(workers)]
    at = sorted(index for one in balancers for index, number in enumerate(one.picks(turns * total)) if number == 2)
    assert len(at) == turns * workers
    assert {after - before for before, after in itertools.pairwise(at)} == {total // workers}


@pytest.mark.parametrize(
    ("weights", "number"),
    [((9999, 1), 0), *itertools.product([(9, 1), (99, 1), (1, 99), (5, 3, 2), (1, 2, 3, 4)], range(8))],
)
def test_wherever_a_worker_begins_its_shares_are_the_weights(weights: tuple[int, ...], number: int) -> None:
    balancer = Balancer(*weighted(weights), number=number, count=8)
    picks = Counter(balancer.picks(sum(weights)))
    assert all(abs(picks[one] - weight) <= min(number, 1) for one, weight in enumerate(weights, 1)), picks
    assert Counter(balancer.picks(sum(weights))) == dict(enumerate(weights, 1))


@pytest.mark.parametrize(("weights", "share"), [((99, 1), 1), ((9, 1), 10), ((1, 1), 50)])
def test_shares_survive_a_change_of_another_application_at_every_call(weights: tuple[int, int], share: int) -> None:
    shop, others = weighted(weights), [mail(3), mail(4)]
    documents = [
        [*shop, *others[: number % 3]] if number % 2 else [*others[: number % 3], *shop] for number in range(200)
    ]
    picks = Balancer(*shop).picks_of(documents)
    assert picks[2] == 2 * share, picks


def test_shares_survive_health_that_comes_and_goes() -> None:
    shop = weighted((9, 1))
    picks = Balancer(*shop).picks_of([[*shop, replica(3)], [*shop, replica(3, health=Health.TIMEOUT)]] * 100)
    assert picks[3] <= 20
    assert picks[2] in range(17, 22), picks


def test_a_change_of_the_own_replicas_disturbs_the_rotation_by_no_more_than_a_turn() -> None:
    shop = weighted((1, 1, 1))
    picks = Balancer(*shop).picks_of([shop, [*shop, replica(4)]] * 150)
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


def test_where_all_replicas_have_more_than_their_share_they_are_picked() -> None:
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


def test_where_no_replica_serves_those_that_may_serve_are_tried() -> None:
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


# The view of a document.


def test_each_service_goes_to_its_pool() -> None:
    balancer = Balancer(replica(1), mail(2), replica(3, "shop.A", "shop.New"))
    assert balancer.members("/shop.A/Buy") == [1, 3]
    assert balancer.members("/shop.New/Buy") == [3]
    assert balancer.members("/mail.B/Send") == [2]


def test_a_service_without_replicas_has_an_empty_pool() -> None:
    balancer = Balancer()
    balancer.publish([replica(1)], remembered=["gone.S"])
    assert balancer.members("/gone.S/Call") == []
    assert balancer.pick("/gone.S/Call") is None
    assert balancer.members("/other.S/Call") == [1]


def test_without_a_default_an_unknown_service_has_no_pool() -> None:
    balancer = Balancer(replica(1), mail(2))
    assert balancer.view.default is None
    assert balancer.pool("/other.S/Call") is None


def test_silent_applications_get_all_other_calls() -> None:
    silent = Replica(registration=registration("mute", 2), since=0)
    balancer = Balancer(replica(1), silent)
    assert balancer.members("/other.S/Call") == [2]
    assert balancer.members() == [1]


def test_a_single_application_gets_every_call_without_a_look_at_its_path() -> None:
    balancer = Balancer(replica(1), replica(2))
    assert balancer.same(balancer.view.only, balancer.view.applications["shop"])
    assert balancer.members("rubbish") == [1, 2]
    balancer.publish([replica(1), mail(2)])
    assert balancer.view.only is None
    balancer.publish([replica(1)], remembered=["gone.S"])
    assert balancer.view.only is None


def test_before_the_first_document_and_without_replicas_all_calls_have_an_empty_pool() -> None:
    worker = Worker()
    view, changed = worker.module("fleet").refresh()
    assert not changed
    assert len(worker.module("router").route(view, CALL, None).replicas) == 0
    assert Balancer().members() == []
    assert Balancer().pick() is None


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
    balancer.publish([replica(3), replica(1, weight=7), mail(4)])
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
    balancer = Balancer(replica(1), replica(2, "shop.A", "shop.New"), mail(3))
    balancer.begin(1, 5)
    assert balancer.inflight.count(balancer.pool("/shop.New/Buy").calls) == 5
    assert balancer.inflight.count(balancer.pool("/mail.B/Send").calls) == 0


def test_addresses_of_both_families_are_known_in_bytes() -> None:
    parse = Worker().module("tcp").parse_address
    assert (parse("10.0.0.1").family, parse("10.0.0.1").length) == (2, 4)
    assert (parse("fd00::1").family, parse("fd00::1").length) == (10, 16)
    assert parse("host") is None


# Documents.


@pytest.mark.parametrize(
    "text", ["", "{", "null", "5", "[]", "{}", '{"version": 5}', json.dumps({**build([]), "pools": 5})]
)
def test_an_invalid_document_is_refused_and_the_last_one_stays(text: str) -> None:
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
    assert count_replicas(mine) == count_replicas(other) == 2


def test_a_document_that_is_accepted_again_is_another_view() -> None:
    worker = Worker()
    first, second = build([replica(1)]), build([replica(1), replica(2)])
    for text, count in ((first, 1), (second, 2), (first, 1)):
        assert worker.post(text) == 200
        assert count_replicas(worker) == count


def test_nginx_answers_with_the_version_of_its_document() -> None:
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
    """Returns a worker of an nginx that has started with a snapshot."""
    for directory in ("var/lib/load-balancer", "etc/nginx"):
        (tmp_path / directory).mkdir(parents=True)
    if text is not None:
        (tmp_path / "var/lib/load-balancer/snapshot.json").write_text(text)
    worker = Worker(shared=shared, prefix=f"{tmp_path}/etc/nginx/")
    worker.module("configuration").init()
    return worker


def test_nginx_starts_with_the_snapshot(tmp_path: Path) -> None:
    worker = started(tmp_path, json.dumps(build([replica(1)])))
    assert count_replicas(worker) == 1
    assert not worker.lines


def test_after_a_reload_the_latest_document_counts_not_the_snapshot(tmp_path: Path) -> None:
    shared = Shared()
    Balancer(replica(1), replica(2), shared=shared)
    assert count_replicas(started(tmp_path, json.dumps(build([])), shared)) == 2


@pytest.mark.parametrize("text", [None, "", "{", "{}", "5"])
def test_nginx_starts_without_a_snapshot_and_with_a_damaged_one(tmp_path: Path, text: str | None) -> None:
    worker = started(tmp_path, text)
    assert count_replicas(worker, changed=False) == 0
    assert ["the snapshot is not used" in line for line in worker.lines] == ([] if text is None else [True])


# Ejections.


@pytest.mark.parametrize("step", [0, -3600, 3600])
def test_an_ejection_lasts_a_second_of_the_monotonic_clock_whatever_the_wall_clock_does(step: float) -> None:
    balancer = Balancer(replica(1), replica(2))
    balancer.eject(1)
    balancer.worker.wall += step
    assert set(balancer.picks(4)) == {2}
    balancer.worker.time = 100.99
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


def test_an_ejection_by_one_worker_is_one_by_all_workers() -> None:
    shared = Shared()
    first, second = (Balancer(replica(1), replica(2), number=number, count=2, shared=shared) for number in range(2))
    first.eject(1)
    assert set(second.picks(4)) == {2}
    second.eject(2)
    assert set(first.picks(4)) == {1, 2}
    first.worker.time = second.worker.time = 101.01
    assert set(first.picks(4)) == set(second.picks(4)) == {1, 2}


def test_an_ejection_is_logged_once() -> None:
    balancer = Balancer(replica(1))
    for _ in range(3):
        balancer.eject(1)
    balancer.worker.time = 102
    balancer.eject(1)
    assert balancer.worker.lines == ["ejected replica=shop 10.0.0.1:7777 seconds=1 reason=no connection"] * 2


# Routing.


def two_applications() -> Balancer:
    return Balancer(replica(1, "shop.A", "shop.B"), mail(2))


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


ODD_PATHS = """/ // /// shop.A/Buy /shop.A //shop.A/Buy /SHOP.A/Buy /shopxA/Buy /shop%2EA/Buy /%a+/x /[/x /% /%1/x
/__index/x /../shop.A/Buy"""
ODD_BYTES = [b"/\xff\xfe/\xff", b"/shop.A\xc3/Buy"]


@pytest.mark.parametrize(
    "path",
    ["", "/ shop.A/Buy", "/shop.A\0/Buy", *ODD_PATHS.split(), *ODD_BYTES, "/" + "x" * 100_000 + "/y", "/" * 100_000],
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
def test_paths_of_callers_do_not_fill_the_memory(size: int) -> None:
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
    """Makes calls through balancer.lua."""

    def __init__(self, *replicas: Replica) -> None:
        self.balancer = Balancer(*replicas)
        self.worker = self.balancer.worker
        self.lua = self.worker.module("balancer")
        self.worker.ngx.var.uri = CALL

    def begin(self, request: int) -> None:
        self.worker.request = request
        self.lua.accept()

    def balance(self, request: int) -> str | None:
        """Returns the address of the next try of a call."""
        self.worker.request = request
        self.worker.connected.clear()
        # nginx's time moves in each iteration.
        self.worker.wall += 0.001
        self.lua.balance()
        return self.worker.connected[-1][0] if self.worker.connected else None

    def finish(self, request: int) -> None:
        self.worker.request = request
        self.lua.finish()

    def open(self) -> list[int]:
        """Returns the calls in flight of each replica and of the pool."""
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
    calls = Calls(replica(1), replica(2), replica(3))
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
    calls = Calls(replica(1), mail(2))
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
    # A part of the connections of a worker, or of the open files of a process.
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


def test_the_number_of_counted_methods_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_PORT", "9464")
    calls = Calls(replica(1))
    metrics, ngx = calls.worker.module("metrics"), calls.worker.ngx
    ngx.var.upstream_trailer_grpc_status = "0"
    for number in range(1000):
        ngx.var.uri = f"/shop.A/Method{number}"
        metrics.record(calls.balancer.replica(1), 0.001)
    # A method that no replica has is counted there too.
    ngx.var.upstream_trailer_grpc_status, ngx.var.uri = "12", "/shop.A/Unknown"
    metrics.record(calls.balancer.replica(1), 0.001)
    calls.lua.metrics()
    counted = [line for line in calls.worker.said if "handled_total{" in line]
    assert len({line.split('grpc_method="')[1].split('"')[0] for line in counted}) == 501
    assert 'grpc_service="other",grpc_method="other",application="shop"' in "".join(counted)
    assert sum(int(line.rpartition(" ")[2].removesuffix(".0")) for line in counted) == 1001


def secure(number: int) -> Replica:
    registered = registration("shop", number, "shop.A", tls=True)
    return Replica(registration=registered, since=0)


def test_a_pool_of_both_kinds_has_one_of_each() -> None:
    one = Balancer(replica(1), secure(2), replica(3), secure(4))
    pool = one.pool()
    assert (one.view.tls, pool.tls) == (True, True)
    kinds = {tls: [member.address for member in pool.kinds[tls].replicas.values()] for tls in (True, False)}
    assert kinds == {True: ["10.0.0.2", "10.0.0.4"], False: ["10.0.0.1", "10.0.0.3"]}
    assert (pool.kinds[True].tls, pool.kinds[False].tls) == (True, None)


def test_a_pool_of_one_kind_has_no_others() -> None:
    assert not Balancer(replica(1)).view.tls
    one = Balancer(secure(1), secure(2))
    assert (one.pool().tls, one.pool().kinds) == (True, None)


def test_a_replica_that_changes_to_tls_is_another_one() -> None:
    one = Balancer(replica(1))
    before = one.replica(1)
    one.publish([secure(1)], version="w")
    assert not one.same(before, one.replica(1))
    assert (before.tls, one.replica(1).tls) == (False, True)


class Nginx:
    """A worker's phases of a call."""

    def __init__(self, *replicas: Replica) -> None:
        self.worker = Worker()
        self.worker.time = 100.0
        assert self.worker.post(build(replicas)) == 200
        self.phases = self.worker.module("balancer")
        self.variables = self.worker.ngx.var

    def accept(self, request: int) -> str:
        """Begins a call, and returns the upstream that is chosen."""
        self.worker.request = request
        self.worker.wall += 1
        self.variables.uri, self.variables.lb_upstream, self.variables.lb_application = CALL, "grpc://grpc_replicas", ""
        self.phases.accept()
        return str(self.variables.lb_upstream)


def test_every_try_of_a_call_is_of_the_kind_that_was_chosen_first() -> None:
    nginx = Nginx(replica(1), secure(2), replica(3), secure(4))
    wanted = {"grpc://grpc_replicas": {"10.0.0.1", "10.0.0.3"}, "grpcs://grpc_replicas_tls": {"10.0.0.2", "10.0.0.4"}}
    chosen: Counter[str] = Counter()
    for request in range(1, 9):
        upstream = nginx.accept(request)
        chosen[upstream] += 1
        # The ejections of the call before are over.
        nginx.worker.time = 100.0 + 10 * request
        nginx.worker.connected.clear()
        for _ in range(3):
            nginx.phases.balance()
        assert {address for address, _ in nginx.worker.connected} == wanted[upstream]
        nginx.phases.finish()
    assert chosen == dict.fromkeys(wanted, 4)


def test_nginx_without_tls_has_no_replica_with_it() -> None:
    nginx = Nginx(secure(1))
    nginx.worker.request = 1
    nginx.variables.uri, nginx.variables.lb_upstream = CALL, "grpc://grpc_replicas"
    nginx.phases.accept()
    nginx.phases.balance()
    assert nginx.worker.connected == []
