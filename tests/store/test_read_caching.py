"""One pull a blob, one question a size; waiters, deadlines, and a cache that may fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    CorruptBlob,
    ServerRefused,
    StoreError,
    TimedOut,
    Unavailable,
)
from cafsfs.metrics import Metrics
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.partials import Partial
from cafsfs.store.cache.progress import Progress
from cafsfs.store.contracts import BlobStat, ContentSink
from cafsfs.store.local_root import blob_path
from cafsfs.store.memory import MemorySource
from cafsfs.store.read_caching import OpenBlob, ReadCachingStore
from tests.store.held_up import held_up
from tests.store.samples import ABSENT, KIB, MIB, content_of, descriptors, may_log, pull, put
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches
from tests.store.tmpfs import small_tmpfs

CONTENT = content_of(3 * MIB)
DIGEST = hash_bytes(CONTENT)
FOREVER = float("inf")
PATIENCE = 30.0
DISCARDED = "WARNING cafsfs.store.cache.disk_cache: what the cache had for .* was not its content"


@dataclass
class Bench:
    """A store over a cache in ``directory`` and a scripted upstream that has CONTENT."""

    store: ReadCachingStore
    cache: DiskCache
    upstream: ScriptedStore
    metrics: Metrics
    directory: Path
    caches: Caches

    @property
    def path(self) -> Path:
        return blob_path(self.directory / "blobs", DIGEST)

    def partials(self) -> list[Path]:
        return list((self.directory / "partial").iterdir())

    async def reached(self, verb: str = "pull") -> None:
        """Returns when upstream has been asked, and the asking task waits for what it scripts."""
        assert await self.upstream.asked.receive() == verb
        await wait_all_tasks_blocked()


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def bench(tmp_path: Path, caches: Caches, nursery: trio.Nursery) -> Bench:
    return bench_in(tmp_path, caches, nursery)


def bench_in(
    directory: Path,
    caches: Caches,
    nursery: trio.Nursery,
    *,
    upstream: ScriptedStore | None = None,
    finish_pulls: bool = False,
) -> Bench:
    metrics = Metrics()
    cache = caches.open(directory, metrics=metrics)
    upstream = upstream or ScriptedStore(CONTENT)
    store = ReadCachingStore(cache, upstream, nursery, finish_pulls=finish_pulls, metrics=metrics)
    return Bench(store, cache, upstream, metrics, directory, caches)


async def read(bench: Bench, digest: Digest = DIGEST) -> bytes:
    """Open, read all, close."""
    blob = bench.store.open(digest)
    try:
        return bytes(await blob.read(0, 1 << 30, patience=FOREVER))
    finally:
        bench.store.close(blob)


class Waiter:
    """A task that waits for something; its outcome, and when it came."""

    def __init__(self) -> None:
        self.done = False
        self.outcome: bytes | CafsError = b""
        self.at = 0.0

    async def run(self, blob: OpenBlob, patience: float = FOREVER) -> None:
        try:
            self.outcome = bytes(await blob.read(0, 10, patience=patience))
        except CafsError as error:
            self.outcome = error
        self.done, self.at = True, trio.current_time()


# --- one pull


async def test_64_readers_of_one_blob_make_one_pull(bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    whole: list[bytes] = []

    async def read_one() -> None:
        whole.append(await read(bench))

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(read_one)
        await bench.reached()
        assert (bench.store.pulling, bench.store.is_pulling(DIGEST)) == (1, True)
        bench.upstream.gate.set()
    assert whole == [CONTENT] * 64
    assert bench.upstream.calls == ["pull"]
    assert bench.store.pulling == 0
    assert (bench.metrics.pulls, bench.metrics.pulled_bytes) == (1, len(CONTENT))
    assert (bench.metrics.cache_hits, bench.metrics.cache_misses) == (0, 1)


async def test_what_was_pulled_is_not_pulled_again(bench: Bench) -> None:
    for _ in range(3):
        assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"]
    assert (bench.metrics.cache_hits, bench.metrics.cache_misses) == (2, 1)
    assert bench.store.cached_size(DIGEST) == len(CONTENT)
    assert [each.digest for each in await bench.store.listing()] == [DIGEST]
    assert bench.store.usage.used == len(CONTENT)


async def test_who_comes_late_shares_what_is_open(bench: Bench) -> None:
    first = bench.store.open(DIGEST)
    await first.wait(FOREVER)
    second = bench.store.open(DIGEST)
    assert second is first
    assert await second.read(5, 10, patience=0) == CONTENT[5:15]
    bench.store.close(first)
    assert await second.read(0, 10, patience=0) == CONTENT[:10]
    assert repr(second) == f"<OpenBlob {DIGEST!r} users=1 Ready>"
    bench.store.close(second)


async def test_evicted_while_it_is_open_it_is_read_on(bench: Bench) -> None:
    blob = bench.store.open(DIGEST)
    await blob.wait(FOREVER)
    bench.path.unlink()
    assert await blob.read(MIB, 10, patience=0) == CONTENT[MIB : MIB + 10]
    bench.store.close(blob)


@pytest.mark.parametrize("error", [BlobNotFound, Unavailable, CorruptBlob, ServerRefused])
async def test_an_error_reaches_every_waiter_and_the_next_open_tries_again(
    bench: Bench, error: type[CafsError]
) -> None:
    bench.upstream.gate = trio.Event()
    bench.upstream.errors = [error("once")]
    blobs = [bench.store.open(DIGEST) for _ in range(10)]
    waiters = [Waiter() for _ in blobs]
    async with trio.open_nursery() as nursery:
        for blob, waiter in zip(blobs, waiters, strict=True):
            nursery.start_soon(waiter.run, blob)
        await bench.reached()
        bench.upstream.gate.set()
    assert all(type(waiter.outcome) is error for waiter in waiters)
    # Readers ask again two or three times: the open file remembers.
    with pytest.raises(error):
        await blobs[0].read(0, 10, patience=0)
    assert bench.upstream.calls == ["pull"]
    assert await read(bench) == CONTENT
    for blob in blobs:
        bench.store.close(blob)
    assert bench.metrics.pull_errors == 1
    assert bench.partials() == []


async def test_what_nobody_thought_of_reaches_the_waiters_too(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log("ERROR cafsfs.store.read_caching: pulling .* failed")
    bench.upstream.errors = [ZeroDivisionError("a bug")]
    with pytest.raises(StoreError, match="a bug"):
        await read(bench)
    expect_log("ERROR cafsfs.store.read_caching: asking for .* failed")
    bench.upstream.errors = [ZeroDivisionError("a bug")]
    with pytest.raises(StoreError, match="a bug"):
        await bench.store.stat(DIGEST)


# --- leaving


async def test_the_last_reader_who_leaves_stops_the_pull(bench: Bench) -> None:
    bench.upstream.flow = trio.Semaphore(1)
    before = descriptors()
    first, second = bench.store.open(DIGEST), bench.store.open(DIGEST)
    await bench.reached()
    assert len(bench.partials()) == 1
    bench.store.close(first)
    await wait_all_tasks_blocked()
    assert bench.upstream.cancelled == 0
    bench.store.close(second)
    assert not bench.store.is_pulling(DIGEST)
    await _until(lambda: not bench.partials())
    assert bench.upstream.cancelled == 1
    assert descriptors() == before
    assert bench.cache.usage.blobs == 0


async def test_a_reader_who_is_cancelled_does_not_stop_the_others(bench: Bench) -> None:
    bench.upstream.flow = trio.Semaphore(1)
    patient = Waiter()
    blob = bench.store.open(DIGEST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patient.run, blob)
        async with trio.open_nursery() as impatient:
            impatient.start_soon(read, bench)
            await bench.reached()
            impatient.cancel_scope.cancel()
        for _ in range(2):
            bench.upstream.flow.release()
    assert patient.outcome == CONTENT[:10]
    bench.store.close(blob)


async def test_opened_again_after_the_last_one_left(bench: Bench) -> None:
    """The pull that is being stopped is not joined."""
    bench.upstream.flow = trio.Semaphore(1)
    bench.store.close(bench.store.open(DIGEST))
    blob = bench.store.open(DIGEST)
    await _until(lambda: bool(bench.upstream.calls))
    bench.store.close(blob)
    bench.upstream.flow = None
    assert await read(bench) == CONTENT
    assert bench.partials() == []


async def test_closed_before_it_began(bench: Bench) -> None:
    bench.store.close(bench.store.open(DIGEST))
    await wait_all_tasks_blocked()
    assert bench.upstream.calls == []
    assert bench.metrics.pulls == 0


async def test_left_while_a_thread_opens_the_cached_file(bench: Bench) -> None:
    """The thread cannot be cancelled: what it brings is closed."""
    await read(bench)
    bench.cache.ledger.forget(DIGEST)  # what is known is opened without a thread
    before = descriptors()
    with held_up("open") as held:
        blob = bench.store.open(DIGEST)
        await held.reached()
        bench.store.close(blob)
        held.go_on()
    await _until(lambda: descriptors() == before)


async def test_left_while_a_thread_commits(bench: Bench) -> None:
    """What was pulled is kept."""
    before = descriptors()
    with held_up("rename") as held:
        blob = bench.store.open(DIGEST)
        await held.reached()
        bench.store.close(blob)
        held.go_on()
    await _until(lambda: descriptors() == before)
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"]


async def test_left_at_every_moment_nothing_leaks(bench: Bench) -> None:
    """Close after so many steps of the event loop: before, while, after each hop of a thread."""
    before = descriptors()
    for steps in range(60):
        blob = bench.store.open(DIGEST)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        bench.store.close(blob)
        if steps % 3 == 0:
            bench.path.unlink(missing_ok=True)
    await _until(lambda: not bench.partials() and descriptors() == before)
    assert await read(bench) == CONTENT


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # others have threads, which need the interpreter; clocks may stand
            await trio.to_thread.run_sync(time.sleep, 0.001)


# --- the end


async def test_fail_all_wakes_everybody(bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    blob = bench.store.open(DIGEST)
    waiter = Waiter()
    asked: list[str] = []

    async def ask() -> None:
        with pytest.raises(Unavailable, match="unmounted"):
            await bench.store.stat(ABSENT)
        asked.append("answered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.run, blob)
        nursery.start_soon(ask)
        assert {await bench.upstream.asked.receive() for _ in range(2)} == {"pull", "stat"}
        await wait_all_tasks_blocked()
        bench.store.fail_all(Unavailable("unmounted"))
    assert isinstance(waiter.outcome, Unavailable)
    assert str(waiter.outcome) == "unmounted"
    assert asked == ["answered"]
    with pytest.raises(Unavailable, match="unmounted"):
        await blob.read(0, 10, patience=0)
    bench.store.close(blob)
    await _until(lambda: not bench.partials())
    assert bench.store.pulling == 0


async def test_fail_all_leaves_what_is_complete_alone(bench: Bench) -> None:
    blob = bench.store.open(DIGEST)
    await blob.wait(FOREVER)
    bench.store.fail_all(Unavailable("unmounted"))
    assert await blob.read(0, 10, patience=0) == CONTENT[:10]
    bench.store.close(blob)


async def test_nobody_waits_for_a_nursery_that_was_cancelled(
    tmp_path: Path, caches: Caches
) -> None:
    waiter = Waiter()
    async with trio.open_nursery() as waiters, trio.open_nursery() as nursery:
        bench = bench_in(tmp_path, caches, nursery)
        bench.upstream.gate = trio.Event()
        blob = bench.store.open(DIGEST)
        waiters.start_soon(waiter.run, blob)
        await bench.reached()
        waiters.start_soon(_assert_given_up, bench)
        await bench.reached("stat")
        nursery.cancel_scope.cancel()
    assert isinstance(waiter.outcome, Unavailable)
    bench.store.close(blob)


async def _assert_given_up(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="given up"):
        await bench.store.stat(ABSENT)


# --- patience
#
# The clock stands still while a thread works; it jumps where all that is waited for is scripted.


async def test_patience_ends_without_progress(mock_clock: MockClock, bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    blob = bench.store.open(DIGEST)
    await bench.reached()
    began = trio.current_time()
    mock_clock.autojump_threshold = 0
    with pytest.raises(TimedOut, match="has not moved for 30 s"):
        await blob.read(0, 10, patience=PATIENCE)
    assert trio.current_time() - began == pytest.approx(PATIENCE)
    # The pull is not stopped by that: who asks again may be luckier.
    mock_clock.autojump_threshold = FOREVER
    bench.upstream.gate.set()
    assert await blob.read(0, 10, patience=PATIENCE) == CONTENT[:10]
    bench.store.close(blob)


async def test_patience_counts_only_without_progress(mock_clock: MockClock, bench: Bench) -> None:
    bench.upstream.blobs[DIGEST] = CONTENT
    bench.upstream.flow = trio.Semaphore(0)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    waiter = Waiter()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.run, blob, PATIENCE)
        for _ in range(2):  # of three pieces
            await _pass(mock_clock, 29)
            bench.upstream.flow.release()
        await _pass(mock_clock, 29)
        assert not waiter.done
        assert trio.current_time() - began == pytest.approx(87)
        bench.upstream.flow.release()
    assert waiter.outcome == CONTENT[:10]
    bench.store.close(blob)


async def test_progress_that_ends_is_waited_for_once_more(
    mock_clock: MockClock, bench: Bench
) -> None:
    bench.upstream.flow = trio.Semaphore(0)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    waiter = Waiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.run, blob, PATIENCE)
        await _pass(mock_clock, 29)
        bench.upstream.flow.release()
        moved = trio.current_time()
        await _pass(mock_clock, 40)
    assert isinstance(waiter.outcome, TimedOut)
    assert PATIENCE <= waiter.at - moved <= 1.1 * PATIENCE
    bench.store.close(blob)


async def test_a_further_attempt_that_moves_is_progress(bench: Bench) -> None:
    """One that begins anew has fewer bytes, and no less progress."""
    progress = Progress()
    partial = await bench.cache.claim(DIGEST, progress=progress)
    assert isinstance(partial, Partial)
    partial.write(b"x" * 100)
    before = progress.count
    partial.restart()
    partial.write(b"x")
    assert partial.written == 1
    assert progress.count > before
    await bench.cache.discard(partial)


async def test_each_reader_has_a_patience_of_its_own(mock_clock: MockClock, bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    blob = bench.store.open(DIGEST)
    await bench.reached()
    short, long = Waiter(), Waiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(short.run, blob, 10)
        nursery.start_soon(long.run, blob, 50)
        await _pass(mock_clock, 12)
        assert isinstance(short.outcome, TimedOut)
        assert not long.done
        await _pass(mock_clock, 40)
    assert isinstance(long.outcome, TimedOut)
    bench.store.close(blob)


async def _pass(clock: MockClock, seconds: int) -> None:
    """Let time pass second by second, so that everybody sees it pass."""
    for _ in range(seconds):
        await wait_all_tasks_blocked()
        clock.jump(1)
    await wait_all_tasks_blocked()


# --- sizes


async def test_a_size_is_asked_for_once(bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    told: list[BlobStat] = []

    async def ask() -> None:
        told.append(await bench.store.stat(DIGEST))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await bench.reached("stat")
        bench.upstream.gate.set()
    assert [stat.size for stat in told] == [len(CONTENT)] * 20
    await bench.store.stat(DIGEST)
    assert bench.upstream.calls == ["stat"]
    assert await bench.store.recall(DIGEST) == told[0]
    assert await bench.store.recall(ABSENT) is None


async def test_an_error_reaches_all_who_ask_and_is_not_remembered(bench: Bench) -> None:
    bench.upstream.gate = trio.Event()
    bench.upstream.errors = [Unavailable("once")]
    errors: list[Exception] = []

    async def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            await bench.store.stat(DIGEST)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await bench.reached("stat")
        bench.upstream.gate.set()
    assert len(errors) == 5
    assert (await bench.store.stat(DIGEST)).size == len(CONTENT)


async def test_absent_is_not_remembered(bench: Bench) -> None:
    content = b"comes later"
    with pytest.raises(BlobNotFound):
        await bench.store.stat(hash_bytes(content))
    bench.upstream.blobs[hash_bytes(content)] = content
    assert (await bench.store.stat(hash_bytes(content))).size == len(content)


async def test_what_is_cached_is_asked_nobody(bench: Bench) -> None:
    digest = await put(bench.cache, b"cached")
    assert await bench.store.stat(digest) == BlobStat(size=6, source="cache")
    assert await read(bench, digest) == b"cached"
    # Neither what a former mount has left.
    async with trio.open_nursery() as nursery:
        later = bench_in(bench.directory, bench.caches, nursery)
        assert (await later.store.stat(digest)).size == 6
        assert later.upstream.calls == []
    assert bench.upstream.calls == []


async def test_a_size_that_only_a_pull_tells(bench: Bench) -> None:
    bench.upstream.told[DIGEST] = None
    stat = await bench.store.stat(DIGEST)
    assert (stat.size, stat.source) == (len(CONTENT), "scripted")
    assert bench.upstream.calls == ["stat", "pull"]
    assert bench.store.cached_size(DIGEST) == len(CONTENT)
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["stat", "pull"]


@pytest.mark.parametrize("told", [len(CONTENT), None])
async def test_a_lookup_that_times_out_leaves_the_inquiry_running(
    mock_clock: MockClock, bench: Bench, told: int | None
) -> None:
    bench.upstream.told[DIGEST] = told
    bench.upstream.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_assert_too_slow, bench)
        await bench.reached("stat")
        mock_clock.jump(5)
    assert bench.upstream.cancelled == 0
    bench.upstream.gate.set()
    with trio.fail_after(5):  # the clock stands still
        assert (await bench.store.stat(DIGEST)).size == len(CONTENT)
    assert bench.upstream.calls == ["stat", "pull"][: 1 if told else 2]


async def _assert_too_slow(bench: Bench) -> None:
    with pytest.raises(trio.TooSlowError), trio.fail_after(5):
        await bench.store.stat(DIGEST)


@pytest.mark.parametrize("lie", [1, len(CONTENT) - 1, len(CONTENT) + 1])
async def test_a_size_that_proves_wrong_fails_who_has_it_open_and_is_dropped(
    bench: Bench, lie: int
) -> None:
    """A length that says less would truncate every copy without an error."""
    changed: list[Digest] = []
    bench.store.on_size_changed = changed.append
    bench.upstream.told[DIGEST] = lie
    assert (await bench.store.stat(DIGEST)).size == lie
    with pytest.raises(CorruptBlob, match=f"has {len(CONTENT)} bytes, scripted said {lie}"):
        await read(bench)
    assert changed == [DIGEST]
    assert bench.partials() == []
    # Upstream may go on lying: the size that was verified is remembered.
    assert (await bench.store.stat(DIGEST)).size == len(CONTENT)
    assert await read(bench) == CONTENT
    assert await read(bench) == CONTENT
    assert changed == [DIGEST]
    assert bench.upstream.calls == ["stat", "pull", "pull"]
    assert (bench.metrics.pulls, bench.metrics.pull_errors) == (2, 1)


async def test_who_sent_wrong_bytes_may_have_told_a_wrong_size(bench: Bench) -> None:
    changed: list[Digest] = []
    bench.store.on_size_changed = changed.append
    await bench.store.stat(DIGEST)
    bench.upstream.errors = [CorruptBlob("wrong bytes")]
    with pytest.raises(CorruptBlob):
        await read(bench)
    assert changed == [DIGEST]


async def test_an_error_that_says_nothing_of_the_size_keeps_it(bench: Bench) -> None:
    bench.store.on_size_changed = lambda _: pytest.fail("the size is as it was")
    await bench.store.stat(DIGEST)
    bench.upstream.errors = [Unavailable("gone")]
    with pytest.raises(Unavailable):
        await read(bench)
    assert await bench.store.recall(DIGEST) is not None


# --- a cache that fails


async def test_a_link_in_the_place_of_a_blob_is_replaced(bench: Bench) -> None:
    bench.path.parent.mkdir(parents=True)
    bench.path.symlink_to("/dev/null")  # a link is not followed: ELOOP
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"]
    assert bench.path.is_file()
    assert not bench.path.is_symlink()


async def test_a_size_is_found_past_it(bench: Bench) -> None:
    bench.path.parent.parent.mkdir(parents=True)
    bench.path.parent.touch()  # ENOTDIR below
    assert (await bench.store.stat(DIGEST)).size == len(CONTENT)


async def test_questions_go_past_it(bench: Bench, expect_log: Callable[[str], None]) -> None:
    expect_log("WARNING cafsfs.store.read_caching: cannot use the cache: .*; asking upstream")
    bench.path.parent.mkdir(parents=True)
    bench.path.symlink_to(bench.path)
    assert await bench.store.find_missing([DIGEST, ABSENT]) == {ABSENT}


async def test_a_cache_that_was_cleared_by_hand_is_filled_again(bench: Bench) -> None:
    os.rmdir(bench.directory / "partial")
    os.rmdir(bench.directory / "blobs")
    assert await read(bench) == CONTENT
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"]


async def test_a_cache_that_cannot_be_written_is_pulled_past(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: not cached, because of what somebody else has")
    os.rmdir(bench.directory / "partial")
    (bench.directory / "partial").touch()
    for _ in range(3):
        assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"] * 3
    assert bench.store.usage.trouble is None  # nothing is wrong with the disk
    assert not bench.path.exists()


async def test_a_cached_file_that_was_removed_is_pulled_again(bench: Bench) -> None:
    await read(bench)
    bench.path.unlink()
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull", "pull"]


async def test_a_cached_file_that_was_truncated_is_pulled_again(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log(DISCARDED)
    await read(bench)
    os.truncate(bench.path, 100)
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull", "pull"]


async def test_half_a_file_in_the_cache_is_thrown_away(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log(DISCARDED)
    await bench.store.stat(DIGEST)
    bench.path.parent.mkdir(parents=True)
    bench.path.write_bytes(CONTENT[:100])
    assert await read(bench) == CONTENT
    assert bench.path.read_bytes() == CONTENT
    assert bench.metrics.cache_discards == 1


async def test_a_cached_file_that_contradicts_what_was_told_fails_its_readers(
    bench: Bench,
) -> None:
    """The kernel was told the wrong size: whoever reads by that would copy too little."""
    changed: list[Digest] = []
    bench.store.on_size_changed = changed.append
    bench.upstream.told[DIGEST] = 100
    assert (await bench.store.stat(DIGEST)).size == 100
    other = bench.caches.open(bench.directory)
    await put(other, CONTENT)
    with pytest.raises(CorruptBlob, match="has 3145728 bytes, scripted said 100"):
        await read(bench)
    assert changed == [DIGEST]
    assert await read(bench) == CONTENT
    assert (await bench.store.stat(DIGEST)).size == len(CONTENT)
    assert bench.upstream.calls == ["stat"]


async def test_a_pull_of_a_rotten_cached_blob_goes_upstream(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING .*: the cached bytes of .* are not its content; pulling .* again")
    await read(bench)
    rotten = bytearray(CONTENT)
    rotten[2 * MIB] ^= 1
    before = bench.path.stat()
    bench.path.write_bytes(rotten)
    os.utime(bench.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk rots
    assert await pull(bench.store, DIGEST) == CONTENT
    assert not bench.path.exists()
    assert await read(bench) == CONTENT


# --- the rest of the contract


async def test_find_missing_asks_only_for_what_is_not_cached(bench: Bench) -> None:
    cached = await put(bench.cache, b"cached")
    assert await bench.store.find_missing([cached]) == set()
    assert bench.upstream.calls == []
    assert await bench.store.find_missing([cached, DIGEST, ABSENT]) == {ABSENT}
    assert bench.upstream.calls == ["find_missing"]


async def test_put_goes_upstream_and_not_into_the_cache(bench: Bench) -> None:
    await bench.store.put(ABSENT, MemorySource(b"whatever"))
    assert bench.upstream.calls == ["put"]
    assert bench.cache.usage.blobs == 0


@pytest.mark.parametrize("offset", [0, 1, 100 * KIB, 3 * MIB - 1, 3 * MIB, 4 * MIB])
async def test_a_read_is_exact(bench: Bench, offset: int) -> None:
    blob = bench.store.open(DIGEST)
    for length in (0, 1, 128 * KIB, 4 * MIB):
        data = await blob.read(offset, length, patience=FOREVER)
        assert data == CONTENT[offset : offset + length]
    bench.store.close(blob)


async def test_a_blob_that_is_failed_before_its_pull_begins_harms_nobody(bench: Bench) -> None:
    blob = bench.store.open(DIGEST)
    bench.store.fail_all(Unavailable("going away"))
    with pytest.raises(Unavailable, match="going away"):
        await blob.read(0, 10, patience=PATIENCE)
    await trio.testing.wait_all_tasks_blocked()
    bench.store.close(blob)
    assert bench.upstream.calls == []
    assert await read(bench) == CONTENT  # the store, and the nursery of its pulls, go on


# --- one pull in all processes


async def both(bench: Bench, nursery: trio.Nursery, *, finish_pulls: bool = False) -> Bench:
    """Another process on the same directory, that asks the same upstream."""
    return bench_in(
        bench.directory,
        bench.caches,
        nursery,
        upstream=bench.upstream,
        finish_pulls=finish_pulls,
    )


async def test_another_process_joins_a_pull(bench: Bench, nursery: trio.Nursery) -> None:
    other = await both(bench, nursery)
    bench.upstream.flow = trio.Semaphore(1)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    waiter = Waiter()
    follower = other.store.open(DIGEST)
    async with trio.open_nursery() as waiters:
        waiters.start_soon(waiter.run, follower)
        await _until(lambda: bench.cache.is_wanted(DIGEST))
        assert (bench.store.is_pulling(DIGEST), other.store.is_pulling(DIGEST)) == (True, True)
        for _ in range(2):
            bench.upstream.flow.release()
    assert waiter.outcome == CONTENT[:10]
    assert await follower.read(MIB, 100, patience=0) == CONTENT[MIB : MIB + 100]
    assert bench.upstream.calls == ["pull"]
    assert (bench.metrics.pulls, other.metrics.pulls) == (1, 0)
    bench.store.close(blob)
    other.store.close(follower)


async def test_patience_of_a_follower_is_with_the_progress_of_the_holder(
    bench: Bench, nursery: trio.Nursery
) -> None:
    other = await both(bench, nursery)
    bench.upstream.flow = trio.Semaphore(1)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    follower = other.store.open(DIGEST)
    await _until(lambda: bench.cache.is_wanted(DIGEST))
    seen = other.store._progress_of_all()
    bench.upstream.flow.release()
    await _until(lambda: other.store._progress_of_all() > seen)
    bench.upstream.flow.release()
    assert await follower.read(0, 10, patience=PATIENCE) == CONTENT[:10]
    bench.store.close(blob)
    other.store.close(follower)


async def test_a_pull_goes_on_for_another_process(bench: Bench, nursery: trio.Nursery) -> None:
    """When the last reader of the one that pulls leaves."""
    other = await both(bench, nursery)
    bench.upstream.flow = trio.Semaphore(1)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    follower = other.store.open(DIGEST)
    await _until(lambda: bench.cache.is_wanted(DIGEST))
    bench.store.close(blob)
    await wait_all_tasks_blocked()
    assert bench.upstream.cancelled == 0
    for _ in range(2):
        bench.upstream.flow.release()
    assert await follower.read(0, 10, patience=FOREVER) == CONTENT[:10]
    assert bench.upstream.calls == ["pull"]
    other.store.close(follower)
    await _until(lambda: not bench.store.pulling)


async def test_a_holder_that_is_killed_is_taken_over(bench: Bench, nursery: trio.Nursery) -> None:
    other = await both(bench, nursery)
    bench.upstream.flow = trio.Semaphore(1)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    follower = other.store.open(DIGEST)
    await _until(lambda: bench.cache.is_wanted(DIGEST))
    (held,) = bench.cache._held
    os.close(os.dup(held.descriptor))  # what other descriptors do is no matter
    become(held.descriptor, "/dev/null")  # the lock goes with the last descriptor
    held.path = None
    await _until(lambda: bench.upstream.calls == ["pull", "pull"])
    for _ in range(6):  # for both
        bench.upstream.flow.release()
    assert await follower.read(0, 1 << 30, patience=FOREVER) == CONTENT
    assert bench.path.read_bytes() == CONTENT
    bench.store.close(blob)
    other.store.close(follower)


async def test_errors_of_a_holder_are_not_those_of_a_follower(
    bench: Bench, nursery: trio.Nursery
) -> None:
    other = await both(bench, nursery)
    bench.upstream.gate = trio.Event()
    bench.upstream.errors = [Unavailable("once")]
    blob = bench.store.open(DIGEST)
    await bench.reached()
    follower = other.store.open(DIGEST)
    await _until(lambda: bench.cache.is_wanted(DIGEST))
    bench.upstream.gate.set()
    with pytest.raises(Unavailable, match="once"):
        await blob.read(0, 10, patience=FOREVER)
    assert await follower.read(0, 10, patience=FOREVER) == CONTENT[:10]
    bench.store.close(blob)
    other.store.close(follower)


@pytest.mark.parametrize("readers", [1, 3])
async def test_with_finish_pulls_a_pull_goes_on(
    tmp_path: Path, caches: Caches, nursery: trio.Nursery, readers: int
) -> None:
    bench = bench_in(tmp_path, caches, nursery, finish_pulls=True)
    bench.upstream.flow = trio.Semaphore(1)
    before = descriptors()
    blobs = [bench.store.open(DIGEST) for _ in range(readers)]
    await bench.reached()
    for blob in blobs:
        bench.store.close(blob)
    await wait_all_tasks_blocked()
    assert bench.upstream.cancelled == 0
    again = bench.store.open(DIGEST)
    assert again is blobs[0]  # who comes back joins it
    bench.store.close(again)
    for _ in range(2):
        bench.upstream.flow.release()
    await _until(lambda: bench.path.exists() and not bench.store.pulling)
    await _until(lambda: descriptors() == before)
    bench.upstream.flow = None
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull"]


# --- mending


async def opened(bench: Bench, count: int) -> list[OpenBlob]:
    blobs = [bench.store.open(DIGEST) for _ in range(count)]
    await blobs[0].wait(FOREVER)
    return blobs


async def read_by_all(blobs: list[OpenBlob]) -> None:
    """Each reads another part, all at once."""
    parts: dict[int, bytes] = {}

    async def read_part(number: int, blob: OpenBlob) -> None:
        parts[number] = bytes(await blob.read(number * 1000, 1000, patience=PATIENCE))

    async with trio.open_nursery() as nursery:
        for number, blob in enumerate(blobs):
            nursery.start_soon(read_part, number, blob)
    assert parts == {n: CONTENT[n * 1000 : (n + 1) * 1000] for n in range(len(blobs))}


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"wrong")
    os.utime(path, (1, 1))  # the clock of files is coarse


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("readers", [1, 16])
@pytest.mark.parametrize("harm", [truncate, spoil, empty])
async def test_a_cached_file_that_changes_under_its_readers_is_pulled_again(
    bench: Bench, expect_log: Callable[[str], None], readers: int, harm: Callable[[Path], None]
) -> None:
    """They notice nothing, and it is pulled once for all of them."""
    expect_log("WARNING cafsfs.store.read_caching: a cached blob .*; verifying .* again")
    expect_log("WARNING .*what the cache had for .* was not its content; discarded")
    before = descriptors()
    blobs = await opened(bench, readers)
    harm(bench.path)
    for _ in range(2):
        await read_by_all(blobs)
    assert bench.upstream.calls == ["pull", "pull"]
    assert bench.path.read_bytes() == CONTENT
    for blob in blobs:
        bench.store.close(blob)
    await _until(lambda: descriptors() == before)
    assert await read(bench) == CONTENT
    assert bench.upstream.calls == ["pull", "pull"]


async def test_a_disk_that_becomes_sick_under_16_readers(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    """/proc/self/mem answers EIO where nothing is mapped."""
    expect_log("WARNING cafsfs.store.read_caching: cannot read the cache: Input/.*; pulling")
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s: Input/output")
    blobs = await opened(bench, 16)
    file = await blobs[0].wait(0)
    become(file._descriptor, "/proc/self/mem")
    await read_by_all(blobs)
    assert bench.upstream.calls == ["pull", "pull"]
    assert bench.store.usage.trouble is not None
    for blob in blobs:
        bench.store.close(blob)
    assert await read(bench) == CONTENT  # past the cache, which is left alone
    assert bench.metrics.uncached == 2


async def test_readers_of_two_processes_are_mended(
    bench: Bench, nursery: trio.Nursery, expect_log: Callable[[str], None]
) -> None:
    """Who comes second finds what the first one has brought."""
    expect_log("WARNING cafsfs.store.read_caching: a cached blob .*; verifying .* again")
    expect_log("WARNING .*what the cache had for .* was not its content; discarded")
    other = await both(bench, nursery)
    blobs = await opened(bench, 2)
    others = await opened(other, 2)
    truncate(bench.path)
    await read_by_all(blobs)
    await read_by_all(others)
    await read_by_all(blobs)
    assert bench.path.read_bytes() == CONTENT
    for blob in blobs:
        bench.store.close(blob)
    for blob in others:
        other.store.close(blob)
    assert bench.upstream.calls.count("pull") <= 3


async def test_where_it_cannot_be_pulled_again_its_readers_get_that_error(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.read_caching: a cached blob .*; verifying .* again")
    expect_log("WARNING .*what the cache had for .* was not its content; discarded")
    before = descriptors()
    blobs = await opened(bench, 3)
    truncate(bench.path)
    bench.upstream.errors = [Unavailable("offline")]
    for blob in blobs:
        with pytest.raises(Unavailable, match="offline"):
            await blob.read(0, 10, patience=PATIENCE)
    for blob in blobs:
        bench.store.close(blob)
    await _until(lambda: descriptors() == before)
    assert await read(bench) == CONTENT


async def test_closed_while_it_is_mended(bench: Bench, expect_log: Callable[[str], None]) -> None:
    expect_log("WARNING cafsfs.store.read_caching: a cached blob .*; verifying .* again")
    expect_log("WARNING .*what the cache had for .* was not its content; discarded")
    before = descriptors()
    (blob,) = await opened(bench, 1)
    assert await bench.upstream.asked.receive() == "pull"
    truncate(bench.path)
    bench.upstream.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Waiter().run, blob)
        await bench.reached()
        nursery.cancel_scope.cancel()
    bench.store.close(blob)
    await _until(lambda: descriptors() == before)
    assert bench.upstream.cancelled == 1
    assert not bench.path.exists()


# --- a failing disk is no error of a reader


class WritesInThreads(ScriptedStore):
    """As all do that bring content from afar."""

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        await self._begin("pull")
        content = self.blobs[digest]
        await trio.to_thread.run_sync(sink.restart)
        for at in range(0, len(content), MIB):
            if self.flow is not None:
                await self._wait(self.flow)
            await trio.to_thread.run_sync(sink.write, content[at : at + MIB])
        return BlobStat(size=len(content), source="scripted")


@pytest.fixture
def threaded(tmp_path: Path, caches: Caches, nursery: trio.Nursery) -> Bench:
    return bench_in(tmp_path, caches, nursery, upstream=WritesInThreads(CONTENT))


def become(descriptor: int, device: str) -> None:
    other = os.open(device, os.O_RDWR)
    os.dup2(other, descriptor)
    os.close(other)


@pytest.mark.parametrize("device", ["/dev/full", "/proc/self/mem"])
async def test_a_disk_that_fails_during_a_pull(
    threaded: Bench, expect_log: Callable[[str], None], device: str
) -> None:
    """ENOSPC, and EIO."""
    expect_log("WARNING cafsfs.store.cache.trouble: the cache (has no room|is bypassed)")
    threaded.upstream.flow = trio.Semaphore(0)
    blob = threaded.store.open(DIGEST)
    await threaded.reached()
    (held,) = threaded.cache._held
    become(held.descriptor, device)
    for _ in range(3):
        threaded.upstream.flow.release()
    assert await blob.read(0, 1 << 30, patience=FOREVER) == CONTENT
    threaded.store.close(blob)
    assert not threaded.path.exists()
    assert threaded.metrics.uncached == 1
    assert (threaded.metrics.pulls, threaded.metrics.pull_errors) == (1, 0)


async def test_a_disk_that_loses_what_was_written_costs_another_pull(
    threaded: Bench, expect_log: Callable[[str], None]
) -> None:
    """What came before the error cannot be read back: from the beginning, past the cache."""
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s: Input/output")
    threaded.upstream.flow = trio.Semaphore(1)
    blob = threaded.store.open(DIGEST)
    await threaded.reached()
    (held,) = threaded.cache._held
    await _until(lambda: held.written == MIB)
    become(held.descriptor, "/proc/self/mem")
    for _ in range(5):
        threaded.upstream.flow.release()
    assert await blob.read(0, 1 << 30, patience=FOREVER) == CONTENT
    threaded.store.close(blob)
    assert threaded.upstream.calls == ["pull", "pull"]


@pytest.mark.process
async def test_a_disk_smaller_than_what_is_read_serves_everything(
    tmp_path: Path,
    caches: Caches,
    nursery: trio.Nursery,
    expect_log: Callable[[str], None],
) -> None:
    """Bounds that the disk does not have: evict, try again, else go on past the cache."""
    may_log(expect_log, "the cache has no room")
    contents = [content_of(700_000 + each, each) for each in range(1, 13)]
    with small_tmpfs(tmp_path / "small", 4 * MIB) as disk:
        bench = bench_in(disk, caches, nursery, upstream=WritesInThreads(*contents))

        async def read_some(start: int) -> None:
            for each in range(start, start + 24, 5):
                content = contents[each % len(contents)]
                assert await read(bench, hash_bytes(content)) == content
                with suppress(StoreError):  # as it is done every two seconds
                    await bench.cache.keeper.flush()

        with trio.fail_after(60):
            async with trio.open_nursery() as readers:
                for start in range(6):
                    readers.start_soon(read_some, start)
        assert bench.metrics.pull_errors == 0
        assert bench.partials() == []
        assert bench.metrics.evictions + bench.metrics.uncached > 0
        caches.close()


async def test_an_unmount_while_another_process_pulls(bench: Bench, nursery: trio.Nursery) -> None:
    other = await both(bench, nursery)
    bench.upstream.flow = trio.Semaphore(1)
    blob = bench.store.open(DIGEST)
    await bench.reached()
    follower = other.store.open(DIGEST)
    await _until(lambda: bench.cache.is_wanted(DIGEST))
    other.store.fail_all(Unavailable("unmounted"))
    with pytest.raises(Unavailable, match="unmounted"):
        await follower.read(0, 10, patience=FOREVER)
    other.store.close(follower)
    await _until(lambda: not bench.cache.is_wanted(DIGEST))
    bench.store.close(blob)


# --- lengths


async def test_a_length_that_only_a_pull_tells_is_remembered_for_good(
    bench: Bench, nursery: trio.Nursery
) -> None:
    bench.upstream.told[DIGEST] = None
    assert (await bench.store.stat(DIGEST)).size == len(CONTENT)
    await bench.cache.keeper.flush()
    await bench.cache.remove([DIGEST])
    await bench.cache.keeper.flush()
    bench.caches.crash(bench.cache)
    later = await both(bench, nursery)
    assert (await later.store.stat(DIGEST)).size == len(CONTENT)
    # A server that lies about lengths is not to be asked for them; but is the blob still there?
    assert bench.upstream.calls == ["stat", "pull", "find_missing"]


async def test_a_length_that_a_server_has_told_is_not_asked_for_again(
    bench: Bench, nursery: trio.Nursery
) -> None:
    await bench.store.stat(DIGEST)
    await bench.cache.keeper.flush()
    bench.caches.crash(bench.cache)
    later = await both(bench, nursery)
    assert (await later.store.stat(DIGEST)).size == len(CONTENT)
    assert bench.upstream.calls == ["stat", "find_missing"]
    del bench.upstream.blobs[DIGEST]
    bench.caches.crash(later.cache)
    gone = await both(bench, nursery)
    with pytest.raises(BlobNotFound):
        await gone.store.stat(DIGEST)


@pytest.mark.parametrize("found_out", ["by its length", "by its hash"])
async def test_a_length_that_proves_wrong_is_forgotten(
    bench: Bench, nursery: trio.Nursery, found_out: str
) -> None:
    bench.upstream.told[DIGEST] = len(CONTENT) - 1
    await bench.store.stat(DIGEST)
    if found_out == "by its hash":
        bench.upstream.errors = [CorruptBlob("the wrong hash")]
    with pytest.raises(CorruptBlob):
        await read(bench)
    await bench.cache.remove([DIGEST])
    await bench.cache.keeper.flush()
    bench.caches.crash(bench.cache)
    bench.upstream.told.clear()
    later = await both(bench, nursery)
    assert (await later.store.stat(DIGEST)).size == len(CONTENT)
