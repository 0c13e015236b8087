"""Blobs that are read while they come: what readers see, what they never see, and who is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import (
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    StoreError,
    TimedOut,
    Unavailable,
)
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.partials import Shelter
from cafsfs.store.contracts import BlobStat, ContentSink, ContentStore
from cafsfs.store.read_caching import OpenBlob, ReadCachingStore, StalledReads
from cafsfs.store.retrying import RetryingStore
from tests.store.routes import routed
from tests.store.samples import KIB, MIB, content_of, descriptors
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches, spoil_file
from tests.store.tmpfs import small_tmpfs

STEP = 256 * KIB
CONTENT = content_of(3 * MIB)
DIGEST = hash_bytes(CONTENT)
WRONG_EARLY = b"?" + CONTENT[1:]
WRONG_LATE = CONTENT[: 2 * MIB] + b"?" + CONTENT[2 * MIB + 1 :]
WRONG_AT_THE_END = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
SHOWN = len(CONTENT) - 128 * KIB  # before the hash is verified
PATIENCE = 30.0
DISAGREE = "comes otherwise than readers have seen it"


class Server(ScriptedStore):
    """Writes in threads, and finds out at the end whether it was right, as an UnpackingStore does.

    A pull that breaks off does so when the next piece may come.
    """

    def __init__(self, content: bytes = CONTENT) -> None:
        super().__init__(step=STEP)
        self.verdict = trio.Event()
        self.verdict.set()
        self.blobs[DIGEST] = content

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        await self._begin("pull")
        content = self._get(digest)
        sink.restart()
        breaks_at = self.breaks.pop(0) if self.breaks else None
        for piece, at in enumerate(range(0, len(content), STEP)):
            if self.flow is not None:
                await self._wait(self.flow)
            if piece == breaks_at:
                raise ConnectionBroken("in the middle of a blob")
            await trio.to_thread.run_sync(sink.write, content[at : at + STEP])
        await self.verdict.wait()
        if hash_bytes(content) != digest:
            raise CorruptBlob("the wrong hash")
        return BlobStat(size=len(content), source="scripted")

    def sends(self, size: int) -> None:
        """So much more, and then it waits."""
        if self.flow is None:
            self.flow = trio.Semaphore(0)
        for _ in range(size // STEP):
            self.flow.release()


@dataclass
class Scene:
    """A store that streams what has more than a megabyte."""

    store: ReadCachingStore
    cache: DiskCache
    unverified: list[Digest] = field(default_factory=list)

    async def open(self) -> OpenBlob:
        """As a mount does it: first somebody asks for the size."""
        await self.store.stat(DIGEST)
        return self.store.open(DIGEST)


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def stage(caches: Caches, tmp_path: Path, nursery: trio.Nursery) -> Callable[..., Scene]:
    def stage(
        *servers: ContentStore, directory: Path = tmp_path, finish_pulls: bool = False
    ) -> Scene:
        cache = caches.open(directory, shelter=Shelter(tmp_path))
        upstream = routed(*servers)
        store = ReadCachingStore(
            cache, upstream, nursery, verify_first=MIB, finish_pulls=finish_pulls
        )
        scene = Scene(store, cache)
        store.on_unverified = scene.unverified.append
        return scene

    return stage


Staging = Callable[..., Scene]


class Reader:
    """A task that reads a range; what became of it."""

    def __init__(self, blob: OpenBlob, offset: int, length: int, patience: float) -> None:
        self._blob = blob
        self._range = offset, length
        self._patience = patience
        self._outcome: bytes | CafsError | None = None
        self.done = trio.Event()

    @property
    def outcome(self) -> bytes | CafsError | None:
        return self._outcome

    async def run(self) -> None:
        try:
            self._outcome = bytes(await self._blob.read(*self._range, patience=self._patience))
        except CafsError as error:
            self._outcome = error
        self.done.set()


def reading(
    nursery: trio.Nursery, blob: OpenBlob, offset: int, length: int, patience: float = PATIENCE
) -> Reader:
    reader = Reader(blob, offset, length, patience)
    nursery.start_soon(reader.run)
    return reader


async def read(blob: OpenBlob, offset: int, length: int) -> bytes:
    return bytes(await blob.read(offset, length, patience=PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    """Threads take their time, and none of it is the clock's."""
    with trio.fail_after(20):
        while not condition():
            await trio.to_thread.run_sync(time.sleep, 0.001)


# --- as it comes


async def test_readers_see_what_has_come_and_wait_for_the_rest(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    blob = await scene.open()
    assert await read(blob, 0, 10) == CONTENT[:10]
    assert await read(blob, MIB - 10, 10) == CONTENT[MIB - 10 : MIB]
    near, far = reading(nursery, blob, MIB, 10), reading(nursery, blob, 2 * MIB, 10)
    await wait_all_tasks_blocked()
    assert (near.outcome, far.outcome) == (None, None)
    server.sends(STEP)
    await near.done.wait()
    assert (near.outcome, far.outcome) == (CONTENT[MIB : MIB + 10], None)
    server.sends(MIB)
    await far.done.wait()
    assert far.outcome == CONTENT[2 * MIB : 2 * MIB + 10]
    assert scene.store.is_pulling(DIGEST)
    server.sends(MIB)
    assert await read(blob, 0, 1 << 30) == CONTENT
    assert server.calls == ["stat", "pull"]
    scene.store.close(blob)
    assert scene.unverified == []


async def test_the_end_is_shown_only_when_all_is_verified(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server = Server()
    server.verdict = trio.Event()
    scene = stage(server)
    blob = await scene.open()
    assert await read(blob, 0, SHOWN) == CONTENT[:SHOWN]
    across, last = reading(nursery, blob, SHOWN - 1, 2), reading(nursery, blob, len(CONTENT) - 1, 1)
    await wait_all_tasks_blocked()
    assert (across.outcome, last.outcome) == (None, None)
    server.verdict.set()
    await last.done.wait()
    await across.done.wait()
    assert across.outcome == CONTENT[SHOWN - 1 : SHOWN + 1]
    assert last.outcome == CONTENT[-1:]
    scene.store.close(blob)


async def test_a_blob_that_is_not_large_is_verified_before_its_first_byte(
    caches: Caches, tmp_path: Path, nursery: trio.Nursery
) -> None:
    for verify_first in (len(CONTENT), None):
        server = Server()
        server.sends(2 * MIB)
        cache = caches.open(tmp_path / str(verify_first))
        store = ReadCachingStore(cache, server, nursery, verify_first=verify_first)
        await store.stat(DIGEST)
        blob = store.open(DIGEST)
        reader = reading(nursery, blob, 0, 10)
        await wait_all_tasks_blocked()
        assert not reader.done.is_set()
        server.sends(MIB)
        await reader.done.wait()
        assert reader.outcome == CONTENT[:10]
        store.close(blob)


async def test_a_blob_of_unknown_length_is_not_streamed(
    stage: Staging, nursery: trio.Nursery
) -> None:
    """Nobody knows where its last block is."""
    server = Server()
    server.sends(2 * MIB)
    scene = stage(server)
    blob = scene.store.open(DIGEST)
    reader = reading(nursery, blob, 0, 10)
    await until(lambda: server.calls == ["pull"])
    await wait_all_tasks_blocked()
    assert not reader.done.is_set()
    scene.store.close(blob)


async def test_a_reader_who_waits_gives_up_without_progress_not_without_an_end(
    stage: Staging, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    blob = await scene.open()

    async def come(size: int) -> None:
        await blob.wait(PATIENCE, end=size)
        await wait_all_tasks_blocked()

    async def wait_for(glances: int) -> None:
        for _ in range(glances):
            mock_clock.jump(PATIENCE / 10)
            await wait_all_tasks_blocked()

    await come(MIB)
    far = reading(nursery, blob, 2 * MIB, 10)
    await wait_all_tasks_blocked()
    for steps in range(1, 4):
        await wait_for(9)
        assert far.outcome is None
        server.sends(STEP)
        await come(MIB + steps * STEP)
    await wait_for(11)
    assert isinstance(far.outcome, TimedOut)
    assert await read(blob, MIB, 10) == CONTENT[MIB : MIB + 10]  # what is there is there
    scene.store.close(blob)


# --- what was wrong


async def test_wrong_content_fails_all_readers_for_good_and_the_next_open_tries_again(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server = Server(WRONG_LATE)
    server.sends(MIB)
    scene = stage(server)
    first, second = await scene.open(), await scene.open()
    assert await read(first, 0, 10) == CONTENT[:10]
    waiting = reading(nursery, second, 2 * MIB, MIB)
    server.sends(2 * MIB)
    await waiting.done.wait()
    assert isinstance(waiting.outcome, CorruptBlob)
    assert scene.unverified == [DIGEST]
    for blob in (first, second):
        for _ in range(3):
            with pytest.raises(CorruptBlob):
                await blob.read(0, 10, patience=PATIENCE)
    server.blobs[DIGEST], server.flow = CONTENT, None
    third = await scene.open()
    assert await read(third, 0, 1 << 30) == CONTENT
    for blob in (first, second, third):
        scene.store.close(blob)
    assert scene.unverified == [DIGEST]


async def test_what_nobody_has_seen_nobody_has_to_forget(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server = Server(WRONG_LATE)
    scene = stage(server)
    blob = await scene.open()
    with pytest.raises(CorruptBlob):
        await blob.read(len(CONTENT) - 1, 1, patience=PATIENCE)
    scene.store.close(blob)
    assert scene.unverified == []


@pytest.mark.parametrize("wrong", [WRONG_EARLY, WRONG_LATE], ids=["early", "late"])
async def test_another_server_that_is_right_does_not_vouch_for_what_was_seen(
    stage: Staging, wrong: bytes, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.routing: going on with the next server: the wrong hash")
    liar, honest = Server(wrong), Server()
    liar.sends(2 * MIB + STEP)
    scene = stage(liar, honest)
    blob = await scene.open()
    assert await read(blob, 0, 2 * MIB + STEP) == wrong[: 2 * MIB + STEP]
    liar.sends(MIB)
    with pytest.raises(CorruptBlob, match=DISAGREE):
        await blob.read(len(CONTENT) - 1, 1, patience=PATIENCE)
    assert scene.unverified == [DIGEST]
    scene.store.close(blob)
    # Who was wrong about this blob is asked last from now on.
    blob = await scene.open()
    assert await read(blob, 0, 1 << 30) == CONTENT
    assert (liar.calls.count("pull"), honest.calls.count("pull")) == (1, 2)
    scene.store.close(blob)


async def test_what_was_seen_may_be_right_where_the_rest_is_not(
    stage: Staging, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.routing: going on with the next server: the wrong hash")
    liar, honest = Server(WRONG_AT_THE_END), Server()
    liar.sends(MIB)
    scene = stage(liar, honest)
    blob = await scene.open()
    assert await read(blob, 0, MIB) == CONTENT[:MIB]
    liar.sends(2 * MIB)
    assert await read(blob, 0, 1 << 30) == CONTENT
    scene.store.close(blob)
    assert scene.unverified == []


async def test_the_next_attempt_goes_on_behind_what_was_seen(
    stage: Staging, nursery: trio.Nursery
) -> None:
    """What came before the connection broke may be read all the time."""
    server = Server()
    server.breaks = [4]
    server.sends(MIB)
    scene = stage(RetryingStore(server, attempts=2))
    blob = await scene.open()
    assert await read(blob, 0, 10) == CONTENT[:10]
    server.sends(STEP)
    await until(lambda: server.calls.count("pull") == 2)
    assert await read(blob, 10, MIB - 10) == CONTENT[10:MIB]
    far = reading(nursery, blob, MIB, 10)
    await wait_all_tasks_blocked()
    assert far.outcome is None
    server.sends(3 * MIB)
    assert await read(blob, 0, 1 << 30) == CONTENT
    scene.store.close(blob)
    assert scene.unverified == []


async def test_an_attempt_that_brings_something_else_fails_the_readers(stage: Staging) -> None:
    server = Server(WRONG_EARLY)
    server.breaks = [4]
    server.sends(MIB)
    scene = stage(RetryingStore(server, attempts=2))
    blob = await scene.open()
    assert await read(blob, 0, 10) == WRONG_EARLY[:10]
    server.blobs[DIGEST] = CONTENT
    server.sends(3 * MIB)
    with pytest.raises(CorruptBlob, match=DISAGREE):
        await blob.read(2 * MIB, 10, patience=PATIENCE)
    assert scene.unverified == [DIGEST]
    scene.store.close(blob)


async def test_what_differs_where_nobody_has_looked_is_written_anew(stage: Staging) -> None:
    server = Server(WRONG_LATE)
    server.breaks = [10]
    server.sends(2 * MIB + 2 * STEP)
    scene = stage(RetryingStore(server, attempts=2))
    blob = await scene.open()
    assert await read(blob, MIB, MIB) == CONTENT[MIB : 2 * MIB]
    server.blobs[DIGEST] = CONTENT
    server.sends(4 * MIB)
    assert await read(blob, 0, 1 << 30) == CONTENT
    scene.store.close(blob)
    assert scene.unverified == []


async def test_a_size_that_was_told_and_is_wrong_fails_the_readers(stage: Staging) -> None:
    server = Server()
    server.told[DIGEST] = len(CONTENT) - STEP
    scene = stage(server)
    sizes: list[Digest] = []
    scene.store.on_size_changed = sizes.append
    blob = await scene.open()
    with pytest.raises(CorruptBlob, match="said"):
        await blob.read(len(CONTENT) - STEP - 10, 10, patience=PATIENCE)
    assert sizes == [DIGEST]
    scene.store.close(blob)


# --- leaving


async def test_closed_early_the_pull_stops_and_what_was_seen_is_to_be_forgotten(
    stage: Staging, tmp_path: Path
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    before = descriptors()
    blob = await scene.open()
    assert await read(blob, 0, 10) == CONTENT[:10]
    scene.store.close(blob)
    assert scene.unverified == [DIGEST]  # at once: before anybody can open it again
    assert not scene.store.is_pulling(DIGEST)
    await until(lambda: descriptors() == before)
    assert not list((tmp_path / "partial").iterdir())
    assert scene.unverified == [DIGEST]


async def test_closed_early_the_pull_is_finished_where_that_is_wanted(
    stage: Staging, tmp_path: Path
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server, finish_pulls=True)
    before = descriptors()
    blob = await scene.open()
    assert await read(blob, 0, 10) == CONTENT[:10]
    scene.store.close(blob)
    server.sends(3 * MIB)
    await until(lambda: scene.store.cached_size(DIGEST) is not None)
    assert scene.unverified == []
    await until(lambda: descriptors() == before)


async def test_the_end_of_the_mount_fails_who_waits_for_more(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    before = descriptors()
    blob = await scene.open()
    assert await read(blob, 0, 10) == CONTENT[:10]
    waiting = reading(nursery, blob, 2 * MIB, 10)
    await wait_all_tasks_blocked()
    scene.store.fail_all(Unavailable("being unmounted"))
    await waiting.done.wait()
    assert isinstance(waiting.outcome, Unavailable)
    scene.store.close(blob)
    await until(lambda: descriptors() == before)


# --- with another process


async def test_two_processes_stream_one_pull(
    stage: Staging, nursery: trio.Nursery, caches: Caches
) -> None:
    server, idle = Server(), Server()
    server.sends(MIB)
    holder, follower = stage(server), stage(idle)
    held, followed = await holder.open(), None
    assert await read(held, 0, 10) == CONTENT[:10]
    followed = await follower.open()
    assert await read(followed, 0, MIB) == CONTENT[:MIB]
    far = reading(nursery, followed, 2 * MIB, 10)
    server.sends(MIB + STEP)
    await far.done.wait()
    assert far.outcome == CONTENT[2 * MIB : 2 * MIB + 10]
    server.sends(MIB)
    assert await read(followed, 0, 1 << 30) == CONTENT
    assert (server.calls.count("pull"), idle.calls.count("pull")) == (1, 0)
    holder.store.close(held)
    follower.store.close(followed)
    assert holder.unverified == follower.unverified == []


@pytest.mark.parametrize("holders", [CONTENT, WRONG_EARLY], ids=["right", "wrong"])
async def test_who_takes_over_compares_with_what_his_readers_have_seen(
    stage: Staging, nursery: trio.Nursery, holders: bytes
) -> None:
    """The holder gives up, in whatever way: his file is gone, and what was seen is not."""
    first, second = Server(holders), Server()
    first.sends(MIB)
    holder, follower = stage(first), stage(second)
    held = await holder.open()
    assert await read(held, 0, 10) == holders[:10]
    followed = await follower.open()
    assert await read(followed, 0, MIB) == holders[:MIB]
    first.errors = [ConnectionBroken("gone")]
    held.state.scope.cancel()  # type: ignore[union-attr]  # as when the process is killed
    outcome = reading(nursery, followed, 2 * MIB, MIB)
    await outcome.done.wait()
    if holders is CONTENT:
        assert outcome.outcome == CONTENT[2 * MIB :]
        assert follower.unverified == []
    else:
        assert isinstance(outcome.outcome, CorruptBlob)
        assert follower.unverified == [DIGEST]
    assert second.calls.count("pull") == 1
    holder.store.close(held)
    follower.store.close(followed)


async def test_a_holder_that_begins_anew_does_not_change_what_others_have_seen(
    stage: Staging, nursery: trio.Nursery
) -> None:
    server, other = Server(WRONG_EARLY), Server()
    server.breaks = [4]
    server.sends(MIB)
    holder, follower = stage(RetryingStore(server, attempts=2)), stage(other)
    held = await holder.open()
    await until(lambda: server.flow is not None and server.flow.value == 0)
    followed = await follower.open()
    assert await read(followed, 0, MIB) == WRONG_EARLY[:MIB]
    server.blobs[DIGEST] = CONTENT
    server.sends(4 * MIB)
    assert await read(held, 0, 1 << 30) == CONTENT  # its own readers had seen nothing yet
    with pytest.raises(CorruptBlob, match=DISAGREE):
        await followed.read(2 * MIB, MIB, patience=PATIENCE)
    assert follower.unverified == [DIGEST]
    holder.store.close(held)
    follower.store.close(followed)


# --- with a disk that fails


async def test_a_disk_that_fills_up_does_not_end_a_stream(
    stage: Staging, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.*(no space|No space)")
    with small_tmpfs(tmp_path / "disk", 2 * MIB) as disk:
        server = Server()
        server.sends(MIB)
        scene = stage(server, directory=disk / "cache")
        before = descriptors()
        blob = await scene.open()
        assert await read(blob, 0, MIB) == CONTENT[:MIB]
        server.sends(2 * MIB)
        assert await read(blob, 0, 1 << 30) == CONTENT
        scene.store.close(blob)
        assert scene.unverified == []
        await until(lambda: descriptors() == before)  # a large file is closed in a thread


async def test_what_cannot_be_read_back_is_waited_for(
    stage: Staging, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    blob = await scene.open()

    async def fail(*_: object) -> bytes:
        await trio.lowlevel.checkpoint()
        raise StoreError("cannot read the cache: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(CachedFile, "read", fail)
        reader = reading(nursery, blob, 0, 10)
        await until(lambda: server.flow is not None and server.flow.value == 0)
        await wait_all_tasks_blocked()
    assert not reader.done.is_set()
    server.sends(2 * MIB)
    await reader.done.wait()
    assert reader.outcome == CONTENT[:10]
    scene.store.close(blob)


async def test_without_descriptors_readers_wait_for_the_end(
    stage: Staging, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *mode: int, **options: int) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise OSError(24, "Too many open files")
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    server = Server()
    server.sends(2 * MIB)
    scene = stage(server)
    blob = await scene.open()
    reader = reading(nursery, blob, 0, 10)
    await until(lambda: server.flow is not None and server.flow.value == 0)
    await wait_all_tasks_blocked()
    assert not reader.done.is_set()
    server.sends(MIB)
    await reader.done.wait()
    assert reader.outcome == CONTENT[:10]
    scene.store.close(blob)


async def test_what_a_reader_takes_for_the_end_is_the_end(
    stage: Staging, nursery: trio.Nursery
) -> None:
    """The kernel may have been told another length than this pull goes by."""
    server = Server(WRONG_EARLY)
    server.told[DIGEST] = len(CONTENT) + MIB
    server.verdict = trio.Event()
    scene = stage(server)
    blob = await scene.open()
    assert await read(blob, 0, 10) == WRONG_EARLY[:10]
    outcome: list[str] = []

    async def read_the_end() -> None:
        with pytest.raises(CorruptBlob):
            await blob.read(SHOWN, len(CONTENT) - SHOWN, patience=PATIENCE, size=len(CONTENT))
        outcome.append("failed")

    nursery.start_soon(read_the_end)
    await blob.wait(PATIENCE, end=len(CONTENT))
    await wait_all_tasks_blocked()
    assert outcome == []
    server.verdict.set()
    await until(lambda: outcome == ["failed"])
    scene.store.close(blob)


async def test_what_was_verified_once_and_is_mended_is_verified_again_before_it_is_read(
    stage: Staging, nursery: trio.Nursery, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """Its readers may have the end already."""
    expect_log("WARNING cafsfs.store.*(changed by somebody else|was not its content)")
    server = Server()
    scene = stage(server)
    blob = await scene.open()
    assert await read(blob, 0, 1 << 30) == CONTENT
    spoil_file(tmp_path, DIGEST)
    server.blobs[DIGEST] = WRONG_EARLY
    server.sends(2 * MIB)
    reader = reading(nursery, blob, 0, 10)
    await until(lambda: server.flow is not None and server.flow.value == 0)
    await wait_all_tasks_blocked()
    assert not reader.done.is_set()
    server.sends(MIB)
    await reader.done.wait()
    assert isinstance(reader.outcome, CorruptBlob)
    scene.store.close(blob)


async def test_who_takes_over_on_a_full_disk_goes_on_elsewhere(
    stage: Staging, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """What his readers have seen of the file before is still on that disk."""
    expect_log("WARNING cafsfs.store.cache.*(no space|No space)")
    with small_tmpfs(tmp_path / "disk", 2 * MIB) as disk:
        first, second = Server(), Server()
        first.sends(MIB + STEP)
        holder, follower = stage(first, directory=disk / "c"), stage(second, directory=disk / "c")
        before = descriptors()
        held = await holder.open()
        assert await read(held, 0, 10) == CONTENT[:10]
        followed = await follower.open()
        assert await read(followed, 0, MIB + STEP) == CONTENT[: MIB + STEP]
        first.sends(2 * MIB)
        assert await read(held, 0, 1 << 30) == CONTENT
        assert await read(followed, 0, 1 << 30) == CONTENT
        assert second.calls.count("pull") == 1
        assert holder.unverified == follower.unverified == []
        holder.store.close(held)
        follower.store.close(followed)
        await until(lambda: descriptors() == before)
        assert not list((disk / "c" / "partial").iterdir())


async def test_a_new_partial_file_that_finds_no_room_is_not_left(
    stage: Staging, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.*(no space|No space)")
    with small_tmpfs(tmp_path / "disk", 3 * MIB + MIB // 2) as disk:
        server = Server(WRONG_LATE)
        server.breaks = [10]
        server.sends(2 * MIB + 2 * STEP)
        scene = stage(RetryingStore(server, attempts=2), directory=disk / "cache")
        blob = await scene.open()
        assert await read(blob, 0, 2 * MIB) == CONTENT[: 2 * MIB]
        server.blobs[DIGEST] = CONTENT
        server.sends(4 * MIB)
        assert await read(blob, 0, 1 << 30) == CONTENT
        assert not list((disk / "cache" / "partial").iterdir())
        scene.store.close(blob)
        assert scene.unverified == []


# --- reads that stall


def test_so_many_reads_may_stall_and_no_more() -> None:
    stalled = StalledReads(limit=2)
    assert not stalled.note(0.5, counted=False)
    assert stalled.note(1.0, counted=False)
    assert stalled.note(1.0, counted=False)
    assert stalled.count == 2
    with pytest.raises(Unavailable, match="2 reads wait already"):
        stalled.note(1.0, counted=False)
    assert stalled.note(20.0, counted=True), "who is counted may stay"
    assert not stalled.note(0.0, counted=True), "it moves again"
    assert stalled.count == 1
    assert stalled.note(1.0, counted=False)


def test_stalled_reads_are_found_within_a_second_where_there_is_a_limit() -> None:
    assert StalledReads(limit=2).glance(3.0) == 1.0
    assert StalledReads(limit=2).glance(0.1) == 0.1
    assert StalledReads().glance(3.0) == 3.0


async def test_a_stalled_read_that_ends_makes_room_for_another(
    stage: Staging, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    server = Server()
    server.sends(MIB)
    scene = stage(server)
    scene.store.stalled.limit = 1
    blob = await scene.open()
    await blob.wait(PATIENCE, end=MIB)
    waits, fails = (reading(nursery, blob, 2 * MIB, 10) for _ in range(2))
    await wait_all_tasks_blocked()
    mock_clock.jump(1.5)
    await wait_all_tasks_blocked()
    assert scene.store.stalled.count == 1
    done = [each for each in (waits, fails) if each.done.is_set()]
    assert [type(each.outcome) for each in done] == [Unavailable]
    server.sends(2 * MIB)
    for each in (waits, fails):
        await each.done.wait()
    assert scene.store.stalled.count == 0
    scene.store.close(blob)
