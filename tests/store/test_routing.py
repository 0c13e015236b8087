"""Several places of the same content: who is asked, and what is raised when none has it."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Collection
from itertools import product

import pytest
import trio
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    ServerRefused,
    StoreError,
    TooFewReplicas,
    Unavailable,
    Unreachable,
    UsageError,
)
from cafsfs.packing import Compression, hash_bytes
from cafsfs.store.contracts import BlobStat, ContentSink, ContentStore, Wanted
from cafsfs.store.health import Site
from cafsfs.store.memory import MemoryPackedStore, MemorySink, MemorySource
from cafsfs.store.routing import SMALL, RoutingStore, _MeteredSink, _Progress
from cafsfs.store.unpacking import UnpackingStore
from tests.store.routes import routed
from tests.store.samples import ABSENT, MIB, FullDisk, MemoryDestination, pull, pull_many, stat_many
from tests.store.scripted import ScriptedStore

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)
ORDERS = [
    order for count in (1, 2, 3) for order in product(("ok", "absent", "failed"), repeat=count)
]


def make(outcome: str) -> ScriptedStore:
    store = ScriptedStore(*([CONTENT] if outcome == "ok" else []))
    if outcome == "failed":
        store.errors = [Unreachable("nobody is there")]
    return store


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        routed()


DOWN = "WARNING cafsfs.store.router: . is down, the others are asked: nobody is there"

VERBS: dict[str, Callable[[ContentStore, Digest], Awaitable[object]]] = {
    "stat": lambda store, digest: store.stat(digest),
    "pull": pull,
    "stat_many": stat_many,
    "pull_many": pull_many,
}


async def find_missing(store: ContentStore, digest: Digest) -> set[Digest]:
    return await store.find_missing([digest])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_absent_only_if_all_say_so(
    order: tuple[str, ...], verb: str, expect_log: Callable[[str], None]
) -> None:
    stores = [make(outcome) for outcome in order]
    store = routed(*stores)
    operation = VERBS[verb](store, DIGEST)
    asked = order.index("ok") + 1 if "ok" in order else len(order)
    if "failed" in order[: min(asked, len(order) - 1)]:
        expect_log("WARNING cafsfs.store.routing: going on with the next server: nobody")
    if "failed" in order[:asked] and len(order) > 1:
        expect_log(DOWN)
    if "ok" in order:
        await operation
    elif "failed" in order:
        with pytest.raises(Unreachable):
            await operation
    else:
        with pytest.raises(BlobNotFound):
            await operation
    assert [len(store.calls) for store in stores] == [1] * asked + [0] * (len(order) - asked)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_find_missing_needs_an_answer_of_all(
    order: tuple[str, ...], expect_log: Callable[[str], None]
) -> None:
    if "failed" in order and len(order) > 1:
        expect_log(DOWN)
    store = routed(*(make(outcome) for outcome in order))
    if "failed" in order:
        with pytest.raises(Unreachable):
            await store.find_missing([DIGEST, ABSENT])
    else:
        missing = {ABSENT} if "ok" in order else {DIGEST, ABSENT}
        assert await store.find_missing([DIGEST, ABSENT]) == missing
    if "ok" in order:
        store = routed(*(make(outcome) for outcome in order))
        assert await store.find_missing([DIGEST]) == set()


@pytest.mark.parametrize("verb", ["stat", "pull", "find_missing"])
async def test_who_was_not_asked_may_be_back_and_has_still_not_been_asked(
    verb: str,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(DOWN)
    store = routed(ScriptedStore(CONTENT), Slow(3, b"else"), nursery=nursery, fail_fast=True)
    holder = store.router.places[0]
    store.router.failed(holder, Unreachable("nobody is there"), None)
    with pytest.raises(Unavailable, match="0 has been down for 0 s: nobody is there"):
        await {**VERBS, "find_missing": find_missing}[verb](store, DIGEST)
    assert not holder.down


async def test_find_missing_asks_only_for_what_is_still_missing() -> None:
    first, second, third = ScriptedStore(b"1"), ScriptedStore(b"2"), ScriptedStore(b"3")
    store = routed(first, second, third)
    assert await store.find_missing([hash_bytes(b"1"), hash_bytes(b"2")]) == set()
    assert third.calls == []


@pytest.mark.parametrize("graver", [CorruptBlob, ServerRefused, StoreError])
@pytest.mark.parametrize("graver_first", [True, False])
async def test_of_two_failures_the_one_that_tells_more(
    graver: type[CafsError], graver_first: bool, expect_log: Callable[[str], None]
) -> None:
    expect_log("going on")
    expect_log(DOWN)
    stores = [make("failed"), make("failed"), make("failed")]
    stores[0 if graver_first else 1].errors = [graver("tells more")]
    with pytest.raises(graver, match="tells more"):
        await pull(routed(*stores), DIGEST)
    stores = [make("failed"), make("failed")]
    stores[0 if graver_first else 1].errors = [graver("tells more")]
    with pytest.raises(graver, match="tells more"):
        await routed(*stores).find_missing([DIGEST])


async def test_wrong_bytes_of_one_are_no_fault_of_the_next(
    expect_log: Callable[[str], None],
) -> None:
    expect_log("going on with the next server: wrong bytes")
    first, second = make("ok"), make("ok")
    first.errors = [CorruptBlob("wrong bytes")]
    assert await pull(routed(first, second), DIGEST) == CONTENT


async def test_wrong_content_is_wrong_everywhere() -> None:
    first, second = ScriptedStore(), ScriptedStore()
    first.errors = [CorruptBlob("it changed")]
    with pytest.raises(CorruptBlob):
        await routed(first, second).put(DIGEST, MemorySource(CONTENT))
    assert second.calls == []


async def test_a_full_disk_here_is_no_reason_to_ask_another() -> None:
    second = make("ok")
    with pytest.raises(OSError, match="No space"):
        await routed(make("ok"), second).pull(DIGEST, FullDisk())
    assert second.calls == []


async def test_of_a_batch_the_next_store_is_asked_for_what_is_left(
    expect_log: Callable[[str], None],
) -> None:
    contents = [b"%d" % number for number in range(5)]
    first, second = ScriptedStore(*contents[:3]), ScriptedStore(*contents[1:4])
    first.errors = [ServerRefused("it is tired")]
    expect_log("WARNING cafsfs.store.routing: going on with the next server: it is tired")
    wanted = [Wanted(hash_bytes(each), MemoryDestination()) for each in contents]
    failures = await routed(first, second).pull_many(wanted, at_once=1)
    assert {each: type(error) for each, error in failures.items()} == {
        wanted[0]: ServerRefused,  # nobody has said that it is nowhere
        wanted[4]: BlobNotFound,
    }
    assert (len(first.calls), len(second.calls)) == (5, 3)


async def test_a_full_disk_here_is_no_reason_to_ask_another_for_a_batch() -> None:
    class Full(MemoryDestination):
        def write(self, data: bytes | memoryview, /) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    second = make("ok")
    wanted = Wanted(DIGEST, Full())
    failures = await routed(make("ok"), second).pull_many([wanted])
    assert isinstance(failures[wanted], OSError)
    assert second.calls == []


async def test_wrong_bytes_in_a_batch_count_as_alone(expect_log: Callable[[str], None]) -> None:
    expect_log("going on with the next server: wrong bytes")
    first, second = make("ok"), make("ok")
    store = routed(first, second)
    for number, verb in enumerate((pull_many, pull)):
        first.errors = [CorruptBlob("wrong bytes")] * (1 - number)
        assert await verb(store, DIGEST) == CONTENT
    assert (len(first.calls), len(second.calls)) == (1, 2)
    assert store.router.states()[0].wrong_hashes == 1


async def test_a_large_blob_is_looked_at_once_by_each(expect_log: Callable[[str], None]) -> None:
    expect_log("going on with the next server: it is tired")

    class Tired(ScriptedStore):
        async def stat(self, digest: Digest) -> BlobStat:
            stat = await super().stat(digest)
            if self.calls.count("stat") > 1:
                raise ServerRefused("it is tired")
            return stat

    content = bytes(SMALL)
    first, second = Tired(content), ScriptedStore(content)
    assert (await routed(first, second).stat(hash_bytes(content))).size == SMALL
    assert (len(first.calls), len(second.calls)) == (2, 1)  # the first of the two was SIZE


# --- several replicas


async def puts(store: RoutingStore, content: bytes) -> tuple[str, ...]:
    return await store.put(hash_bytes(content), MemorySource(content))


def holders(*stores: ScriptedStore) -> list[int]:
    return [number for number, store in enumerate(stores) if DIGEST in store.blobs]


@pytest.mark.parametrize("replicas", [1, 2, 3])
async def test_put_stores_as_many_as_are_wanted_and_says_where(replicas: int) -> None:
    stores = [ScriptedStore() for _ in range(3)]
    names = await puts(routed(*stores, replicas=replicas), CONTENT)
    assert len(names) == len(holders(*stores)) == replicas


async def test_a_reader_asks_first_where_a_writer_has_put() -> None:
    stores = [ScriptedStore(), ScriptedStore(), ScriptedStore()]
    store = routed(*stores)
    for place in store.router.places:
        store.router.measured(place, 0.01)
    contents = [b"%d" % number for number in range(30)]
    for each in contents:
        await puts(store, each)
        assert await pull(store, hash_bytes(each)) == each
    assert sum(len(each.calls) for each in stores) == 2 * len(contents)
    assert all(each.blobs for each in stores)


@pytest.mark.parametrize("zone", ["eu", "us"])
async def test_put_keeps_to_the_zone_as_long_as_somebody_there_takes_it(
    zone: str, expect_log: Callable[[str], None]
) -> None:
    stores = [ScriptedStore(), ScriptedStore(), ScriptedStore(), ScriptedStore()]
    sites = [Site(name=f"{number}", zone="eu" if number < 2 else "us") for number in range(4)]
    local = {"eu": [0, 1], "us": [2, 3]}[zone]
    store = routed(*stores, sites=sites, zone=zone, replicas=2)
    await puts(store, CONTENT)
    assert holders(*stores) == local
    for each in local:
        stores[each].errors = [ServerRefused("it is full")]
    expect_log("going on with the next server: it is full")
    await puts(store, b"more")
    assert [b"more" in each.blobs.values() for each in stores] == [
        each not in local for each in range(4)
    ]


async def test_put_falls_over_to_the_next(expect_log: Callable[[str], None]) -> None:
    expect_log("going on with the next server: refused")
    stores = [ScriptedStore(), ScriptedStore(), ScriptedStore()]
    store = routed(*stores, replicas=2)
    first = store.router.writers(DIGEST)[0]
    stores[store.router.places.index(first)].errors = [ServerRefused("refused")]
    await puts(store, CONTENT)
    assert len(holders(*stores)) == 2
    assert first.errors == 1


@pytest.mark.parametrize("taking", [0, 1])
async def test_too_few_replicas_are_an_error_that_says_who_has_it(
    taking: int, expect_log: Callable[[str], None]
) -> None:
    expect_log("going on with the next server")
    stores = [ScriptedStore() for _ in range(3)]
    for each in stores[taking:]:
        each.errors = [ServerRefused("it is full")]
    with pytest.raises(TooFewReplicas if taking else ServerRefused) as caught:
        await puts(routed(*stores, replicas=2), CONTENT)
    assert len(holders(*stores)) == taking
    told = "it is on scripted only, not on 2 servers: it is full"
    assert str(caught.value) == (told if taking else "it is full")


def test_more_replicas_than_servers_are_refused() -> None:
    sites = [Site(name="0"), Site(name="mirror", last=True)]
    with pytest.raises(UsageError, match="2 replicas need 2 servers, there is one"):
        routed(ScriptedStore(), ScriptedStore(), sites=sites, replicas=2)


# --- in doubt, the other


async def test_who_is_back_is_asked_first_again(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log("going on with the next server: nobody")
    expect_log(DOWN)
    near, far = ScriptedStore(CONTENT), ScriptedStore(CONTENT)
    sites = [Site(name="0", zone="eu"), Site(name="1", zone="us")]
    store = routed(near, far, sites=sites, nursery=nursery, fail_fast=True, zone="eu")
    near.errors = [Unreachable("nobody is there")]
    assert await pull(store, DIGEST) == CONTENT
    assert [each.state for each in store.router.states()] == ["down", "up"]
    assert store.router.states()[0].reason == "nobody is there"
    near.calls.clear()
    await pull(store, DIGEST)
    assert near.calls == []
    await trio.sleep(1.1)
    assert [each.state for each in store.router.states()] == ["up", "up"]
    far.calls.clear()
    await pull(store, DIGEST)
    assert far.calls == []


async def test_times_are_measured_in_the_background_and_the_nearest_is_asked(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    far, near = Slow(0.1), Slow(0.01)
    store = routed(far, near, nursery=nursery)
    await pull(store, DIGEST)
    assert "pull" not in near.calls
    await trio.sleep(1)
    assert [each.seconds for each in store.router.states()] == [0.1, 0.01]
    await pull(store, DIGEST)
    assert far.calls.count("pull") == 1
    assert near.calls.count("pull") == 1
    await trio.sleep(100)  # and again, when somebody asks
    await pull(store, DIGEST)
    await trio.sleep(1)
    assert far.calls.count("find_missing") == 2


class Slow(ScriptedStore):
    """Has the blob, and takes its time for everything."""

    def __init__(self, seconds: float, content: bytes = CONTENT) -> None:
        super().__init__(content)
        self.seconds = seconds

    async def _begin(self, verb: str) -> None:
        self.calls.append(verb)
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise


def hedging(*stores: ContentStore) -> RoutingStore:
    """A store that has learned that an answer takes a tenth of a second."""
    sites = [Site(name=str(number), priority=number) for number in range(len(stores))]
    store = routed(*stores, sites=sites)
    for _ in range(20):
        store.router.hedging.note(0.1)
        store.router.hedging.begin()
    return store


async def test_a_second_stat_goes_out_when_the_first_is_late(autojump_clock: MockClock) -> None:
    slow, quick = Slow(5), Slow(0.01)
    store = hedging(slow, quick)
    began = trio.current_time()
    stat = await store.stat(DIGEST)
    assert stat.packed_size == len(CONTENT) + 16
    assert trio.current_time() - began == pytest.approx(0.11)
    assert slow.cancelled == 1
    assert store.router.hedging.hedges == 1
    # Nothing is saved up for another: it goes out when a large pull would be left.
    slow.seconds = 4.9
    await store.stat(DIGEST)
    assert trio.current_time() - began == pytest.approx(0.11 + 4.9)
    slow.seconds = 100
    await store.stat(DIGEST)
    assert trio.current_time() - began == pytest.approx(0.11 + 4.9 + 5.01)
    assert store.router.hedging.hedges == 1


async def test_a_small_blob_is_pulled_twice_when_the_first_is_late(
    autojump_clock: MockClock,
) -> None:
    slow, quick = Slow(0), Slow(0.01)
    store = hedging(slow, quick)
    await store.stat(DIGEST)  # it is small: only now that is known
    slow.seconds = 5
    began = trio.current_time()
    assert await pull(store, DIGEST) == CONTENT
    assert trio.current_time() - began == pytest.approx(0.11)
    assert slow.cancelled == 1


async def test_who_has_measured_nothing_yet_waits_for_the_first_five_seconds(
    autojump_clock: MockClock,
) -> None:
    """It asked nobody else before the first gave up: 30 s after a server had begun to stall."""
    slow, quick = Slow(100), Slow(0.01)
    store = routed(slow, quick, sites=[Site(name=str(each), priority=each) for each in range(2)])
    for ask in (store.stat(DIGEST), pull(store, DIGEST)):
        began = trio.current_time()
        await ask
        assert trio.current_time() - began == pytest.approx(5.01)
    assert slow.cancelled == 2


async def test_what_is_small_only_as_it_is_packed_is_not_kept_in_memory() -> None:
    """256 KiB may unpack to gigabytes."""
    content = bytes(9 * MIB)
    limiter = trio.CapacityLimiter(2)
    stores = [
        UnpackingStore(MemoryPackedStore(), limiter=limiter, compression=Compression.ZSTD)
        for _ in range(2)
    ]
    store = routed(*stores, replicas=2)
    await puts(store, content)
    stat = await store.stat(hash_bytes(content))
    assert stat.packed_size is not None
    assert stat.packed_size < SMALL
    sink = CountingSink()
    await store.pull(hash_bytes(content), sink)
    assert (sink.written, sink.restarts) == (len(content), 1)


class CountingSink:
    """Counts."""

    def __init__(self) -> None:
        self.written = self.restarts = 0

    def restart(self) -> None:
        self.written = 0
        self.restarts += 1

    def write(self, data: bytes | memoryview, /) -> None:
        self.written += len(data)


async def test_of_small_blobs_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cafsfs.store.routing._KNOWN", 3)
    contents = [b"%d" % number for number in range(9)]
    store = routed(ScriptedStore(*contents), ScriptedStore(*contents))
    for each in contents:
        await store.stat(hash_bytes(each))
    assert len(store._small) == 3


async def test_a_large_blob_is_pulled_once(autojump_clock: MockClock) -> None:
    content = bytes(SMALL)
    slow, quick = Slow(0, content), Slow(0.01, content)
    store = hedging(slow, quick)
    digest = hash_bytes(content)
    stat = await store.stat(digest)
    assert stat.size == SMALL
    slow.seconds = 4
    assert await pull(store, digest) == content
    assert quick.calls == []


async def test_who_has_it_not_is_no_answer_to_a_late_question(autojump_clock: MockClock) -> None:
    slow, empty = Slow(1), Slow(0.01, b"something else")
    assert (await hedging(slow, empty).stat(DIGEST)).packed_size == len(CONTENT) + 16


# --- in mid-pull

BLOB = bytes(range(256)) * 40


class Tap(ScriptedStore):
    """Sends a blob in pieces of a hundred bytes, with a pause before each; then none any more."""

    def __init__(self, pause: float, *, dry_after: int | None = None) -> None:
        super().__init__(BLOB, step=100)
        self.pause = pause
        self.dry_after = dry_after
        self.greets = True
        self.wrong = False
        self.breaks_off = False
        self.bad: Digest | None = None  # comes at a sixteenth of the rate

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        self.calls.append("pull")
        if self.wrong:
            raise CorruptBlob("wrong bytes")
        if self.breaks_off:
            raise ConnectionBroken("it broke")
        content = self._get(digest)
        if self.dry_after != 0:
            sink.restart()
        try:
            for number, at in enumerate(range(0, len(content), 100)):
                pause = math.inf if number == self.dry_after else self.pause
                await trio.sleep(16 * pause if digest == self.bad else pause)
                sink.write(content[at : at + 100])
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return BlobStat(size=len(content), packed_size=len(content) + 16, source="tap")

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.calls.append("find_missing")
        await trio.lowlevel.checkpoint()
        if not self.greets:
            raise Unreachable("nobody is there")
        return set(digests) - self.blobs.keys()


LEAVING = "WARNING cafsfs.store.routing: going on with the next server: 0 "


@pytest.mark.parametrize(
    ("pause", "dry_after", "reason", "seconds"),
    [
        (0.01, 30, "has sent nothing more of .* for 5 s", 8),
        (1.0, None, r"sends \d+ bytes a second", 13),
    ],
    ids=["stalled", "slow"],
)
async def test_a_pull_leaves_who_is_slow_for_who_has_it(
    pause: float,
    dry_after: int | None,
    reason: str,
    seconds: float,
    autojump_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(LEAVING + reason)
    slow, quick = Tap(pause, dry_after=dry_after), Tap(0.001)
    store = routed(slow, quick, slow_rate=1000)
    began = trio.current_time()
    assert await pull(store, hash_bytes(BLOB)) == BLOB
    assert trio.current_time() - began < seconds
    assert slow.cancelled == 1
    states = store.router.states()
    assert (states[0].state, states[0].left, states[1].state) == ("suspect", 1, "up")
    # And it is not asked first for the next half minute.
    await pull(store, hash_bytes(BLOB))
    assert slow.calls.count("pull") == 1


@pytest.mark.parametrize("line", ["thin", "thinner", "of one is bad"])
async def test_a_line_that_many_pulls_share_is_judged_by_what_it_brings_to_all(
    line: str, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    """Each of sixteen left each of its servers once, and began anew."""
    quick = Tap(0.001)
    share = Tap({"thin": 1.0, "thinner": 4.0, "of one is bad": 0.25}[line])
    shared = {"thin": 0, "thinner": 16, "of one is bad": 1}
    if shared[line]:
        expect_log(LEAVING + r"sends \d+ bytes a second")
    blobs = [bytes([each]) * 5000 for each in range(16)]
    share.blobs = quick.blobs = {hash_bytes(each): each for each in blobs}
    if line == "of one is bad":
        share.bad = hash_bytes(blobs[3])
    store = routed(share, quick, slow_rate=1000)

    async def check(blob: bytes) -> None:
        assert await pull(store, hash_bytes(blob)) == blob

    async with trio.open_nursery() as nursery:
        for blob in blobs:
            nursery.start_soon(check, blob)
    states = store.router.states()
    assert (share.cancelled, states[0].left) == (shared[line], shared[line])
    place = store.router.places[0]
    assert (place.pulls, place.brought >= 80_000) == (0, not shared[line])


@pytest.mark.parametrize("other", ["has it not", "is down", "is slow"])
async def test_a_pull_stays_with_who_is_slow_if_nobody_else_is_better(
    other: str, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    slow, second = Tap(1.0), Tap(1.0)
    if other == "has it not":
        second.blobs.clear()
    elif other == "is down":
        expect_log("1 is down")
        second.errors = [Unreachable("nobody is there")] * 100
    else:
        expect_log(LEAVING)
    store = routed(slow, second, slow_rate=1000)
    assert await pull(store, hash_bytes(BLOB)) == BLOB
    assert slow.calls.count("pull") + second.calls.count("pull") == 1 + (other == "is slow")


async def test_who_was_left_is_asked_again_if_nobody_else_has_it_in_the_end(
    autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    """It said that it had the blob."""
    expect_log(LEAVING)
    slow, liar = Tap(0.5), Tap(0.001)
    store = routed(slow, liar, slow_rate=1000)
    slow.blobs = {DIGEST: bytes(8000)}
    liar.blobs = {DIGEST: b""}
    liar.wrong = True
    assert await pull(store, DIGEST) == bytes(8000)
    assert slow.calls.count("pull") == 2


@pytest.mark.parametrize("lives", [True, False])
async def test_before_its_first_byte_a_server_is_left_only_if_it_does_not_greet(
    lives: bool, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    """It may be reading the blob from its disk (protocol page, 3.4)."""
    frozen, other = Tap(0.001, dry_after=0), Tap(0.001)
    frozen.greets = lives
    store = routed(frozen, other, slow_rate=1000)
    if not lives:
        expect_log(LEAVING + "has sent nothing of .*, and does not greet")
        expect_log("0 is down")
        assert await pull(store, hash_bytes(BLOB)) == BLOB
        assert trio.current_time() < 8
        return
    with pytest.raises(trio.TooSlowError), trio.fail_after(60):
        await pull(store, hash_bytes(BLOB))
    assert other.calls == []


async def test_one_greeting_tells_all_pulls_that_a_server_lives(
    autojump_clock: MockClock,
) -> None:
    """A thousand that wait for a connection of the pool are no reason for a thousand others."""
    reading, other = Tap(0.001, dry_after=0), Tap(0.001)
    store = routed(reading, other)
    with trio.move_on_after(30.5):
        async with trio.open_nursery() as pulls:
            for _ in range(100):
                pulls.start_soon(pull, store, hash_bytes(BLOB))
    assert reading.cancelled == 100
    assert reading.calls.count("find_missing") == 6


@pytest.mark.parametrize("patience", [14, 30])
async def test_who_gives_up_in_vain_is_sent_to_another_the_next_time(
    patience: float, autojump_clock: MockClock
) -> None:
    """It greets, and tells the size, and that is all that it does."""
    mute, other = Tap(0.001, dry_after=0), Tap(0.001)
    store = routed(mute, other)
    with trio.move_on_after(patience):
        await pull(store, hash_bytes(BLOB))
    state = store.router.states()[0]
    if patience < 15:  # it may be reading the blob from its disk
        assert (state.state, state.left) == ("up", 0)
        return
    assert (state.state, state.left) == ("suspect", 1)
    assert state.reason == f"0 had sent nothing of {hash_bytes(BLOB)} within 30 s"
    assert await pull(store, hash_bytes(BLOB)) == BLOB
    assert other.calls == ["pull"]


async def test_a_blob_is_not_absent_because_who_was_left_has_it_no_more(
    autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    class Forgetful(Tap):
        async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
            if "pull" in self.calls:
                raise BlobNotFound(digest)
            return await super().pull(digest, sink)

    expect_log(LEAVING)
    slow, broken = Forgetful(0.01, dry_after=30), Tap(0.001)
    broken.breaks_off = True
    with pytest.raises(ConnectionBroken):
        await pull(routed(slow, broken), hash_bytes(BLOB))


async def test_who_comes_next_may_read_the_blob_from_its_disk_too(
    autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    class Reading(Tap):
        async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
            await trio.sleep(8)
            return await super().pull(digest, sink)

    expect_log(LEAVING)
    dry, reading, third = Tap(0.01, dry_after=30), Reading(0.001), Tap(0.001)
    assert await pull(routed(dry, reading, third), hash_bytes(BLOB)) == BLOB
    assert "pull" not in third.calls


async def test_who_is_in_the_middle_of_a_blob_is_not_to_blame_if_nobody_wants_it_any_more(
    autojump_clock: MockClock,
) -> None:
    store = routed(Tap(0.5), Tap(0.5))
    with trio.move_on_after(30):
        await pull(store, hash_bytes(BLOB))
    assert [(each.state, each.left) for each in store.router.states()] == [("up", 0)] * 2


async def test_who_sends_nothing_and_is_found_to_be_down_is_left_at_once(
    autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log("0 is down")
    expect_log(LEAVING + "sends nothing of .*, and is down")
    dying, other = Tap(0.01, dry_after=30), Tap(0.001)
    store = routed(dying, other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, store, hash_bytes(BLOB))
        await trio.sleep(0.5)
        store.router.failed(store.router.places[0], Unreachable("nobody is there"), None)
    assert trio.current_time() < 4


def test_our_own_slow_disk_is_not_the_servers_fault() -> None:
    progress = _Progress(100, 5000)
    for now, count, held_up, still, rate in (
        (101, 1000, False, 0, math.inf),
        (105, 1000, False, 4, math.inf),
        (130, 1000, True, 4, math.inf),
        (131, 1000, False, 5, math.inf),
        (132, 2000, True, 0, math.inf),
        (139, 2000, False, 7, 1000 / 12),
        (149, 2000, False, 17, 0),
    ):
        progress.look(now, count, 5000 + 3 * count, held_up=held_up)
        assert (progress.still, progress.rate) == (still, rate)
        assert progress.total == pytest.approx(3 * rate)


@pytest.mark.parametrize("crowded", [True, False])
async def test_a_pull_that_others_of_ours_hold_up_leaves_nobody(
    crowded: bool, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    """Sixty on a slow disk left their server, and pulled all over again."""
    slow, other = Tap(6.0), Tap(0.001)
    slow.blobs = {DIGEST: bytes(300)}
    other.blobs = {DIGEST: bytes(300)}
    if not crowded:
        expect_log(LEAVING)
    await pull(routed(slow, other, crowded=lambda: crowded), DIGEST)
    assert slow.cancelled == (0 if crowded else 1)


def test_a_sink_is_busy_as_long_as_it_writes() -> None:
    class Watching(MemorySink):
        def write(self, data: bytes | memoryview, /) -> None:
            assert metered.busy
            super().write(data)

    metered = _MeteredSink(Watching())
    metered.write(bytes(7))
    assert (metered.busy, metered.count) == (False, 7)
