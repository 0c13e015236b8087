"""A syncfs that fails: what it did not bring to the disk is hashed, whatever later ones say."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, StoreError
from cafsfs.store.cache import trust
from cafsfs.store.cache import upkeep as upkeep_module
from cafsfs.store.cache.disk_cache import DiskCache
from tests.store.samples import MIB, put
from tests.store.stacks import Caches, upkeep_of
from tests.store.tmpfs import small_tmpfs

# Whatever is said of it.
WARNING = "WARNING cafsfs.store.cache"


class Disk:
    """In the place of ``syncfs``; ``failing`` is how often it fails from now on."""

    def __init__(self) -> None:
        self.failing = 0
        self.synced: list[int] = []

    def syncfs(self, descriptor: int) -> None:
        os.fstat(descriptor)  # it is open
        self.synced.append(descriptor)
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(upkeep_module, "syncfs", disk.syncfs)
    return disk


async def failed_sync(cache: DiskCache, disk: Disk, clock: MockClock) -> None:
    """One that fails; and what is left alone for a while after that is used again."""
    disk.failing = 1
    await upkeep_of(cache).sync()
    clock.jump(120)


def is_durable(cache: DiskCache, digest: Digest) -> bool:
    entry = cache.ledger.index.get(digest)
    assert entry is not None
    return entry.durable


async def use(cache: DiskCache, digest: Digest) -> None:
    (await cache.open(digest)).close()


@pytest.mark.parametrize("where", ["here", "another process"])
async def test_what_it_did_not_cover_is_hashed(
    where: str,
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    disk: Disk,
    hashed: list[int],
    mock_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    covered = await put(cache, b"covered")
    await upkeep_of(cache).flush()
    await upkeep_of(cache).sync()
    assert is_durable(cache, covered)
    written = await put(cache, b"written to the index")
    await upkeep_of(cache).flush()
    unwritten = await put(cache, b"not written to the index")
    await failed_sync(cache, disk, mock_clock)
    await upkeep_of(cache).flush()
    user = cache if where == "here" else caches.open(tmp_path)
    await use(user, covered)
    assert hashed == []
    await use(user, written)
    await use(user, unwritten)
    assert len(hashed) == 2


async def test_a_later_one_does_not_make_it_durable(
    cache: DiskCache,
    disk: Disk,
    hashed: list[int],
    mock_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    digest = await put(cache, b"content")
    await upkeep_of(cache).flush()
    await failed_sync(cache, disk, mock_clock)
    for _ in range(2):
        await upkeep_of(cache).sync()
        assert not is_durable(cache, digest)
    await use(cache, digest)  # reads what is on the disk, as far as anybody can tell
    assert len(hashed) == 1
    await upkeep_of(cache).flush()
    await use(cache, digest)
    assert len(hashed) == 1


async def test_what_comes_after_it_becomes_durable(
    cache: DiskCache,
    disk: Disk,
    mock_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    await failed_sync(cache, disk, mock_clock)
    digest = await put(cache, b"content")
    await upkeep_of(cache).flush()
    await upkeep_of(cache).sync()
    assert is_durable(cache, digest)


async def test_what_came_while_it_failed_is_not_made_durable_by_the_next(
    cache: DiskCache,
    caches: Caches,
    tmp_path: Path,
    disk: Disk,
    mock_clock: MockClock,
    expect_log: Callable[[str], None],
) -> None:
    """Of another process, too: the error is not told again to a descriptor that has seen it."""
    expect_log(WARNING)
    other = caches.open(tmp_path)
    digest = await put(other, b"content")
    await upkeep_of(other).flush()
    await failed_sync(cache, disk, mock_clock)
    await upkeep_of(cache).sync()
    assert not is_durable(cache, digest)


async def test_what_a_former_process_wrote_is_not_made_durable(
    cache: DiskCache, caches: Caches, tmp_path: Path, disk: Disk
) -> None:
    """A descriptor learns nothing of errors that were told to others before it was opened."""
    digest = await put(cache, b"content")
    await upkeep_of(cache).flush()
    caches.crash(cache)
    again = caches.open(tmp_path)
    await upkeep_of(again).sync()
    assert not is_durable(again, digest)


async def test_one_descriptor_is_held_for_the_whole_session(
    cache: DiskCache, disk: Disk, mock_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log(WARNING)
    before = set(os.listdir("/proc/self/fd"))
    await upkeep_of(cache).sync()
    await failed_sync(cache, disk, mock_clock)
    await upkeep_of(cache).sync()
    assert len(set(disk.synced)) == 1
    assert {str(each) for each in disk.synced} <= before  # opened before anything was written


# --- for real


@contextmanager
def failing_ext4(directory: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A filesystem of 64 MiB on a disk of less, and a call that lets the disk have more."""
    directory.mkdir()
    with small_tmpfs(directory / "disk", 24 * MIB) as disk:
        image, point, filler = disk / "image", directory / "ext4", disk / "filler"
        point.mkdir()
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", str(image)]
        for command in (make, ["mount", "-o", "loop", str(image), str(point)]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip(f"there is no {command[0]} here")
            if done.returncode:
                pytest.skip(f"no ext4 on a loop device here: {done.stderr.strip()}")
        try:
            filler.write_bytes(bytes(6 * MIB))
            yield point, filler.unlink
        finally:
            # Lazily: a test that fails may have left a file open, and still leaves no mount.
            subprocess.run(["umount", "--lazy", str(point)], check=True)


def forget_pages(path: Path) -> None:
    """From here on reads show what is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.process
@pytest.mark.parametrize("when", ["this session", "the next session", "another boot"])
async def test_a_disk_that_loses_what_was_written(
    when: str,
    caches: Caches,
    tmp_path: Path,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(WARNING)
    content = random.Random(1).randbytes(30 * MIB)
    with failing_ext4(tmp_path / "lossy") as (point, give_room):
        cache = caches.open(point / "cache")
        digest = await put(cache, content)
        await upkeep_of(cache).flush()
        await upkeep_of(cache).sync()
        assert not is_durable(cache, digest)
        give_room()
        await upkeep_of(cache).sync()
        assert not is_durable(cache, digest)
        mock_clock.jump(120)
        forget_pages(cache.path(digest))
        if when == "another boot":
            monkeypatch.setattr(trust, "boot_id", lambda: "another boot")
        if when != "this session":
            await caches.leave(cache)
            cache = caches.open(point / "cache")
        with pytest.raises((BlobNotFound, StoreError)):
            (await cache.open(digest)).close()
        caches.close()
