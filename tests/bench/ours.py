"""A child of the bench: one operation of ours; prints the seconds that it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from cafsfs.client import CafsClient
from cafsfs.packing import Compression
from cafsfs.store.cache.curation import verify as verify_cache
from cafsfs.store.cache.upkeep import open_disk_cache

CONNECTIONS = 4


async def pull(root: str, address: str, digest: str, path: str, secret: str = "") -> float:
    """Pull a blob to a file, verified; with a secret only from a server that has it too."""
    async with CafsClient(
        root,
        [address],
        connections_per_server=CONNECTIONS,
        secret=secret or None,
        auth="required" if secret else "auto",
    ) as client:
        began = time.perf_counter()
        await client.pull(digest, Path(path))
        return time.perf_counter() - began


async def pull_batch(root: str, address: str, names: str, directory: str, count: str) -> float:
    """Pull the first ``count`` of the blobs that ``names``, a file, lists, verified."""
    blobs = [(each, Path(directory, each)) for each in Path(names).read_text().split()]
    async with CafsClient(root, [address], connections_per_server=CONNECTIONS) as client:
        began = time.perf_counter()
        await client.pull_batch(blobs[: int(count)])
        return time.perf_counter() - began


async def put(root: str, address: str, path: str, compression: str) -> float:
    """Hash a file and upload it."""
    async with CafsClient(root, [address], connections_per_server=CONNECTIONS) as client:
        began = time.perf_counter()
        await client.stream(Path(path), Compression[compression])
        return time.perf_counter() - began


async def verify(directory: str, blobs: str, passes: str) -> float:
    """Hash all blobs of a cache, on all cores; the mean of some passes over it."""
    async with open_disk_cache(Path(directory), keep=False) as cache:
        began = time.perf_counter()
        for _ in range(int(passes)):
            found = await verify_cache(cache)
            if found.wrong or found.blobs != int(blobs):
                sys.exit(f"{found.blobs} blobs of {blobs} verified, {len(found.wrong)} wrong")
        return (time.perf_counter() - began) / int(passes)


VERBS: dict[str, Callable[..., Awaitable[float]]] = {
    each.__name__: each for each in (pull, pull_batch, put, verify)
}

if __name__ == "__main__":
    print(trio.run(VERBS[sys.argv[1]], *sys.argv[2:]))
