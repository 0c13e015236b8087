"""Ordinary files as sinks and sources, and pulls that replace a file at once."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError, Unavailable
from cafsfs.packing import Hasher, hash_bytes, hash_file
from cafsfs.store.contracts import BlobStat
from cafsfs.store.files import FileSink, FileSource, ReplacingFile, pull_to_file
from cafsfs.store.memory import MemoryPackedStore
from cafsfs.store.unpacking import UnpackingStore
from tests.store.samples import ABSENT, MIB, content_of, descriptors, pull
from tests.store.scripted import ScriptedStore
from tests.store.tmpfs import small_tmpfs

LIMITER = trio.CapacityLimiter(2)


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


# --- FileSink


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_a_sink_writes_in_order_and_counts(target: int, tmp_path: Path) -> None:
    told: list[int] = []
    sink = FileSink(target, on_write=told.append)
    sink.restart()
    sink.write(b"one")
    sink.write(memoryview(b"three"))
    assert (tmp_path / "target").read_bytes() == b"onethree"
    assert (sink.written, sink.progress, told) == (8, 2, [3, 5])


def test_a_further_attempt_starts_at_byte_0(target: int, tmp_path: Path) -> None:
    sink = FileSink(target)
    sink.write(b"what came before may be wrong")
    sink.restart()
    assert (tmp_path / "target").read_bytes() == b""
    sink.write(b"right")
    assert (tmp_path / "target").read_bytes() == b"right"
    assert (sink.written, sink.progress) == (5, 2)


# --- FileSource


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content_of(2 * MIB))
    return path


def read(source: FileSource, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    return bytes(buffer[: source.read_at(buffer, offset)])


def test_a_source_reads_by_position(path: Path) -> None:
    source = FileSource(path)
    content = content_of(2 * MIB)
    assert (source.size, source.digest) == (2 * MIB, hash_bytes(content))
    assert read(source, 5, 100) == content[5:105]
    assert read(source, 0, 10) == content[:10]
    assert read(source, 2 * MIB - 3, 100) == content[-3:]
    assert read(source, 2 * MIB, 100) == b""
    assert read(source, 3 * MIB, 100) == b""
    source.close()


def test_an_empty_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    source = FileSource(tmp_path / "empty")
    assert (source.size, source.digest, read(source, 0, 10)) == (0, hash_bytes(b""), b"")
    source.close()


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 1))  # the clock of files may be too coarse to show it


def _truncate(path: Path) -> None:
    os.truncate(path, MIB)


@pytest.mark.parametrize("change", [_append, _overwrite, _truncate])
async def test_a_file_that_changes_is_not_uploaded(
    path: Path, change: Callable[[Path], None]
) -> None:
    packed = MemoryPackedStore()
    source = FileSource(path)
    change(path)
    with pytest.raises(CorruptBlob, match="changed while it was being uploaded") as caught:
        await UnpackingStore(packed, limiter=LIMITER).put(source.digest, source)
    assert caught.value.hint
    assert packed.blobs == {}
    source.close()


async def test_a_change_that_shows_in_no_time_stamp_is_found_by_the_hash(path: Path) -> None:
    stamp = path.stat().st_mtime_ns
    packed = MemoryPackedStore()
    source = FileSource(path)
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(CorruptBlob, match="is not that of"):
        await UnpackingStore(packed, limiter=LIMITER).put(source.digest, source)
    assert packed.blobs == {}
    source.close()


# --- settled files, whose stamps tell


@pytest.fixture
def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSource]:
    """As a file that was written long ago."""
    monkeypatch.setattr("cafsfs.store.files._GRAIN", 0)
    source = FileSource(path)
    assert source.settled
    yield source
    source.close()


def test_a_file_is_not_settled_while_it_is_young_or_somebody_may_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_settled() -> bool:
        source = FileSource(path)
        source.close()
        return source.settled

    assert not is_settled()
    monkeypatch.setattr("cafsfs.store.files._GRAIN", 0)
    assert is_settled()
    with path.open("r+b") as file:
        assert not is_settled()
        mapped = mmap.mmap(file.fileno(), 0)
    assert not is_settled()
    mapped.close()
    assert is_settled()


async def test_a_settled_file_is_hashed_once(
    settled: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hasher, "update", None)
    packed = MemoryPackedStore()
    await UnpackingStore(packed, limiter=LIMITER).put(settled.digest, settled)
    assert packed.blobs[settled.digest][16:] == content_of(2 * MIB)


def _overwrite_mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"other"


def _overwrite_secretly(path: Path) -> None:
    stamp = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(stamp, stamp))


@pytest.mark.parametrize(
    "change", [_append, _overwrite, _truncate, _overwrite_mapped, _overwrite_secretly]
)
async def test_a_settled_file_that_changes_is_not_uploaded(
    path: Path, settled: FileSource, change: Callable[[Path], None]
) -> None:
    packed = MemoryPackedStore()
    change(path)
    with pytest.raises(CorruptBlob, match="changed while it was being uploaded"):
        await UnpackingStore(packed, limiter=LIMITER).put(settled.digest, settled)
    assert packed.blobs == {}


async def test_a_change_of_name_or_mode_is_none_of_content(path: Path, settled: FileSource) -> None:
    path.chmod(0o600)
    path.rename(path.with_name("other"))
    store = UnpackingStore(MemoryPackedStore(), limiter=LIMITER)
    await store.put(settled.digest, settled)
    assert await pull(store, settled.digest) == content_of(2 * MIB)


async def test_a_file_replaced_by_another_goes_on_being_uploaded(path: Path) -> None:
    store = UnpackingStore(MemoryPackedStore(), limiter=LIMITER)
    source = FileSource(path)
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.rename(path)
    await store.put(source.digest, source)
    assert await pull(store, source.digest) == content_of(2 * MIB)
    source.close()


def test_what_is_hashed_is_what_is_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the path names by then: that may be another file."""

    def replace_and_hash(file: int | Path) -> Digest:
        other.rename(path)
        return hash_file(file)

    other = path.with_name("other")
    other.write_bytes(b"other")
    monkeypatch.setattr("cafsfs.store.files.hash_file", replace_and_hash)
    source = FileSource(path)
    assert source.digest == hash_bytes(content_of(2 * MIB))
    source.close()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "dangling link", "below a file"])
def test_what_is_no_file_is_a_store_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nothing")
        case "below a file":
            path.touch()
            path /= "thing"
    with pytest.raises(StoreError, match=r"cannot read `.*thing`"):
        FileSource(path)


# --- pull_to_file


async def to_file(store: ScriptedStore, path: Path) -> None:
    await pull_to_file(store, next(iter(store.blobs)), path, limiter=LIMITER)


@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
async def test_a_blob_becomes_a_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "made" / "on the way" / "copy"
    told: list[int] = []
    store = ScriptedStore(content_of(size))
    digest = hash_bytes(content_of(size))
    stat = await pull_to_file(store, digest, path, limiter=LIMITER, on_write=told.append)
    assert path.read_bytes() == content_of(size)
    assert stat.size == size == sum(told)
    assert list(path.parent.iterdir()) == [path]


async def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"old")
    store = ScriptedStore(content_of(2 * MIB))
    store.flow = trio.Semaphore(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_file, store, path)
        await store.asked.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert path.read_bytes() == b"old"
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.stat().st_size == MIB
        store.flow.release()
    assert path.read_bytes() == content_of(2 * MIB)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
async def test_the_umask_is_honoured(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        await to_file(ScriptedStore(b"content"), tmp_path / "copy")
    finally:
        os.umask(before)
    assert (tmp_path / "copy").stat().st_mode & 0o777 == mode


async def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"old")
    store = ScriptedStore(b"new")
    store.errors = [Unavailable("nobody is there")]
    with pytest.raises(Unavailable):
        await to_file(store, path)
    with pytest.raises(BlobNotFound):
        await pull_to_file(store, ABSENT, path, limiter=LIMITER)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


async def test_cancelled_in_the_middle_it_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    store = ScriptedStore(content_of(3 * MIB))
    store.flow = trio.Semaphore(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_file, store, tmp_path / "copy")
        await store.asked.receive()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before


@pytest.mark.parametrize("name", ["€" * 84, "x" * 255, "caf\udce9", ".hidden", "with space"])
async def test_every_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    await to_file(ScriptedStore(b"content"), tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("kind", ["directory", "below a file", "dot", "name too long"])
async def test_where_no_file_can_be_is_a_store_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    path = {
        "directory": tmp_path / "directory",
        "below a file": tmp_path / "file" / "copy",
        "dot": Path(),
        "name too long": tmp_path / ("x" * 256),
    }[kind]
    with pytest.raises(StoreError, match="cannot write `"):
        await to_file(ScriptedStore(b"content"), path)
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]
    assert os.listdir(tmp_path / "directory") == []


@pytest.mark.process
async def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", MIB) as disk:
        with pytest.raises(StoreError, match="No space left on device"):
            await to_file(ScriptedStore(content_of(2 * MIB)), disk / "copy")
        assert list(disk.iterdir()) == []


# --- files of a batch

STAT = BlobStat(size=3)


def test_a_replacing_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "file"
    file = ReplacingFile(path, mark="1")
    file.abandon()  # nothing has begun
    file.restart()
    file.write(b"wrong")
    assert [each.name for each in path.parent.iterdir()] == [".file.1.part"]
    file.restart()
    file.write(b"a")
    file.write(memoryview(b"bc"))
    file.commit(STAT)
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"abc"


def test_an_abandoned_file_leaves_the_old_one_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    file = ReplacingFile(tmp_path / "file", mark="1")
    for _ in range(2):  # a further attempt may follow
        file.restart()
        file.write(b"new")
        file.abandon()
        file.abandon()
        assert [each.name for each in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    file = ReplacingFile(tmp_path / "file", mark="1")
    file.restart()
    with pytest.raises(OSError, match="directory"):
        file.commit(STAT)
    file.abandon()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["ä" * 127, "x" * 255, "\udcff", "a\nb"])
def test_a_replacing_file_of_every_name(tmp_path: Path, name: str) -> None:
    file = ReplacingFile(tmp_path / name, mark="12345678-1000000")
    file.restart()
    file.commit(STAT)
    assert [each.name for each in tmp_path.iterdir()] == [name]
