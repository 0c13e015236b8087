"""A child of the bench: one operation by CafsClient; prints the seconds that it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from cafsfs.client import CafsClient

CONNECTIONS = 4


async def pull(root: str, address: str, digest: str, path: str) -> float:
    """Pull a blob to a file, verified."""
    async with CafsClient(root, [address], connections_per_server=CONNECTIONS) as client:
        began = time.perf_counter()
        await client.pull(digest, Path(path))
        return time.perf_counter() - began


async def put(root: str, address: str, path: str) -> float:
    """Hash a file and upload it as it is."""
    async with CafsClient(root, [address], connections_per_server=CONNECTIONS) as client:
        began = time.perf_counter()
        await client.stream(Path(path))
        return time.perf_counter() - began


VERBS: dict[str, Callable[..., Awaitable[float]]] = {"pull": pull, "put": put}

if __name__ == "__main__":
    print(trio.run(VERBS[sys.argv[1]], *sys.argv[2:]))
