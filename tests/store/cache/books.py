"""What a cache tells of its blobs, and what stands on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from cafsfs.digest import Digest
from cafsfs.store.cache.disk_cache import DiskCache


def files(directory: Path) -> dict[str, int]:
    """The blobs that stand in the cache's directory, by name, with their sizes."""
    found = (each for each in (directory / "blobs").rglob("*") if each.is_file())
    return {each.name: each.stat().st_size for each in found}


def in_flight(cache: DiskCache) -> list[str]:
    return os.listdir(cache.premises.partials)


async def assert_books_agree(cache: DiskCache) -> None:
    """What the cache tells is what stands on the disk, and nothing is in flight."""
    await cache.measure()
    standing = files(cache.premises.directory)
    assert {each.digest.hex: each.size for each in await cache.listing()} == standing
    assert (cache.ledger.used, cache.ledger.blobs) == (sum(standing.values()), len(standing))
    assert in_flight(cache) == []
    assert cache.usage.partial == 0


async def contents_of(cache: DiskCache, digest: Digest) -> bytes:
    file = await cache.open(digest)
    try:
        return bytes(await file.read(0, file.size))
    finally:
        file.close()


async def use(cache: DiskCache, digest: Digest) -> None:
    (await cache.open(digest)).close()
