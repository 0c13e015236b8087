"""A child of the bench: one operation by the asyncio client; prints the seconds that it took."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cafs_cache_cdn_client.cafs import CAFSClient, CompressionT

CONNECTIONS = 4
# Their timeout to connect is also the one of every answer: none may cut a run on a slow disk short.
TIMEOUT = 120.0  # seconds


async def pull(root: str, address: str, digest: str, path: str) -> float:
    """Pull a blob to a file; it verifies nothing."""
    async with CAFSClient(root, [address], CONNECTIONS, TIMEOUT) as client:
        began = time.perf_counter()
        await client.pull(digest, Path(path), retry=False)
        return time.perf_counter() - began


async def pull_batch(root: str, address: str, names: str, directory: str, count: str) -> float:
    """Pull the first ``count`` of the blobs that ``names``, a file, lists."""
    blobs = [(each, Path(directory, each)) for each in Path(names).read_text().split()]
    async with CAFSClient(root, [address], CONNECTIONS, TIMEOUT) as client:
        began = time.perf_counter()
        await client.pull_batch(blobs[: int(count)], retry=False)
        return time.perf_counter() - began


async def put(root: str, address: str, path: str, compression: str) -> float:
    """Hash a file and upload it."""
    async with CAFSClient(root, [address], CONNECTIONS, TIMEOUT) as client:
        began = time.perf_counter()
        await client.stream(Path(path), CompressionT[compression], retry=False)
        return time.perf_counter() - began


VERBS: dict[str, Callable[..., Coroutine[Any, Any, float]]] = {
    each.__name__: each for each in (pull, pull_batch, put)
}

if __name__ == "__main__":
    print(asyncio.run(VERBS[sys.argv[1]](*sys.argv[2:])))
