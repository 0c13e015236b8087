"""Files that are opened without a thread: only if that costs no disk anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from cafsfs.packing import hash_bytes
from cafsfs.store.cache import remembered
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.remembered import open_remembered
from tests.store.samples import content_of, pull, put
from tests.store.stacks import Caches, upkeep_of

CONTENT = content_of(1000)
DIGEST = hash_bytes(CONTENT)


def test_what_the_kernel_has_in_memory_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    descriptor = open_remembered(path, os.O_RDONLY)
    assert descriptor is not None
    assert os.read(descriptor, 99) == b"content"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_what_is_not_there_is_left_to_who_can_tell_why(tmp_path: Path) -> None:
    assert open_remembered(tmp_path / "absent", os.O_RDONLY) is None
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    assert open_remembered(link, os.O_RDONLY | os.O_NOFOLLOW) is None


def test_a_kernel_without_the_call_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_OPENAT2", 100_000)
    remembered._works.cache_clear()
    try:
        assert open_remembered(tmp_path, os.O_RDONLY) is None
    finally:
        monkeypatch.undo()
        remembered._works.cache_clear()


async def test_a_cached_blob_that_is_known_takes_no_thread(
    cache: DiskCache, caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object, **__: object) -> None:
        raise AssertionError("a thread")

    await put(cache, CONTENT)
    await upkeep_of(cache).flush()
    later = caches.open(tmp_path)
    await later.look(DIGEST)  # as a lookup does before each open
    for each in (cache, later):
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", no_thread)
            claimed = await each.claim(DIGEST)
        assert claimed.size == len(CONTENT)  # type: ignore[union-attr]  # it is no partial file
        claimed.close()  # type: ignore[union-attr]


async def test_a_cached_blob_that_was_changed_is_looked_at(
    cache: DiskCache, hashed: list[int]
) -> None:
    await put(cache, CONTENT)
    os.utime(cache.path(DIGEST))
    assert await pull(cache, DIGEST) == CONTENT
    claimed = await cache.claim(DIGEST)
    claimed.close()  # type: ignore[union-attr]
    assert len(hashed) == 1
