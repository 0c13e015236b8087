"""A directory of packed blobs: its layout, and what else happens in it at the same time."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import trio

from cafsfs.errors import BlobNotFound, CorruptBlob, RangeError, StoreError
from cafsfs.packing import Compression, Header, UnpackLimits, hash_bytes
from cafsfs.store.local_root import FileBody, LocalRoot, blob_path, is_blob
from cafsfs.store.memory import MemoryBody
from tests.store.samples import ABSENT, KIB, MIB, content_of, packed, strays
from tests.store.scripted import ScriptedBody
from tests.store.tmpfs import small_tmpfs

CONTENT = content_of(3 * MIB)
DIGEST = hash_bytes(CONTENT)
BLOB = packed(CONTENT)


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


def root_of(
    directory: Path, *, sync: bool = False, limits: UnpackLimits | None = None
) -> LocalRoot:
    return LocalRoot(directory, limiter=trio.CapacityLimiter(2), sync=sync, limits=limits)


def place(directory: Path, blob: bytes = BLOB) -> Path:
    path = blob_path(directory / "blobs", DIGEST)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(blob)
    return path


async def read_all(body: object) -> bytes:
    assert isinstance(body, FileBody)
    read = bytearray()
    buffer = memoryview(bytearray(MIB))
    while count := await body.readinto(buffer):
        read += buffer[:count]
    return bytes(read)


async def deposit(store: LocalRoot, blob: bytes = BLOB) -> None:
    await store.deposit(DIGEST, lambda: MemoryBody(blob))


# --- layout


async def test_the_layout_is_the_deployed_servers(tmp_path: Path) -> None:
    await deposit(root_of(tmp_path))
    name = DIGEST.hex
    path = tmp_path / "blobs" / name[:2] / name[2:4] / name
    assert path.read_bytes() == BLOB
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
    assert path.stat().st_mode & 0o777 == 0o644


async def test_what_stands_there_already_is_found(tmp_path: Path) -> None:
    place(tmp_path)
    store = root_of(tmp_path)
    assert store.name == str(tmp_path)
    assert await store.find_absent([DIGEST, ABSENT]) == {ABSENT}
    stat = await store.inspect(DIGEST)
    assert (stat.length, stat.header) == (len(BLOB), Header(Compression.NONE, len(CONTENT)))
    async with store.fetch(DIGEST) as body:
        assert await read_all(body) == BLOB


async def test_temporary_files_have_the_deployed_servers_names(tmp_path: Path) -> None:
    seen: list[Path] = []

    class Watching(ScriptedBody):
        async def readinto(self, buffer: memoryview) -> int:
            seen.extend(strays(tmp_path))
            return await super().readinto(buffer)

    await root_of(tmp_path).deposit(DIGEST, lambda: Watching(BLOB))
    (temporary,) = set(seen)
    assert temporary.parent == blob_path(tmp_path / "blobs", DIGEST).parent
    assert re.fullmatch(DIGEST.hex + "_blob[0-9a-f]{6}", temporary.name)
    assert strays(tmp_path) == []


async def test_a_temporary_file_is_no_blob(tmp_path: Path) -> None:
    path = place(tmp_path)
    path.rename(path.with_name(f"{DIGEST.hex}_blob123456"))
    store = root_of(tmp_path)
    assert await store.find_absent([DIGEST]) == {DIGEST}
    with pytest.raises(BlobNotFound):
        await store.inspect(DIGEST)


# --- roots and files that are not as they should be


async def test_a_root_that_is_missing_has_no_blobs_and_takes_none(tmp_path: Path) -> None:
    store = root_of(tmp_path / "missing")
    assert await store.find_absent([DIGEST]) == {DIGEST}
    with pytest.raises(BlobNotFound):
        await store.inspect(DIGEST)
    with pytest.raises(BlobNotFound):
        async with store.fetch(DIGEST):
            pass
    with pytest.raises(StoreError, match="there is no root") as caught:
        await deposit(store)
    assert caught.value.hint == f"make it first: mkdir {tmp_path / 'missing'}"
    assert list(tmp_path.iterdir()) == []


async def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    path = place(tmp_path)
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    store = root_of(tmp_path)
    assert await store.find_absent([DIGEST]) == {DIGEST}
    with pytest.raises(BlobNotFound):
        await store.inspect(DIGEST)
    with pytest.raises(StoreError):
        await deposit(store)


async def test_a_directory_or_a_link_is_no_blob_to_read(tmp_path: Path) -> None:
    path = place(tmp_path)
    secret = tmp_path / "secret"
    path.rename(secret)
    store = root_of(tmp_path)
    path.symlink_to(secret)
    with pytest.raises(StoreError):
        async with store.fetch(DIGEST):
            pass
    path.unlink()
    path.mkdir()
    assert await store.find_absent([DIGEST]) == {DIGEST}
    with pytest.raises(StoreError):
        async with store.fetch(DIGEST):
            pass


def test_absent_is_only_what_is_certain_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert is_blob(tmp_path / "file")
    assert not is_blob(tmp_path)
    assert not is_blob(tmp_path / "missing")
    assert not is_blob(tmp_path / "file" / "below")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        is_blob(tmp_path / "loop")


@pytest.mark.parametrize("blob", [b"", BLOB[:15], b"BLOB" + BLOB[4:]])
async def test_inspect_of_what_is_no_blob(tmp_path: Path, blob: bytes) -> None:
    place(tmp_path, blob)
    with pytest.raises(CorruptBlob):
        await root_of(tmp_path).inspect(DIGEST)


# --- bodies


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 17, 64 * KIB - 16, 64 * KIB - 15, MIB])
async def test_the_head_of_a_body_is_read_with_the_opening(tmp_path: Path, size: int) -> None:
    content = content_of(size)
    store = root_of(tmp_path)
    await store.deposit(hash_bytes(content), lambda: MemoryBody(packed(content)))
    async with store.fetch(hash_bytes(content)) as body:
        assert isinstance(body, FileBody)
        whole = len(packed(content)) <= 64 * KIB
        assert body.whole == whole
        assert body.head == (packed(content) if whole else packed(content)[: 4 * KIB])
        assert await read_all(body) == packed(content)


@pytest.mark.parametrize(("offset", "length"), [(0, 5), (MIB, None), (MIB, MIB), (MIB + 1, 10)])
async def test_a_range_has_its_own_head(tmp_path: Path, offset: int, length: int | None) -> None:
    place(tmp_path)
    async with root_of(tmp_path).fetch(DIGEST, offset=offset, length=length) as body:
        assert isinstance(body, FileBody)
        expected = BLOB[offset:] if length is None else BLOB[offset : offset + length]
        assert (body.offset, body.length) == (offset, len(expected))
        assert body.head == (expected if body.whole else expected[: 4 * KIB])
        assert await read_all(body) == expected


async def test_a_range_outside_is_an_error(tmp_path: Path) -> None:
    place(tmp_path)
    store = root_of(tmp_path)
    for offset, length in ((len(BLOB) + 1, None), (0, len(BLOB) + 1), (len(BLOB), 1)):
        with pytest.raises(RangeError):
            async with store.fetch(DIGEST, offset=offset, length=length):
                pass


async def test_a_recompressed_blob_renamed_over_is_not_spliced(tmp_path: Path) -> None:
    path = place(tmp_path)
    store = root_of(tmp_path)
    buffer = memoryview(bytearray(MIB))
    async with store.fetch(DIGEST) as body:
        count = await body.readinto(buffer)
        recompressed = path.with_name("recompressed")
        recompressed.write_bytes(packed(CONTENT, Compression.ZSTD))
        recompressed.rename(path)
        assert bytes(buffer[:count]) + await read_all(body) == BLOB
    async with store.fetch(DIGEST) as body:
        assert await read_all(body) == packed(CONTENT, Compression.ZSTD)


async def test_a_blob_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = place(tmp_path)
    async with root_of(tmp_path).fetch(DIGEST) as body:
        await body.readinto(memoryview(bytearray(MIB)))
        os.truncate(path, MIB)
        with pytest.raises(StoreError, match="became shorter"):
            await read_all(body)


# --- deposits


async def test_the_limits_of_unpacking_hold_for_deposits(tmp_path: Path) -> None:
    bomb = Header(Compression.ZSTD, None).pack() + packed(CONTENT, Compression.ZSTD)[16:]
    await deposit(root_of(tmp_path), bomb)
    path = blob_path(tmp_path / "blobs", DIGEST)
    path.unlink()
    with pytest.raises(CorruptBlob, match="ceiling"):
        await deposit(root_of(tmp_path, limits=UnpackLimits(ceiling=MIB)), bomb)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 17, 64 * KIB - 16, 64 * KIB - 15, 300 * KIB])
@pytest.mark.parametrize("known", [True, False])
async def test_deposits_around_the_bound_of_one_hop(
    tmp_path: Path, size: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(size)
    blob = packed(content)
    body = ScriptedBody(blob, step=5_000)
    body.length = len(blob) if known else None
    hops: list[object] = []
    run = trio.to_thread.run_sync

    async def counted(*args: object, **options: object) -> object:
        hops.append(args)
        return await run(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    await root_of(tmp_path).deposit(hash_bytes(content), lambda: body)
    assert blob_path(tmp_path / "blobs", hash_bytes(content)).read_bytes() == blob
    small = len(blob) < 64 * KIB or (known and len(blob) == 64 * KIB)
    assert (len(hops) == 1) == small


async def test_nothing_is_created_for_a_small_blob_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("a file is created")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CorruptBlob):
        await deposit(root_of(tmp_path), packed(CONTENT[:1000]))


@pytest.mark.parametrize("sync", [True, False])
async def test_the_data_is_on_the_disk_before_the_name(
    tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    fdatasync = os.fdatasync

    def watched(descriptor: int) -> None:
        named = blob_path(tmp_path / "blobs", DIGEST).exists()
        synced.append((os.fstat(descriptor).st_size, named))
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", watched)
    await deposit(root_of(tmp_path, sync=sync))
    assert synced == ([(len(BLOB), False)] if sync else [])
    small = content_of(1000)
    await root_of(tmp_path, sync=sync).deposit(hash_bytes(small), lambda: MemoryBody(packed(small)))
    assert len(synced) == 2 * sync


async def test_two_deposits_of_one_blob_at_once(tmp_path: Path) -> None:
    store = root_of(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(deposit, store)
    assert blob_path(tmp_path / "blobs", DIGEST).read_bytes() == BLOB
    assert strays(tmp_path) == []


@pytest.mark.process
@pytest.mark.parametrize("step", [MIB, 100_000])
async def test_a_full_disk_is_told_with_a_hint(tmp_path: Path, step: int) -> None:
    with small_tmpfs(tmp_path / "small", 2 * MIB) as disk:
        store = root_of(disk)
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)) as caught:
            await store.deposit(DIGEST, lambda: ScriptedBody(BLOB, step=step))
        assert caught.value.hint == "free some space"
        assert [each for each in disk.rglob("*") if each.is_file()] == []
        # There is room again for what is smaller.
        small = content_of(MIB)
        await store.deposit(hash_bytes(small), lambda: MemoryBody(packed(small)))
        assert await store.find_absent([DIGEST, hash_bytes(small)]) == {DIGEST}
