"""Caches to order things of: filled, used, and damaged."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import trio

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.local_root import blob_path
from cafsfs.store.memory import MemorySource
from tests.cli.running import PATIENCE, Done, run


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class Cache:
    """A cache directory and the commands on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *words: str | Path | Digest, **options: Any) -> Done:
        """``cafsfs cache`` with a command and its arguments."""
        command, *rest = [each.hex if isinstance(each, Digest) else each for each in words]
        return run("cache", command, "--cache-dir", self.directory, *rest, **options)

    def prefetch(self, *words: str | Path | Digest, **options: Any) -> Done:
        rest = [each.hex if isinstance(each, Digest) else each for each in words]
        return run("prefetch", "--cache-dir", self.directory, *rest, **options)

    def json(self, *words: str | Path | Digest, **options: Any) -> Any:
        return json.loads(self.run(*words, "--json", **options).out)

    def fill(self, *contents: bytes) -> list[Digest]:
        """Have blobs, one used after the other."""

        async def put() -> None:
            async with open_disk_cache(self.directory, keep=False) as cache:
                for content in contents:
                    await cache.put(hash_bytes(content), MemorySource(content))

        trio.run(put)
        return [hash_bytes(each) for each in contents]

    def path(self, digest: Digest) -> Path:
        return blob_path(self.directory / "blobs", digest)

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def place(self, content: bytes, digest: Digest | None = None) -> Digest:
        """A file of which the index knows nothing; with ``digest`` it may be wrong."""
        digest = digest or hash_bytes(content)
        (self.directory / "partial").mkdir(parents=True, exist_ok=True)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.path(digest).write_bytes(content)
        return digest

    def spoil(self, digest: Digest) -> None:
        """Flip a byte; size and time stay as they were."""
        path = self.path(digest)
        before = path.stat()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        mode = before.st_mode
        path.chmod(0o600)
        path.write_bytes(content)
        path.chmod(mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    @property
    def partial(self) -> list[Path]:
        return list((self.directory / "partial").iterdir())

    @contextmanager
    def opened(self, *, size: int = 1 << 30, keep: bool = True) -> Iterator[_Opened]:
        """Used by this process, in a thread, as a mount would."""
        opened = _Opened(self.directory, Bounds(size=Amount(size)), keep=keep)
        try:
            yield opened
        finally:
            opened.close()


class _Opened:
    cache: DiskCache

    def __init__(self, directory: Path, bounds: Bounds, *, keep: bool) -> None:
        self._ready = Event()
        self._token: trio.lowlevel.TrioToken
        self._end: trio.Event

        async def main() -> None:
            async with open_disk_cache(
                directory, bounds=bounds, what="a test", keep=keep
            ) as self.cache:
                self._token = trio.lowlevel.current_trio_token()
                self._end = trio.Event()
                self._ready.set()
                await self._end.wait()

        self._thread = Thread(target=trio.run, args=[main])
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Run an async function beside it."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join(PATIENCE)


ONE, TWO, THREE = content_of(100_000, 1), content_of(200_000, 2), content_of(300_000, 3)


def lines(*digests: Digest) -> str:
    """As commands read and print them."""
    return "".join(f"{each}\n" for each in digests)
