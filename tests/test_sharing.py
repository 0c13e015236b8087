"""Commands on a cache, and mounts on it, over a real control socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from cafsfs.control import serve_control
from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from cafsfs.sharing import handlers, have_index_written, tell_mounts
from cafsfs.store.cache.disk_cache import DiskCache, Keeper
from cafsfs.store.memory import MemorySource
from tests.store.stacks import Caches

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)


@pytest.fixture
def caches() -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "run"
    monkeypatch.setenv("CAFSFS_RUNTIME_DIR", str(directory))
    return directory


class Writing(Keeper):
    """Counts how often the index was to be written."""

    def __init__(self) -> None:
        self.flushed = 0

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self.flushed += 1


async def while_mounted(cache: DiskCache, deed: Callable[[], None]) -> None:
    """Have ``deed`` done in a thread, while ``cache`` is that of a mount."""
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, handlers(cache, "/mnt/cafs"))
        await trio.to_thread.run_sync(deed)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("digests", [[DIGEST], None, [DIGEST] * 20_000])
async def test_a_mount_looks_again_at_what_was_changed(
    tmp_path: Path, caches: Caches, digests: list[Digest] | None
) -> None:
    ours, theirs = caches.open(tmp_path / "cache"), caches.open(tmp_path / "cache")
    await theirs.put(DIGEST, MemorySource(CONTENT))
    changed: list[Digest] = []
    theirs.on_change = changed.append
    theirs.path(DIGEST).unlink()
    assert theirs.known_size(DIGEST) is not None
    await while_mounted(theirs, partial(tell_mounts, ours, digests))
    assert theirs.known_size(DIGEST) is None
    assert changed == [DIGEST]


async def test_a_mount_writes_its_index_before_others_read_it(
    tmp_path: Path, caches: Caches
) -> None:
    ours, theirs = caches.open(tmp_path / "cache"), caches.open(tmp_path / "cache")
    theirs.keeper = writing = Writing()
    await while_mounted(theirs, partial(have_index_written, ours))
    assert writing.flushed == 1


async def test_a_mount_on_another_cache_is_not_concerned(tmp_path: Path, caches: Caches) -> None:
    ours, theirs = caches.open(tmp_path / "ours"), caches.open(tmp_path / "theirs")
    theirs.keeper = writing = Writing()
    await theirs.put(DIGEST, MemorySource(CONTENT))
    theirs.path(DIGEST).unlink()

    def change() -> None:
        tell_mounts(ours, None)
        have_index_written(ours)

    await while_mounted(theirs, change)
    assert theirs.known_size(DIGEST) is not None
    assert writing.flushed == 0


def test_where_nothing_is_mounted_nobody_is_told(tmp_path: Path, caches: Caches) -> None:
    cache = caches.open(tmp_path / "cache")
    tell_mounts(cache, None)
    have_index_written(cache)
