"""A filesystem for each test, over a cache in its directory and an upstream that is scripted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cafsfs.metrics import Metrics
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions
from tests.store.stacks import Caches
from tests.vfs.scripted import BORN_NS, Scene, ScriptedStore


@pytest.fixture
def caches() -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
async def scene(tmp_path: Path, caches: Caches, nursery: trio.Nursery) -> Scene:
    """A cache of 10,000 bytes, and control files whose content changes with each rendering."""
    metrics = Metrics()
    cache = caches.open(tmp_path / "cache", 10_000, metrics=metrics)
    upstream = ScriptedStore()
    store = ReadCachingStore(cache, upstream, nursery, metrics=metrics)
    options = VfsOptions(uid=1, gid=2, born_ns=BORN_NS)
    rendered = 0

    async def version() -> bytes:
        return b"1.2.3\n"

    async def count() -> bytes:
        nonlocal rendered
        rendered += 1
        return f"rendered {rendered} times\n".encode()

    fs = FileSystem(store, options, {"version": version, "count": count}, metrics)
    scene = Scene(upstream, cache, store, fs, metrics)
    cache.on_change = fs.blocks_changed
    store.on_size_changed = fs.size_is_wrong
    fs.on_stale = scene.stale.append
    return scene
