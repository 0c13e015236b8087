"""When operations fail at once, when they are let through again, and what is logged of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    Crowded,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unavailable,
    Unreachable,
)
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, ContentSink, ContentStore
from cafsfs.store.health import Health, Site
from cafsfs.store.memory import MemorySource
from cafsfs.store.router import Router
from cafsfs.store.routing import RoutingStore
from tests.store.routes import routed
from tests.store.samples import ABSENT, FullDisk, pull, pull_many, stat_many
from tests.store.scripted import ScriptedStore

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)
WARNING = "WARNING cafsfs.store.router: failing at once until a server can be reached: "

Announce = Callable[[str], None]

VERBS: dict[str, Callable[[ContentStore], Awaitable[object]]] = {
    "find_missing": lambda store: store.find_missing([DIGEST]),
    "stat": lambda store: store.stat(DIGEST),
    "pull": lambda store: pull(store, DIGEST),
    "stat_many": lambda store: stat_many(store, DIGEST),
    "pull_many": lambda store: pull_many(store, DIGEST),
    "put": lambda store: store.put(DIGEST, MemorySource(CONTENT)),
}


class Line(ScriptedStore):
    """A server that is ``down`` (with which error), and notes when it was probed.

    ``slow``: seconds until a pull is answered, whatever happens meanwhile.
    """

    def __init__(self, *, down: type[CafsError] | None = None, slow: float = 0) -> None:
        super().__init__(CONTENT)
        self.down = down
        self.slow = slow
        self.probed_at: list[float] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        if list(digests) == [Digest(bytes(32))]:
            self.probed_at.append(trio.current_time())
            await self._begin("probe")
            return set(digests)
        return await super().find_missing(digests)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        try:
            return await super().pull(digest, sink)
        finally:
            await trio.sleep(self.slow)

    async def _begin(self, verb: str) -> None:
        await super()._begin(verb)
        if self.down is not None:
            raise self.down("nobody is there")


class GreetsOnly(Line):
    """Down it still greets."""

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return set(digests)


class FailsAndAnswers(Line):
    """Answers the pulls in the very turn in which it does not answer a probe."""

    def __init__(self) -> None:
        super().__init__()
        self.probed = trio.Event()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        try:
            return await super().find_missing(digests)
        finally:
            self.probed.set()

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        stat = await super().pull(digest, sink)
        await self.probed.wait()
        return stat


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is as long as it may be."""
    monkeypatch.setattr("cafsfs.store.router.random.random", lambda: 1.0)


def is_out(store: RoutingStore) -> bool:
    return store.router.outage is not None


async def begin_outage(store: RoutingStore) -> None:
    with pytest.raises(Unreachable):
        await store.stat(DIGEST)
    assert is_out(store)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("first", VERBS)
async def test_who_cannot_be_reached_is_not_asked_again(
    first: str, verb: str, nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING + "nobody is there$")
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    assert not is_out(store)
    with pytest.raises(Unreachable):
        await VERBS[first](store)
    began = trio.current_time()
    assert line.calls == [first.removesuffix("_many")]
    await trio.sleep(0.9)
    with pytest.raises(Unavailable) as caught:
        await VERBS[verb](store)
    assert type(caught.value) is Unavailable
    assert str(caught.value) == "no server could be reached for 1 s: nobody is there"
    assert (
        caught.value.hint
        == "it recovers by itself: the server is greeted again every 10 s or sooner"
    )
    assert line.calls == [first.removesuffix("_many")]
    assert store.router.outage is not None
    assert (store.router.outage.reason, store.router.outage.began) == ("nobody is there", began)
    assert abs(time.time() - store.router.outage.since) < 60


async def test_probes_come_less_and_less_often_until_one_is_answered(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    expect_log: Announce,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expect_log(WARNING)
    caplog.set_level(logging.INFO, "cafsfs")
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    await begin_outage(store)
    began = trio.current_time()
    await trio.sleep(40)
    assert [round(at - began) for at in line.probed_at] == [1, 3, 7, 15, 25, 35]
    assert is_out(store)
    line.down = None
    await trio.sleep(5.5)
    assert not is_out(store)
    assert await pull(store, DIGEST) == CONTENT
    await trio.sleep(100)
    assert len(line.probed_at) == 7
    assert [each.getMessage() for each in caplog.records] == [
        "failing at once until a server can be reached: nobody is there",
        "a server answers again, after 45.0 s",
    ]


@pytest.mark.parametrize("verb", VERBS)
async def test_who_does_not_let_us_in_is_greeted_until_he_does(
    verb: str, nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    """Not asked at each lookup: one that dislikes our clock takes two seconds to show it."""
    expect_log(WARNING)
    line = Line(down=AuthenticationFailed)
    store = routed(line, nursery=nursery, fail_fast=True)
    with pytest.raises(AuthenticationFailed):
        await VERBS[verb](store)
    with pytest.raises(Unavailable, match="no server could be reached for 0 s: nobody is there"):
        await VERBS[verb](store)
    assert line.calls == [verb.removesuffix("_many")]
    await trio.sleep(5)
    line.down = None
    await trio.sleep(10)
    assert await pull(store, DIGEST) == CONTENT


async def test_a_second_outage_is_like_the_first(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    for _ in range(2):
        line.down, line.probed_at = Unreachable, []
        await begin_outage(store)
        began = trio.current_time()
        await trio.sleep(5)
        assert [round(at - began) for at in line.probed_at] == [1, 3]
        line.down = None
        await trio.sleep(5)
        assert not is_out(store)
        assert await pull(store, DIGEST) == CONTENT


@pytest.mark.parametrize("answer", [BlobNotFound, ServerRefused, CorruptBlob])
async def test_any_answer_ends_an_outage(
    answer: type[CafsError], nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    await begin_outage(store)
    line.down = answer
    await trio.sleep(1.5)
    assert not is_out(store)
    with pytest.raises(answer):
        await store.stat(DIGEST)


@pytest.mark.parametrize(
    "error", [Unreachable, AuthenticationFailed, TimedOut, RemoteProtocolError]
)
async def test_no_answer_ends_none(
    error: type[CafsError], nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    await begin_outage(store)
    line.down = error
    await trio.sleep(60)
    assert is_out(store)


async def test_a_probe_has_its_own_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    await begin_outage(store)
    began = trio.current_time()
    line.gate = trio.Event()
    await trio.sleep(27)
    assert [round(at - began) for at in line.probed_at] == [1, 14]
    assert line.cancelled == 2


@pytest.mark.parametrize("error", [BlobNotFound, ServerRefused, CorruptBlob, Crowded])
@pytest.mark.parametrize("verb", VERBS)
async def test_other_errors_are_no_outage(
    verb: str, error: type[CafsError], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    line = Line(down=error)
    store = routed(line, nursery=nursery, fail_fast=True)
    for _ in range(3):
        with pytest.raises(error):
            await VERBS[verb](store)
    await trio.sleep(5)
    assert not is_out(store)
    assert line.calls == [verb.removesuffix("_many")] * 3


@pytest.mark.parametrize("error", [ConnectionBroken, RemoteProtocolError])
async def test_one_blob_that_breaks_each_connection_takes_no_other_away(
    error: type[CafsError], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A process of the server that reads it dies: its next one is as good as ever."""

    class Poisoned(Line):
        async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
            if digest != DIGEST:
                raise error("nobody is there")
            return await super().pull(digest, sink)

    line = Poisoned()
    store = routed(line, nursery=nursery, fail_fast=True)
    for _ in range(20):
        for _ in range(5):
            with pytest.raises(error):
                await pull(store, ABSENT)
        await trio.sleep(0.1)
        assert await pull(store, DIGEST) == CONTENT


@pytest.mark.parametrize("error", [ConnectionBroken, RemoteProtocolError])
async def test_who_breaks_off_and_does_not_greet_is_out(
    error: type[CafsError], nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    store = routed(Line(down=error), nursery=nursery, fail_fast=True)
    with pytest.raises(error):
        await store.stat(DIGEST)
    await wait_all_tasks_blocked()
    assert is_out(store)


async def test_who_greets_but_never_answers_is_out_for_longer_and_longer(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    error = TimedOut
    line = GreetsOnly(down=error)
    store = routed(line, nursery=nursery, fail_fast=True)
    for _ in range(2):
        with pytest.raises(error):
            await store.stat(DIGEST)
        await wait_all_tasks_blocked()
        assert not is_out(store)
    expect_log(WARNING)
    waits = []
    for _ in range(6):  # one trial each time that it has greeted
        with pytest.raises(error):
            await store.stat(DIGEST)
        assert is_out(store)
        wait = store.router.places[0].health.until - trio.current_time()
        await trio.sleep(wait + 0.1)
        assert not is_out(store)
        waits.append(round(wait))
    assert waits == [1, 2, 4, 8, 10, 10]
    line.down = None
    assert await pull(store, DIGEST) == CONTENT
    line.down = error
    for _ in range(2):  # an answer has made up for everything
        with pytest.raises(error):
            await store.stat(DIGEST)
        assert not is_out(store)


async def test_a_full_disk_here_is_no_outage(nursery: trio.Nursery) -> None:
    store = routed(Line(), nursery=nursery, fail_fast=True)
    with pytest.raises(OSError, match="No space"):
        await store.pull(DIGEST, FullDisk())
    assert not is_out(store)


async def test_absent_blobs_are_only_what_upstream_says(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    store = routed(Line(down=Unreachable), nursery=nursery, fail_fast=True)
    await begin_outage(store)
    assert await store.find_missing([]) == set()
    with pytest.raises(Unavailable):
        await store.find_missing([ABSENT])
    with pytest.raises(Unavailable):
        await store.stat(ABSENT)


# --- operations that are under way


@pytest.mark.parametrize("digest", [DIGEST, ABSENT], ids=["present", "absent"])
async def test_what_is_under_way_is_left_alone_and_its_answer_ends_the_outage(
    digest: Digest, nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line(slow=20)
    store = routed(line, nursery=nursery, fail_fast=True)
    outcomes: list[object] = []

    async def pull_one() -> None:
        try:
            outcomes.append(await pull(store, digest))
        except BlobNotFound:
            outcomes.append(None)

    nursery.start_soon(pull_one)
    await wait_all_tasks_blocked()
    line.down = Unreachable
    await begin_outage(store)
    await trio.sleep(19.5)
    assert is_out(store)
    assert len(line.probed_at) == 4
    await trio.sleep(100)
    assert not is_out(store)
    assert outcomes == [CONTENT if digest == DIGEST else None]
    assert len(line.probed_at) == 4


async def test_a_connection_that_breaks_is_no_answer(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    line = Line()
    store = routed(line, nursery=nursery, fail_fast=True)

    async def pull_one() -> None:
        with pytest.raises(ConnectionBroken):
            await pull(store, DIGEST)

    async with trio.open_nursery() as pulling:
        gate = line.gate = trio.Event()
        pulling.start_soon(pull_one)
        await wait_all_tasks_blocked()
        line.gate, line.down = None, Unreachable
        await begin_outage(store)
        line.down = ConnectionBroken
        gate.set()
    assert is_out(store)
    assert line.probed_at == []


async def test_an_answer_in_the_turn_in_which_a_probe_fails(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    """Trio runs the two tasks in either order: an outage that nobody probes would never end."""
    expect_log(WARNING)
    for _ in range(20):
        line = FailsAndAnswers()
        store = routed(line, nursery=nursery, fail_fast=True)
        async with trio.open_nursery() as pulling:
            pulling.start_soon(pull, store, DIGEST)
            await wait_all_tasks_blocked()
            line.down = Unreachable
            await begin_outage(store)
        await wait_all_tasks_blocked()
        assert len(line.probed_at) == 1
        assert not is_out(store)


async def test_several_that_fail_begin_one_outage(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    expect_log: Announce,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expect_log(WARNING)
    line = Line(down=Unreachable)
    line.gate = trio.Event()
    store = routed(line, nursery=nursery, fail_fast=True)

    async def fail() -> None:
        with pytest.raises(Unreachable):
            await store.stat(DIGEST)

    for _ in range(5):
        nursery.start_soon(fail)
    await wait_all_tasks_blocked()
    line.gate.set()
    line.gate = None
    await trio.sleep(2)
    assert len(line.probed_at) == 1
    assert len(caplog.records) == 1


# --- deadlines that passed


async def test_a_slow_body_is_no_outage(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    line = Line()
    line.errors = [TimedOut("nothing came for 30 s")]
    store = routed(line, nursery=nursery, fail_fast=True)
    with pytest.raises(TimedOut):
        await pull(store, DIGEST)
    await trio.sleep(5)
    assert not is_out(store)
    assert line.calls == ["pull", "probe"]


async def test_an_answer_meanwhile_ends_the_doubt(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    line = Line(slow=3)
    store = routed(line, nursery=nursery, fail_fast=True)
    nursery.start_soon(pull, store, DIGEST)
    await wait_all_tasks_blocked()
    line.down = TimedOut
    with pytest.raises(TimedOut):
        await store.stat(DIGEST)
    line.gate = trio.Event()
    await trio.sleep(100)
    assert not is_out(store)
    assert line.calls == ["pull", "stat", "probe"]
    assert line.cancelled == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_a_deadline_that_passed_makes_a_probe_at_once(
    verb: str, nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING + "nobody is there$")
    line = Line(down=TimedOut)
    store = routed(line, nursery=nursery, fail_fast=True)
    with pytest.raises(TimedOut):
        await VERBS[verb](store)
    began = trio.current_time()
    await trio.sleep(4)
    assert is_out(store)
    assert [round(at - began) for at in line.probed_at] == [0, 1, 3]
    with pytest.raises(Unavailable, match="no server could be reached for 4 s"):
        await VERBS[verb](store)


async def test_who_does_not_answer_the_probe_either_is_out(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING + "0 gave no greeting within 11 s$")
    line = Line(down=TimedOut)
    store = routed(line, nursery=nursery, fail_fast=True)
    with pytest.raises(TimedOut):
        await store.stat(DIGEST)
    line.gate = trio.Event()
    await trio.sleep(12)
    assert is_out(store)


# --- several servers


def several(*lines: Line, nursery: trio.Nursery) -> RoutingStore:
    return routed(*lines, nursery=nursery, fail_fast=True)


async def test_one_of_several_that_is_down_is_no_outage(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    """It is not asked, but nobody knows whether it has what the other has not."""
    expect_log("going on with the next server")
    expect_log("WARNING cafsfs.store.router: 0 is down, the others are asked: nobody is there")
    down, up = Line(down=Unreachable), Line()
    store = several(down, up, nursery=nursery)
    with pytest.raises(Unreachable):
        await store.stat(ABSENT)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"0 has been down for \d s: nobody is there"):
            await store.stat(ABSENT)
        with pytest.raises(Unavailable, match="0 has been down"):
            await store.find_missing([ABSENT])
        await trio.sleep(3)
        assert not is_out(store)
    assert await pull(store, DIGEST) == CONTENT
    assert down.calls.count("stat") == 1


async def test_several_that_are_all_down_are_out_until_one_is_up(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log("going on with the next server")
    expect_log(WARNING + "nobody is there$")
    expect_log("is down, the others are asked")
    lines = [Line(down=Unreachable), Line(down=Unreachable)]
    store = several(*lines, nursery=nursery)
    with pytest.raises(Unreachable):
        await store.stat(DIGEST)
    await wait_all_tasks_blocked()
    assert is_out(store)
    asked = [len(line.calls) for line in lines]
    with pytest.raises(Unavailable, match="no server could be reached"):
        await store.stat(DIGEST)
    assert [len(line.calls) for line in lines] == asked
    lines[1].down = None
    await trio.sleep(1.5)
    assert not is_out(store)
    assert await pull(store, DIGEST) == CONTENT


async def test_a_server_that_answers_is_not_kept_waiting_by_one_that_does_not(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log("going on with the next server")
    expect_log("is down, the others are asked")
    expect_log(WARNING)
    lines = [Line(down=Unreachable), Line(down=Unreachable)]
    store = several(*lines, nursery=nursery)
    with pytest.raises(Unreachable):
        await store.stat(DIGEST)
    await wait_all_tasks_blocked()
    lines[0].gate = trio.Event()
    lines[1].down = None
    await trio.sleep(1.5)
    assert not is_out(store)


async def test_a_probe_that_breaks_shows_and_ends_nothing_else(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Announce
) -> None:
    expect_log(WARNING)
    expect_log("ERROR cafsfs.store.router: greeting 0 failed")
    line = Line(down=Unreachable)
    store = routed(line, nursery=nursery, fail_fast=True)
    await begin_outage(store)
    line.errors = [LookupError("a bug")]
    line.down = None
    await trio.sleep(1.5)
    assert not is_out(store)
    assert await pull(store, DIGEST) == CONTENT


# --- what is remembered, and done now and then


def router_of(*sites: Site, nursery: trio.Nursery | None = None) -> tuple[Router, list[Line]]:
    lines = [Line() for _ in sites]
    return routed(*lines, sites=sites, nursery=nursery).router, lines


async def test_of_wrong_blobs_only_so_many_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cafsfs.store.router._REMEMBERED", 3)
    router, _ = router_of(Site(name="0"), Site(name="1", priority=1))
    liar, other = router.places
    digests = [hash_bytes(b"%d" % number) for number in range(5)]
    for each in digests:
        router.failed(liar, CorruptBlob("wrong bytes"), each)
    liar.health = Health()  # so that only what it had of these blobs counts
    first = [router.readers(each)[0][0] for each in digests]
    assert first == [liar, liar, other, other, other]


async def test_wrong_bytes_are_an_answer(expect_log: Announce) -> None:
    expect_log("0 is down")
    router, _ = router_of(Site(name="0"), Site(name="1"))
    place = router.places[0]
    router.failed(place, Unreachable("nobody is there"), None)
    router.failed(place, CorruptBlob("wrong bytes"), DIGEST)
    assert not place.down


async def test_absent_is_no_error() -> None:
    router, _ = router_of(Site(name="0"))
    router.failed(router.places[0], BlobNotFound(DIGEST), DIGEST)
    assert router.states()[0].errors == 0


async def test_times_are_looked_for_once_a_second_and_not_of_last_sources(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """What greets in vain, or breaks, is not greeted again by each lookup."""
    router, lines = router_of(
        Site(name="0"), Site(name="1"), Site(name="mirror", last=True), nursery=nursery
    )
    for each in lines:
        each.errors = [ServerRefused("no greeting, but an answer")] * 100
    for _ in range(20):
        router.readers(DIGEST)
        await trio.sleep(0.5)
        for place in router.places:
            place.health = Health()
    assert [len(each.probed_at) for each in lines] == [10, 10, 0]


# --- who is not asked


@pytest.mark.parametrize("places", [1, 2])
async def test_who_hung_up_and_is_not_asked_is_greeted_when_somebody_looks(
    places: int, autojump_clock: MockClock, nursery: trio.Nursery, expect_log: Announce
) -> None:
    if places > 1:
        expect_log("WARNING .*0 is down, the others are asked")
    dead = Line()
    store = routed(dead, *(Line() for _ in range(places - 1)), nursery=nursery)
    states = store.router.states
    assert states()[0].quiet_for is None
    await pull(store, DIGEST)
    await trio.sleep(40)
    probed = len(dead.probed_at)
    assert (states()[0].state, states()[0].quiet_for) == ("up", 40)
    await wait_all_tasks_blocked()
    assert len(dead.probed_at) == probed  # a look alone asks nobody
    dead.down, dead.hung_up = Unreachable, True
    await trio.sleep(1)
    assert states()[0].state == "up"
    await wait_all_tasks_blocked()
    state = states()[0]
    assert (state.state, state.reason, state.quiet_for) == ("down", "nobody is there", 41)
    dead.down, dead.hung_up = None, False
    await trio.sleep(10)
    state = states()[0]
    assert (state.state, state.reason) == ("up", None)
    assert state.quiet_for is not None
    assert state.quiet_for < 10
