"""Open files: reads that are whole or fail, and what becomes of those who wait."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    CorruptBlob,
    NotSupported,
    TimedOut,
    Unavailable,
    Unreachable,
)
from cafsfs.store.cache.curation import pin
from tests.vfs.scripted import BLAKE3, CONTROL, ROOT, Scene

CONTENT = bytes(range(256)) * 16 + b"tail"
PLACES = [0, 1, 4095, 4096, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1, 1 << 40]
LENGTHS = [0, 1, 4096, len(CONTENT), 1 << 20]


async def assert_reads_are_exact(scene: Scene, handle: int, content: bytes) -> None:
    for offset in PLACES:
        for length in LENGTHS:
            data = await scene.fs.read(handle, offset, length)
            assert bytes(data) == content[offset : offset + length], (offset, length)


async def test_a_cached_blob_reads_exactly(scene: Scene) -> None:
    handle = await scene.open(await scene.cached(CONTENT))
    await assert_reads_are_exact(scene, handle, CONTENT)
    scene.fs.release(handle)
    assert scene.upstream.pulled == []


async def test_a_remote_blob_reads_exactly_and_is_pulled_once(scene: Scene) -> None:
    digest = scene.upstream.add(CONTENT)
    handles = [await scene.open(digest) for _ in range(3)]
    for handle in handles:
        await assert_reads_are_exact(scene, handle, CONTENT)
        scene.fs.release(handle)
    assert scene.upstream.pulled == [digest]
    assert scene.fs.state()["open_handles"] == 0


async def test_an_empty_blob_is_at_its_end(scene: Scene) -> None:
    handle = await scene.open(scene.upstream.add(b""))
    assert bytes(await scene.fs.read(handle, 0, 4096)) == b""


async def test_a_blob_that_was_evicted_is_still_read_by_who_has_it_open(scene: Scene) -> None:
    handle = await scene.open(await scene.cached(CONTENT))
    await scene.fs.read(handle, 0, 1)
    await scene.cached(bytes(9400))  # of 10,000
    await scene.evict()
    await assert_reads_are_exact(scene, handle, CONTENT)


async def test_open_does_not_wait_and_blobs_keep_their_pages(scene: Scene) -> None:
    scene.upstream.pulls.shut()
    blob = await scene.lookup(scene.upstream.add(CONTENT))
    with trio.fail_after(1):
        handle, immutable = await scene.fs.open(blob.inode)
    assert immutable
    scene.fs.release(handle)


async def test_readers_wait_until_the_blob_is_whole(scene: Scene) -> None:
    scene.upstream.pulls.shut()
    handle = await scene.open(scene.upstream.add(CONTENT))
    answers: list[bytes] = []

    async def read(offset: int) -> None:
        answers.append(bytes(await scene.fs.read(handle, offset, 2)))

    async with trio.open_nursery() as nursery:
        for offset in range(5):
            nursery.start_soon(read, offset)
        await scene.upstream.pulls.reached.wait()
        await wait_all_tasks_blocked()
        assert answers == []
        scene.upstream.pulls.open()
    assert sorted(answers) == [CONTENT[offset : offset + 2] for offset in range(5)]


async def test_the_last_to_close_stops_the_pull(scene: Scene) -> None:
    scene.upstream.pulls.shut()
    digest = scene.upstream.add(CONTENT)
    handle = await scene.open(digest)
    await scene.upstream.pulls.reached.wait()
    assert scene.store.is_pulling(digest)
    scene.fs.release(handle)
    await wait_all_tasks_blocked()
    assert not scene.store.is_pulling(digest)


@pytest.mark.parametrize(
    "error", [Unreachable("no route"), CorruptBlob("wrong hash"), BlobNotFound(Digest(bytes(32)))]
)
async def test_an_error_reaches_every_reader_and_the_next_open_tries_again(
    scene: Scene, error: CafsError
) -> None:
    digest = scene.upstream.add(CONTENT)
    scene.upstream.pulls.shut()
    handles = [await scene.open(digest) for _ in range(3)]
    caught: list[CafsError] = []

    async def read(handle: int) -> None:
        for _ in range(3):  # readers ask again two or three times
            with pytest.raises(type(error)) as raised:
                await scene.fs.read(handle, 0, 10)
            caught.append(raised.value)

    async with trio.open_nursery() as nursery:
        for handle in handles:
            nursery.start_soon(read, handle)
        await scene.upstream.pulls.reached.wait()
        scene.upstream.error = error
        scene.upstream.pulls.open()
    assert caught == [error] * 9
    scene.upstream.error = None
    assert bytes(await scene.fs.read(await scene.open(digest), 0, 10)) == CONTENT[:10]
    assert scene.upstream.pulled == [digest, digest]


async def test_a_read_has_patience_for_as_long_as_the_pull_moves(
    scene: Scene, mock_clock: MockClock
) -> None:
    handle = await scene.open(scene.upstream.add(CONTENT))
    scene.upstream.pulls.shut()
    began = trio.current_time()
    await scene.upstream.pulls.reached.wait()
    mock_clock.autojump_threshold = 0  # nothing but timers is waited for from here on
    with pytest.raises(TimedOut, match="has not moved for 30 s"):
        await scene.fs.read(handle, 0, 1)
    assert 29 <= trio.current_time() - began <= 34


@pytest.mark.parametrize("told", [3, len(CONTENT) + 1])
async def test_a_size_that_proves_wrong_fails_readers_and_tells_the_kernel(
    scene: Scene, told: int
) -> None:
    digest = scene.upstream.add(CONTENT)
    scene.upstream.told[digest] = told
    blob = await scene.lookup(digest)
    handle, _ = await scene.fs.open(blob.inode)
    with pytest.raises(CorruptBlob, match=f"{len(CONTENT)} bytes"):
        await scene.fs.read(handle, 0, 1)
    assert scene.stale == [blob.inode]
    scene.upstream.told[digest] = len(CONTENT)
    assert (await scene.fs.getattr(blob.inode)).size == len(CONTENT)
    again = await scene.open(digest)
    assert bytes(await scene.fs.read(again, 0, 1 << 20)) == CONTENT


async def test_whoever_waits_in_a_read_is_failed_at_once(scene: Scene) -> None:
    scene.upstream.pulls.shut()
    handle = await scene.open(scene.upstream.add(CONTENT))

    async def read_in_vain() -> None:
        with pytest.raises(Unavailable, match="going away"):
            await scene.fs.read(handle, 0, 1)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read_in_vain)
        await scene.upstream.pulls.reached.wait()
        await wait_all_tasks_blocked()
        scene.fs.fail_waiters(Unavailable("going away"))


async def test_metrics_count_what_was_read(scene: Scene) -> None:
    handle = await scene.open(await scene.cached(CONTENT))
    await scene.fs.read(handle, 0, 10)
    await scene.fs.read(handle, len(CONTENT) - 1, 10)
    counted = scene.metrics
    assert (counted.lookups, counted.opens, counted.reads, counted.read_bytes) == (1, 1, 2, 11)


# --- what is no blob


@pytest.mark.parametrize("inode", [ROOT, BLAKE3, CONTROL])
async def test_directories_are_not_opened_as_files(scene: Scene, inode: int) -> None:
    with pytest.raises(NotSupported):
        await scene.fs.open(inode)


async def test_a_directory_handle_is_not_read(scene: Scene) -> None:
    handle = await scene.fs.opendir(ROOT)
    with pytest.raises(NotSupported):
        await scene.fs.read(handle, 0, 1)


async def test_control_files_are_rendered_when_they_are_opened(scene: Scene) -> None:
    found = await scene.fs.lookup(CONTROL, b"count")
    assert found.remember == 0
    assert found.size == len(b"rendered 1 times\n")
    handle, immutable = await scene.fs.open(found.inode)
    assert not immutable  # so that the kernel keeps no pages of it
    whole = await scene.fs.read(handle, 0, 4096)
    assert whole == b"rendered 2 times\n"
    assert await scene.fs.read(handle, 9, 1) == b"2"
    assert await scene.fs.read(handle, 4096, 1) == b""
    scene.fs.release(handle)
    assert scene.fs.state()["open_handles"] == 0


async def test_a_control_file_that_is_open_has_not_become_shorter(scene: Scene) -> None:
    control, inode = scene.fs._control, (await scene.fs.lookup(CONTROL, b"count")).inode
    content = b"a long one"

    async def render() -> bytes:
        return content

    control["count"] = render
    handle, _ = await scene.fs.open(inode)
    content = b"short"
    assert (await scene.fs.getattr(inode)).size == len(b"a long one")
    scene.fs.release(handle)
    assert (await scene.fs.getattr(inode)).size == len(b"short")
    content = bytes(1025)
    assert (await scene.fs.getattr(inode)).blocks == 3


async def test_control_files_have_numbers_of_their_own(scene: Scene) -> None:
    numbers = {(await scene.fs.lookup(CONTROL, name)).inode for name in (b"version", b"count")}
    assert len(numbers) == 2
    assert not numbers & {0, ROOT, BLAKE3, CONTROL}
    handle, _ = await scene.fs.open((await scene.fs.lookup(CONTROL, b"version")).inode)
    assert await scene.fs.read(handle, 0, 100) == b"1.2.3\n"


# --- extended attributes


async def xattr(scene: Scene, inode: int, name: str) -> bytes | None:
    return await scene.fs.getxattr(inode, f"user.cafs.{name}".encode())


async def test_the_state_of_a_blob_from_remote_to_cached(scene: Scene) -> None:
    digest = scene.upstream.add(CONTENT)
    blob = await scene.lookup(digest)
    assert await xattr(scene, blob.inode, "hash") == digest.hex.encode()
    assert await xattr(scene, blob.inode, "state") == b"remote"
    scene.upstream.pulls.shut()
    handle, _ = await scene.fs.open(blob.inode)
    await scene.upstream.pulls.reached.wait()
    assert await xattr(scene, blob.inode, "state") == b"partial"
    scene.upstream.pulls.open()
    await scene.fs.read(handle, 0, 1)
    assert await xattr(scene, blob.inode, "state") == b"cached"


async def test_a_blob_that_memory_has_forgotten_is_cached_all_the_same(scene: Scene) -> None:
    digest = await scene.cached(CONTENT)
    blob = await scene.lookup(digest)
    scene.cache.ledger.forget(digest)
    assert (await scene.fs.getattr(blob.inode)).blocks == -(-len(CONTENT) // 512)
    scene.cache.ledger.forget(digest)
    assert await xattr(scene, blob.inode, "state") == b"cached"
    scene.cache.path(digest).unlink()
    scene.cache.ledger.forget(digest)
    assert (await scene.fs.getattr(blob.inode)).blocks == 1
    assert await xattr(scene, blob.inode, "state") == b"remote"


async def test_a_pin_is_told(scene: Scene) -> None:
    digest = await scene.cached(CONTENT)
    blob = await scene.lookup(digest)
    assert await xattr(scene, blob.inode, "pin") == b"no"
    await pin(scene.cache, [digest])
    assert await xattr(scene, blob.inode, "pin") == b"yes"
    remote = await scene.lookup(scene.upstream.add(b"remote"))
    assert await xattr(scene, remote.inode, "pin") == b"no"


async def test_what_a_pull_told_is_told_of_what_is_cached(scene: Scene) -> None:
    """By the index: another process may have pulled it, a month ago."""
    digest = scene.upstream.add(CONTENT)
    blob = await scene.lookup(digest)
    handle, _ = await scene.fs.open(blob.inode)
    await scene.fs.read(handle, 0, 1)
    scene.store._told.clear()
    assert await xattr(scene, blob.inode, "packed_size") == str(len(CONTENT) + 16).encode()
    assert await xattr(scene, blob.inode, "compression") == b"ZSTD"
    assert await xattr(scene, blob.inode, "source") == b"there:2403"
    verified = await xattr(scene, blob.inode, "verified")
    assert verified is not None
    assert int(verified) > 1_234_567_890


async def test_a_cached_file_that_is_changed_under_its_readers_is_read_on(
    scene: Scene, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.read_caching: a cached blob .*; verifying .* again")
    expect_log("WARNING .*what the cache had for .* was not its content; discarded")
    digest = scene.upstream.add(CONTENT)
    handle = await scene.open(digest)
    await scene.fs.read(handle, 0, 1)
    os.truncate(scene.cache.path(digest), 5)
    await assert_reads_are_exact(scene, handle, CONTENT)
    assert scene.upstream.pulled == [digest, digest]


async def test_what_the_server_told_is_told(scene: Scene) -> None:
    blob = await scene.lookup(scene.upstream.add(CONTENT))
    told = {
        name: await xattr(scene, blob.inode, name)
        for name in ("packed_size", "compression", "source", "verified")
    }
    assert told == {
        "packed_size": str(len(CONTENT) + 16).encode(),
        "compression": b"ZSTD",
        "source": b"there:2403",
        "verified": b"1234567890",
    }


async def test_what_nobody_has_told_is_no_attribute(scene: Scene) -> None:
    blob = await scene.lookup(await scene.cached(CONTENT))
    assert await xattr(scene, blob.inode, "packed_size") is None
    assert await xattr(scene, blob.inode, "source") is None


@pytest.mark.parametrize("name", ["user.cafs.", "user.cafs.x", "user.hash", "hash", "\udcff"])
async def test_other_attributes_are_none(scene: Scene, name: str) -> None:
    blob = await scene.lookup(scene.upstream.add(CONTENT))
    assert await scene.fs.getxattr(blob.inode, name.encode(errors="surrogateescape")) is None


@pytest.mark.parametrize("inode", [ROOT, BLAKE3, CONTROL])
async def test_directories_have_no_attributes(scene: Scene, inode: int) -> None:
    assert await xattr(scene, inode, "hash") is None
