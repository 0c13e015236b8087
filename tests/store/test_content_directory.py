"""Content that another cache keeps: it is read, verified, and left alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.content_directory import ContentDirectory, open_seed
from cafsfs.store.local_root import LocalRoot, blob_path
from cafsfs.store.memory import MemorySink, MemorySource, MemoryStore
from cafsfs.store.unpacking import UnpackingStore
from tests.store.routes import routed
from tests.store.samples import ABSENT, KIB, MIB, CallingSink, content_of, packed, pull, put

CONTENT = content_of(5 * MIB)
DIGEST = hash_bytes(CONTENT)
LIMITER = trio.CapacityLimiter(2)


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> ContentDirectory:
    return ContentDirectory(tmp_path, limiter=LIMITER)


def place(directory: Path, content: bytes = CONTENT, digest: Digest = DIGEST) -> Path:
    path = blob_path(directory / "blobs", digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- reading


async def test_what_stands_there_is_found(store: ContentDirectory, tmp_path: Path) -> None:
    place(tmp_path)
    assert await store.find_missing([DIGEST, ABSENT]) == {ABSENT}
    sink = MemorySink()
    stat = await store.pull(DIGEST, sink)
    assert sink.content == CONTENT
    assert (stat.size, stat.source, stat.packed_size) == (5 * MIB, str(tmp_path), None)
    assert stat.verified_at is not None


@pytest.mark.parametrize(
    ("size", "told"), [(0, None), (256 * KIB, None), (256 * KIB + 1, 256 * KIB + 1)]
)
async def test_only_the_size_of_a_large_file_is_told(
    store: ContentDirectory, tmp_path: Path, size: int, told: int | None
) -> None:
    content = content_of(size)
    place(tmp_path, content, hash_bytes(content))
    stat = await store.stat(hash_bytes(content))
    assert (stat.size, stat.source) == (told, str(tmp_path))
    assert (await store.pull(hash_bytes(content), MemorySink())).size == size


@pytest.mark.parametrize("length", [0, 1, 2 * MIB, 5 * MIB - 1])
async def test_a_truncated_file_is_corrupt(
    store: ContentDirectory, tmp_path: Path, length: int
) -> None:
    os.truncate(place(tmp_path), length)
    with pytest.raises(CorruptBlob, match=f"{tmp_path} has wrong bytes of {DIGEST}"):
        await store.pull(DIGEST, MemorySink())


async def test_a_file_that_is_truncated_under_way_is_corrupt(
    store: ContentDirectory, tmp_path: Path
) -> None:
    path = place(tmp_path)
    with pytest.raises(CorruptBlob):
        await store.pull(DIGEST, CallingSink(lambda: os.truncate(path, 3 * MIB)))


async def test_a_file_that_vanishes_under_way_is_read_to_its_end(
    store: ContentDirectory, tmp_path: Path
) -> None:
    path = place(tmp_path)
    sink = CallingSink(lambda: path.unlink(missing_ok=True))
    await store.pull(DIGEST, sink)
    assert sink.content == CONTENT
    with pytest.raises(BlobNotFound):
        await store.pull(DIGEST, sink)


async def test_a_file_that_grows_under_way_is_read_as_it_was(
    store: ContentDirectory, tmp_path: Path
) -> None:
    path = place(tmp_path)
    sink = CallingSink(lambda: os.truncate(path, 9 * MIB))
    await store.pull(DIGEST, sink)
    assert sink.content == CONTENT


# --- what it leaves alone


async def test_nothing_is_written(store: ContentDirectory, tmp_path: Path) -> None:
    path = place(tmp_path)
    os.utime(path, ns=(1, 2))  # an access time before the modification: relatime would set it
    before = path.stat()
    await pull(store, DIGEST)
    after = path.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


async def test_another_users_file_is_read_all_the_same(
    store: ContentDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path)
    _fail_open(monkeypatch, errno.EPERM, os.O_NOATIME)
    assert await pull(store, DIGEST) == CONTENT


async def test_nothing_can_be_put(store: ContentDirectory, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is only read here") as caught:
        await store.put(DIGEST, MemorySource(CONTENT))
    assert caught.value.hint == "put it on a server"
    assert list(tmp_path.iterdir()) == []


# --- directories and files that are not as they should be


async def test_what_is_no_regular_file_is_no_blob(store: ContentDirectory, tmp_path: Path) -> None:
    path = place(tmp_path)
    for make in (os.mkdir, os.mkfifo):
        if path.is_file():
            path.unlink()
        else:
            path.rmdir()
        make(path)
        assert await store.find_missing([DIGEST]) == {DIGEST}
        for operation in (store.stat, lambda digest: pull(store, digest)):
            with pytest.raises(BlobNotFound):
                await operation(DIGEST)


async def test_a_link_is_not_followed(store: ContentDirectory, tmp_path: Path) -> None:
    path = place(tmp_path)
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError):
        await pull(store, DIGEST)


async def test_a_directory_that_is_gone_has_no_blobs(tmp_path: Path) -> None:
    store = ContentDirectory(tmp_path / "gone", limiter=LIMITER)
    assert await store.find_missing([DIGEST]) == {DIGEST}
    with pytest.raises(BlobNotFound):
        await store.stat(DIGEST)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
async def test_a_seed_that_cannot_be_read_any_more_is_passed_over(
    store: ContentDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
    number: int,
) -> None:
    place(tmp_path)
    _fail_open(monkeypatch, number)
    for operation in (store.stat, lambda digest: pull(store, digest)):
        with pytest.raises(StoreError, match=f"cannot read `{tmp_path}`: {os.strerror(number)}"):
            await operation(DIGEST)
    expect_log("going on with the next server: cannot read")
    servers = MemoryStore()
    await put(servers, CONTENT)
    assert await pull(routed(store, servers), DIGEST) == CONTENT


async def test_a_disk_that_fails_under_way(
    store: ContentDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path)

    def preadv(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(StoreError, match=f"cannot read `{tmp_path}`: Input/output error"):
        await pull(store, DIGEST)


def _fail_open(monkeypatch: pytest.MonkeyPatch, number: int, flag: int = 0) -> None:
    """Let ``os.open`` fail where it is asked for ``flag``."""
    really = os.open

    def fake(path: Path, flags: int, *rest: int) -> int:
        if flags & flag == flag and path.name == DIGEST.hex:
            raise OSError(number, os.strerror(number))
        return really(path, flags, *rest)

    monkeypatch.setattr(os, "open", fake)


# --- what a directory is


@pytest.mark.parametrize("mark", ["partial", "index.sqlite"])
async def test_a_cache_is_a_seed(tmp_path: Path, mark: str) -> None:
    place(tmp_path)
    (tmp_path / mark).mkdir()
    seed = open_seed(tmp_path, limiter=LIMITER)
    assert isinstance(seed, ContentDirectory)
    assert await pull(seed, DIGEST) == CONTENT


async def test_a_cache_that_is_still_empty_is_a_seed(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    with pytest.raises(BlobNotFound):
        await pull(open_seed(tmp_path, limiter=LIMITER), DIGEST)


async def test_a_store_is_a_seed(tmp_path: Path) -> None:
    place(tmp_path, packed(CONTENT))
    seed = open_seed(tmp_path, limiter=LIMITER)
    assert isinstance(seed, UnpackingStore)
    assert await pull(seed, DIGEST) == CONTENT
    with pytest.raises(BlobNotFound):
        await pull(seed, ABSENT)


async def test_a_directory_of_roots_is_none(tmp_path: Path) -> None:
    root = UnpackingStore(LocalRoot(tmp_path, limiter=LIMITER), limiter=LIMITER)
    await put(root, CONTENT)
    with pytest.raises(StoreError, match="neither a cache nor a store") as caught:
        open_seed(tmp_path.parent, limiter=LIMITER)
    assert caught.value.hint is not None
    for name in ("blobs", "partial", "index.sqlite"):
        assert f"`{name}`" in caught.value.hint


@pytest.mark.parametrize(("name", "reason"), [("gone", "No such file"), ("file", "Not a dir")])
def test_what_cannot_be_listed_is_none(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"cannot read the seed `{tmp_path / name}`: {reason}"):
        open_seed(tmp_path / name, limiter=LIMITER)
