"""One of several processes on a cache; ``test_processes.py`` runs it.

``python -m tests.store.cache.sharing CACHE SOURCE LOG BOUND ROUNDS``: reads every file of SOURCE, a
directory of content named by its hash, through a cache of BOUND bytes, ROUNDS times, each time in
an order of its own; verifies every byte. Each pull is a line in LOG. Says `ready` when the cache is
open.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Collection
from pathlib import Path

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.read_caching import ReadCachingStore
from tests.store.samples import pull

_PIECES = 8
_PAUSE = 0.01  # seconds between two pieces: pulls overlap


class SlowDirectory(ContentStore):
    """Content in files named by their hashes; a pull takes a while, and is noted in ``log``."""

    def __init__(self, directory: Path, log: int) -> None:
        self._directory = directory
        self._log = log

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return {each for each in digests if not (self._directory / each.hex).exists()}

    async def stat(self, digest: Digest) -> BlobStat:
        await trio.lowlevel.checkpoint()
        return BlobStat(size=(self._directory / digest.hex).stat().st_size, source="slow")

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        try:
            content = (self._directory / digest.hex).read_bytes()
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        os.write(self._log, f"{digest.hex}\n".encode())  # O_APPEND: whole, also with others
        sink.restart()
        step = len(content) // _PIECES + 1
        for start in range(0, len(content), step):
            await trio.to_thread.run_sync(sink.write, content[start : start + step])
            await trio.sleep(_PAUSE)
        return BlobStat(size=len(content), source="slow")

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        raise NotImplementedError


async def main() -> None:
    directory, source, log, bound, rounds = sys.argv[1:]
    bounds = Bounds(size=Amount(int(bound)))
    names = os.listdir(source)

    async def read(name: str, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            content = await pull(store, Digest.parse(name))
            assert content == Path(source, name).read_bytes(), f"wrong bytes of {name}"

    async with (
        open_disk_cache(Path(directory), bounds=bounds) as cache,
        trio.open_nursery() as nursery,
    ):
        print("ready", flush=True)
        upstream = SlowDirectory(Path(source), os.open(log, os.O_WRONLY | os.O_APPEND))
        store = ReadCachingStore(cache, upstream, nursery)
        for _ in range(int(rounds)):
            random.shuffle(names)
            at_once = trio.CapacityLimiter(4)
            async with trio.open_nursery() as readers:
                for name in names:
                    readers.start_soon(read, name, at_once)


if __name__ == "__main__":
    trio.run(main)
