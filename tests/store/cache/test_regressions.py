"""What a reviewer of the cache has found, one block for each, by what is right."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import StoreError, Unreachable
from cafsfs.metrics import Metrics
from cafsfs.packing import hash_bytes, hash_file
from cafsfs.store.cache import curation, disk_cache, partials, trust
from cafsfs.store.cache import upkeep as upkeep_module
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.durability import since_boot
from cafsfs.store.cache.index import Entry, Index
from cafsfs.store.cache.partials import Following, Partial, Verdict
from cafsfs.store.cache.premises import Premises
from cafsfs.store.cache.progress import Progress
from cafsfs.store.cache.upkeep import Upkeep, open_disk_cache
from cafsfs.store.contracts import BlobStat, ContentSink
from cafsfs.store.files import copy_content
from cafsfs.store.memory import MemorySource
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions
from tests.store import stacks
from tests.store.samples import KIB, MIB, content_of, descriptors, eventually, may_log, put
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches, spoil_silently, upkeep_of
from tests.store.tmpfs import small_tmpfs

DAY = 86_400.0
LARGE = 1 << 63
WARNING = "WARNING cafsfs.store"


class Threaded(ScriptedStore):
    """Writes in threads, as a real upstream does: room is made only for those."""

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        content = self.blobs[digest]
        await copy_content(MemorySource(content), sink, trio.CapacityLimiter(1))
        return BlobStat(size=len(content), source="threaded")


def files(directory: Path) -> dict[str, int]:
    """The blobs that stand in the cache's directory, by name, with their sizes."""
    found = (each for each in (directory / "blobs").rglob("*") if each.is_file())
    return {each.name: each.stat().st_size for each in found}


async def filled(cache: DiskCache, count: int, size: int = 10) -> list[Digest]:
    digests = [await put(cache, content_of(size, each)) for each in range(1, count + 1)]
    await upkeep_of(cache).flush()
    return digests


async def contents_of(cache: DiskCache, digest: Digest) -> bytes:
    file = await cache.open(digest)
    try:
        return bytes(await file.read(0, file.size))
    finally:
        file.close()


async def read(store: ReadCachingStore, digest: Digest) -> bytes:
    blob = store.open(digest)
    try:
        return bytes(await blob.read(0, 1 << 40, patience=30.0))
    finally:
        store.close(blob)


async def assert_books_agree(cache: DiskCache) -> None:
    standing = files(cache.premises.directory)
    assert {each.digest.hex: each.size for each in await cache.listing()} == standing
    assert (cache.ledger.used, cache.ledger.blobs) == (sum(standing.values()), len(standing))


async def seen(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, 5)


# --- 2: numbers that SQLite has no room for, and whatever else nobody has thought of


@pytest.fixture(params=["mtime", "inode"])
def large_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file has a time of modification after 2262, or a large inode number."""

    def enlarged(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def look(*arguments: Any, **options: Any) -> os.stat_result:
            found = real(*arguments, **options)
            if not S_ISREG(found.st_mode):
                return found
            fields = list(found[:10])
            times = {"st_mtime_ns": found.st_mtime_ns}
            if request.param == "inode":
                fields[1] += LARGE
            else:
                times["st_mtime_ns"] += LARGE
            return os.stat_result(fields, times)

        return look

    for name in ("fstat", "stat", "lstat"):
        monkeypatch.setattr(os, name, enlarged(getattr(os, name)))


async def test_files_of_large_numbers_are_remembered(
    large_numbers: None, caches: Caches, tmp_path: Path, hashed: list[int]
) -> None:
    first = caches.open(tmp_path)
    digest = await put(first, b"content")
    await caches.leave(first)
    again = caches.open(tmp_path)
    assert await contents_of(again, digest) == b"content"
    assert hashed == []
    await upkeep_of(again).adopt()
    await upkeep_of(again).flush()
    await assert_books_agree(again)


async def test_a_file_that_was_given_a_large_time(
    caches: Caches, cache: DiskCache, tmp_path: Path, hashed: list[int]
) -> None:
    (digest,) = await filled(cache, 1)
    os.utime(cache.path(digest), ns=(10**19, 10**19))
    if cache.path(digest).stat().st_mtime_ns < LARGE:
        pytest.skip("this filesystem knows no such time")
    caches.crash(cache)
    for again in (caches.open(tmp_path), caches.open(tmp_path)):
        await upkeep_of(again).adopt()
        assert await contents_of(again, digest) == content_of(10, 1)
        assert len(hashed) == 1
        await upkeep_of(again).round()
    await assert_books_agree(again)


async def test_an_entry_that_goes_while_it_is_looked_for(cache: DiskCache) -> None:
    """Threads look; the event loop strikes."""

    class Racing(dict[Digest, Entry]):
        def __contains__(self, digest: object) -> bool:
            there = super().__contains__(digest)
            self.clear()
            return there

    digest = await put(cache, b"content")
    changes = cache.ledger._pending
    found = changes.entries[digest]
    changes.entries = Racing(changes.entries)
    assert cache.ledger.find(digest) in {None, found}


def fail(*_: object) -> None:
    raise RuntimeError("a mistake of ours")


async def fail_async(*_: object, **__: object) -> None:
    await trio.lowlevel.checkpoint()
    fail()


@pytest.mark.parametrize("deed", ["round", "sync", "adopt", "flush", "measure", "evict"])
async def test_whatever_fails_in_the_upkeep_the_mount_lives_on(
    deed: str,
    tmp_path: Path,
    jumping_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("ERROR cafsfs.store.cache")
    monkeypatch.setattr(upkeep_module, "_SYNC_PERIOD", 1.0)
    monkeypatch.setattr(DiskCache if deed == "measure" else Upkeep, deed, fail_async)
    async with open_disk_cache(tmp_path) as cache:
        await trio.sleep(5)
        digest = await put(cache, b"content")
        assert await contents_of(cache, digest) == b"content"
        await trio.sleep(5)
        assert await contents_of(cache, digest) == b"content"


@pytest.mark.parametrize("deed", ["apply", "totals"])
async def test_whatever_fails_at_the_end_the_next_mount_looks_at_the_files(
    deed: str,
    tmp_path: Path,
    no_descriptor_left: None,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("ERROR cafsfs.store.cache")
    with monkeypatch.context() as patch:
        async with open_disk_cache(tmp_path, keep=False) as cache:
            await put(cache, b"content")
            patch.setattr(Index, deed, fail)
    assert list((tmp_path / "sessions").iterdir())
    async with open_disk_cache(tmp_path, keep=False) as cache:
        await curation.complete(cache)
        assert list((tmp_path / "sessions").iterdir()) != []  # our own
        await assert_books_agree(cache)


# --- 3: the disk was full before anything was in the index


@pytest.mark.process
@pytest.mark.parametrize("when", ["at once", "after a remount"])
async def test_a_disk_that_filled_before_the_index_was_written_is_evicted_from(
    when: str, caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    may_log(expect_log, WARNING)
    contents = [content_of(4 * KIB, each) for each in range(1, 1601)]
    with small_tmpfs(tmp_path / "small", 6 * MIB) as disk:
        async with trio.open_nursery() as nursery:
            metrics = Metrics()
            cache = caches.open(disk, metrics=metrics)
            store = ReadCachingStore(cache, Threaded(*contents), nursery)
            if when != "at once":
                cache.keeper = disk_cache.Keeper()  # nothing is evicted
            for content in contents:
                await store.fetch(hash_bytes(content))
            if when != "at once":
                caches.crash(cache)
                cache = caches.open(disk, metrics=metrics)
            metrics.uncached = metrics.evictions = 0
            more = [content_of(4 * KIB, each) for each in range(2000, 2040)]
            store = ReadCachingStore(cache, Threaded(*more), nursery)
            for content in more:
                assert await read(store, hash_bytes(content)) == content
                assert cache.path(hash_bytes(content)).exists()
            assert metrics.uncached == 0
            assert metrics.evictions > 0 or when == "at once"
        assert len(files(disk)) > 700  # and not all of it
        with suppress(StoreError):
            await upkeep_of(cache).adopt()
        caches.close()


# --- 4: a clock that is wrong at first


class Clocks:
    """The clock of the machine, which may be wrong, and those that nobody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trios: MockClock) -> None:
        self.error = 0.0
        self._passed = 0.0
        self._trios = trios
        now, boot = time.time(), since_boot()
        monkeypatch.setattr(time, "time", lambda: now + self._passed + self.error)
        monkeypatch.setattr(upkeep_module, "since_boot", lambda: boot + self._passed)
        monkeypatch.setattr(trust, "since_boot", lambda: boot + self._passed)

    def go_on(self, seconds: float) -> None:
        self._passed += seconds
        self._trios.jump(seconds)


@pytest.mark.parametrize("minutes", [0, 1, 30])
async def test_a_clock_that_is_behind_at_mount_ages_nothing(
    minutes: int,
    caches: Caches,
    tmp_path: Path,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(monkeypatch, mock_clock)
    bounds = Bounds(ttl=30 * DAY, tti=30 * DAY)
    first = caches.open(tmp_path, bounds=bounds)
    digests = await filled(first, 5)
    ages = [first.ledger.index.get(each) for each in digests]
    await caches.leave(first)
    clocks.error = -40 * DAY  # no battery, and the network does not tell yet
    cache = caches.open(tmp_path, bounds=bounds)
    await upkeep_of(cache).round()
    for _ in range(minutes):
        clocks.go_on(60)
        await upkeep_of(cache).round()
    assert [cache.ledger.index.get(each) for each in digests] == ages
    clocks.error = 0
    for later in (0, 61, 120, 601, 3700):
        clocks.go_on(later)
        assert (await upkeep_of(cache).round()).blobs == 0
    assert [cache.ledger.index.get(each) for each in digests] == ages
    clocks.go_on(31 * DAY)
    assert (await upkeep_of(cache).round()).blobs == 5  # they have become old


# --- 5: the size of what nobody vouches for


async def unknown_to_the_index(
    caches: Caches, directory: Path, size: int, *, lies: int = 0
) -> Digest:
    """A cached blob of zeros; ``lies``: bytes that its file is too long."""
    cache = caches.open(directory)
    digest = hash_bytes(bytes(size))
    path = cache.path(digest)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(size + lies)
    await caches.leave(cache)
    return digest


@pytest.mark.parametrize("lies", [0, MIB])
async def test_the_size_of_a_large_blob_is_upstreams_word_before_it_is_hashed(
    lies: int, caches: Caches, tmp_path: Path, nursery: trio.Nursery, hashed: list[int]
) -> None:
    size = 70 * MIB
    digest = await unknown_to_the_index(caches, tmp_path, size, lies=lies)
    upstream = ScriptedStore(bytes(size))
    store = ReadCachingStore(caches.open(tmp_path), upstream, nursery)
    assert (await store.stat(digest)).size == size
    assert upstream.calls == ["stat"]
    assert hashed == []


@pytest.mark.parametrize("size", [10, 70 * MIB])
async def test_the_size_is_found_by_hashing_if_upstream_is_unavailable(
    size: int, caches: Caches, tmp_path: Path, nursery: trio.Nursery, hashed: list[int]
) -> None:
    digest = await unknown_to_the_index(caches, tmp_path, size)
    upstream = ScriptedStore()
    upstream.errors = [Unreachable("offline")] * 9
    store = ReadCachingStore(caches.open(tmp_path), upstream, nursery)
    assert (await store.stat(digest)).size == size
    assert len(hashed) == 1


# --- 6: a cache that can only be read


@contextmanager
def only_read(directory: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if how == "no right":
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *_: False)
            yield
        return
    mount = ["mount", "-o", "remount,ro", str(directory)]
    subprocess.run(mount, check=True)
    yield


@pytest.mark.process
@pytest.mark.parametrize("how", ["remounted", "no right"])
async def test_a_cache_that_can_only_be_read_is_not_evicted_from(
    how: str,
    caches: Caches,
    tmp_path: Path,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("WARNING cafsfs.store.cache.upkeep: the cache can only be read")
    with small_tmpfs(tmp_path / "disk", 4 * MIB) as disk:
        writer = caches.open(disk)
        digests = await filled(writer, 300)
        await caches.leave(writer)
        with only_read(disk, how, monkeypatch):
            cache = caches.open(disk, 100)
            await upkeep_of(cache).adopt()
            for _ in range(10):
                mock_clock.jump(70)
                assert (await upkeep_of(cache).round()).blobs == 0
            assert len(files(disk)) == 300
            assert await contents_of(cache, digests[0]) == content_of(10, 1)
            caches.close()
    told = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(told) == 1


# --- 7: a disk that is full of what others hold open


@pytest.mark.process
async def test_a_full_disk_that_evicting_does_not_cure_does_not_cost_the_cache(
    caches: Caches,
    tmp_path: Path,
    nursery: trio.Nursery,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache has no room")
    content = content_of(3 * MIB, 999)
    with small_tmpfs(tmp_path / "small", 6 * MIB) as disk:
        cache = caches.open(disk)
        digests = await filled(cache, 64, 64 * KIB)
        held = [os.open(cache.path(each), os.O_RDONLY) for each in digests]
        upstream = Threaded(content)
        store = ReadCachingStore(cache, upstream, nursery)
        assert (await store.stat(hash_bytes(content))).size == len(content)
        assert await read(store, hash_bytes(content)) == content
        assert sum(cache.path(each).exists() for each in digests) >= 40
        for each in held:
            os.close(each)
        caches.close()


async def test_a_claim_for_which_there_is_never_room_does_not_cost_the_cache(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache has no room")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await filled(cache, 100)
    monkeypatch.setattr(partials, "claim", full)
    partial = await cache.claim(hash_bytes(b"content"))
    assert isinstance(partial, Partial)
    await trio.to_thread.run_sync(partial.write, b"content")
    file = await cache.commit(partial)
    assert await file.read(0, 100) == b"content"
    file.close()
    assert len(files(cache.premises.directory)) >= 75


# --- 8: a disk that hangs


class Hung:
    """Calls of ``os`` by threads that ``concerns`` wait, until ``release``, or five seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.reached = threading.Event()
        self._released = threading.Event()
        self.waiting = 0
        self._before = descriptors()

    def hang(self, name: str, concerns: Callable[..., bool]) -> None:
        original = getattr(os, name)

        def hung(*arguments: Any, **options: Any) -> Any:
            if not self._released.is_set() and concerns(*arguments):
                if threading.current_thread() is threading.main_thread():
                    raise BlockingIOError  # of RWF_NOWAIT
                self.waiting += 1
                self.reached.set()
                self._released.wait(5)
                self.waiting -= 1
            return original(*arguments, **options)

        self._patch.setattr(os, name, hung)

    async def release(self) -> None:
        """Returns when no thread is left behind, nor what it has opened."""
        self._released.set()
        with trio.CancelScope(shield=True):
            for _ in range(500):
                if not self.waiting and descriptors() <= self._before:
                    break
                await trio.to_thread.run_sync(time.sleep, 0.005)


def is_below_blobs(path: object, *_: object) -> bool:
    return "/blobs/" in os.fspath(path) if isinstance(path, str | Path) else False


def is_cached(descriptor: int, *_: object) -> bool:
    return os.fstat(descriptor).st_nlink > 0


def hang_paths(hung: Hung) -> None:
    for name in ("open", "stat", "lstat"):
        hung.hang(name, is_below_blobs)


def filesystem(store: ReadCachingStore) -> FileSystem:
    options = VfsOptions(uid=0, gid=0, born_ns=0, lookup_deadline=1.0, read_patience=30.0)
    return FileSystem(store, options, {})


@pytest.fixture
def pulled(caches: Caches, tmp_path: Path, nursery: trio.Nursery) -> ReadCachingStore:
    """Upstream has a blob; the cache has no say in it."""
    return ReadCachingStore(caches.open(tmp_path), ScriptedStore(b"content"), nursery)


async def test_a_hung_disk_does_not_hold_up_who_asks(
    pulled: ReadCachingStore, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = filesystem(pulled)
    digest = hash_bytes(b"content")
    inode = (await tree.lookup(1, digest.hex.encode())).inode
    hung = Hung(monkeypatch)
    hang_paths(hung)

    async def ask() -> None:
        with trio.move_on_after(1):
            await pulled.is_cached(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.getattr, inode)
        nursery.start_soon(ask)
        await seen(hung.reached)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.1)
    assert hung.waiting
    await hung.release()


async def test_a_read_goes_past_a_disk_that_hangs(
    pulled: ReadCachingStore,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    hung = Hung(monkeypatch)
    hang_paths(hung)
    got: list[bytes] = []

    async def ask() -> None:
        got.append(await read(pulled, hash_bytes(b"content")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await seen(hung.reached)
        await wait_all_tasks_blocked()
        mock_clock.jump(11)
    assert got == [b"content"]
    assert hung.waiting
    await hung.release()


async def test_a_disk_that_hangs_under_an_open_file(
    pulled: ReadCachingStore,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    blob = pulled.open(hash_bytes(b"content"))
    assert await blob.read(0, 100, patience=30) == b"content"
    hung = Hung(monkeypatch)
    hung.hang("preadv", is_cached)
    got: list[bytes] = []

    async def ask() -> None:
        got.append(bytes(await blob.read(0, 100, patience=30)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await seen(hung.reached)
        await wait_all_tasks_blocked()
        mock_clock.jump(11)
    assert got == [b"content"]
    assert hung.waiting
    pulled.close(blob)
    await hung.release()


# --- 9: what is pinned while it is about to be evicted


async def test_a_pin_wins_against_an_eviction_under_way(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = caches.open(tmp_path, 30), caches.open(tmp_path)
    digests = await filled(cache, 6)
    remove = cache.remove
    absent: set[Digest] = set()

    async def pin_first(chosen: Collection[Digest], **options: Any) -> dict[Digest, int]:
        absent.update(await curation.pin(other, digests[:3]))
        return await remove(chosen, **options)

    monkeypatch.setattr(cache, "remove", pin_first)
    await upkeep_of(cache).round()
    assert absent == set()
    assert all(cache.path(each).exists() for each in digests[:3])
    assert cache.ledger.index.pins() == sorted(digests[:3])


# --- 10: partial/ is cleared by hand while a blob is pulled


async def claimed(cache: DiskCache, digest: Digest) -> Partial:
    partial = await cache.claim(digest)
    assert isinstance(partial, Partial)
    return partial


async def test_a_partial_file_that_is_removed_costs_no_follower_a_byte(
    caches: Caches, tmp_path: Path
) -> None:
    holder, second, follower = (caches.open(tmp_path) for _ in range(3))
    content = content_of(MIB, 7)
    digest = hash_bytes(content)
    first = await claimed(holder, digest)
    first.write(content)
    (tmp_path / "partial" / digest.hex).unlink()
    anew = await claimed(second, digest)
    anew.write(content[:1000])
    followed: list[CachedFile | Partial] = []

    async def follow() -> None:
        followed.append(await follower.claim(digest))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        assert await eventually(lambda: second.is_wanted(digest))
        file = await holder.commit(first)
        assert await file.read(0, MIB) == content
        file.close()
        with suppress(FileNotFoundError):
            assert holder.path(digest).read_bytes() == content
        anew.write(content[1000:])
        (await second.commit(anew)).close()
    (outcome,) = followed
    assert isinstance(outcome, CachedFile)
    assert await outcome.read(0, MIB) == content
    outcome.close()
    assert holder.path(digest).read_bytes() == content


async def test_who_gives_up_does_not_remove_what_another_has_begun_anew(
    caches: Caches, tmp_path: Path
) -> None:
    holder, second = caches.open(tmp_path), caches.open(tmp_path)
    digest = hash_bytes(b"content")
    path = tmp_path / "partial" / digest.hex
    first = await claimed(holder, digest)
    path.unlink()
    anew = await claimed(second, digest)
    await holder.discard(first)
    assert path.exists()
    anew.write(b"content")
    (await second.commit(anew)).close()
    assert await contents_of(holder, digest) == b"content"


async def test_a_partial_file_that_is_removed_at_the_very_moment_of_the_commit(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name that is given to a blob is another's then: its follower must not take it for one."""
    digest = hash_bytes(b"content")
    partial = await claimed(cache, digest)
    partial.write(b"content")
    rename = os.rename
    verdicts: list[Verdict] = []

    def interfere(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        os.unlink(source)
        held = partials.claim(cache.premises.partials, cache.premises.blobs, digest)
        assert isinstance(held, tuple)
        os.write(held[0], b"cont")
        following = partials.claim(cache.premises.partials, cache.premises.blobs, digest)
        assert isinstance(following, Following)
        rename(source, target)
        verdicts.append(following.look())
        following.close()
        os.close(held[0])

    monkeypatch.setattr(os, "rename", interfere)
    file = await cache.commit(partial)
    assert await file.read(0, 100) == b"content"
    file.close()
    assert verdicts == [Verdict.MOVING]
    assert not cache.path(digest).exists()


# --- 11: a header that lies


async def test_what_a_server_announces_evicts_nothing(cache: DiskCache) -> None:
    cache.bounds = Bounds(size=Amount(20 << 30))
    await filled(cache, 300)
    partial = await cache.claim(hash_bytes(b"tiny"), expected=(20 << 30) - 1)
    assert isinstance(partial, Partial)
    assert (await upkeep_of(cache).round()).blobs == 0
    await cache.discard(partial)
    assert len(files(cache.premises.directory)) == 300


# --- 12: two who keep one cache in bounds


async def test_two_evict_no_more_than_one(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(caches.open(tmp_path), 100)
    keepers = [upkeep_of(caches.open(tmp_path, 800)) for _ in range(2)]
    both = threading.Barrier(2)
    arrived: set[int] = set()
    unlink = os.unlink

    def together(path: Any, **options: Any) -> None:
        me = threading.get_ident()
        if "/blobs/" in str(path) and me not in arrived and len(arrived) < 2:
            arrived.add(me)
            with suppress(threading.BrokenBarrierError):
                both.wait(2)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", together)
    async with trio.open_nursery() as nursery:
        for each in keepers:
            nursery.start_soon(each.round)
    assert 70 <= len(files(tmp_path)) <= 76


# --- 13: a file that somebody has only touched


async def test_a_cached_file_that_is_touched_is_read_on(
    cache: DiskCache, nursery: trio.Nursery, expect_log: Callable[[str], None]
) -> None:
    may_log(expect_log, WARNING)
    upstream = ScriptedStore()
    upstream.errors = [Unreachable("offline")] * 9
    store = ReadCachingStore(cache, upstream, nursery)
    digest = await put(cache, b"content")
    blob = store.open(digest)
    assert await blob.read(0, 4, patience=30) == b"cont"
    cache.path(digest).touch()
    assert await blob.read(0, 100, patience=30) == b"content"
    store.close(blob)
    assert cache.path(digest).read_bytes() == b"content"
    assert await read(store, digest) == b"content"


async def test_a_cached_file_that_is_spoiled_and_touched_is_pulled_anew(
    cache: DiskCache, nursery: trio.Nursery, expect_log: Callable[[str], None]
) -> None:
    expect_log(WARNING)
    store = ReadCachingStore(cache, ScriptedStore(b"content"), nursery)
    digest = await put(cache, b"content")
    blob = store.open(digest)
    assert await blob.read(0, 4, patience=30) == b"cont"
    spoil_silently(cache.premises.directory, digest)
    cache.path(digest).touch()
    assert await blob.read(0, 100, patience=30) == b"content"
    store.close(blob)
    assert await read(store, digest) == b"content"


# --- 14: a sick disk and no network


async def test_what_is_cached_is_served_past_the_bypass_if_nobody_else_has_it(
    cache: DiskCache, nursery: trio.Nursery, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache is bypassed for 60 s")
    upstream = ScriptedStore()
    upstream.errors = [Unreachable("offline")] * 9
    store = ReadCachingStore(cache, upstream, nursery)
    digest = await put(cache, b"content")
    cache.note_trouble(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert await read(store, digest) == b"content"
    with pytest.raises(Unreachable):
        await read(store, hash_bytes(b"cached nowhere"))


# --- 15: rights


async def test_a_blob_that_may_not_be_opened_is_a_miss_of_that_blob(
    caches: Caches, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = caches.open(tmp_path)
    digest = await put(first, b"of somebody else")
    await caches.leave(first)
    cache = caches.open(tmp_path)
    store = ReadCachingStore(cache, ScriptedStore(b"of somebody else", b"another"), nursery)
    foreign = cache.path(digest).stat().st_ino
    original = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path) == cache.path(digest) and os.stat(path).st_ino == foreign:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert await read(store, digest) == b"of somebody else"
    assert cache.trouble is None
    await store.fetch(hash_bytes(b"another"))
    assert cache.path(hash_bytes(b"another")).exists()


async def test_a_disk_that_was_read_only_is_written_again(
    cache: DiskCache, mock_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.trouble: the cache can only be read")
    cache.note_trouble(OSError(errno.EROFS, os.strerror(errno.EROFS)))
    digest = await put(cache, b"content")
    assert not cache.path(digest).exists()
    mock_clock.jump(1800)
    assert cache.trouble is None
    await put(cache, b"content")
    assert cache.path(digest).exists()


# --- 16: prefetching beside a mount that does nothing


@pytest.mark.parametrize("own", [100, 1000])
async def test_a_prefetch_keeps_to_the_bound_of_a_mount_that_is_stopped(
    own: int, caches: Caches, tmp_path: Path
) -> None:
    caches.open(tmp_path, 100)
    prefetch = caches.open(tmp_path, own, background=True)
    for each in range(1, 41):
        await put(prefetch, content_of(10, each))
        await upkeep_of(prefetch).round()
        assert sum(files(tmp_path).values()) <= 100


async def test_a_prefetch_leaves_the_mount_its_larger_bound(caches: Caches, tmp_path: Path) -> None:
    caches.open(tmp_path, 100)
    prefetch = caches.open(tmp_path, 50, background=True)
    await filled(prefetch, 10)
    assert (await upkeep_of(prefetch).round()).blobs == 0


# --- 17: somebody is stopped while he writes to the index


async def test_eviction_goes_on_though_the_index_is_locked(
    caches: Caches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    may_log(expect_log, WARNING)

    def impatient(premises: Premises) -> Index:
        return Index.open(premises.index, patience=0.02)

    monkeypatch.setattr(stacks, "_open_index", impatient)
    monkeypatch.setattr(upkeep_module, "_BATCH", 5)
    cache = caches.open(tmp_path)
    await filled(cache, 30)
    cache.bounds = Bounds(size=Amount(100))
    database = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    with closing(database):
        database.execute("BEGIN IMMEDIATE")
        with suppress(StoreError):
            await upkeep_of(cache).round()
        assert 80 <= sum(files(tmp_path).values()) <= 100
        database.execute("ROLLBACK")
    await upkeep_of(cache).round()
    await assert_books_agree(cache)


# --- 18: what a dead holder has left


@pytest.mark.parametrize("ending", ["cancelled", "to its end"])
async def test_hashing_what_a_dead_holder_has_left_is_progress_and_can_be_cancelled(
    ending: str, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, released = threading.Event(), threading.Event()
    finished: list[int] = []

    def slow(descriptor: int, *, on_read: Callable[[int], object]) -> Digest:
        on_read(1)
        reached.set()
        released.wait(5)
        on_read(1)
        finished.append(descriptor)
        return hash_file(descriptor, on_read=on_read)

    digest = hash_bytes(b"content")
    (cache.premises.partials / digest.hex).write_bytes(b"content")
    monkeypatch.setattr(disk_cache, "hash_file", slow)
    progress = Progress()
    got: list[CachedFile | Partial] = []

    async def take_over() -> None:
        got.append(await cache.claim(digest, progress=progress))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await seen(reached)
        assert progress.count > 0
        if ending == "cancelled":
            nursery.cancel_scope.cancel()
        released.set()
    assert len(finished) == (ending != "cancelled")
    for each in got:
        assert isinstance(each, CachedFile)
        each.close()
    assert len(got) == len(finished)


# --- 20: an index with nonsense in it


@pytest.mark.parametrize(
    "nonsense",
    [
        "UPDATE state SET bytes = 'abc'",
        "UPDATE state SET blobs = 'abc'",
        "UPDATE blobs SET size = 'abc' WHERE digest = (SELECT min(digest) FROM blobs)",
        "UPDATE blobs SET size = 'abc' WHERE used = (SELECT min(used) FROM blobs)",
        "UPDATE blobs SET used = 'abc'",
    ],
)
async def test_text_for_a_number_has_the_index_begun_anew(
    nonsense: str, caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.database: .* is unusable .*: rebuilding it")
    first = caches.open(tmp_path)
    await filled(first, 5, 1000)
    await caches.leave(first)
    with closing(sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)) as database:
        database.execute(nonsense)
    cache = caches.open(tmp_path, 2000)
    await upkeep_of(cache).round()
    await upkeep_of(cache).adopt()
    await upkeep_of(cache).round()
    assert sum(files(tmp_path).values()) <= 2000
    await assert_books_agree(cache)


# --- 21: a live cache is removed by hand


@pytest.mark.parametrize("what", ["", "blobs", "partial"])
async def test_directories_that_are_made_again_are_private(
    what: str, caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    may_log(expect_log, WARNING)
    directory = tmp_path / "cache"
    before = os.umask(0o002)
    try:
        cache = caches.open(directory)
        await put(cache, b"content")
        shutil.rmtree(directory / what)
        digest = await put(cache, b"another")
    finally:
        os.umask(before)
    assert cache.path(digest).read_bytes() == b"another"
    made = [each for each in [directory, *directory.rglob("*")] if each.is_dir()]
    assert {each: oct(each.stat().st_mode & 0o777) for each in made} == dict.fromkeys(made, "0o700")
    caches.close()
    assert await contents_of(caches.open(directory), digest) == b"another"


# --- 23: verifying what cannot be opened


async def test_what_cannot_be_opened_is_told_and_not_discarded(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, wrong, unread = await filled(cache, 3)
    spoil_silently(cache.premises.directory, wrong)
    original = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path) == cache.path(unread):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    done = await curation.verify(cache, repair=True)
    assert done.wrong.keys() == {wrong, unread}
    assert done.discarded == {wrong}
    assert cache.path(unread).exists()
    assert cache.path(good).exists()
    assert not cache.path(wrong).exists()
