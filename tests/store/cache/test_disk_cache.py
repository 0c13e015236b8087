"""The cache on disk: its files, what it trusts, its books, and what others do to it meanwhile.

Two caches on one directory play two processes; what an ``Upkeep`` does is done when a test says.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.metrics import Metrics
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import disk_cache
from cafsfs.store.cache.bounds import Bounds, CacheUsage
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Index
from cafsfs.store.cache.partials import Partial, Shelter
from cafsfs.store.cache.progress import Progress
from cafsfs.store.contracts import BlobStat
from cafsfs.store.local_root import blob_path
from cafsfs.store.memory import MemorySink, MemorySource
from tests.store.cache.books import assert_books_agree, contents_of, files, in_flight, use
from tests.store.held_up import held_up
from tests.store.samples import ABSENT, MIB, content_of, may_log, pull, put
from tests.store.stacks import Caches, spoil_silently, upkeep_of
from tests.store.tmpfs import small_tmpfs

BOUND = 39  # bytes: three blobs of ten; a fourth evicts one


async def names(cache: DiskCache) -> list[Digest]:
    return [each.digest for each in await cache.listing()]


async def claim(cache: DiskCache, content: bytes, digest: Digest | None = None) -> Partial:
    """A partial file with all of its content."""
    partial = await cache.claim(digest or hash_bytes(content))
    assert isinstance(partial, Partial)
    await trio.to_thread.run_sync(partial.write, content)
    return partial


async def commit(cache: DiskCache, partial: Partial) -> None:
    (await cache.commit(partial)).close()


async def evict(cache: DiskCache) -> None:
    await upkeep_of(cache).round()


# --- the directory


def test_it_is_private(caches: Caches, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        trio.run(put, caches.open(tmp_path / "cache"), b"content")
    finally:
        os.umask(before)
    for each in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert each.stat().st_mode & 0o777 == (0o700 if each.is_dir() else 0o600), each


def test_where_no_cache_can_be(caches: Caches, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="as a cache") as caught:
            caches.open(path)
        assert caught.value.hint == "name another directory with --cache-dir"


# --- content in


async def test_a_commit_is_a_rename(cache: DiskCache, tmp_path: Path) -> None:
    content = content_of(100_000)
    digest = hash_bytes(content)
    partial = await claim(cache, content)
    assert in_flight(cache) == [digest.hex]
    assert partial.written == 100_000
    assert files(tmp_path) == {}
    inode = (tmp_path / "partial" / digest.hex).stat().st_ino
    file = await cache.commit(partial)
    assert cache.path(digest).stat().st_ino == inode
    assert bytes(await file.read(0, 100_000)) == content
    await cache.discard(partial)  # does nothing: it was committed
    file.close()
    await assert_books_agree(cache)


async def test_an_empty_blob_of_which_no_byte_came(cache: DiskCache, tmp_path: Path) -> None:
    file = await cache.commit(await claim(cache, b""))
    assert (file.size, await file.read(0, 100)) == (0, b"")
    file.close()
    assert files(tmp_path) == {hash_bytes(b"").hex: 0}
    assert await contents_of(cache, hash_bytes(b"")) == b""


async def test_what_is_discarded_leaves_nothing(cache: DiskCache) -> None:
    partial = await claim(cache, b"half of it", ABSENT)
    assert cache.usage.partial == 10
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.discard(partial)
    await assert_books_agree(cache)


async def test_what_comes_counts_with_the_length_that_is_expected(cache: DiskCache) -> None:
    partial = await cache.claim(ABSENT, expected=5000)
    assert isinstance(partial, Partial)
    assert (cache.usage.used, cache.usage.partial) == (5000, 5000)
    await cache.discard(partial)
    assert cache.usage.used == 0


async def test_a_commit_that_fails_is_served_without_a_name(
    cache: DiskCache, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: not cached, because of what somebody else has")
    digest = await put(cache, b"content")
    parent = cache.path(digest).parent
    cache.path(digest).unlink()
    parent.rmdir()
    parent.touch()
    partial = await claim(cache, b"content")
    file = await cache.commit(partial)
    assert await file.read(0, 100) == b"content"
    file.close()
    assert in_flight(cache) == []
    assert cache.metrics.uncached == 1


async def test_what_is_remembered_of_a_pull(cache: DiskCache) -> None:
    stat = BlobStat(size=7, packed_size=23, source="there:2403")
    (await cache.commit(await claim(cache, b"content"), stat)).close()
    entry = await cache.describe(hash_bytes(b"content"))
    assert entry is not None
    assert (entry.size, entry.packed_size, entry.source) == (7, 23, "there:2403")
    assert abs(entry.pulled - time.time()) < 60
    await upkeep_of(cache).flush()
    assert await cache.describe(hash_bytes(b"content")) == entry


async def test_putting_twice_counts_once(cache: DiskCache) -> None:
    for _ in range(3):
        await put(cache, content_of(10))
    assert (cache.usage.used, cache.usage.blobs) == (10, 1)
    await assert_books_agree(cache)


async def test_what_another_process_has_put_is_not_put_again(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    digest = await put(cache, content_of(10))
    inode = cache.path(digest).stat().st_ino
    await put(caches.open(tmp_path), content_of(10))
    assert cache.path(digest).stat().st_ino == inode


# --- content out


async def test_a_read_of_what_was_truncated_is_an_error_not_short(cache: DiskCache) -> None:
    """Nor is what is left handed out: nobody vouches for it."""
    digest = await put(cache, content_of(100_000))
    file = await cache.open(digest)
    os.truncate(cache.path(digest), 50_000)
    for offset, length in ((49_000, 1000), (49_000, 1001), (50_000, 1), (0, 100_000), (99_999, 1)):
        with pytest.raises(CorruptBlob):
            await file.read(offset, length)
    file.close()


async def test_a_pull_verifies_once_more_and_says_when(cache: DiskCache) -> None:
    digest = await put(cache, content_of(MIB + 1))
    stat = await cache.pull(digest, MemorySink())
    assert stat.size == MIB + 1
    assert stat.verified_at is not None
    assert abs(stat.verified_at - time.time()) < 60


async def test_what_proved_corrupt_is_gone(cache: DiskCache, tmp_path: Path) -> None:
    """Rotten behind the back of all that tells a change."""
    digest = await put(cache, content_of(100))
    spoil_silently(tmp_path, digest)
    with pytest.raises(CorruptBlob):
        await cache.pull(digest, MemorySink())
    with pytest.raises(BlobNotFound):
        await cache.pull(digest, MemorySink())
    await assert_books_agree(cache)


# --- the bound


async def test_the_least_recently_used_goes_first(caches: Caches, tmp_path: Path) -> None:
    metrics = Metrics()
    cache = caches.open(tmp_path, BOUND, metrics=metrics)
    first, second, third = [await put(cache, content_of(10, each)) for each in (1, 2, 3)]
    await use(cache, first)
    await evict(cache)
    assert cache.usage == CacheUsage(used=30, bound=BOUND, blobs=3, complete=False)
    fourth = await put(cache, content_of(10, 4))
    assert cache.wake.is_set()
    await evict(cache)
    assert set(await names(cache)) == {first, third, fourth}
    fifth = await put(cache, content_of(15, 5))
    await evict(cache)
    assert set(await names(cache)) == {first, fourth, fifth}
    assert (metrics.evictions, metrics.evicted_bytes) == (2, 20)
    await assert_books_agree(cache)
    with pytest.raises(BlobNotFound):
        await cache.open(second)


@pytest.mark.parametrize("bound", [0, 99])
async def test_a_blob_larger_than_the_bound_is_kept_while_it_is_open(
    caches: Caches, tmp_path: Path, bound: int
) -> None:
    cache = caches.open(tmp_path, bound)
    file = await cache.commit(await claim(cache, content_of(100)))
    again = await cache.open(hash_bytes(content_of(100)))
    assert await file.read(0, 100) == content_of(100)
    file.close()
    await evict(cache)
    again.close()
    await evict(cache)
    assert files(tmp_path) == {}
    await assert_books_agree(cache)


async def test_a_blob_larger_than_the_bound_drives_nothing_out(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path, 99)
    small = await put(cache, content_of(10, 1))
    file = await cache.commit(await claim(cache, content_of(100)))
    await evict(cache)
    file.close()
    await evict(cache)
    assert await names(cache) == [small]
    await assert_books_agree(cache)


async def test_a_blob_larger_than_the_bound_is_used_and_drives_nothing_out(
    caches: Caches, tmp_path: Path
) -> None:
    cache = caches.open(tmp_path, 99)
    small = await put(cache, content_of(10, 1))
    await put(cache, content_of(100))
    await use(cache, hash_bytes(content_of(100)))
    await evict(cache)
    assert await names(cache) == [small]


async def test_an_evicted_file_that_is_open_stays_readable_and_counts(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    """By another process: it does not see what is open here."""
    digest = await put(cache, content_of(10, 1))
    await upkeep_of(cache).flush()
    files = [await cache.open(digest) for _ in range(2)]
    other = caches.open(tmp_path, 10)
    await put(other, content_of(10, 2))
    await evict(other)
    await cache.look_again(None)
    assert cache.known_size(digest) is None
    assert (cache.usage.lingering, cache.usage.used) == (10, 10 + cache.ledger.used)
    assert await files[0].read(0, 10) == content_of(10, 1)
    for file in files:
        file.close()
    assert cache.usage.lingering == 0


async def test_changes_are_told(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, 10)
    told: list[tuple[Digest, int | None]] = []
    cache.on_change = lambda digest: told.append((digest, cache.known_size(digest)))
    first, second = [await put(cache, content_of(size, size)) for size in (9, 2)]
    await evict(cache)
    cache.path(second).unlink()
    with pytest.raises(BlobNotFound):
        await cache.open(second)
    assert told == [(first, 9), (second, 2), (first, None), (second, None)]


async def test_what_cannot_be_removed_stays_in_the_books(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """And fails no read: a cache may fail."""
    expect_log("WARNING cafsfs.store.cache.blob_files: cannot remove .* from the cache: Is a dir")
    cache = caches.open(tmp_path, BOUND)
    first = await put(cache, content_of(10, 1))
    cache.path(first).unlink()
    cache.path(first).mkdir()
    others = [await put(cache, content_of(10, each)) for each in (2, 3, 4)]
    await evict(cache)
    assert set(await names(cache)) == {first, *others[1:]}  # the next one went in its place
    cache.path(first).rmdir()
    await upkeep_of(cache).adopt()
    await assert_books_agree(cache)


# --- races, with the cache's threads held up


async def test_opened_before_it_is_unlinked(cache: DiskCache) -> None:
    """It is readable, and not in the books: its name is on its way out."""
    first = await put(cache, content_of(10, 1))
    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.remove, [first])
            await held.reached()
            file = await cache.open(first)
            held.go_on()
    assert await file.read(0, 10) == content_of(10, 1)
    file.close()
    assert cache.known_size(first) is None
    await assert_books_agree(cache)


async def test_verified_while_it_is_evicted(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    """The same, where nobody had it in the books before."""
    digest = await put(cache, content_of(10, 1))
    caches.crash(cache)
    again = caches.open(tmp_path)
    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.remove, [digest])
            await held.reached()
            file = await again.open(digest)
            held.go_on()
    assert await file.read(0, 10) == content_of(10, 1)
    file.close()
    await assert_books_agree(again)


async def test_evicted_while_a_thread_opens_it(cache: DiskCache) -> None:
    """The same, where the name is gone when the thread comes back."""
    first = await put(cache, content_of(10, 1))
    opened: list[CachedFile] = []

    async def open_it() -> None:
        opened.append(await cache.open(first))

    with held_up("fstat") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await held.reached()
            await cache.remove([first])
            held.go_on()
    assert await opened[0].read(0, 10) == content_of(10, 1)
    opened[0].close()
    assert cache.known_size(first) is None
    await assert_books_agree(cache)


async def test_committed_again_while_it_is_evicted(cache: DiskCache) -> None:
    """The new file is not unlinked in place of the old one."""
    first = await put(cache, content_of(10, 1))
    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.remove, [first])
            await held.reached()
            partial = await _claim_beside(cache, first)
            nursery.start_soon(commit, cache, partial)
            await wait_all_tasks_blocked(0.01)
            held.go_on()
    assert await names(cache) == [first]
    assert await contents_of(cache, first) == content_of(10, 1)
    await assert_books_agree(cache)


async def _claim_beside(cache: DiskCache, digest: Digest) -> Partial:
    """A partial file as of a pull that began before the blob was there."""
    path = cache.premises.partials / digest.hex
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    partial = cache._own(digest, descriptor, path, None, Progress())
    await trio.to_thread.run_sync(partial.write, content_of(10, 1))
    return partial


async def test_many_at_once_under_a_tight_bound(caches: Caches, tmp_path: Path) -> None:
    cache = caches.open(tmp_path, BOUND)

    async def use_some(start: int) -> None:
        for step in range(20):
            content = content_of(10, 1 + (start * step) % 7)
            try:
                assert await contents_of(cache, hash_bytes(content)) == content
            except BlobNotFound:
                await put(cache, content)
            if cache.wake.is_set():
                await evict(cache)

    async with trio.open_nursery() as nursery:
        for start in range(1, 9):
            nursery.start_soon(use_some, start)
    for digest in await names(cache):  # a name that is gone is found out when it is opened
        with suppress(BlobNotFound):
            await contents_of(cache, digest)
    await put(cache, content_of(10, 9))
    await evict(cache)
    await assert_books_agree(cache)
    assert cache.usage.used <= BOUND


# --- what others do to it


async def test_removed_under_us_is_a_miss(cache: DiskCache) -> None:
    digest = await put(cache, b"content")
    cache.path(digest).unlink()
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    await put(cache, b"content")
    assert await contents_of(cache, digest) == b"content"
    await assert_books_agree(cache)


async def test_removed_while_it_is_open(cache: DiskCache) -> None:
    digest = await put(cache, b"content")
    file = await cache.open(digest)
    cache.path(digest).unlink()
    assert await file.read(0, 7) == b"content"
    file.close()


async def test_a_link_is_not_followed(cache: DiskCache) -> None:
    """It is no blob, and no reason to leave the cache alone."""
    digest = await put(cache, b"content")
    path = cache.path(digest)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    assert cache.usage.trouble is None
    await put(cache, b"content")
    assert await contents_of(cache, digest) == b"content"
    assert not path.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_file_is_no_blob(cache: DiskCache, make: Callable[[Path], None]) -> None:
    cache.path(ABSENT).parent.mkdir(parents=True)
    make(cache.path(ABSENT))
    with pytest.raises(BlobNotFound):
        await cache.open(ABSENT)


async def test_two_caches_over_one_directory(caches: Caches, tmp_path: Path) -> None:
    one, other = caches.open(tmp_path), caches.open(tmp_path, 10)
    first = await put(one, content_of(10, 1))
    await upkeep_of(one).flush()
    assert await contents_of(other, first) == content_of(10, 1)
    await put(other, content_of(10, 2))
    await evict(other)  # both: 95 % of the bound are less than one
    with pytest.raises(BlobNotFound):
        await one.open(first)
    await upkeep_of(one).flush()
    assert one.usage.blobs == 0


async def test_what_another_process_has_changed_is_looked_at_again(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    other = caches.open(tmp_path)
    kept, gone = [await put(cache, content_of(10, each)) for each in (1, 2)]
    await upkeep_of(cache).flush()
    await other.remove([gone])
    told: list[Digest] = []
    cache.on_change = told.append
    await cache.look_again([])
    assert told == []
    await cache.look_again([gone, ABSENT])
    assert told == [gone, ABSENT]  # of which the kernel may know what we have forgotten
    assert (cache.known_size(gone), cache.known_size(kept)) == (None, 10)
    assert cache.wake.is_set()
    await cache.look_again(None)
    assert told == [gone, ABSENT, kept]
    assert await contents_of(cache, kept) == content_of(10, 1)


# --- trouble


async def test_an_error_of_the_disk_bypasses_the_cache_for_a_minute(
    cache: DiskCache, mock_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s: Input/outp")
    digest = await put(cache, b"content")
    cache.note_trouble(OSError(5, os.strerror(5)))
    assert cache.usage.trouble == f"Input/output error in `{cache.premises.directory}`"
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    partial = await cache.claim(digest)
    assert isinstance(partial, Partial)
    assert partial.path is None
    partial.write(b"content")
    file = await cache.commit(partial)
    assert await file.read(0, 7) == b"content"
    file.close()
    mock_clock.jump(59)
    assert cache.usage.trouble
    mock_clock.jump(1)
    assert not cache.usage.trouble
    assert await contents_of(cache, digest) == b"content"


async def test_a_disk_that_became_read_only_is_read_on(
    cache: DiskCache, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache can only be read: Read-only file")
    digest = await put(cache, b"content")
    for _ in range(2):
        cache.note_trouble(OSError(30, os.strerror(30)))
    assert await contents_of(cache, digest) == b"content"
    partial = await cache.claim(ABSENT)
    assert isinstance(partial, Partial)
    assert partial.path is None
    await cache.discard(partial)
    assert in_flight(cache) == []


@pytest.mark.process
async def test_a_full_disk_is_gone_on_past_it(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING .*: the cache has no room, and nothing to evict: No space left")
    content = random.Random(1).randbytes(2 * MIB)
    with small_tmpfs(tmp_path / "small", MIB) as disk:
        cache = caches.open(disk)
        file = await cache.commit(await claim(cache, content))
        assert await file.read(0, 2 * MIB) == content
        file.close()
        assert cache.metrics.uncached == 1
        await assert_books_agree(cache)
        small = await put(cache, content_of(500_000))
        assert await pull(cache, small) == content_of(500_000)
        caches.close()


@pytest.mark.process
async def test_a_full_disk_evicts_what_is_there(caches: Caches, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", MIB) as disk:
        cache = caches.open(disk, bounds=Bounds())
        old = [await put(cache, content_of(100_000, each)) for each in range(1, 6)]
        await upkeep_of(cache).flush()
        kept = await cache.open(old[0])
        large = content_of(700_000, 9)
        file = await cache.commit(await claim(cache, large))
        assert await file.read(0, MIB) == large
        assert cache.metrics.uncached == 0
        assert old[0] in await names(cache)
        assert await kept.read(0, MIB) == content_of(100_000, 1)
        kept.close()
        file.close()
        await assert_books_agree(cache)
        caches.close()


@pytest.mark.process
async def test_many_who_need_room_at_once(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """More of them than threads: none keeps the others from making room."""
    may_log(expect_log, "the cache has no room")
    with small_tmpfs(tmp_path / "small", 4 * MIB) as disk:
        cache = caches.open(disk)
        for each in range(1, 4):
            await put(cache, content_of(MIB, each))
            await upkeep_of(cache).flush()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for each in range(4, 16):
                    nursery.start_soon(put, cache, content_of(MIB, each))
        for each in range(1, 16):
            with suppress(BlobNotFound):
                content = content_of(MIB, each)
                assert await contents_of(cache, hash_bytes(content)) == content
        await assert_books_agree(cache)
        caches.close()


async def test_memory_of_what_is_not_cached_is_given_back(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING .* bypassed for 60 s")
    shelter = Shelter(tmp_path, memory=100)
    cache = caches.open(tmp_path / "cache", shelter=shelter)
    cache.note_trouble(OSError(5, os.strerror(5)))
    for _ in range(3):
        partial = await cache.claim(hash_bytes(content_of(100)), expected=100)
        assert isinstance(partial, Partial)
        partial.write(content_of(100))
        file = await cache.commit(partial)
        assert shelter._memory == 0
        assert await file.read(0, 100) == content_of(100)
        file.close()
        assert shelter._memory == 100


async def test_put_past_a_sick_cache_is_no_error(
    cache: DiskCache, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING .* bypassed for 60 s")
    cache.note_trouble(OSError(5, os.strerror(5)))
    await cache.put(hash_bytes(b"content"), MemorySource(b"content"))


async def test_an_index_that_cannot_be_written_is_listed(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.disk_cache: the disk is full")
    first, late = await put(cache, b"first"), b"late"
    await upkeep_of(cache).flush()
    await put(cache, late)

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "apply", fail)
        assert await names(cache) == [first]
    assert set(await names(cache)) == {first, hash_bytes(late)}


async def test_what_a_dead_holder_left_on_a_sick_disk_is_gone_on_past_it(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s: Input/output")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, os.strerror(5))

    digest = hash_bytes(b"content")
    (cache.premises.partials / digest.hex).write_bytes(b"content")
    monkeypatch.setattr(disk_cache, "hash_file", fail)
    partial = await cache.claim(digest)
    assert isinstance(partial, Partial)
    assert partial.path is None
    await cache.discard(partial)
    assert in_flight(cache) == []


# --- one who goes first


async def test_prefetching_gives_way(cache: DiskCache, caches: Caches, tmp_path: Path) -> None:
    prefetch = caches.open(tmp_path, background=True)
    assert not prefetch.gives_way(ABSENT)
    partial = await claim(cache, b"half of it", ABSENT)
    digest = hash_bytes(b"prefetched")
    ahead = await claim(prefetch, b"prefetched")
    assert prefetch.gives_way(digest)
    assert not cache.gives_way(ABSENT)  # to itself it does not
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use_what_comes, cache, digest)
        await _until(lambda: prefetch.is_wanted(digest))
        assert not prefetch.gives_way(digest)
        await commit(prefetch, ahead)
    await cache.discard(partial)
    assert not prefetch.gives_way(ABSENT)


async def use_what_comes(cache: DiskCache, digest: Digest) -> None:
    file = await cache.claim(digest)
    assert isinstance(file, CachedFile)
    file.close()


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # others have threads, which need the interpreter; clocks may stand
            await trio.to_thread.run_sync(time.sleep, 0.001)


def test_a_blob_has_its_place() -> None:
    assert blob_path(Path("b"), ABSENT) == Path("b", ABSENT.hex[:2], ABSENT.hex[2:4], ABSENT.hex)
