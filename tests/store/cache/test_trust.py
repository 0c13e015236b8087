"""What a cache trusts without looking, and what it hashes first."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound
from cafsfs.store.cache import trust
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Changes
from cafsfs.store.cache.progress import Progress
from tests.store.cache.books import assert_books_agree, contents_of, files, use
from tests.store.samples import ABSENT, MIB, content_of, descriptors, put
from tests.store.stacks import Caches, spoil_file, upkeep_of

DISCARDED = "WARNING cafsfs.store.cache.disk_cache: what the cache had for .* was not its content"


def another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "boot_id", lambda: "another boot")


async def test_what_was_committed_on_this_boot_is_not_hashed(
    cache: DiskCache, caches: Caches, tmp_path: Path, hashed: list[int]
) -> None:
    digest = await put(cache, b"content")
    await use(cache, digest)
    await upkeep_of(cache).flush()
    caches.crash(cache)
    again = caches.open(tmp_path)
    assert await again.vouched_size(digest) == 7
    assert await contents_of(again, digest) == b"content"
    assert hashed == []


async def test_what_another_boot_has_left_is_hashed_once(
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    hashed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = await put(cache, b"content")
    await upkeep_of(cache).flush()
    caches.crash(cache)
    another_boot(monkeypatch)
    for _ in range(2):
        again = caches.open(tmp_path)
        assert await contents_of(again, digest) == b"content"
        assert await contents_of(again, digest) == b"content"
        await upkeep_of(again).flush()
        caches.crash(again)
    assert len(hashed) == 1


async def test_what_a_power_cut_has_zeroed_is_never_served(
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    expect_log: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Size, times and inode are on the disk, its blocks are not."""
    expect_log(DISCARDED)
    digest = await put(cache, content_of(5000))
    await upkeep_of(cache).flush()
    caches.crash(cache)
    before = cache.path(digest).stat()
    cache.path(digest).write_bytes(bytes(5000))
    os.utime(cache.path(digest), ns=(before.st_atime_ns, before.st_mtime_ns))
    another_boot(monkeypatch)
    again = caches.open(tmp_path)
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            await again.open(digest)
    assert again.metrics.cache_discards == 1
    await assert_books_agree(again)


async def test_what_a_syncfs_covers_is_trusted_after_a_power_cut(
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    hashed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = await put(cache, b"content")
    await caches.leave(cache)
    another_boot(monkeypatch)
    assert await contents_of(caches.open(tmp_path), digest) == b"content"
    assert hashed == []


@pytest.mark.parametrize("change", ["mtime", "inode", "size"])
@pytest.mark.parametrize("how", ["known", "in the index", "durable"])
async def test_what_is_another_file_now_is_hashed_again(
    cache: DiskCache, caches: Caches, tmp_path: Path, hashed: list[int], change: str, how: str
) -> None:
    digest = await put(cache, b"content")
    path = cache.path(digest)
    if how != "known":
        await (caches.leave(cache) if how == "durable" else upkeep_of(cache).flush())
        cache = caches.open(tmp_path)
    match change:
        case "mtime":
            os.utime(path, (1, 1))
        case "inode":
            before = path.stat()
            copy = path.with_name("copy")
            copy.write_bytes(b"content")
            os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
            copy.rename(path)
        case "size":
            before = path.stat()
            path.write_bytes(b"content")
            entry = await cache.describe(digest)
            assert entry is not None
            cache.ledger.forget(digest)
            cache.ledger.index.apply(Changes({digest: replace(entry, size=6, verified=0.0)}))
    await upkeep_of(cache).flush()
    assert await contents_of(cache, digest) == b"content"
    assert len(hashed) == 1
    assert await contents_of(cache, digest) == b"content"
    assert len(hashed) == 1
    await assert_books_agree(cache)


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("what", ["spoilt", "truncated", "longer", "empty"])
async def test_what_is_not_its_content_is_a_miss_and_one_warning(
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    expect_log: Callable[[str], None],
    what: str,
    unknown: bool,
) -> None:
    expect_log(DISCARDED)
    digest = await put(cache, b"content")
    path = cache.path(digest)
    match what:
        case "spoilt":
            spoil_file(tmp_path, digest)
            os.utime(path, (1, 1))  # the clock of files is coarse
        case "truncated":
            os.truncate(path, 3)
        case "longer":
            path.write_bytes(b"content and more")
        case "empty":
            os.truncate(path, 0)
    if unknown:  # as if the index was lost
        caches.crash(cache)
        (tmp_path / "index.sqlite").unlink()
        cache = caches.open(tmp_path)
    told: list[Digest] = []
    cache.on_change = told.append
    with pytest.raises(BlobNotFound):
        await cache.open(digest)
    assert told == [digest]
    assert files(tmp_path) == {}
    await assert_books_agree(cache)
    assert cache.metrics.cache_discards == 1
    await put(cache, b"content")
    assert await contents_of(cache, digest) == b"content"
    await assert_books_agree(cache)


async def test_a_blob_without_an_entry_is_hashed_and_then_has_one(
    cache: DiskCache, caches: Caches, tmp_path: Path, hashed: list[int]
) -> None:
    """Found by name, before the walk over the files has come to it."""
    digest = await put(cache, b"content")
    caches.crash(cache)  # killed before it was written
    again = caches.open(tmp_path)
    assert again.known_size(digest) is None
    assert await again.find_missing([digest, ABSENT]) == {ABSENT}
    assert await again.vouched_size(digest) is None
    assert (await again.stat(digest)).size == 7
    assert again.known_size(digest) == await again.vouched_size(digest) == 7
    assert len(hashed) == 1
    await assert_books_agree(again)
    await upkeep_of(again).adopt()
    await assert_books_agree(again)


async def test_hashing_a_large_file_can_be_cancelled(
    cache: DiskCache, caches: Caches, tmp_path: Path
) -> None:
    digest = await put(cache, content_of(20 * MIB))
    caches.crash(cache)
    again = caches.open(tmp_path)
    before = descriptors()
    progress = Progress()

    async def open_it() -> None:  # on a busy machine it is through before it is cancelled
        (await again.open(digest, progress)).close()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            with trio.fail_after(5):
                while not progress.count:
                    await trio.lowlevel.checkpoint()
            scope.cancel()
    assert descriptors() == before
    assert await contents_of(again, digest) == content_of(20 * MIB)
    assert progress.count >= 1
