"""How fast pulls go, and for whom they wait; the clock jumps, the threads are real."""

from __future__ import annotations

import math
import time

import pytest
import trio
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, ContentSink, ContentStore, Wanted
from cafsfs.store.memory import MemorySink, MemorySource
from cafsfs.store.pacing import PacingStore
from tests.store.samples import (
    ABSENT,
    CallingSink,
    FullDisk,
    MemoryDestination,
    content_of,
    eventually,
    pull,
)
from tests.store.scripted import ScriptedStore

CONTENT = content_of(10_000)
DIGEST = hash_bytes(CONTENT)


class Threaded(ScriptedStore):
    """Calls its sinks in threads, as the stores do that deserve the name: a hop a piece."""

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        await self._begin("pull")
        content = self._get(digest)
        await trio.to_thread.run_sync(sink.restart)
        for at in range(0, len(content), self._step):
            await trio.to_thread.run_sync(sink.write, content[at : at + self._step])
        return BlobStat(size=len(content))


class Hops:
    """Counts how often a thread asks the event loop to wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._run = trio.from_thread.run
        monkeypatch.setattr(trio.from_thread, "run", self._counted)

    def _counted(self, *args: object) -> object:
        self.count += 1
        return self._run(*args)  # type: ignore[arg-type]  # whatever is waited for


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> Hops:
    return Hops(monkeypatch)


def upstream(step: int = 1000) -> Threaded:
    return Threaded(CONTENT, step=step)


async def elapsed(store: ContentStore, pulls: int = 1) -> float:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(pulls):
            nursery.start_soon(pull, store, DIGEST)
    return trio.current_time() - began


# --- rate


async def test_a_batch_goes_at_the_rate_of_all_its_blobs_together(
    jumping_clock: MockClock,
) -> None:
    contents = [content_of(1000, variant) for variant in range(1, 11)]
    store = PacingStore(Threaded(*contents), rate=1000)
    wanted = [Wanted(hash_bytes(each), MemoryDestination()) for each in contents]
    began = trio.current_time()
    assert await store.pull_many(wanted) == {}
    assert trio.current_time() - began == pytest.approx(9 - 0.25)
    assert [each.destination.content for each in wanted] == contents  # type: ignore[attr-defined]


async def test_a_pull_goes_at_the_rate(jumping_clock: MockClock) -> None:
    """But the first piece passes at once, and a quarter of a second was saved up."""
    store = PacingStore(upstream(), rate=1000)
    assert await elapsed(store) == pytest.approx(9 - 0.25)


async def test_several_pulls_share_the_rate(jumping_clock: MockClock) -> None:
    store = PacingStore(upstream(), rate=1000)
    assert await elapsed(store, pulls=3) == pytest.approx(29 - 0.25, abs=0.01)


async def test_pulls_one_after_the_other_share_it_too(jumping_clock: MockClock) -> None:
    store = PacingStore(upstream(), rate=1000)
    assert await elapsed(store) == pytest.approx(9 - 0.25)
    assert await elapsed(store) == pytest.approx(10)


async def test_no_more_than_a_quarter_second_is_saved_up(jumping_clock: MockClock) -> None:
    store = PacingStore(upstream(step=50), rate=1000)
    await trio.sleep(1000)
    assert await elapsed(store) == pytest.approx(10 - 0.05 - 0.25)


async def test_a_piece_above_the_burst_passes(jumping_clock: MockClock) -> None:
    assert await elapsed(PacingStore(upstream(step=10_000), rate=1)) == 0


async def test_short_waits_are_put_off_but_not_forgotten(
    jumping_clock: MockClock, hops: Hops
) -> None:
    """Pieces of 4 ms: every third one waits, for all three."""
    store = PacingStore(upstream(step=40), rate=10_000)
    assert await elapsed(store) == pytest.approx(1 - 0.25, abs=0.02)
    assert 50 < hops.count < 70


@pytest.mark.parametrize("rate", [None, 1e12])
async def test_where_there_is_nothing_to_wait_for_there_is_no_hop(
    jumping_clock: MockClock, hops: Hops, rate: float | None
) -> None:
    assert await elapsed(PacingStore(upstream(), rate=rate), pulls=4) == 0
    assert hops.count == 0


@pytest.mark.parametrize("rate", [0, -1.0, math.nan])
def test_a_rate_lets_something_pass(rate: float) -> None:
    with pytest.raises(ValueError, match="lets nothing pass"):
        PacingStore(upstream(), rate=rate)


async def test_on_a_real_clock() -> None:
    store = PacingStore(upstream(), rate=50_000)  # 0.6 s, of which 0.25 are saved up
    began = time.monotonic()
    await pull(store, DIGEST)
    await pull(store, DIGEST)
    await pull(store, DIGEST)
    assert 0.3 < time.monotonic() - began < 3


# --- giving way


async def test_each_piece_waits_while_there_is_somebody_to_give_way_to(
    jumping_clock: MockClock,
) -> None:
    """A second at most: it goes on slowly."""
    asked: set[Digest] = set()

    def give_way(digest: Digest) -> bool:
        asked.add(digest)
        return True

    assert await elapsed(PacingStore(upstream(), give_way=give_way)) == pytest.approx(10)
    assert asked == {DIGEST}


async def test_small_blobs_of_a_batch_stand_back_together(jumping_clock: MockClock) -> None:
    """Once for 256 KiB: who waits for the last of them does not wait a second for each."""
    contents = [content_of(64 << 10, variant) for variant in range(1, 10)]
    store = PacingStore(Threaded(*contents), give_way=lambda _: True)
    wanted = [Wanted(hash_bytes(each), MemoryDestination()) for each in contents]
    began = trio.current_time()
    assert await store.pull_many(wanted, at_once=1) == {}
    assert trio.current_time() - began == pytest.approx(3)


async def test_large_blobs_of_a_batch_stand_back_for_each_piece(jumping_clock: MockClock) -> None:
    content = content_of(1 << 20)
    store = PacingStore(Threaded(content, step=512 << 10), give_way=lambda _: True)
    began = trio.current_time()
    assert await store.pull_many([Wanted(hash_bytes(content), MemoryDestination())]) == {}
    assert trio.current_time() - began == pytest.approx(2)


async def test_it_goes_on_as_soon_as_it_may(jumping_clock: MockClock) -> None:
    until = trio.current_time() + 3.12
    clock = trio.lowlevel.current_clock()
    store = PacingStore(upstream(), give_way=lambda _: clock.current_time() < until)
    assert await elapsed(store) == pytest.approx(3.15, abs=0.001)


async def test_who_is_waited_for_gives_no_way(jumping_clock: MockClock, hops: Hops) -> None:
    store = PacingStore(upstream(), give_way=lambda digest: digest != DIGEST)
    assert await elapsed(store) == 0
    assert hops.count == 0


async def test_giving_way_and_the_rate_do_not_add_up(jumping_clock: MockClock) -> None:
    store = PacingStore(upstream(), rate=1000, give_way=lambda _: True)
    assert 10 <= await elapsed(store) < 10.01


# --- what passes through


@pytest.mark.parametrize("passed", [0, 1000])
async def test_a_wait_can_be_cancelled(passed: int, hops: Hops) -> None:
    """On the real clock: the other one would jump to the end of a wait of minutes."""
    store = PacingStore(upstream(), rate=1, give_way=lambda _: not passed)
    sink = MemorySink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.pull, DIGEST, sink)
        assert await eventually(lambda: hops.count == 1)
        nursery.cancel_scope.cancel()
    assert sink.content == CONTENT[:passed]


async def test_a_sink_is_begun_anew_and_gets_all() -> None:
    sink = CallingSink(lambda: None)
    store = PacingStore(upstream())
    for _ in range(2):
        await store.pull(DIGEST, sink)
        assert sink.content == CONTENT


async def test_the_error_of_a_sink_passes_as_it_is() -> None:
    full = FullDisk()
    with pytest.raises(OSError, match="No space") as caught:
        await PacingStore(upstream(), rate=1e9).pull(DIGEST, full)
    assert caught.value is full.error


async def test_all_else_passes_through(jumping_clock: MockClock) -> None:
    below = upstream()
    store = PacingStore(below, rate=1, give_way=lambda _: True)
    began = trio.current_time()
    assert await store.find_missing([DIGEST, ABSENT]) == {ABSENT}
    assert (await store.stat(DIGEST)).size == len(CONTENT)
    await store.put(hash_bytes(b"more"), MemorySource(b"more"))
    with pytest.raises(BlobNotFound):
        await pull(store, ABSENT)
    assert below.calls == ["find_missing", "stat", "put", "pull"]
    assert trio.current_time() == began
