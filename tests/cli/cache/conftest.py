"""A cache that nobody has mounted, and blobs in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import ONE, THREE, TWO, Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def blobs(cache: Cache) -> list[Digest]:
    return cache.fill(ONE, TWO, THREE)
