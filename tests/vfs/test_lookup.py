"""Lookups and attributes: who is asked, for how long, and what the kernel is told."""

from __future__ import annotations

import stat

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, NoSuchName, TimedOut, Unavailable, Unreachable
from cafsfs.store.memory import MemorySink
from cafsfs.vfs.filesystem import BLOB_TIME_NS, FOREVER, Attributes
from tests.vfs.scripted import BLAKE3, BORN_NS, CONTROL, ROOT, Scene

ABSENT = Digest(bytes(range(32)))


@pytest.mark.parametrize("parent", [ROOT, BLAKE3])
@pytest.mark.parametrize("extension", ["", ".txt", ".tar.gz"])
async def test_any_hash_is_found_by_name(scene: Scene, parent: int, extension: str) -> None:
    digest = scene.upstream.add(b"content")
    found = await scene.fs.lookup(parent, f"{digest}{extension}".encode())
    assert found == await scene.lookup(digest)
    assert found.size == 7
    assert scene.fs.find_inode(digest) == found.inode


@pytest.mark.parametrize(
    "name",
    [b"x", b"refs", b"blake3x", b".cafsfs.", b"\xff\xfe", ABSENT.hex.upper().encode()],
)
async def test_a_name_that_is_none_asks_nobody(scene: Scene, name: bytes) -> None:
    for parent in (ROOT, BLAKE3, CONTROL):
        with pytest.raises(NoSuchName):
            await scene.fs.lookup(parent, name)
    assert scene.upstream.asked == []


async def test_a_hash_is_no_name_below_control_files(scene: Scene) -> None:
    with pytest.raises(NoSuchName):
        await scene.fs.lookup(CONTROL, ABSENT.hex.encode())
    with pytest.raises(NoSuchName):
        await scene.fs.lookup(BLAKE3, b"blake3")


async def test_a_file_has_no_children(scene: Scene) -> None:
    blob = await scene.lookup(scene.upstream.add(b"content"))
    with pytest.raises(NoSuchName):
        await scene.fs.lookup(blob.inode, ABSENT.hex.encode())


async def test_an_absent_blob_is_asked_for_each_time_and_leaves_no_node(scene: Scene) -> None:
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            await scene.lookup(ABSENT)
    assert scene.upstream.asked == [ABSENT, ABSENT]
    assert scene.fs.state()["known_inodes"] == 0
    assert scene.fs.find_inode(ABSENT) is None


async def test_why_nobody_could_tell_is_passed_on(scene: Scene) -> None:
    scene.upstream.error = Unreachable("no route")
    with pytest.raises(Unreachable, match="no route"):
        await scene.lookup(ABSENT)


async def test_an_unknown_inode_is_no_file(scene: Scene) -> None:
    for inode in (0, 4, 999, 1 << 40):
        with pytest.raises(NoSuchName):
            await scene.fs.getattr(inode)


# --- attributes


@pytest.mark.parametrize("inode", [ROOT, BLAKE3, CONTROL])
async def test_directories(scene: Scene, inode: int) -> None:
    assert await scene.fs.getattr(inode) == Attributes(
        inode=inode,
        mode=stat.S_IFDIR | 0o555,
        size=0,
        blocks=0,
        time_ns=BORN_NS,
        remember=FOREVER,
    )


async def test_fixed_names(scene: Scene) -> None:
    assert (await scene.fs.lookup(ROOT, b"blake3")).inode == BLAKE3
    assert (await scene.fs.lookup(ROOT, b".cafsfs")).inode == CONTROL


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 5000])
async def test_a_blob_before_and_after_it_is_cached(scene: Scene, size: int) -> None:
    digest = scene.upstream.add(bytes(size))
    before = await scene.lookup(digest)
    assert before.mode == stat.S_IFREG | 0o444
    assert before.time_ns == BLOB_TIME_NS
    assert before.size == size
    # tar --sparse takes a file of 0 blocks for a hole.
    assert before.blocks == min(size, 1)
    assert 0 < before.remember <= 1
    await scene.store.pull(digest, MemorySink())
    after = await scene.fs.getattr(before.inode)
    assert after.blocks == -(-size // 512)
    assert after.remember == FOREVER
    assert (after.inode, after.mode, after.size, after.time_ns) == (
        before.inode,
        before.mode,
        before.size,
        before.time_ns,
    )
    assert scene.stale == [before.inode]


async def test_a_cached_blob_asks_nobody(scene: Scene) -> None:
    digest = await scene.cached(b"content")
    assert (await scene.lookup(digest)).remember == FOREVER
    assert scene.upstream.asked == []


async def test_the_kernel_is_told_of_blobs_that_leave_the_cache(scene: Scene) -> None:
    first = await scene.cached(bytes(6000))
    blob = await scene.lookup(first)
    await scene.cached(bytes(6001))  # of 10,000
    await scene.evict()
    assert scene.stale == [blob.inode]
    assert (await scene.fs.getattr(blob.inode)).blocks == 1


async def test_what_the_kernel_does_not_know_is_never_stale(scene: Scene) -> None:
    blob = await scene.lookup(scene.upstream.add(b"content"))
    scene.fs.forget(blob.inode, 1)
    await scene.cached(b"content")
    assert scene.stale == []


async def test_every_lookup_is_a_reference(scene: Scene) -> None:
    digest = await scene.cached(b"content")
    blob = await scene.lookup(digest)
    await scene.lookup(digest)
    scene.fs.forget(blob.inode, 1)
    assert scene.fs.find_inode(digest) == blob.inode
    scene.fs.forget(blob.inode, 1)
    assert scene.fs.find_inode(digest) is None
    with pytest.raises(NoSuchName):
        await scene.fs.getattr(blob.inode)


# --- deadlines


async def test_a_lookup_has_a_deadline_and_the_inquiry_goes_on(
    scene: Scene, mock_clock: MockClock
) -> None:
    digest = scene.upstream.add(b"content")
    scene.upstream.questions.shut()

    async def look_up_in_vain() -> None:
        with pytest.raises(TimedOut, match="not known after 5 s"):
            await scene.lookup(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_up_in_vain)
        await scene.upstream.questions.reached.wait()
        mock_clock.jump(4.9)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        mock_clock.jump(0.2)
    scene.upstream.questions.open()
    await wait_all_tasks_blocked()
    assert (await scene.lookup(digest)).size == 7
    assert scene.upstream.asked == [digest]


async def test_a_size_that_only_a_pull_tells_is_pulled_for_and_remembered(
    scene: Scene, mock_clock: MockClock
) -> None:
    digest = scene.upstream.add(b"content")
    scene.upstream.told[digest] = None
    scene.upstream.pulls.shut()

    async def look_up_in_vain() -> None:
        with pytest.raises(TimedOut):
            await scene.lookup(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_up_in_vain)
        await scene.upstream.pulls.reached.wait()
        mock_clock.jump(6)
    scene.upstream.pulls.open()
    assert (await scene.lookup(digest)).size == 7
    assert (await scene.lookup(digest)).size == 7
    assert scene.upstream.pulled == [digest]


async def test_many_lookups_of_one_blob_are_one_question(scene: Scene) -> None:
    digest = scene.upstream.add(b"content")
    scene.upstream.questions.shut()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(scene.lookup, digest)
        await scene.upstream.questions.reached.wait()
        scene.upstream.questions.open()
    assert scene.upstream.asked == [digest]


async def test_a_cached_name_does_not_wait_behind_a_stalled_one(scene: Scene) -> None:
    cached = await scene.cached(b"cached")
    scene.upstream.questions.shut()
    async with trio.open_nursery() as nursery:
        for tail in range(20):
            nursery.start_soon(scene.lookup, scene.upstream.add(bytes([tail])))
        await scene.upstream.questions.reached.wait()
        assert (await scene.lookup(cached)).size == 6
        nursery.cancel_scope.cancel()


async def test_hurried_lookups_wait_less_but_never_longer(
    scene: Scene, mock_clock: MockClock
) -> None:
    digest = scene.upstream.add(b"content")
    scene.upstream.questions.shut()
    scene.fs.hurry_lookups(1)
    scene.fs.hurry_lookups(100)

    async def look_up_in_vain() -> None:
        with pytest.raises(TimedOut, match="not known after 1 s"):
            await scene.lookup(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_up_in_vain)
        await scene.upstream.questions.reached.wait()
        mock_clock.jump(1.1)


async def test_an_unknown_size_proves_nothing(scene: Scene) -> None:
    scene.fs.size_is_wrong(ABSENT)
    scene.fs.blocks_changed(ABSENT)
    assert scene.stale == []


# --- at the end


async def test_whoever_waits_in_a_lookup_is_failed(scene: Scene) -> None:
    digest = scene.upstream.add(b"content")
    scene.upstream.questions.shut()

    async def look_up_in_vain() -> None:
        with pytest.raises(Unavailable, match="going away"):
            await scene.lookup(digest)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(look_up_in_vain)
        await scene.upstream.questions.reached.wait()
        await wait_all_tasks_blocked()
        scene.fs.fail_waiters(Unavailable("going away"))
