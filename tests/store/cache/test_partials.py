"""Content on its way: who holds it, who follows, what the dead leave, and disks that are full.

Two descriptors of one file play two processes: neither ``flock`` nor OFD locks can tell.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import partials, watching
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.partials import Following, Partial, Shelter, Verdict
from cafsfs.store.cache.progress import Contradiction, Progress
from cafsfs.store.local_root import blob_path
from tests.store.samples import ABSENT, KIB, MIB, content_of, put
from tests.store.stacks import Caches, upkeep_of
from tests.store.tmpfs import small_tmpfs

CONTENT = content_of(300_000)
DIGEST = hash_bytes(CONTENT)


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


class Place:
    """A directory of partial files, and one of blobs; what was claimed in it is closed."""

    def __init__(self, directory: Path) -> None:
        self.partials = directory / "partial"
        self.blobs = directory / "blobs"
        self.path = self.partials / DIGEST.hex
        self._holding: list[int] = []
        self._following: list[Following] = []

    def hold(self) -> int:
        claimed = partials.claim(self.partials, self.blobs, DIGEST)
        assert isinstance(claimed, tuple)
        self._holding.append(claimed[0])
        return claimed[0]

    def follow(self) -> Following:
        claimed = partials.claim(self.partials, self.blobs, DIGEST)
        assert isinstance(claimed, Following)
        self._following.append(claimed)
        return claimed

    def die(self, descriptor: int) -> None:
        self._holding.remove(descriptor)
        os.close(descriptor)

    def commit(self) -> None:
        blob = blob_path(self.blobs, DIGEST)
        blob.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(blob)

    def close(self) -> None:
        for each in self._following:
            each.close()
        for descriptor in self._holding:
            os.close(descriptor)


@pytest.fixture
def place(tmp_path: Path, no_descriptor_left: None) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


# --- claims and verdicts


def test_the_first_one_holds_it_and_all_others_follow(place: Place) -> None:
    """Even where somebody has cleared the directory."""
    place.hold()
    assert [place.follow().look() for _ in range(3)] == [Verdict.MOVING] * 3
    assert place.path.stat().st_mode & 0o777 == 0o600


def test_a_rename_is_the_verdict(place: Place) -> None:
    holder = place.hold()
    follower, late = place.follow(), place.follow()
    place.commit()
    assert follower.look() is Verdict.MOVING  # it is the verdict when its holder lets go
    place.die(holder)
    assert follower.look() is Verdict.COMMITTED
    assert late.look() is Verdict.COMMITTED  # the first has not kept the lock
    assert os.path.samestat(os.fstat(late.descriptor), blob_path(place.blobs, DIGEST).stat())


def test_a_lock_lost_without_a_rename_is_taken_over_by_one(place: Place) -> None:
    holder = place.hold()
    os.pwrite(holder, b"half of it", 0)
    followers = [place.follow() for _ in range(3)]
    place.die(holder)
    assert [each.look() for each in followers] == [Verdict.TAKEN, Verdict.MOVING, Verdict.MOVING]
    taken = followers[0].release()
    assert os.pread(taken, 100, 0) == b"half of it"
    os.close(taken)
    assert [each.look() for each in followers[1:]] == [Verdict.TAKEN, Verdict.MOVING]


def test_a_holder_who_gives_up_takes_the_name_away(place: Place) -> None:
    holder = place.hold()
    follower = place.follow()
    place.path.unlink()
    seen = [follower.look()]  # private now, but who knows
    place.die(holder)
    seen.append(follower.look())
    assert seen == [Verdict.MOVING, Verdict.GONE]


def test_who_is_late_at_a_name_that_another_has_now(place: Place) -> None:
    first = place.hold()
    follower = place.follow()
    place.path.unlink()
    place.hold()
    place.die(first)
    assert follower.look() is Verdict.GONE
    assert place.follow().look() is Verdict.MOVING


def test_progress_is_the_length(place: Place) -> None:
    holder = place.hold()
    follower = place.follow()
    seen = []
    for length in (0, 0, 5, 5, 10, 7):
        os.ftruncate(holder, length)
        follower.look()
        seen.append(follower.length)
    assert seen == [0, 0, 5, 5, 10, 7]


def test_a_holder_sees_that_somebody_waits(place: Place) -> None:
    holder = Partial(DIGEST, place.path, place.hold(), Shelter())
    seen = [holder.wanted]
    followers = [place.follow(), place.follow()]
    seen.append(holder.wanted)
    for each in followers:
        each.close()
        seen.append(holder.wanted)
    assert seen == [False, True, True, False]


def test_a_private_file_is_wanted_by_nobody() -> None:
    assert not Partial(DIGEST, None, -1, Shelter()).wanted


def test_what_is_no_file_is_not_held(place: Place) -> None:
    place.partials.mkdir()
    place.path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        place.hold()


# --- what the dead leave


def test_a_sweep_removes_what_nobody_holds(place: Place) -> None:
    os.ftruncate(place.hold(), 1000)
    (place.partials / ABSENT.hex).write_bytes(b"debris")
    (place.partials / "older versions had other names").write_bytes(b"debris")
    assert partials.sweep(place.partials) == [1000]
    assert list(place.partials.iterdir()) == [place.path]


def test_a_sweep_of_nothing(tmp_path: Path) -> None:
    assert partials.sweep(tmp_path / "none") == []


def test_a_sweep_does_not_end_at_what_it_cannot_open(place: Place) -> None:
    place.partials.mkdir()
    (place.partials / "link").symlink_to("/etc/passwd")
    (place.partials / "directory").mkdir()
    (place.partials / "debris").touch()
    assert partials.sweep(place.partials) == []
    assert {each.name for each in place.partials.iterdir()} == {"link", "directory"}


def test_a_sweep_does_not_wait_for_a_fifo(place: Place) -> None:
    place.partials.mkdir()
    os.mkfifo(place.partials / "fifo")
    partials.sweep(place.partials)


@settings(max_examples=200, deadline=None)
@given(
    left=st.sampled_from(["prefix", "wrong at", "longer", "other", "zeros"]),
    length=st.integers(0, 4000),
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=6),
    breaks=st.lists(st.integers(0, 5), max_size=2),
)
def test_whatever_is_left_the_bytes_come_right(
    left: str, length: int, sizes: list[int], breaks: list[int]
) -> None:
    """Of a dead holder, or of attempts that broke off: what differs is written anew."""
    content = content_of(sum(sizes))
    kept = {
        "prefix": content[:length],
        "wrong at": content[:length] + b"?" + content[length + 1 :],
        "longer": content + b"x" * length,
        "other": content_of(length, 1),
        "zeros": bytes(length),
    }[left]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / DIGEST.hex
        path.write_bytes(kept)
        partial = Partial(DIGEST, path, os.open(path, os.O_RDWR), Shelter())
        for pieces in (*breaks, len(sizes)):
            partial.restart()
            at = 0
            for size in sizes[:pieces]:
                partial.write(content[at : at + size])
                at += size
        assert partial.written == len(content)
        partial.finish()
        assert path.read_bytes() == content
        assert os.listdir(directory) == [DIGEST.hex]
        partial.discard()


async def left_behind(caches: Caches, directory: Path, left: bytes) -> DiskCache:
    """A cache in which somebody was killed while he pulled."""
    cache = caches.open(directory)
    (cache.premises.partials / DIGEST.hex).write_bytes(left)
    return cache


@pytest.mark.parametrize("expected", [None, len(CONTENT)])
async def test_what_a_dead_holder_left_complete_is_not_pulled(
    caches: Caches, tmp_path: Path, expected: int | None
) -> None:
    cache = await left_behind(caches, tmp_path, CONTENT)
    file = await cache.claim(DIGEST, expected=expected)
    assert isinstance(file, CachedFile)
    assert await file.read(0, MIB) == CONTENT
    file.close()
    assert cache.known_size(DIGEST) == len(CONTENT)
    assert not list(cache.premises.partials.iterdir())


WRONG = {
    "half": CONTENT[:100_000],
    "wrong in the middle": CONTENT[:150_000] + b"?" + CONTENT[150_001:],
    "longer": CONTENT + b"and more",
    "zeros": bytes(len(CONTENT)),
    "nothing": b"",
}


@pytest.mark.parametrize("left", WRONG.values(), ids=WRONG)
async def test_what_a_dead_holder_left_otherwise_is_gone_on_with(
    caches: Caches, tmp_path: Path, left: bytes
) -> None:
    cache = await left_behind(caches, tmp_path, left)
    partial = await cache.claim(DIGEST)
    assert isinstance(partial, Partial)
    assert partial.written == 0
    for at in range(0, len(CONTENT), 70_000):
        partial.write(CONTENT[at : at + 70_000])
    (await cache.commit(partial)).close()
    assert cache.path(DIGEST).read_bytes() == CONTENT


def test_followers_see_a_file_grow_only(place: Place) -> None:
    """One who takes over compares; only from the first difference on does he write."""
    descriptor = place.hold()
    os.pwrite(descriptor, CONTENT[:100_000], 0)
    partial = Partial(DIGEST, place.path, descriptor, Shelter())
    partial.restart()
    before = os.fstat(descriptor).st_mtime_ns
    for at in range(0, 100_000, 10_000):
        partial.write(CONTENT[at : at + 10_000])
        assert os.fstat(descriptor).st_size == 100_000
    assert os.fstat(descriptor).st_mtime_ns == before
    partial.write(CONTENT[100_000:])
    assert os.fstat(descriptor).st_size == len(CONTENT)


# --- two caches


async def test_who_follows_gets_what_the_holder_commits(caches: Caches, tmp_path: Path) -> None:
    holder, follower = caches.open(tmp_path), caches.open(tmp_path)
    partial = await claimed(holder)
    progress, files = Progress(), list[CachedFile]()

    async def follow() -> None:
        file = await follower.claim(DIGEST, progress=progress)
        assert isinstance(file, CachedFile)
        files.append(file)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await _until(lambda: holder.is_wanted(DIGEST))
        seen = progress.count
        partial.write(CONTENT[:1000])
        await _until(lambda: progress.count > seen)
        partial.write(CONTENT[1000:])
        (await holder.commit(partial)).close()
    assert await files[0].read(0, MIB) == CONTENT
    files[0].close()
    assert follower.known_size(DIGEST) == len(CONTENT)
    await upkeep_of(holder).flush()
    await upkeep_of(follower).flush()
    assert (follower.usage.used, follower.usage.blobs) == (len(CONTENT), 1)


@pytest.mark.parametrize("ending", ["discarded", "killed", "killed with all of it"])
async def test_who_follows_goes_on_when_the_holder_ends(
    caches: Caches, tmp_path: Path, ending: str
) -> None:
    holder, follower = caches.open(tmp_path), caches.open(tmp_path)
    partial = await claimed(holder)
    outcome: list[Partial | CachedFile] = []

    async def follow() -> None:
        outcome.append(await follower.claim(DIGEST))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await _until(lambda: holder.is_wanted(DIGEST))
        partial.write(CONTENT if ending == "killed with all of it" else CONTENT[:1000])
        if ending == "discarded":
            await holder.discard(partial)
        else:
            os.close(partial.release()[0])
    (taken,) = outcome
    if isinstance(taken, Partial):
        assert ending != "killed with all of it"
        assert taken.kept == (0 if ending == "discarded" else 1000)
        taken.write(CONTENT)
        taken = await follower.commit(taken)
    assert await taken.read(0, MIB) == CONTENT
    taken.close()


async def test_a_follower_who_is_cancelled_leaves_no_trace(caches: Caches, tmp_path: Path) -> None:
    holder, follower = caches.open(tmp_path), caches.open(tmp_path)
    partial = await claimed(holder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.claim, DIGEST)
        await _until(lambda: holder.is_wanted(DIGEST))
        nursery.cancel_scope.cancel()
    assert not holder.is_wanted(DIGEST)
    await holder.discard(partial)


async def test_a_holder_who_does_not_move_is_left_alone(
    caches: Caches,
    tmp_path: Path,
    jumping_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    """Stopped, say: the follower pulls for himself, before his readers lose their patience."""
    monkeypatch.setattr(watching, "_GLANCE", (1.0, 2.0))
    expect_log("WARNING cafsfs.store.cache.disk_cache: another process pulls .* does not move")
    holder, follower = caches.open(tmp_path), caches.open(tmp_path)
    stuck = await claimed(holder)
    stuck.write(CONTENT[:10])
    began = trio.current_time()
    partial = await claimed(follower)
    assert 15 <= trio.current_time() - began < 20
    assert partial.path is None
    partial.write(CONTENT)
    file = await follower.commit(partial)
    assert await file.read(0, MIB) == CONTENT
    file.close()
    stuck.write(CONTENT[10:])
    (await holder.commit(stuck)).close()
    assert holder.path(DIGEST).read_bytes() == CONTENT


async def claimed(cache: DiskCache, digest: Digest = DIGEST) -> Partial:
    partial = await cache.claim(digest)
    assert isinstance(partial, Partial)
    return partial


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # others have threads, which need the interpreter; clocks may stand
            await trio.to_thread.run_sync(time.sleep, 0.001)


# --- shelter


def is_in_memory(descriptor: int) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:")


def test_memory_up_to_a_budget_then_a_file(tmp_path: Path, no_descriptor_left: None) -> None:
    shelter = Shelter(tmp_path, memory=100)
    first, memory = shelter.open(1, 60)
    second, none = shelter.open(1, 60)
    assert (memory, none) == (60, 0)
    assert is_in_memory(first)
    assert str(tmp_path) in os.readlink(f"/proc/self/fd/{second}")
    shelter.release(memory)
    third, memory = shelter.open(1, 60)
    assert memory == 60
    for each in (first, second, third):
        os.close(each)
    assert list(tmp_path.iterdir()) == []


def test_more_than_was_expected_is_no_matter_of_memory(
    tmp_path: Path, no_descriptor_left: None
) -> None:
    descriptor, memory = Shelter(tmp_path).open(61, 60)
    assert memory == 0
    os.close(descriptor)


def test_a_private_file_moves_to_the_disk_when_it_outgrows_its_memory(
    tmp_path: Path, no_descriptor_left: None
) -> None:
    shelter = Shelter(tmp_path, memory=200 * KIB)
    partial = Partial(DIGEST, None, -1, shelter, expected=100 * KIB)  # a server's lie
    partial.restart()
    partial.write(CONTENT[: 90 * KIB])
    assert is_in_memory(partial.descriptor)
    partial.write(CONTENT[90 * KIB :])
    assert not is_in_memory(partial.descriptor)
    partial.finish()
    assert os.pread(partial.descriptor, MIB, 0) == CONTENT
    descriptor, memory = shelter.open(1, 200 * KIB)
    assert memory == 200 * KIB  # all of it was given back
    os.close(descriptor)
    partial.discard()
    assert repr(partial).endswith("private>")


def test_the_first_piece_may_be_larger_than_all_that_was_expected(
    tmp_path: Path, no_descriptor_left: None
) -> None:
    shelter = Shelter(tmp_path, memory=1000)
    partial = Partial(DIGEST, None, -1, shelter, expected=10)
    partial.write(CONTENT)
    assert not is_in_memory(partial.descriptor)
    assert shelter._memory == 1000
    assert os.pread(partial.descriptor, MIB, 0) == CONTENT
    partial.discard()


def test_memory_is_given_back_when_the_file_is_closed(no_descriptor_left: None) -> None:
    shelter = Shelter(memory=len(CONTENT))
    for ending in ("discard", "release"):
        partial = Partial(DIGEST, None, -1, shelter, expected=len(CONTENT))
        partial.write(CONTENT)
        assert is_in_memory(partial.descriptor), ending
        if ending == "discard":
            partial.discard()
        else:
            descriptor, released = partial.release()
            partial.discard()  # nothing is left to discard
            os.close(descriptor)
            released()


def test_an_empty_blob_of_a_private_one(no_descriptor_left: None) -> None:
    partial = Partial(DIGEST, None, -1, Shelter())
    partial.restart()
    partial.finish()
    assert os.fstat(partial.descriptor).st_size == 0
    partial.discard()


# --- sick and full disks


def replaced(place: Place, device: str, **options: Callable[..., object]) -> Partial:
    """A partial file whose descriptor is one of ``device`` now."""
    holder = place.hold()
    partial = Partial(DIGEST, place.path, holder, Shelter(), **options)  # type: ignore[arg-type]
    with open(device, "r+b", buffering=0) as other:
        os.dup2(other.fileno(), holder)
    return partial


@pytest.mark.parametrize(
    ("device", "number"), [("/dev/full", errno.ENOSPC), ("/proc/self/mem", errno.EIO)]
)
def test_past_a_disk_that_takes_nothing(place: Place, device: str, number: int) -> None:
    """/dev/full is a full disk, and /proc/self/mem a sick one where nothing is mapped."""
    troubles: list[OSError] = []
    partial = replaced(place, device, on_trouble=troubles.append)
    place._holding.clear()  # it closes its descriptor itself
    partial.restart()
    partial.write(CONTENT[:1000])
    partial.write(CONTENT[1000:])
    partial.finish()
    assert [each.errno for each in troubles] == [number]
    assert partial.path is None
    assert place.path.exists()  # it was not the file that we had open
    assert os.pread(partial.descriptor, MIB, 0) == CONTENT
    partial.discard()


def test_room_that_is_made_is_used(place: Place) -> None:
    asked: list[int] = []

    def make_room(count: int) -> bool:
        asked.append(count)
        if len(asked) == 2:
            with place.path.open("r+b") as file:  # there is room now
                os.dup2(file.fileno(), partial.descriptor)
        return True

    partial = replaced(place, "/dev/full", make_room=make_room)
    partial.write(CONTENT)
    assert asked == [len(CONTENT)] * 2
    assert partial.path == place.path
    assert place.path.read_bytes() == CONTENT


def test_no_room_in_a_private_file_is_an_error(place: Place) -> None:
    partial = replaced(place, "/dev/full")
    partial.path = None
    with pytest.raises(OSError, match="No space left"):
        partial.write(CONTENT)
    assert partial.written == 0


@pytest.mark.process
@pytest.mark.parametrize("shelter", ["memory", "a file"])
def test_full_in_the_middle_of_a_write(
    tmp_path: Path, no_descriptor_left: None, shelter: str
) -> None:
    content = random.Random(3).randbytes(3 * MIB)
    troubles: list[OSError] = []
    with small_tmpfs(tmp_path / "small", 2 * MIB) as disk:
        place = Place(disk)
        partial = Partial(
            DIGEST,
            place.path,
            place.hold(),
            Shelter(tmp_path, memory=(4 if shelter == "memory" else 0) * MIB),
            expected=len(content),
            on_trouble=troubles.append,
        )
        partial.restart()
        for at in range(0, len(content), 700_001):
            partial.write(content[at : at + 700_001])
        partial.finish()
        assert [each.errno for each in troubles] == [errno.ENOSPC]
        assert os.pread(partial.descriptor, 4 * MIB, 0) == content
        assert is_in_memory(partial.descriptor) is (shelter == "memory")
        partial.discard()
        assert list(place.partials.iterdir()) == []


async def test_a_quota_that_is_used_up_is_no_endless_loop(
    caches: Caches, tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """ENOSPC while the disk has room enough: a quota, or inodes. All is evicted, then given up."""
    expect_log("WARNING cafsfs.store.cache.trouble: the cache has no room, and nothing to evict")
    cache = caches.open(tmp_path)
    other = await put(cache, b"other")
    await upkeep_of(cache).flush()
    partial = await claimed(cache)
    with open("/dev/full", "r+b", buffering=0) as full:
        os.dup2(full.fileno(), partial.descriptor)
    await trio.to_thread.run_sync(partial.write, CONTENT)
    assert not cache.gives_way(DIGEST)
    file = await cache.commit(partial)
    assert await file.read(0, MIB) == CONTENT
    file.close()
    assert cache.metrics.uncached == 1
    assert not cache.path(other).exists()
    assert not cache.path(DIGEST).exists()


# --- with readers


def shown_to_readers(descriptor: int, seen: int) -> Progress:
    """A progress in which readers have seen the beginning of that file."""
    progress = Progress()
    limiter = trio.CapacityLimiter(1)
    progress.stream(len(CONTENT), lambda each: CachedFile(each, len(CONTENT), limiter))
    assert progress.show(descriptor, holds=0)
    progress.advance(seen)
    assert progress.look(seen) is not None
    return progress


async def test_what_was_seen_moves_along_though_less_is_written(
    place: Place, tmp_path: Path
) -> None:
    """A new attempt has come less far when the disk fails; what it brings is compared yet."""
    partial = Partial(DIGEST, place.path, place.hold(), Shelter(tmp_path))
    partial.write(CONTENT[:200_000])
    partial._progress = shown_to_readers(partial.descriptor, 150_000)
    partial.restart()
    partial.write(CONTENT[:100_000])
    place._holding.clear()
    partial._move(100_000)
    partial.write(CONTENT[100_000:140_000])
    with pytest.raises(Contradiction):
        partial.write(b"?" * 20_000)
    for each in partial._progress.files:
        each.close()
    partial.discard()


async def test_who_takes_over_what_his_readers_see_keeps_all_of_it(place: Place) -> None:
    held = place.hold()
    os.write(held, CONTENT[:200_000])
    progress = shown_to_readers(held, 50_000)
    partial = Partial(DIGEST, place.path, held, Shelter(), progress=progress)
    partial.recall()
    assert (partial.descriptor, partial.kept) == (held, 200_000)
    for each in progress.files:
        each.close()


async def test_readers_are_shown_the_new_file_where_the_old_one_was_wrong(place: Place) -> None:
    held = place.hold()
    os.write(held, CONTENT[:100_000] + b"?" * 1000)
    progress = shown_to_readers(held, 50_000)
    partial = Partial(DIGEST, place.path, held, Shelter(), progress=progress)
    place._holding.clear()
    partial.restart()
    partial.write(CONTENT[:60_000])
    partial.write(CONTENT[60_000:200_000])
    assert progress.is_shown(partial.descriptor)
    file = progress.look(200_000)
    assert file is not None
    assert bytes(await file.read(0, 200_000)) == CONTENT[:200_000]
    for each in progress.files:
        each.close()
    partial.discard()
