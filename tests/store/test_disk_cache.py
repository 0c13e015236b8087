"""The cache on disk: its files, its bound, its books, and what others do to it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.metrics import Metrics
from cafsfs.packing import hash_bytes
from cafsfs.store.disk_cache import CachedFile, CacheUsage, DiskCache, Partial
from cafsfs.store.local_root import blob_path
from cafsfs.store.memory import MemorySink, MemorySource
from tests.store.held_up import held_up
from tests.store.samples import ABSENT, KIB, MIB, content_of, descriptors, pull, put
from tests.store.tmpfs import small_tmpfs

HOUR = 3600


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


def cache_of(
    directory: Path, max_bytes: int = 1 << 30, metrics: Metrics | None = None
) -> DiskCache:
    return DiskCache(directory, max_bytes=max_bytes, metrics=metrics)


def path_of(directory: Path, digest: Digest) -> Path:
    return blob_path(directory / "blobs", digest)


def files(directory: Path) -> dict[str, int]:
    """The blobs that stand in the cache's directory, by name, with their sizes."""
    found = (each for each in (directory / "blobs").rglob("*") if each.is_file())
    return {each.name: each.stat().st_size for each in found}


def assert_books_agree(cache: DiskCache, directory: Path) -> None:
    """What the cache tells from memory is what stands on the disk, and nothing is in flight."""
    standing = files(directory)
    assert {each.hex: cache.known_size(each) for each in cache.listing()} == standing
    assert cache.usage.used == sum(standing.values())
    assert cache.usage.blobs == len(standing)
    assert list((directory / "partial").iterdir()) == []


async def contents_of(cache: DiskCache, digest: Digest) -> bytes:
    file = await cache.open(digest)
    try:
        return bytes(await file.read(0, file.size))
    finally:
        file.close()


async def use(cache: DiskCache, digest: Digest) -> None:
    (await cache.open(digest)).close()


async def commit(cache: DiskCache, partial: Partial) -> None:
    (await cache.commit(partial)).close()


# --- the directory


def test_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        trio.run(put, cache_of(tmp_path / "cache"), b"content")
    finally:
        os.umask(before)
    for each in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        assert each.stat().st_mode & 0o777 == (0o700 if each.is_dir() else 0o600), each


def test_where_no_cache_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="as a cache") as caught:
            cache_of(path)
        assert caught.value.hint == "name another directory with --cache-dir"


async def test_a_commit_is_a_rename(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    content = content_of(100_000)
    digest = hash_bytes(content)
    partial = cache.begin(digest)
    assert list((tmp_path / "partial").iterdir()) == []  # made with the first byte
    partial.write(content[:50_000])
    (temporary,) = (tmp_path / "partial").iterdir()
    partial.write(content[50_000:])
    assert (partial.written, partial.progress) == (100_000, 2)
    assert files(tmp_path) == {}
    inode = temporary.stat().st_ino
    file = await cache.commit(partial)
    assert path_of(tmp_path, digest).stat().st_ino == inode
    assert bytes(await file.read(0, 100_000)) == content
    await cache.discard(partial)  # does nothing: it was committed
    file.close()
    assert_books_agree(cache, tmp_path)


async def test_an_empty_blob_of_which_no_byte_came(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    file = await cache.commit(cache.begin(hash_bytes(b"")))
    assert (file.size, await file.read(0, 100)) == (0, b"")
    file.close()
    assert files(tmp_path) == {hash_bytes(b"").hex: 0}


async def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    partial = cache.begin(ABSENT)
    partial.write(b"half of it")
    with trio.CancelScope() as scope:
        scope.cancel()
        await cache.discard(partial)
    assert list((tmp_path / "partial").iterdir()) == []
    assert_books_agree(cache, tmp_path)


async def test_a_commit_that_fails_leaves_the_partial_file_to_its_owner(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    parent = path_of(tmp_path, digest).parent
    path_of(tmp_path, digest).unlink()
    parent.rmdir()
    parent.touch()
    partial = cache.begin(digest)
    partial.write(b"content")
    with pytest.raises(FileExistsError):
        await cache.commit(partial)
    await cache.discard(partial)
    assert list((tmp_path / "partial").iterdir()) == []


# --- reads


@pytest.fixture(params=["disk", pytest.param("tmpfs", marks=pytest.mark.process)])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs knows no RWF_NOWAIT: there all reads go through a thread."""
    if request.param == "disk":
        yield tmp_path
        return
    with small_tmpfs(tmp_path / "small", 8 * MIB) as mounted:
        yield mounted


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 7])
async def test_a_read_is_exact(directory: Path, size: int) -> None:
    cache = cache_of(directory)
    content = content_of(size)
    file = await cache.open(await put(cache, content))
    assert file.size == size
    for offset in (0, 1, 4095, 4096, size - 1, size, size + 1, size + MIB):
        for length in (0, 1, 4096, 128 * KIB, size, size + MIB):
            if offset >= 0:
                assert await file.read(offset, length) == content[offset : offset + length]
    file.close()


async def test_a_read_of_a_truncated_file_is_an_error_not_short(directory: Path) -> None:
    cache = cache_of(directory)
    digest = await put(cache, content_of(100_000))
    file = await cache.open(digest)
    os.truncate(path_of(directory, digest), 50_000)
    assert await file.read(49_000, 1000) == content_of(100_000)[49_000:50_000]
    for offset, length in ((49_000, 1001), (50_000, 1), (0, 100_000), (99_999, 1)):
        with pytest.raises(CorruptBlob, match="of 100000 bytes has none at"):
            await file.read(offset, length)
    file.close()


async def test_what_is_in_memory_needs_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content_of(MIB))
    exhausted = trio.CapacityLimiter(1)
    exhausted.acquire_on_behalf_of_nowait("the test")
    file = CachedFile(_open_where_nowait_works(path), MIB, exhausted)
    with trio.fail_after(2):
        assert await file.read(1000, 200_000) == content_of(MIB)[1000:201_000]
    file.close()


@pytest.mark.parametrize("in_memory", [0, 4096])
async def test_what_is_not_in_memory_is_read_by_a_thread(tmp_path: Path, in_memory: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content_of(MIB))
    descriptor = _open_where_nowait_works(path)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(descriptor, in_memory, 0)
    file = CachedFile(descriptor, MIB, trio.CapacityLimiter(1))
    assert await file.read(0, 100_000) == content_of(100_000)
    file.close()


def _open_where_nowait_works(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this filesystem knows no RWF_NOWAIT")
    return descriptor


async def test_a_file_that_cannot_be_read_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = CachedFile(os.open(path, os.O_WRONLY), 7, trio.CapacityLimiter(1))
    with pytest.raises(StoreError, match="cannot read the cache"):
        await file.read(0, 7)
    with pytest.raises(StoreError, match="cannot read the cache"):
        await file.copy_to(MemorySink(), hash_bytes(b"content"))
    file.close()


async def test_a_pull_verifies_once_more_and_says_when(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, content_of(MIB + 1))
    stat = await cache.pull(digest, MemorySink())
    assert stat.size == MIB + 1
    assert stat.verified_at is not None
    assert abs(stat.verified_at - time.time()) < 60


async def test_what_proved_corrupt_is_gone(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, content_of(100))
    path_of(tmp_path, digest).write_bytes(content_of(100, 1))
    with pytest.raises(CorruptBlob):
        await cache.pull(digest, MemorySink())
    with pytest.raises(BlobNotFound):
        await cache.pull(digest, MemorySink())
    assert_books_agree(cache, tmp_path)


# --- the bound


async def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    metrics = Metrics()
    cache = cache_of(tmp_path, 30, metrics)
    first, second, third = [await put(cache, content_of(10, each)) for each in (1, 2, 3)]
    await use(cache, first)
    assert cache.usage == CacheUsage(used=30, bound=30, blobs=3)
    fourth = await put(cache, content_of(10, 4))
    assert set(cache.listing()) == {first, third, fourth}
    await put(cache, content_of(15, 5))
    assert set(cache.listing()) == {fourth, hash_bytes(content_of(15, 5))}
    assert (metrics.evictions, metrics.evicted_bytes) == (3, 30)
    assert_books_agree(cache, tmp_path)
    with pytest.raises(BlobNotFound):
        await cache.open(second)


async def test_putting_twice_counts_once(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for _ in range(3):
        await put(cache, content_of(10))
    assert cache.usage == CacheUsage(used=10, bound=1 << 30, blobs=1)
    assert_books_agree(cache, tmp_path)


@pytest.mark.parametrize("bound", [0, 99])
async def test_a_blob_larger_than_the_bound_can_be_read_once(tmp_path: Path, bound: int) -> None:
    cache = cache_of(tmp_path, bound)
    partial = cache.begin(hash_bytes(content_of(100)))
    partial.write(content_of(100))
    file = await cache.commit(partial)
    assert await file.read(0, 100) == content_of(100)
    file.close()
    assert files(tmp_path) == {}
    assert_books_agree(cache, tmp_path)


async def test_an_evicted_file_that_is_open_stays_readable(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 10)
    digest = await put(cache, content_of(10, 1))
    file = await cache.open(digest)
    await put(cache, content_of(10, 2))
    assert cache.known_size(digest) is None
    assert await file.read(0, 10) == content_of(10, 1)
    file.close()


async def test_changes_are_told(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 10)
    told: list[tuple[Digest, int | None]] = []
    cache.on_change = lambda digest: told.append((digest, cache.known_size(digest)))
    first, second = [await put(cache, content_of(10, each)) for each in (1, 2)]
    path_of(tmp_path, second).unlink()
    with pytest.raises(BlobNotFound):
        await cache.open(second)
    assert told == [(first, 10), (second, 10), (first, None), (second, None)]


async def test_what_cannot_be_removed_stays_in_the_books(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """And fails no read: a cache may fail."""
    expect_log("WARNING cafsfs.store.disk_cache: cannot remove .* from the cache")
    cache = cache_of(tmp_path, 10)
    first = await put(cache, content_of(10, 1))
    path_of(tmp_path, first).unlink()
    path_of(tmp_path, first).mkdir()
    second = await put(cache, content_of(10, 2))
    assert cache.usage.used == 20
    third = await put(cache, content_of(10, 3))
    assert set(cache.listing()) == {first, third}  # the next round took another
    assert second.hex not in files(tmp_path)
    path_of(tmp_path, first).rmdir()
    fourth = await put(cache, content_of(10, 4))
    assert cache.listing() == [fourth]
    assert_books_agree(cache, tmp_path)


# --- races, with the cache's threads held up


async def test_cancelled_while_it_evicts_the_books_agree(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 10)
    await put(cache, content_of(10, 1))
    before = descriptors()
    partial = cache.begin(hash_bytes(content_of(10, 2)))
    partial.write(content_of(10, 2))
    cache._limiter.total_tokens = 1
    cache._limiter.acquire_on_behalf_of_nowait("the test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit, cache, partial)
        await wait_all_tasks_blocked()
        nursery.start_soon(cache._limiter.acquire_on_behalf_of, "the test again")
        await wait_all_tasks_blocked()
        cache._limiter.release_on_behalf_of("the test")  # it renames, then waits to unlink
        while cache.known_size(partial.digest) is None:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        cache._limiter.release_on_behalf_of("the test again")
    assert_books_agree(cache, tmp_path)
    assert cache.listing() == [partial.digest]
    assert descriptors() == before


async def test_opened_before_it_is_unlinked(tmp_path: Path) -> None:
    """It is readable, and not in the books: its name is on its way out."""
    cache = cache_of(tmp_path, 10)
    first = await put(cache, content_of(10, 1))
    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, cache, content_of(10, 2))
            await held.reached()
            file = await cache.open(first)
            held.go_on()
    assert await file.read(0, 10) == content_of(10, 1)
    file.close()
    assert_books_agree(cache, tmp_path)


async def test_evicted_while_a_thread_opens_it(tmp_path: Path) -> None:
    """The same, where the name is gone when the thread comes back."""
    cache = cache_of(tmp_path, 10)
    first = await put(cache, content_of(10, 1))
    files: list[CachedFile] = []

    async def open_it() -> None:
        files.append(await cache.open(first))

    with held_up("utime") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await held.reached()
            await put(cache, content_of(10, 2))
            held.go_on()
    assert await files[0].read(0, 10) == content_of(10, 1)
    files[0].close()
    assert_books_agree(cache, tmp_path)


async def test_committed_again_while_it_is_evicted(tmp_path: Path) -> None:
    """The new file is not unlinked in place of the old one."""
    cache = cache_of(tmp_path, 10)
    first = await put(cache, content_of(10, 1))
    partial = cache.begin(first)
    partial.write(content_of(10, 1))
    with held_up("unlink") as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, cache, content_of(10, 2))
            await held.reached()
            nursery.start_soon(commit, cache, partial)
            await wait_all_tasks_blocked(0.01)
            held.go_on()
    assert cache.listing() == [first]
    assert_books_agree(cache, tmp_path)


async def test_many_at_once_under_a_tight_bound(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 30)

    async def use_some(start: int) -> None:
        for step in range(20):
            content = content_of(10, 1 + (start * step) % 7)
            try:
                assert await contents_of(cache, hash_bytes(content)) == content
            except BlobNotFound:
                await put(cache, content)

    async with trio.open_nursery() as nursery:
        for start in range(1, 9):
            nursery.start_soon(use_some, start)
    for digest in cache.listing():  # a name that is gone is found out when it is opened
        with suppress(BlobNotFound):
            await contents_of(cache, digest)
    await put(cache, content_of(10, 9))
    assert_books_agree(cache, tmp_path)
    assert cache.usage.used <= 30


# --- what a former mount has left


async def test_the_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    digests = [await put(before, content_of(10, each)) for each in (1, 2, 3, 4)]
    for age, digest in zip((2, 4, 1, 3), digests, strict=True):
        os.utime(path_of(tmp_path, digest), (time.time() - age * HOUR,) * 2)
    await use(cache_of(tmp_path), digests[3])  # noted in the file, not in the memory of a mount
    cache = cache_of(tmp_path, 40)
    assert cache.usage.blobs == 0
    await cache.scan()
    assert_books_agree(cache, tmp_path)
    for gone in (digests[1], digests[0], digests[2], digests[3]):
        await put(cache, os.urandom(10))
        assert cache.known_size(gone) is None
        assert_books_agree(cache, tmp_path)


async def test_a_scan_takes_out_what_is_over_the_bound(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    digests = [await put(before, content_of(10, each)) for each in (1, 2, 3)]
    for age, digest in zip((1, 3, 2), digests, strict=True):
        os.utime(path_of(tmp_path, digest), (time.time() - age * HOUR,) * 2)
    cache = cache_of(tmp_path, 10)
    await cache.scan()
    assert cache.listing() == [digests[0]]
    assert_books_agree(cache, tmp_path)


async def test_a_scan_passes_over_what_is_no_blob(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    blobs = tmp_path / "blobs"
    (blobs / "README").touch()
    (blobs / "zz").mkdir()
    (blobs / "ab").mkdir(exist_ok=True)
    (blobs / "ab" / "file").touch()
    (blobs / "ab" / "00").touch()
    path_of(tmp_path, digest).with_name("other").touch()
    path_of(tmp_path, ABSENT).mkdir(parents=True)
    link = path_of(tmp_path, hash_bytes(b"link"))
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/passwd")
    again = cache_of(tmp_path)
    await again.scan()
    assert again.listing() == [digest]


async def test_what_is_not_scanned_yet_is_found_all_the_same(tmp_path: Path) -> None:
    digest = await put(cache_of(tmp_path), b"content")
    cache = cache_of(tmp_path)
    assert await cache.find_missing([digest, ABSENT]) == {ABSENT}
    assert cache.known_size(digest) is None
    assert (await cache.stat(digest)).size == 7
    assert cache.known_size(digest) == 7
    assert await contents_of(cache_of(tmp_path), digest) == b"content"


async def test_a_scan_beside_use(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    digests = [await put(before, content_of(10, each)) for each in range(1, 30)]
    cache = cache_of(tmp_path)

    async def read_all() -> None:
        for digest in digests:
            await contents_of(cache, digest)

    async def put_some() -> None:
        for each in range(20, 40):
            await put(cache, content_of(10, each))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.scan)
        nursery.start_soon(read_all)
        nursery.start_soon(put_some)
    assert cache.usage == CacheUsage(used=390, bound=1 << 30, blobs=39)
    assert_books_agree(cache, tmp_path)


async def test_what_was_used_before_the_scan_is_younger_than_what_it_finds(tmp_path: Path) -> None:
    before = cache_of(tmp_path)
    digests = [await put(before, content_of(10, each)) for each in (1, 2, 3)]
    cache = cache_of(tmp_path, 30)
    await use(cache, digests[0])
    os.utime(path_of(tmp_path, digests[0]), (0, 0))  # whatever its file says
    await cache.scan()
    await put(cache, content_of(20, 4))
    assert cache.known_size(digests[0]) == 10


async def test_debris_is_cleared_if_it_is_old_and_its_writer_is_gone(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    partials = {name: tmp_path / "partial" / name for name in ("old", "young", "old, alive")}
    for path in partials.values():
        path.write_bytes(b"half of it")
    for name in ("old", "old, alive"):
        os.utime(partials[name], (time.time() - HOUR,) * 2)
    with partials["old, alive"].open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        await cache.scan()
        assert set((tmp_path / "partial").iterdir()) == {partials["young"], partials["old, alive"]}
    await cache.scan()
    assert list((tmp_path / "partial").iterdir()) == [partials["young"]]


async def test_a_writer_holds_a_lock_while_it_lives(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    partial = cache.begin(ABSENT)
    partial.write(b"half of it")
    os.utime(partial.path, (time.time() - HOUR,) * 2)
    await cache_of(tmp_path).scan()
    assert partial.path.exists()
    with partial.path.open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await cache.discard(partial)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_cache_that_cannot_be_scanned_is_a_cache_all_the_same(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.disk_cache: what killed writers have left is not cleared")
    digest = await put(cache_of(tmp_path), b"content")
    cache = cache_of(tmp_path)
    (tmp_path / "partial").rmdir()
    (tmp_path / "partial").touch()
    await cache.scan()
    assert cache.listing() == [digest]
    assert await contents_of(cache, digest) == b"content"


# --- what others do to it


async def test_removed_under_us_is_a_miss(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    path_of(tmp_path, digest).unlink()
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    assert_books_agree(cache, tmp_path)
    await put(cache, b"content")
    assert await contents_of(cache, digest) == b"content"


async def test_truncated_under_us_is_a_miss(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    os.truncate(path_of(tmp_path, digest), 3)
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    assert_books_agree(cache, tmp_path)


async def test_removed_while_it_is_open(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    file = await cache.open(digest)
    path_of(tmp_path, digest).unlink()
    assert await file.read(0, 7) == b"content"
    file.close()


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    digest = await put(cache, b"content")
    path = path_of(tmp_path, digest)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="cannot use the cache"):
        await cache.open(digest)


async def test_two_caches_over_one_directory(tmp_path: Path) -> None:
    one, other = cache_of(tmp_path), cache_of(tmp_path, 10)
    first = await put(one, content_of(10, 1))
    assert await contents_of(other, first) == content_of(10, 1)
    await put(other, content_of(10, 2))  # evicts the first
    with pytest.raises(BlobNotFound):
        await one.open(first)
    assert one.usage.blobs == 0


@pytest.mark.process
async def test_a_full_disk(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", MIB) as disk:
        cache = cache_of(disk)
        digest = hash_bytes(content_of(2 * MIB))
        with pytest.raises(StoreError, match="No space left on device"):
            await cache.put(digest, MemorySource(content_of(2 * MIB)))
        assert_books_agree(cache, disk)
        small = await put(cache, content_of(500_000))
        assert await pull(cache, small) == content_of(500_000)
