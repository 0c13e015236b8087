"""Files that are read while they come: what the kernel has to forget, and who waits for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.errors import ConnectionBroken, StaleInode, TimedOut, Unavailable
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions
from tests.store.samples import MIB, content_of
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches
from tests.vfs.scripted import BORN_NS, ROOT

CONTENT = content_of(3 * MIB)
DIGEST = hash_bytes(CONTENT)
NAME = DIGEST.hex.encode()


class Stage:
    """A filesystem over a store that streams what has more than a megabyte."""

    def __init__(self, cache: DiskCache, nursery: trio.Nursery) -> None:
        self.server = ScriptedStore(CONTENT)
        self.cache = cache
        self.store = ReadCachingStore(cache, self.server, nursery, verify_first=MIB)
        self.fs = FileSystem(self.store, VfsOptions(uid=1, gid=2, born_ns=BORN_NS), {})
        self.store.on_unverified = self.fs.content_is_unverified
        self.spoilt: list[int] = []
        self.fs.on_spoilt = self.spoilt.append

    def sends(self, pieces: int) -> None:
        self.server.flow = trio.Semaphore(pieces)

    async def open(self) -> tuple[int, int]:
        """The inode, and a handle."""
        inode = (await self.fs.lookup(ROOT, NAME)).inode
        return inode, (await self.fs.open(inode))[0]

    async def read(self, handle: int, offset: int = 0, length: int = 10) -> bytes:
        return bytes(await self.fs.read(handle, offset, length))


@pytest.fixture
def stage(caches: Caches, tmp_path: Path, nursery: trio.Nursery) -> Stage:
    return Stage(caches.open(tmp_path), nursery)


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


async def test_a_file_is_opened_when_the_kernel_has_forgotten_what_was_not_verified(
    stage: Stage, nursery: trio.Nursery
) -> None:
    stage.sends(2)
    inode, handle = await stage.open()
    assert await stage.read(handle) == CONTENT[:10]
    stage.fs.release(handle)
    assert stage.spoilt == [inode]
    opened: list[tuple[int, int]] = []

    async def open_again() -> None:
        opened.append(await stage.open())

    nursery.start_soon(open_again)
    await wait_all_tasks_blocked()
    assert opened == []
    stage.fs.pages_dropped(inode)
    await wait_all_tasks_blocked()
    assert opened[0][0] == inode
    stage.fs.release(opened[0][1])


async def test_who_waits_for_the_kernel_to_forget_waits_no_longer_than_for_a_lookup(
    stage: Stage, mock_clock: trio.testing.MockClock
) -> None:
    stage.sends(2)
    inode, handle = await stage.open()
    await stage.read(handle)
    stage.fs.release(handle)
    mock_clock.autojump_threshold = 0.05
    with pytest.raises(TimedOut, match="does not forget"):
        await stage.fs.open(inode)


async def test_an_inode_that_fails_while_it_is_open_is_given_up(stage: Stage) -> None:
    """Who has it open must not find pages of who opens the blob later."""
    stage.sends(2)
    inode, handle = await stage.open()
    assert await stage.read(handle) == CONTENT[:10]
    stage.store._open[DIGEST].state.scope.cancel()  # type: ignore[union-attr]  # the pull ends
    with pytest.raises((Unavailable, ConnectionBroken)):
        await stage.read(handle, 2 * MIB)
    assert stage.spoilt == [inode]
    with pytest.raises(StaleInode):
        await stage.fs.open(inode)
    stage.server.flow = None
    other, again = await stage.open()  # at once: it has no pages
    assert other != inode
    assert await stage.read(again, 2 * MIB) == CONTENT[2 * MIB :][:10]
    stage.fs.pages_dropped(inode)
    stage.fs.forget(inode, 1)
    assert stage.fs.find_inode(DIGEST) == other
    with pytest.raises(Unavailable):
        await stage.read(handle)
    for each in (handle, again):
        stage.fs.release(each)


async def test_the_end_that_the_kernel_may_have_is_dropped_before_the_blob_streams_again(
    stage: Stage, nursery: trio.Nursery
) -> None:
    inode, handle = await stage.open()
    assert await stage.read(handle, 3 * MIB - 10) == CONTENT[-10:]
    stage.fs.release(handle)
    await stage.cache.remove([DIGEST])
    stage.sends(2)
    opened: list[int] = []

    async def open_again() -> None:
        opened.append((await stage.fs.open(inode))[0])

    nursery.start_soon(open_again)
    await wait_all_tasks_blocked()
    assert (stage.spoilt, opened) == ([inode], [])
    stage.fs.pages_dropped(inode)
    await wait_all_tasks_blocked()
    assert await stage.read(opened[0]) == CONTENT[:10]  # while it comes
    stage.fs.release(opened[0])


async def test_with_the_end_in_the_kernel_a_blob_is_verified_before_it_is_read(
    stage: Stage, nursery: trio.Nursery
) -> None:
    """Its file was taken away without our knowledge: no pages were dropped."""
    inode, handle = await stage.open()
    assert await stage.read(handle, 3 * MIB - 10) == CONTENT[-10:]
    stage.fs.release(handle)
    stage.cache.path(DIGEST).unlink()
    stage.sends(2)
    handle, _ = await stage.fs.open(inode)
    done = trio.Event()
    data: list[bytes] = []

    async def read() -> None:
        data.append(await stage.read(handle))
        done.set()

    nursery.start_soon(read)
    flow = stage.server.flow
    assert flow is not None
    while flow.value:
        await stage.server.asked.receive()
        await wait_all_tasks_blocked()
    assert (stage.spoilt, data) == ([], [])
    flow.release()
    await done.wait()
    assert data == [CONTENT[:10]]
    stage.fs.release(handle)


async def test_the_end_is_where_the_kernel_was_told(stage: Stage) -> None:
    stage.server.told[DIGEST] = 4 * MIB
    stage.sends(2)
    _, handle = await stage.open()
    assert await stage.read(handle, 2 * MIB - 10) == CONTENT[2 * MIB - 10 : 2 * MIB]
    node = stage.fs._blobs.find(DIGEST)
    assert node is not None
    node.size = 2 * MIB
    with trio.move_on_after(0) as scope:
        await stage.read(handle, 2 * MIB - 10)
    assert scope.cancelled_caught
    stage.fs.release(handle)
