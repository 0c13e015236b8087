"""Beside the reads: bounds that are held, an index that is true, trust that is on the disk.

Where a test calls ``round`` or ``adopt`` itself, nothing else happens in the background.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import premises as premises_module
from cafsfs.store.cache import upkeep as upkeep_module
from cafsfs.store.cache.blob_files import PINNED
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.curation import pin
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.durability import syncfs
from cafsfs.store.cache.index import Changes, Entry, Index
from cafsfs.store.cache.partials import Partial
from cafsfs.store.cache.upkeep import Evicted, Upkeep, open_disk_cache
from tests.store.held_up import held_up
from tests.store.samples import ABSENT, MIB, content_of, put
from tests.store.stacks import Caches, upkeep_of
from tests.store.tmpfs import small_tmpfs

DAY = 86_400.0
PLENTY = Amount(1 << 30)


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def cache(caches: Caches, tmp_path: Path) -> DiskCache:
    return caches.open(tmp_path)


async def filled(cache: DiskCache, count: int, size: int = 10) -> list[Digest]:
    """Blobs in the order of their use."""
    digests = [await put(cache, content_of(size, each)) for each in range(1, count + 1)]
    await upkeep_of(cache).flush()
    now = time.time()
    await grow_old(cache, {each: now - count + rank for rank, each in enumerate(digests)})
    return digests


async def grow_old(
    cache: DiskCache, used: dict[Digest, float], *, pulled: float | None = None
) -> None:
    """As if that was when they were used last."""
    index = cache.ledger.index
    await upkeep_of(cache).flush()
    entries = {}
    for digest, when in used.items():
        entry = index.get(digest)
        assert entry is not None
        entries[digest] = replace(entry, used=when, pulled=when if pulled is None else pulled)
    index.apply(Changes(removed=set(entries)))
    index.apply(Changes(entries=entries))


async def names(cache: DiskCache) -> list[Digest]:
    return [each.digest for each in await cache.listing()]


async def assert_books_agree(cache: DiskCache) -> None:
    found = (each for each in cache.premises.blobs.rglob("*") if each.is_file())
    standing = {each.name: each.stat().st_size for each in found}
    assert {each.digest.hex: each.size for each in await cache.listing()} == standing
    assert (cache.ledger.used, cache.ledger.blobs) == (sum(standing.values()), len(standing))


# --- the index


async def test_a_flush_is_one_batch_and_learns_what_others_did(
    cache: DiskCache, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = caches.open(tmp_path)
    await filled(cache, 3)
    await put(other, content_of(10, 9))
    batches: list[int] = []
    apply = Index.apply

    def counted(index: Index, changes: Changes) -> None:
        batches.append(len(changes))
        apply(index, changes)

    monkeypatch.setattr(Index, "apply", counted)
    for _ in range(2):
        await upkeep_of(other).flush()
    assert batches == [1]  # nothing to write is not written
    assert (other.usage.used, other.usage.blobs) == (40, 4)
    assert cache.usage.used == 30
    await upkeep_of(cache).flush()
    assert (cache.usage.used, cache.usage.blobs) == (40, 4)


async def test_what_cannot_be_written_is_written_the_next_time(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the index is locked")

    digest = await put(cache, b"content")
    with monkeypatch.context() as patch:
        patch.setattr(Index, "apply", fail)
        with pytest.raises(StoreError, match="is locked"):
            await upkeep_of(cache).flush()
    assert cache.usage.used == 7
    await upkeep_of(cache).flush()
    assert cache.ledger.index.get(digest) is not None
    await assert_books_agree(cache)


async def test_what_another_process_has_brought_again_is_not_struck(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    """Between our removing it and our telling so: else nobody would count it, or evict it."""
    other = caches.open(tmp_path)
    (digest,) = await filled(cache, 1)
    await cache.remove([digest])
    await put(other, content_of(10, 1))
    await upkeep_of(other).flush()
    for each in (cache, other):
        await upkeep_of(each).flush()
        await assert_books_agree(each)
    assert await names(other) == [digest]


async def test_two_flushes_at_once_are_one_after_the_other(cache: DiskCache) -> None:
    await put(cache, b"content")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(upkeep_of(cache).flush)
    assert (cache.usage.used, cache.usage.blobs) == (7, 1)


async def test_a_flush_that_is_cancelled_loses_nothing(cache: DiskCache) -> None:
    await put(cache, b"content")
    with trio.CancelScope() as scope:
        scope.cancel()
        await upkeep_of(cache).flush()
    assert cache.usage.used == 7
    await assert_books_agree(cache)


# --- eviction


async def test_down_to_the_low_watermark_least_recently_used_first(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path, 1000)
    digests = await filled(cache, 101)
    evicted = await upkeep_of(cache).round()
    assert (evicted.blobs, evicted.bytes) == (6, 60)
    assert set(await names(cache)) == set(digests[6:])
    assert cache.usage.used == 950
    assert (await upkeep_of(cache).round()).blobs == 0
    assert (cache.metrics.evictions, cache.metrics.evicted_bytes) == (6, 60)
    await assert_books_agree(cache)


async def test_use_in_another_process_counts(
    caches: Caches, tmp_path: Path, cache: DiskCache
) -> None:
    other = caches.open(tmp_path, 29)
    first, second, third = await filled(cache, 3)
    (await cache.open(first)).close()
    await upkeep_of(cache).flush()
    await upkeep_of(other).round()
    assert set(await names(cache)) == {first, third}
    with pytest.raises(BlobNotFound):
        await cache.open(second)


async def test_the_number_of_files_is_bounded(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, files=20))
    digests = await filled(cache, 21)
    await upkeep_of(cache).round()
    assert set(await names(cache)) == set(digests[2:])


async def test_what_is_pinned_is_never_evicted(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, 100)
    digests = await filled(cache, 10)
    assert await pin(cache, digests[:3]) == set()
    await filled(caches.open(tmp_path), 15)
    await upkeep_of(cache).round()
    left = set(await names(cache))
    assert set(digests[:3]) <= left
    assert len(left) == 9


async def test_a_pin_is_seen_in_the_mode_if_the_index_has_lost_it(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path, 35)
    digests = await filled(cache, 4)
    await pin(cache, digests[:1])
    cache.ledger.index.unpin(digests[:1])
    await upkeep_of(cache).round()
    assert set(await names(cache)) == {digests[0], *digests[2:]}


async def test_all_pinned_is_not_an_endless_loop(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, 40)
    digests = await filled(cache, 4)
    await pin(cache, digests)
    cache.bounds = Bounds(size=Amount(10))
    assert (await upkeep_of(cache).round()).blobs == 0
    cache.ledger.index.unpin(digests)  # the marks are there
    assert (await upkeep_of(cache).round()).blobs == 0
    assert len(await names(cache)) == 4


async def test_what_is_open_here_is_passed_over_and_evicted_when_it_is_closed(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path, 30)
    digests = await filled(cache, 3)
    files = [await cache.open(each) for each in digests[:2]]
    await grow_old(cache, {digests[0]: 1.0, digests[1]: 2.0})
    await put(cache, content_of(10, 9))
    await upkeep_of(cache).round()
    assert set(await names(cache)) == set(digests[:2])
    cache.bounds = Bounds(size=Amount(5))
    await upkeep_of(cache).round()
    assert set(await names(cache)) == set(digests[:2])
    cache.wake = trio.Event()
    files[0].close()
    assert cache.wake.is_set()
    await upkeep_of(cache).round()
    assert await names(cache) == [digests[1]]
    assert await files[1].read(0, 10) == content_of(10, 2)
    files[1].close()
    await upkeep_of(cache).round()
    assert await names(cache) == []


async def test_more_are_open_than_fit_into_a_batch(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "_BATCH", 3)
    cache = caches.open(tmp_path, 10)
    digests = await filled(cache, 12)
    files = [await cache.open(each) for each in digests[:7]]
    await grow_old(cache, {each: float(rank + 1) for rank, each in enumerate(digests)})
    await upkeep_of(cache).round()
    assert set(await names(cache)) == set(digests[:7])
    for file in files:
        file.close()


@pytest.mark.process
async def test_what_comes_while_others_are_evicted_does_not_go_for_it(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=Amount(40)))
    old, *others = await filled(cache, 4)
    partial = await cache.claim(hash_bytes(content_of(10, 9)))
    assert isinstance(partial, Partial)
    partial.write(content_of(10, 9))  # counted from now on, as content in flight
    evict = Upkeep._evict_these

    async def committed_meanwhile(upkeep: Upkeep, chosen: list[Digest], evicted: Evicted) -> int:
        kept = await evict(upkeep, chosen, evicted)
        if partial.descriptor >= 0:
            (await cache.commit(partial)).close()
        return kept

    monkeypatch.setattr(Upkeep, "_evict_these", committed_meanwhile)
    evicted = await upkeep_of(cache).evict()
    assert (evicted.blobs, evicted.bytes) == (2, 20)  # down to the low watermark, and no further
    assert await names(cache) == sorted([*others[1:], partial.digest])
    assert not cache.path(old).exists()


async def test_room_is_left_on_the_disk_for_others(caches: Caches, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", 4 * MIB) as disk:
        cache = caches.open(disk, bounds=Bounds(size=PLENTY, free=Amount(share=0.25)))
        digests = await filled(cache, 20, 100_000)
        assert (await upkeep_of(cache).round()).blobs == 0
        (disk / "of somebody else").write_bytes(bytes(MIB))
        await upkeep_of(cache).round()
        total, free = cache.premises.measure()
        assert free >= total * 0.25
        left = set(await names(cache))
        assert left == set(digests[-len(left) :])
        assert 0 < len(left) < 20
        caches.close()


# --- age


async def test_what_was_pulled_too_long_ago_goes(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, ttl=30 * DAY))
    old, young, pinned = await filled(cache, 3)
    now = time.time()
    await grow_old(cache, {old: now, pinned: now}, pulled=now - 31 * DAY)
    await pin(cache, [pinned])
    assert (await upkeep_of(cache).round()).blobs == 1
    assert set(await names(cache)) == {young, pinned}


async def test_what_was_not_used_for_long_goes(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, tti=7 * DAY))
    old, young, revived = await filled(cache, 3)
    now = time.time()
    await grow_old(cache, {old: now - 8 * DAY, young: now - 6 * DAY, revived: now - 9 * DAY})
    (await cache.open(revived)).close()
    assert (await upkeep_of(cache).round()).blobs == 1
    assert set(await names(cache)) == {young, revived}


async def test_what_is_open_is_not_idle(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, tti=7 * DAY))
    read, idle = await filled(cache, 2)
    file = await cache.open(read)
    await grow_old(cache, {read: 1.0, idle: 1.0})
    assert (await upkeep_of(cache).round()).blobs == 1
    assert await names(cache) == [read]
    file.close()


async def test_age_is_looked_at_every_minute(
    caches: Caches, tmp_path: Path, mock_clock: MockClock
) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, tti=7 * DAY))
    await upkeep_of(cache).round()
    (digest,) = await filled(cache, 1)
    await grow_old(cache, {digest: 1.0})
    mock_clock.jump(59)
    assert (await upkeep_of(cache).round()).blobs == 0
    mock_clock.jump(1)
    assert (await upkeep_of(cache).round()).blobs == 1


async def test_more_that_is_too_old_than_fits_into_a_batch(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "_BATCH", 3)
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, tti=7 * DAY))
    digests = await filled(cache, 10)
    await pin(cache, digests[:4])
    await grow_old(cache, dict.fromkeys(digests, 1.0))
    await upkeep_of(cache).round()
    assert set(await names(cache)) == set(digests[:4])


async def test_a_clock_that_was_in_the_future_pins_nothing(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a correction, what was used then would go last for years."""
    monkeypatch.setattr(upkeep_module, "_BELIEVED", 0.0)  # as after an hour of a steady clock
    cache = caches.open(tmp_path, 25)
    future, present = await filled(cache, 2)
    await grow_old(cache, {future: time.time() + 1000 * DAY})
    await upkeep_of(cache).round()
    entry = await cache.describe(future)
    assert entry is not None
    assert max(entry.used, entry.pulled) <= time.time()
    (await cache.open(present)).close()
    third = await put(cache, content_of(10, 9))
    await upkeep_of(cache).round()
    assert set(await names(cache)) == {present, third}


async def test_a_clock_that_goes_back_ages_nothing(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, ttl=DAY, tti=DAY))
    digests = await filled(cache, 2)
    await grow_old(cache, dict.fromkeys(digests, time.time() + 5))
    assert (await upkeep_of(cache).round()).blobs == 0


async def test_a_cache_that_can_keep_nothing_says_why(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING .*the cache keeps nothing: .* less free than --cache-free wants")
    cache = caches.open(tmp_path, bounds=Bounds(size=PLENTY, free=Amount(share=1.0)))
    await filled(cache, 2)
    await upkeep_of(cache).round()
    assert await names(cache) == []


async def test_a_cache_that_is_only_small_says_nothing(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, bounds=Bounds(size=Amount(1), free=Amount(1)))
    await filled(cache, 2)
    await upkeep_of(cache).round()
    assert await names(cache) == []


# --- what a full disk asks for


async def test_room_is_made_by_evicting_what_is_oldest(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path)
    digests = await filled(cache, 40)
    assert await upkeep_of(cache).make_room(15)
    assert set(await names(cache)) == set(digests[2:])
    assert await upkeep_of(cache).make_room(0)  # five percent at least
    assert len(await names(cache)) == 36
    assert await upkeep_of(cache).make_room(1 << 40)
    assert not await upkeep_of(cache).make_room(1)
    assert await names(cache) == []


async def test_who_waited_while_room_was_made_does_not_evict_more(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path)
    await filled(cache, 40)
    outcomes: list[bool] = []

    async def ask() -> None:
        outcomes.append(await upkeep_of(cache).make_room(10))

    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await held.reached()
            held.go_on()
    assert outcomes == [True] * 5
    assert len(await names(cache)) == 38


async def test_room_is_made_though_the_index_cannot_be_written(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the same disk."""

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    cache = caches.open(tmp_path)
    await filled(cache, 40)
    with monkeypatch.context() as patch:
        patch.setattr(Index, "apply", fail)
        assert await upkeep_of(cache).make_room(15)
        with pytest.raises(StoreError):
            await cache.keeper.flush()
    await upkeep_of(cache).flush()
    assert len(await names(cache)) < 40
    await assert_books_agree(cache)


# --- the walk over the files


async def lose_index(caches: Caches, cache: DiskCache, how: str) -> DiskCache:
    directory = cache.premises.directory
    caches.crash(cache)
    for each in directory.glob("index.sqlite*"):
        each.unlink()
    if how == "garbage":
        (directory / "index.sqlite").write_bytes(b"garbage" * 1000)
    return caches.open(directory)


@pytest.mark.parametrize("how", ["lost", "garbage"])
async def test_an_index_is_made_again_from_the_files(
    caches: Caches, cache: DiskCache, how: str, expect_log: Callable[[str], None]
) -> None:
    if how == "garbage":
        expect_log("WARNING cafsfs.store.cache.database: .* is unusable .*: rebuilding it")
    digests = await filled(cache, 5)
    await pin(cache, digests[:2])
    again = await lose_index(caches, cache, how)
    assert (again.usage.used, again.usage.complete) == (0, False)
    await upkeep_of(again).adopt()
    assert again.ledger.complete
    assert again.ledger.index.pins() == sorted(digests[:2])
    await assert_books_agree(again)
    assert [each.verified for each in await again.listing()] == [False] * 5
    for number, digest in enumerate(digests, 1):
        file = await again.open(digest)
        assert await file.read(0, 10) == content_of(10, number)
        file.close()
    assert [each.verified for each in await again.listing()] == [True] * 5
    await assert_books_agree(again)


async def test_what_is_adopted_goes_by_the_times_of_its_file(
    caches: Caches, cache: DiskCache
) -> None:
    digests = await filled(cache, 3)
    for digest, age in zip(digests, (2, 3, 1), strict=True):
        os.utime(cache.path(digest), (time.time() - age * DAY,) * 2)
    again = await lose_index(caches, cache, "lost")
    await upkeep_of(again).adopt()
    again.bounds = Bounds(size=Amount(25))
    await upkeep_of(again).round()
    assert set(await names(again)) == {digests[0], digests[2]}


async def test_a_walk_passes_over_what_is_no_blob(caches: Caches, cache: DiskCache) -> None:
    (digest,) = await filled(cache, 1)
    blobs = cache.premises.blobs
    (blobs / "README").touch()
    (blobs / "zz").mkdir()
    (blobs / "ab").mkdir(exist_ok=True)
    (blobs / "ab" / "file").touch()
    (blobs / "ab" / "00").touch()
    cache.path(digest).with_name("other").touch()
    cache.path(ABSENT).mkdir(parents=True)
    link = cache.path(hash_bytes(b"link"))
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/passwd")
    again = await lose_index(caches, cache, "lost")
    await upkeep_of(again).adopt()
    assert await names(again) == [digest]


async def test_rows_without_files_go_and_files_without_rows_come(cache: DiskCache) -> None:
    first, second, third = await filled(cache, 3)
    cache.path(first).unlink()
    cache.ledger.index.apply(Changes(removed={second}))
    await upkeep_of(cache).adopt()
    assert set(await names(cache)) == {second, third}
    await assert_books_agree(cache)


async def test_a_row_of_another_size_is_put_right(cache: DiskCache) -> None:
    """And is verified when it is opened."""
    (digest,) = await filled(cache, 1)
    os.truncate(cache.path(digest), 4)
    await upkeep_of(cache).adopt()
    await assert_books_agree(cache)
    (listed,) = await cache.listing()
    assert (listed.size, listed.verified) == (4, False)


async def test_a_walk_takes_nothing_from_what_is_known_better(
    caches: Caches, cache: DiskCache, tmp_path: Path
) -> None:
    """Of entries that wait to be written, here or in another process."""
    digests = [await put(cache, content_of(10, each)) for each in (1, 2)]
    other = caches.open(tmp_path)
    await upkeep_of(other).adopt()
    assert [each.verified for each in await other.listing()] == [False, False]
    await upkeep_of(cache).adopt()
    assert [each.verified for each in await cache.listing()] == [True, True]
    await assert_books_agree(other)
    assert set(await names(other)) == set(digests)


async def test_what_happens_during_a_walk_is_counted_once(
    caches: Caches, cache: DiskCache, tmp_path: Path
) -> None:
    digests = await filled(cache, 30)
    again = await lose_index(caches, cache, "lost")

    async def read_all() -> None:
        for digest in digests:
            (await again.open(digest)).close()

    async def put_some() -> None:
        for each in range(20, 41):
            await put(again, content_of(10, each))
            await upkeep_of(again).flush()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upkeep_of(again).adopt)
        nursery.start_soon(read_all)
        nursery.start_soon(put_some)
    await upkeep_of(again).flush()
    assert (again.usage.used, again.usage.blobs) == (400, 40)
    await assert_books_agree(again)


async def test_a_cache_that_was_cleared_by_hand_is_walked_over(cache: DiskCache) -> None:
    await filled(cache, 2)
    for each in sorted(cache.premises.blobs.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()
    cache.premises.blobs.rmdir()
    await upkeep_of(cache).adopt()
    assert (cache.usage.used, cache.usage.complete) == (0, True)
    await upkeep_of(cache).adopt()


# --- trust


async def test_a_sync_marks_what_it_covers(cache: DiskCache) -> None:
    (digest,) = await filled(cache, 1)
    late = await put(cache, b"not in the index yet")
    await upkeep_of(cache).sync()
    found = [cache.ledger.index.get(each) for each in (digest, late)]
    assert [None if each is None else each.durable for each in found] == [True, None]


async def test_a_sync_covers_nothing_that_came_meanwhile(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = await filled(cache, 1)

    def slow(descriptor: int) -> None:
        syncfs(descriptor)
        trio.from_thread.run(put, cache, b"meanwhile")
        trio.from_thread.run(upkeep_of(cache).flush)

    monkeypatch.setattr(upkeep_module, "syncfs", slow)
    await upkeep_of(cache).sync()
    found = [cache.ledger.index.get(each) for each in (before, hash_bytes(b"meanwhile"))]
    assert [each.durable for each in found if each is not None] == [True, False]


async def test_a_sync_that_fails_marks_nothing(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    """What could not be written back is not on the disk: EIO of syncfs(2), since Linux 5.8."""
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s: Input/output")
    expect_log("WARNING .*: the cache could not be written to its disk: Input/output error")

    def fail(_: int) -> None:
        raise OSError(5, os.strerror(5))

    (digest,) = await filled(cache, 1)
    monkeypatch.setattr(upkeep_module, "syncfs", fail)
    await upkeep_of(cache).sync()
    entry = cache.ledger.index.get(digest)
    assert entry is not None
    assert not entry.durable


async def test_what_was_verified_on_another_boot_is_not_marked(cache: DiskCache) -> None:
    (digest,) = await filled(cache, 1)
    entry = cache.ledger.index.get(digest)
    assert entry is not None
    cache.ledger.index.apply(Changes({digest: replace(entry, boot="another")}))
    await upkeep_of(cache).sync()
    entry = cache.ledger.index.get(digest)
    assert entry is not None
    assert not entry.durable


# --- as a process has it


@pytest.fixture
async def running(tmp_path: Path, jumping_clock: MockClock) -> AsyncIterator[DiskCache]:
    async with open_disk_cache(tmp_path, bounds=Bounds(size=Amount(100))) as cache:
        yield cache


async def test_bounds_are_held_in_the_background(running: DiskCache) -> None:
    digests = [await put(running, content_of(10, each)) for each in range(1, 14)]
    with trio.fail_after(10):
        while running.usage.used > 100:  # noqa: ASYNC110  # it is the upkeep that changes it
            await trio.sleep(0.1)
    assert digests[-1] in await names(running)


async def test_what_was_learnt_is_in_the_index_at_the_end(tmp_path: Path) -> None:
    async with open_disk_cache(tmp_path) as cache:
        digest = await put(cache, b"content")
        assert len(list((tmp_path / "sessions").iterdir())) == 1
    assert list((tmp_path / "sessions").iterdir()) == []
    index = Index.open(tmp_path / "index.sqlite")
    entry = index.get(digest)
    assert entry is not None
    assert entry.durable
    index.close()


async def test_who_is_cancelled_writes_what_he_knows(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_disk_cache(tmp_path) as cache:
            digest = await put(cache, b"content")
            scope.cancel()
            await trio.sleep_forever()
    async with open_disk_cache(tmp_path) as cache:
        assert [(each.digest, each.verified) for each in await cache.listing()] == [(digest, True)]


async def test_a_body_that_fails_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_disk_cache(tmp_path):
            raise ZeroDivisionError
    assert caught.group_contains(ZeroDivisionError)
    assert list((tmp_path / "sessions").iterdir()) == []


async def test_after_a_kill_the_files_are_walked_over(
    caches: Caches, tmp_path: Path, jumping_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "_SHARE", 1.0)  # sleeps take their time with this clock
    dead = caches.open(tmp_path)
    await upkeep_of(dead).adopt()
    digests = [await put(dead, content_of(10, each)) for each in (1, 2)]
    caches.crash(dead)
    assert len(list((tmp_path / "sessions").iterdir())) == 1
    async with open_disk_cache(tmp_path) as cache:
        with trio.fail_after(50):
            while len(os.listdir(tmp_path / "sessions")) > 1:  # noqa: ASYNC110  # the upkeep's work
                await trio.sleep(0.5)
        assert cache.usage.blobs == 2
        assert set(await names(cache)) == set(digests)
    assert list((tmp_path / "sessions").iterdir()) == []


async def test_whatever_fails_is_tried_again(
    tmp_path: Path,
    jumping_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("ERROR cafsfs.store.cache.upkeep: the upkeep of the cache failed")
    expect_log("WARNING cafsfs.store.cache.upkeep: the index is locked")
    errors: list[Exception] = [ZeroDivisionError("a bug"), StoreError("the index is locked")]
    round_ = Upkeep.round

    async def fail(upkeep: Upkeep) -> Evicted:
        if errors:
            raise errors.pop()
        return await round_(upkeep)

    monkeypatch.setattr(Upkeep, "round", fail)
    async with open_disk_cache(tmp_path, bounds=Bounds(size=Amount(10))) as cache:
        for each in range(1, 4):
            await put(cache, content_of(10, each))
        with trio.fail_after(30):
            while cache.usage.used > 10:  # noqa: ASYNC110  # it is the upkeep that changes it
                await trio.sleep(0.5)
    assert errors == []


@pytest.mark.parametrize("why", ["a remote filesystem", "a directory in its place"])
async def test_where_the_index_cannot_be_it_is_kept_in_memory(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    if why == "a remote filesystem":
        monkeypatch.setattr(premises_module, "find_fstype", lambda _: "nfs4")
        expect_log("WARNING cafsfs.store.cache.upkeep: the cache .* is on nfs4, where its index")
    else:
        (tmp_path / "index.sqlite").mkdir()
        expect_log("WARNING cafsfs.store.cache.upkeep: the index of the cache is kept in memory on")
    for _ in range(2):
        async with open_disk_cache(tmp_path) as cache:
            await upkeep_of(cache).adopt()
            digest = await put(cache, b"content")
            assert await names(cache) == [digest]
            await assert_books_agree(cache)


async def test_a_new_cache_is_complete_soon(running: DiskCache) -> None:
    with trio.fail_after(10):
        while not running.usage.complete:  # noqa: ASYNC110  # it is the upkeep that changes it
            await trio.sleep(0.1)


async def test_debris_is_cleared_and_what_is_held_is_not(cache: DiskCache) -> None:
    partial = await cache.claim(ABSENT)
    assert isinstance(partial, Partial)
    partial.write(b"half of it")
    (cache.premises.partials / hash_bytes(b"debris").hex).write_bytes(b"debris")
    await upkeep_of(cache).round()
    assert os.listdir(cache.premises.partials) == [ABSENT.hex]
    assert cache.usage.partial == 10
    await cache.discard(partial)


async def test_what_others_have_in_flight_counts(
    caches: Caches, tmp_path: Path, cache: DiskCache
) -> None:
    other = caches.open(tmp_path, 35)
    digests = await filled(other, 3)
    partial = await cache.claim(ABSENT)
    assert isinstance(partial, Partial)
    partial.write(b"half of it")
    await upkeep_of(other).round()
    assert set(await names(other)) == set(digests[1:])
    await cache.discard(partial)
    await upkeep_of(other).round()
    assert other.usage.partial == 0


async def test_prefetching_leaves_eviction_to_a_mount(caches: Caches, tmp_path: Path) -> None:
    mount = caches.open(tmp_path, 1000)
    prefetch = caches.open(tmp_path, 20, background=True)
    await filled(prefetch, 5)
    assert (await upkeep_of(prefetch).round()).blobs == 0
    await caches.leave(mount)
    assert (await upkeep_of(prefetch).round()).blobs == 4


def test_a_pinned_file_is_told_by_its_mode() -> None:
    assert PINNED == 0o400
    assert Entry(digest=ABSENT, size=0, pulled=0.0, used=0.0).verified == 0.0
