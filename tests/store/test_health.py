"""The decisions of routing, as functions of state and time: for any history, and any group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.packing import hash_bytes
from cafsfs.store.health import (
    FAILURES,
    FIRST_WAIT,
    LAST_WAIT,
    LEFT_FOR,
    LIES,
    LIES_SPAN,
    SHUNNED_FOR,
    STALE,
    Failure,
    Health,
    Hedging,
    Site,
    Standing,
    reading_order,
    too_slow,
    writing_order,
)

DIGESTS = [hash_bytes(b"%d" % number) for number in range(400)]
fractions = st.floats(0, 1)

Step = Callable[[Health, float, float], Health]

STEPS: dict[str, Step] = {
    "answered": lambda health, _, __: health.answered(),
    "unreachable": lambda health, now, roll: health.failed(
        Failure.UNREACHABLE, "nobody is there", now, roll
    ),
    "broken off": lambda health, now, roll: health.failed(
        Failure.BROKEN_OFF, "it hung up", now, roll
    ),
    "unanswered": lambda health, now, roll: health.failed(Failure.UNANSWERED, "late", now, roll),
    "no greeting": lambda health, now, roll: health.opened("no greeting", now, roll),
    "greeted": lambda health, now, roll: health.greeted(roll, now),
    "left": lambda health, now, _: health.left("slow", now),
    "lied": lambda health, now, _: health.lied(now),
    "moved": lambda health, _, roll: health.moved(roll),
}
histories = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.floats(0, 700), fractions), max_size=40
)


def relive(history: list[tuple[str, float, float]]) -> tuple[Health, float]:
    """The state after a history of (what, seconds since the step before, random number)."""
    health, now = Health(), 0.0
    for what, pause, roll in history:
        now += pause
        health = STEPS[what](health, now, roll)
    return health, now


# --- one server


@given(histories)
def test_an_answer_ends_what_was_wrong_but_lies_and_slowness(
    history: list[tuple[str, float, float]],
) -> None:
    health, now = relive(history)
    better = health.answered()
    assert better.standing is Standing.UP
    assert (better.failures, better.openings) == (0, 0)
    assert better.lies == health.lies
    lying = sum(now - at < LIES_SPAN for at in health.lies) >= LIES
    assert better.distrusted(now) == (lying or now < health.slow_until)


@given(histories)
def test_who_is_down_is_greeted_in_bounded_time(history: list[tuple[str, float, float]]) -> None:
    health, now = relive(history)
    if health.standing is Standing.DOWN:
        assert health.until <= now + LAST_WAIT
        assert health.since <= now
        assert health.reason
        assert health.openings >= 1


@given(histories, fractions)
def test_who_cannot_be_reached_is_down_at_once(
    history: list[tuple[str, float, float]], roll: float
) -> None:
    health, now = relive(history)
    down = health.failed(Failure.UNREACHABLE, "nobody is there", now, roll)
    assert down.standing is Standing.DOWN
    if health.standing is Standing.DOWN:  # what was under way then says nothing new
        assert down == health


@given(histories)
def test_a_greeting_brings_back_who_was_down(history: list[tuple[str, float, float]]) -> None:
    health, now = relive(history)
    greeted = health.greeted(0.01, now)
    assert greeted.standing is not Standing.DOWN
    if health.standing is Standing.DOWN and health.failures:  # it greeted all the time
        again = greeted.failed(Failure.UNANSWERED, "late", now, 1.0)
        assert again.standing is Standing.DOWN
        assert again.openings == health.openings + 1


@given(histories, st.integers(1, FAILURES))
def test_it_takes_so_many_failures_in_a_row(
    history: list[tuple[str, float, float]], count: int
) -> None:
    health, now = relive(history)
    health = health.answered()
    for _ in range(count):
        health = health.failed(Failure.UNANSWERED, "late", now, 1.0)
    assert health.standing is (Standing.DOWN if count == FAILURES else Standing.SUSPECT)
    assert health.distrusted(now)


@given(histories, st.integers(1, 10))
def test_who_breaks_off_is_a_suspect_and_not_down(
    history: list[tuple[str, float, float]], count: int
) -> None:
    health, now = relive(history)
    was = health.standing
    for _ in range(count):
        health = health.failed(Failure.BROKEN_OFF, "it hung up", now, 1.0)
    assert health.standing is (Standing.DOWN if was is Standing.DOWN else Standing.SUSPECT)
    assert health.distrusted(now)


def test_waits_double_up_to_a_bound_and_are_drawn_by_lot() -> None:
    health = Health()
    waits = []
    for _ in range(8):
        health = health.opened("no greeting", 100, 1.0)
        waits.append(health.until - 100)
    assert waits == [FIRST_WAIT, 2, 4, 8, LAST_WAIT, LAST_WAIT, LAST_WAIT, LAST_WAIT]
    assert health.opened("no greeting", 100, 0.25).until == 100 + LAST_WAIT / 4
    health = health.opened("no greeting", 110, 0.25)
    assert health.since == 100


def test_an_outage_may_last_for_days() -> None:
    health = Health()
    for number in range(20_000):
        health = health.opened("no greeting", number * LAST_WAIT, 1.0)
    assert health.until == 20_000 * LAST_WAIT


def test_of_lies_no_more_are_kept_than_count() -> None:
    health = Health()
    for number in range(100):
        health = health.lied(number)
    assert len(health.lies) == LIES


def test_suspicion_passes_with_time() -> None:
    late = Health().failed(Failure.UNANSWERED, "late", 50, 0.5)
    assert late.distrusted(50 + SHUNNED_FOR - 0.1)
    assert not late.distrusted(50 + SHUNNED_FOR)
    left = Health().left("slow", 50)
    assert left.distrusted(50 + LEFT_FOR - 0.1)
    assert not left.distrusted(50 + LEFT_FOR)


def test_one_lie_is_a_blob_and_three_are_a_server() -> None:
    health = Health()
    for number in range(LIES):
        assert not health.distrusted(number)
        health = health.lied(number)
    assert health.distrusted(LIES_SPAN - 1)
    assert not health.distrusted(LIES_SPAN + 1)


def test_times_and_rates_are_averages_that_follow() -> None:
    health = Health().measured(1.0, 5)
    assert (health.seconds, health.measured_at) == (1.0, 5)
    assert not health.stale(5 + STALE - 1)
    assert health.stale(5 + STALE)
    for _ in range(20):
        health = health.measured(0.01, 6).moved(1e6)
    assert health.seconds == pytest.approx(0.01, rel=0.1)
    assert health.rate == pytest.approx(1e6)


rates = st.floats(0, 1e9)


@given(rates, rates, st.integers(1, 100))
def test_of_one_pull_its_rate_is_that_of_the_server(rate: float, least: float, pulls: int) -> None:
    assert too_slow(rate, total=rate, pulls=1, least=least) == (rate < least)
    # A fair part of what is enough is enough; of what is not, nothing is.
    assert not too_slow(rate, total=rate * pulls, pulls=pulls, least=rate * pulls)
    assert too_slow(rate, total=rate * pulls, pulls=pulls, least=rate * pulls * 1.01 + 1)


def test_who_gets_much_less_than_others_is_on_a_bad_line() -> None:
    assert not too_slow(26, total=1600, pulls=16, least=1000)
    assert too_slow(24, total=1600, pulls=16, least=1000)
    assert not too_slow(1000, total=1e6, pulls=16, least=1000)


# --- a group

sites = st.builds(
    Site,
    name=st.uuids().map(str),
    zone=st.sampled_from([None, "eu", "us"]),
    priority=st.integers(0, 2),
    weight=st.floats(0.1, 10),
    last=st.booleans(),
)
healths = histories.map(lambda history: relive(history)[0])
groups = st.lists(st.tuples(sites, healths), min_size=1, max_size=6)
zones = st.sampled_from([None, "eu", "us"])
digests = st.sampled_from(DIGESTS)


@given(groups, zones, st.floats(0, 5000), digests, st.sets(st.integers(0, 5)))
def test_everybody_is_asked_once_and_the_better_ones_first(
    group: list[tuple[Site, Health]], zone: str | None, now: float, digest: object, wrong: set[int]
) -> None:
    members, states = [site for site, _ in group], [health for _, health in group]
    assert isinstance(digest, type(DIGESTS[0]))
    order = reading_order(members, states, zone=zone, now=now, digest=digest, wrong=wrong)
    assert sorted(order) == list(range(len(group)))
    assert order == reading_order(members, states, zone=zone, now=now, digest=digest, wrong=wrong)
    for first, second in pairwise(order):
        one, other = members[first], members[second]
        if (first in wrong) != (second in wrong):
            assert second in wrong
        elif one.last != other.last:
            assert other.last
        elif states[first].distrusted(now) != states[second].distrusted(now):
            assert states[second].distrusted(now)
        elif zone is not None and (one.zone == zone) != (other.zone == zone):
            assert one.zone == zone
        else:
            assert one.priority <= other.priority


@given(groups, zones, st.floats(0, 5000), digests)
def test_a_blob_is_put_in_the_zone_where_somebody_there_is_up(
    group: list[tuple[Site, Health]], zone: str | None, now: float, digest: object
) -> None:
    members, states = [site for site, _ in group], [health for _, health in group]
    assert isinstance(digest, type(DIGESTS[0]))
    order = writing_order(members, states, zone=zone, now=now, digest=digest)
    assert sorted(order) == [each for each, site in enumerate(members) if not site.last]
    up = [each for each in order if states[each].standing is not Standing.DOWN]
    assert order[: len(up)] == up
    if zone is not None:
        local = [each for each in up if members[each].zone == zone]
        assert up[: len(local)] == local


def near(*seconds: float | None) -> list[Health]:
    return [Health() if each is None else Health().measured(each, 0) for each in seconds]


def named(*names: str, **more: object) -> list[Site]:
    return [replace(Site(name=name), **more) for name in names]  # type: ignore[arg-type]


def test_the_nearest_goes_first_and_a_better_one_that_comes_back_too() -> None:
    members, states = named("far", "near", "farther"), near(0.03, 0.002, 0.1)

    def ask() -> list[int]:
        return reading_order(members, states, zone=None, now=1, digest=DIGESTS[0])

    assert ask() == [1, 0, 2]
    states[1] = states[1].failed(Failure.UNREACHABLE, "gone", 1, 1.0)
    assert ask() == [0, 2, 1]
    states[1] = states[1].greeted(0.002, 2)
    assert ask() == [1, 0, 2]


def test_where_nothing_was_measured_the_order_is_that_given() -> None:
    for digest in DIGESTS[:20]:
        members = named("c", "a", "b")
        assert reading_order(members, near(None, None, None), zone=None, now=0, digest=digest) == [
            0,
            1,
            2,
        ]


def test_what_is_equally_near_is_spread_by_weight_and_stays_where_it_was() -> None:
    members = [*named("a"), *named("b", weight=3.0)]
    first = Counter[int]()
    for digest in DIGESTS:
        order = reading_order(members, near(0.0100, 0.0115), zone=None, now=0, digest=digest)
        assert order == reading_order(members, near(0.0115, 0.01), zone=None, now=0, digest=digest)
        # Who has the blob in the first place is asked first.
        assert order == writing_order(members, near(None, None), zone=None, now=0, digest=digest)
        first[order[0]] += 1
    assert first[0] == pytest.approx(len(DIGESTS) / 4, abs=35)  # four standard deviations


def test_who_is_distrusted_is_written_to_after_the_others_of_his_zone() -> None:
    members = [*named("a", "b", zone="eu"), *named("c", zone="us")]
    for digest in DIGESTS[:20]:
        states = near(None, None, None)
        first, second, last = writing_order(members, states, zone="eu", now=1, digest=digest)
        assert last == 2
        states[first] = states[first].left("slow", 0)
        order = writing_order(members, states, zone="eu", now=1, digest=digest)
        assert order == [second, first, 2]


def test_only_the_blobs_of_a_server_that_goes_change_hands() -> None:
    members = named("a", "b", "c", "d")
    states = near(None, None, None, None)
    moved = 0
    for digest in DIGESTS:
        before = writing_order(members, states, zone=None, now=0, digest=digest)
        after = writing_order(members[:3], states[:3], zone=None, now=0, digest=digest)
        assert [each for each in before if each != 3] == after
        moved += before[0] == 3
    assert moved == pytest.approx(len(DIGESTS) / 4, abs=35)


# --- hedging


def test_nothing_is_late_before_anything_was_measured() -> None:
    hedging = Hedging()
    assert hedging.begin() == math.inf
    for _ in range(19):
        hedging.note(0.1)
    assert hedging.begin() == math.inf
    hedging.note(0.1)
    assert hedging.begin() == 0.1


@given(st.lists(st.floats(0, 60), min_size=40, max_size=400))
def test_late_is_what_nineteen_of_twenty_are_not(times: list[float]) -> None:
    hedging = Hedging()
    for each in times:
        hedging.note(each)
    late = hedging.begin()
    known = times[: len(times) // 20 * 20][-200:]
    assert sum(each > late for each in known) <= len(known) / 20
    assert late >= 0.005


def test_a_long_time_without_second_requests_saves_up_for_ten() -> None:
    hedging = Hedging()
    for _ in range(5000):
        hedging.begin()
    assert sum(hedging.spend() for _ in range(50)) == 10


@given(st.lists(st.booleans(), max_size=2000))
def test_second_requests_are_a_small_share(wished: list[bool]) -> None:
    hedging = Hedging()
    for wish in wished:
        hedging.begin()
        if wish:
            hedging.spend()
    assert hedging.requests == len(wished)
    assert hedging.hedges <= len(wished) / 20 + 1e-6
