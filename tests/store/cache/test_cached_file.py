"""An open file of the cache: reads that are whole and of what was verified, or an error."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cafsfs.errors import CorruptBlob, StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.memory import MemorySink
from tests.store.samples import KIB, MIB, content_of, descriptors, eventually
from tests.store.tmpfs import small_tmpfs


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


@pytest.fixture(params=["disk", pytest.param("tmpfs", marks=pytest.mark.process)])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs knows no RWF_NOWAIT."""
    if request.param == "disk":
        yield tmp_path
        return
    with small_tmpfs(tmp_path / "small", 8 * MIB) as mounted:
        yield mounted


def cached(path: Path, *, stamped: bool = True, inline: int = os.RWF_NOWAIT) -> CachedFile:
    """An open file, as the cache hands it out."""
    descriptor = os.open(path, os.O_RDONLY)
    found = os.fstat(descriptor)
    stamp = found.st_mtime_ns if stamped else None
    limiter = trio.CapacityLimiter(1)
    return CachedFile(descriptor, found.st_size, limiter, inline=inline, stamp=stamp)


def written(directory: Path, content: bytes) -> Path:
    path = directory / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 7])
@pytest.mark.parametrize("inline", [0, os.RWF_NOWAIT])
async def test_a_read_is_exact(directory: Path, size: int, inline: int) -> None:
    content = content_of(size)
    file = cached(written(directory, content), inline=inline)
    assert file.size == size
    for offset in (0, 1, 4095, 4096, size - 1, size, size + 1, size + MIB):
        for length in (0, 1, 4096, 128 * KIB, size, size + MIB):
            if offset >= 0:
                assert await file.read(offset, length) == content[offset : offset + length]
    file.close()


@pytest.mark.parametrize("stamped", [False, True])
async def test_a_truncated_file_is_an_error_and_not_short(directory: Path, stamped: bool) -> None:
    path = written(directory, content_of(100_000))
    file = cached(path, stamped=stamped)
    os.truncate(path, 50_000)
    for offset, length in ((49_000, 1001), (50_000, 1), (0, 100_000), (99_999, 1)):
        with pytest.raises(CorruptBlob, match="of 100000 bytes has none at"):
            await file.read(offset, length)
    file.close()


async def test_not_one_byte_of_what_was_written_since_is_handed_out(directory: Path) -> None:
    """Nor of what is as it was: nobody knows what else was changed."""
    path = written(directory, content_of(100_000))
    file = cached(path)
    assert await file.read(0, 10) == content_of(10)
    with path.open("r+b") as writer:
        writer.seek(90_000)
        writer.write(b"else")
        os.utime(writer.fileno(), (1, 1))  # whatever the granularity of its clock
    for _ in range(2):
        with pytest.raises(CorruptBlob, match="was changed by somebody else"):
            await file.read(0, 10)
    with pytest.raises(CorruptBlob):
        await file.copy_to(MemorySink(), hash_bytes(content_of(100_000)))
    file.close()


async def test_a_file_that_grew_was_changed_too(directory: Path) -> None:
    path = written(directory, b"content")
    file = cached(path)
    before = path.stat()
    path.write_bytes(b"content, and more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptBlob, match="was changed"):
        await file.read(0, 7)
    file.close()


async def test_what_nobody_else_can_reach_needs_no_stamp(directory: Path) -> None:
    path = written(directory, b"content")
    file = cached(path, stamped=False)
    os.utime(path, (1, 1))
    assert await file.read(0, 7) == b"content"
    file.close()


async def test_a_name_that_is_gone_is_no_change(directory: Path) -> None:
    path = written(directory, b"content")
    file = cached(path)
    path.unlink()
    assert await file.read(0, 7) == b"content"
    file.close()


async def test_other_modes_and_times_of_reading_are_no_change(directory: Path) -> None:
    """Pinning changes the mode."""
    path = written(directory, b"content")
    file = cached(path)
    path.chmod(0o400)
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    assert await file.read(0, 7) == b"content"
    file.close()


async def test_what_is_in_memory_needs_no_thread(tmp_path: Path) -> None:
    path = written(tmp_path, content_of(MIB))
    exhausted = trio.CapacityLimiter(1)
    exhausted.acquire_on_behalf_of_nowait("the test")
    file = CachedFile(_open_where_nowait_works(path), MIB, exhausted)
    with trio.fail_after(2):
        assert await file.read(1000, 200_000) == content_of(MIB)[1000:201_000]
    file.close()


@pytest.mark.parametrize("in_memory", [0, 4096])
async def test_what_is_not_in_memory_is_read_by_a_thread(tmp_path: Path, in_memory: int) -> None:
    path = written(tmp_path, content_of(MIB))
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
    path = written(tmp_path, b"content")
    file = CachedFile(os.open(path, os.O_WRONLY), 7, trio.CapacityLimiter(1))
    with pytest.raises(StoreError, match="cannot read the cache"):
        await file.read(0, 7)
    with pytest.raises(StoreError, match="cannot read the cache"):
        await file.copy_to(MemorySink(), hash_bytes(b"content"))
    file.close()


async def test_an_io_error_is_a_store_error_and_tells_which() -> None:
    """/proc/self/mem answers EIO where nothing is mapped: a disk that is sick, for real."""
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    file = CachedFile(descriptor, 4096, trio.CapacityLimiter(1), inline=0)
    with pytest.raises(StoreError, match="cannot read the cache: Input/output error") as caught:
        await file.read(0, 4096)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO
    file.close()


async def test_copied_it_is_verified(tmp_path: Path) -> None:
    content = content_of(3 * MIB + 1)
    file = cached(written(tmp_path, content))
    sink = MemorySink()
    assert (await file.copy_to(sink, hash_bytes(content))).size == len(content)
    assert sink.content == content
    with pytest.raises(CorruptBlob, match="are not its content"):
        await file.copy_to(sink, hash_bytes(b"else"))
    file.close()


@pytest.mark.parametrize("size", [7, 2 * MIB])
@pytest.mark.parametrize("removed", [False, True])
async def test_it_is_closed_once_and_tells_so(tmp_path: Path, size: int, removed: bool) -> None:
    """What is large and has no name is closed by a thread: that frees its blocks."""
    path = written(tmp_path, content_of(size))
    before = descriptors()
    told: list[bool] = []
    descriptor = os.open(path, os.O_RDONLY)
    file = CachedFile(descriptor, size, trio.CapacityLimiter(1), on_close=lambda: told.append(True))
    if removed:
        path.unlink()
    file.close()
    assert await eventually(lambda: descriptors() == before)
    assert told == [True]


# --- pages behind readers


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the kernel was advised to drop, offset and length."""
    told: list[tuple[int, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        os.fstat(descriptor)  # it is open
        assert advice == os.POSIX_FADV_DONTNEED
        told.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return told


def large(directory: Path, *, age: int = 3600) -> Path:
    path = directory / "large"
    path.touch()
    os.truncate(path, 64 * MIB)  # a hole
    then = time.time_ns() - age * 10**9
    os.utime(path, ns=(then, then))
    return path


async def read_on(file: CachedFile, start: int, end: int, step: int = 128 * KIB) -> None:
    before = descriptors()
    for offset in range(start, end, step):
        await file.read(offset, step)
        await eventually(lambda: descriptors() <= before)  # the one that advises is gone


async def test_pages_behind_a_sequential_reader_are_dropped(
    tmp_path: Path, dropped: list[tuple[int, int]]
) -> None:
    file = cached(large(tmp_path))
    await read_on(file, 0, 64 * MIB)
    ends = [0, *(offset + length for offset, length in dropped)]
    assert [offset for offset, _ in dropped] == ends[:-1]
    assert 48 * MIB <= ends[-1] <= 60 * MIB
    assert min(length for _, length in dropped) >= 8 * MIB
    file.close()


async def test_requests_that_overtake_each_other_are_a_sequence(
    tmp_path: Path, dropped: list[tuple[int, int]]
) -> None:
    file = cached(large(tmp_path))
    for offset in range(0, 13 * MIB, MIB):
        for part in (2, 0, 3, 1):
            await file.read(offset + part * 256 * KIB, 256 * KIB)
    await eventually(lambda: bool(dropped))
    assert dropped[0][0] == 0
    file.close()


@pytest.mark.parametrize(
    ("age", "inline"),
    [pytest.param(5, os.RWF_NOWAIT, id="young"), pytest.param(3600, 0, id="tmpfs")],
)
async def test_pages_that_cannot_be_dropped_are_left_alone(
    tmp_path: Path, dropped: list[tuple[int, int]], age: int, inline: int
) -> None:
    file = cached(large(tmp_path, age=age), inline=inline)
    await read_on(file, 0, 64 * MIB)
    assert dropped == []
    file.close()


async def test_random_readers_keep_their_pages(
    tmp_path: Path, dropped: list[tuple[int, int]]
) -> None:
    file = cached(large(tmp_path))
    for offset in range(0, 64 * MIB, 2 * MIB):
        await file.read(offset, 1 * MIB)
        await file.read(64 * MIB - offset, 4 * KIB)
    await read_on(file, 0, 11 * MIB)  # too little to matter
    assert dropped == []
    file.close()


async def test_a_reader_does_not_wait_for_the_drop_nor_fail_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    calls = []

    def hang(*_: int) -> None:
        calls.append(1)
        go_on.wait(60)
        raise OSError(errno.EIO, "a sick disk")

    monkeypatch.setattr(os, "posix_fadvise", hang)
    before = descriptors()
    file = cached(large(tmp_path))
    for offset in range(0, 64 * MIB, MIB):
        await file.read(offset, MIB)
    file.close()
    go_on.set()
    await eventually(lambda: descriptors() <= before)
    assert calls == [1]
