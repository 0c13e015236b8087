"""Caches as processes have them, and what they hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from cafsfs.packing import hash_file
from cafsfs.store.cache import disk_cache
from cafsfs.store.cache.disk_cache import DiskCache
from tests.store.stacks import Caches


@pytest.fixture
def caches(no_descriptor_left: None) -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def cache(caches: Caches, tmp_path: Path) -> DiskCache:
    return caches.open(tmp_path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each cached file that is hashed."""
    found: list[int] = []

    def counted(descriptor: int, *, on_read: Callable[[int], object]) -> Digest:
        found.append(descriptor)
        return hash_file(descriptor, on_read=on_read)

    monkeypatch.setattr(disk_cache, "hash_file", counted)
    return found
