"""Every implementation and stack of the two contracts, ready for the suites that hold them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from cafsfs.client import RemoteStore, Server
from cafsfs.client.mirror import MirrorStore
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.digest import Digest
from cafsfs.metrics import Metrics
from cafsfs.packing import Compression
from cafsfs.server import CafsServer
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.partials import Shelter
from cafsfs.store.cache.premises import Premises, Session
from cafsfs.store.cache.upkeep import Upkeep, _open_index, open_disk_cache
from cafsfs.store.content_directory import ContentDirectory
from cafsfs.store.contracts import ContentSource, ContentStore, PackedSource, PackedStore
from cafsfs.store.health import Site
from cafsfs.store.local_root import LocalRoot, blob_path
from cafsfs.store.memory import MemoryPackedStore, MemorySink, MemoryStore
from cafsfs.store.pacing import PacingStore
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.store.retrying import RetryingStore
from cafsfs.store.unpacking import UnpackingStore
from tests.store.routes import routed
from tests.web_server import web_server

Spoil = Callable[[Digest], None]


@dataclass(frozen=True)
class ContentStack:
    """``spoil`` changes a byte of what is stored; None where nobody but the store can get at it.

    ``tells_sizes``: ``stat`` always does; ``warns``: what it logs of wrong bytes.
    """

    store: ContentStore
    spoil: Spoil | None
    tells_sizes: bool = True
    warns: str | None = None


@dataclass(frozen=True)
class PackedStack:
    """``verifies``: wrong content is refused; ``ranges``: a part of a blob can be fetched."""

    store: PackedStore
    spoil: Spoil
    verifies: bool = True
    ranges: bool = True


ContentMaker = Callable[[Path], AbstractAsyncContextManager[ContentStack]]
PackedMaker = Callable[[Path], AbstractAsyncContextManager[PackedStack]]


class Caches:
    """Caches as processes have them, each with its session and index; all closed at the end.

    They are kept by an ``Upkeep`` that does nothing but what the test calls it to do.
    """

    def __init__(self) -> None:
        self._open: list[DiskCache] = []

    def open(
        self,
        directory: Path,
        size: int = 1 << 30,
        *,
        bounds: Bounds | None = None,
        metrics: Metrics | None = None,
        shelter: Shelter | None = None,
        background: bool = False,
    ) -> DiskCache:
        """One more process that uses ``directory``, with a bound of ``size`` bytes."""
        premises = Premises(directory)
        cache = DiskCache(
            premises,
            _open_index(premises),
            bounds=bounds or Bounds(size=Amount(size)),
            metrics=metrics,
            shelter=shelter,
            background=background,
        )
        cache.keeper = Upkeep(cache)
        premises.enter(Session(os.getpid(), "a test", None if background else size))
        self._open.append(cache)
        return cache

    def crash(self, cache: DiskCache) -> None:
        """What a killed process leaves of it: what was not written is lost, and its locks."""
        self._open.remove(cache)
        cache.ledger.index.close()
        cache.premises.close()

    async def leave(self, cache: DiskCache) -> None:
        """As at an unmount."""
        await upkeep_of(cache).finish()
        self.crash(cache)

    def close(self) -> None:
        while self._open:
            self.crash(self._open[0])


def upkeep_of(cache: DiskCache) -> Upkeep:
    assert isinstance(cache.keeper, Upkeep)
    return cache.keeper


def spoil_file(directory: Path, digest: Digest) -> None:
    path = blob_path(directory / "blobs", digest)
    path.write_bytes(_spoiled(path.read_bytes()))


def spoil_silently(directory: Path, digest: Digest) -> None:
    """As a disk rots: the file's times stay as they were."""
    path = blob_path(directory / "blobs", digest)
    before = path.stat()
    spoil_file(directory, digest)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def spoil_memory(store: MemoryPackedStore, digest: Digest) -> None:
    store.blobs[digest] = _spoiled(store.blobs[digest])


def _spoiled(stored: bytes) -> bytes:
    return stored[:-1] + bytes([stored[-1] ^ 1])


def _limiter() -> trio.CapacityLimiter:
    return trio.CapacityLimiter(4)


# --- packed


@asynccontextmanager
async def memory_packed(_: Path) -> AsyncIterator[PackedStack]:
    store = MemoryPackedStore()
    yield PackedStack(store, partial(spoil_memory, store), verifies=False)


@asynccontextmanager
async def local_root(directory: Path) -> AsyncIterator[PackedStack]:
    yield PackedStack(LocalRoot(directory, limiter=_limiter()), partial(spoil_file, directory))


@asynccontextmanager
async def remote(directory: Path) -> AsyncIterator[PackedStack]:
    """A real server on loopback, over ``directory``."""
    root = directory / "data"
    root.mkdir()
    server = CafsServer(directory)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve, "127.0.0.1", 0)
        store = RemoteStore(Server(*addresses[0]), "/data")
        yield PackedStack(store, partial(spoil_file, root))
        store.close()
        server.stop()


class FilledMirror(MirrorStore):
    """With the directory that its server serves: it takes no uploads itself."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(MirrorTemplate.parse(f"{url}/blobs/{{ab}}/{{cd}}/{{hash}}"))
        self._filled = LocalRoot(directory, limiter=_limiter())

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        await self._filled.deposit(digest, source)


@asynccontextmanager
async def mirror(directory: Path) -> AsyncIterator[PackedStack]:
    """A real web server on loopback, over ``directory``."""
    with web_server(directory) as server:
        store = FilledMirror(server.url, directory)
        yield PackedStack(store, partial(spoil_file, directory), ranges=False)
        await store.aclose()


# --- content


@asynccontextmanager
async def memory(_: Path) -> AsyncIterator[ContentStack]:
    yield ContentStack(MemoryStore(), None)


@asynccontextmanager
async def disk_cache(directory: Path) -> AsyncIterator[ContentStack]:
    async with open_disk_cache(directory) as cache:
        yield ContentStack(cache, partial(spoil_silently, directory))


@asynccontextmanager
async def unpacking(
    directory: Path, below: PackedMaker, compression: Compression
) -> AsyncIterator[ContentStack]:
    async with below(directory) as packed:
        store = UnpackingStore(packed.store, limiter=_limiter(), compression=compression)
        yield ContentStack(store, packed.spoil, tells_sizes=below not in {remote, mirror})


@asynccontextmanager
async def routing(directory: Path) -> AsyncIterator[ContentStack]:
    first, second = MemoryPackedStore(), LocalRoot(directory, limiter=_limiter())
    stores = [UnpackingStore(each, limiter=_limiter()) for each in (first, second)]
    warns = "WARNING cafsfs.store.routing: going on with the next server: memory has wrong bytes"
    sites = [Site(name="first"), Site(name="second", priority=1)]
    store = routed(*stores, sites=sites)
    yield ContentStack(store, partial(spoil_memory, first), tells_sizes=False, warns=warns)


@asynccontextmanager
async def retrying(directory: Path) -> AsyncIterator[ContentStack]:
    async with unpacking(directory, memory_packed, Compression.NONE) as inner:
        yield ContentStack(RetryingStore(inner.store, attempts=2), inner.spoil)


class FilledDirectory(ContentDirectory):
    """With the cache that fills it: it takes no content itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, limiter=_limiter())
        self._filled = directory / "blobs"

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        verified, sink = MemoryStore(), MemorySink()
        await verified.put(digest, source)
        await verified.pull(digest, sink)
        path = blob_path(self._filled, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.content)
        return (str(path),)


@asynccontextmanager
async def content_directory(directory: Path) -> AsyncIterator[ContentStack]:
    yield ContentStack(
        FilledDirectory(directory), partial(spoil_file, directory), tells_sizes=False
    )


@asynccontextmanager
async def fail_fast(directory: Path) -> AsyncIterator[ContentStack]:
    async with (
        unpacking(directory, memory_packed, Compression.NONE) as inner,
        trio.open_nursery() as nursery,
    ):
        yield ContentStack(routed(inner.store, nursery=nursery, fail_fast=True), inner.spoil)


@asynccontextmanager
async def pacing(directory: Path) -> AsyncIterator[ContentStack]:
    async with unpacking(directory, memory_packed, Compression.NONE) as inner:
        yield ContentStack(PacingStore(inner.store, rate=1 << 40), inner.spoil)


@asynccontextmanager
async def read_caching(directory: Path) -> AsyncIterator[ContentStack]:
    async with (
        open_disk_cache(directory) as cache,
        unpacking(directory, memory_packed, Compression.NONE) as upstream,
        trio.open_nursery() as nursery,
    ):
        yield ContentStack(ReadCachingStore(cache, upstream.store, nursery), upstream.spoil)


PACKED_STACKS: dict[str, PackedMaker] = {
    "memory": memory_packed,
    "local root": local_root,
    "remote": remote,
    "mirror": mirror,
}

CONTENT_STACKS: dict[str, ContentMaker] = {
    "memory": memory,
    "disk cache": disk_cache,
    "unpacking memory": partial(unpacking, below=memory_packed, compression=Compression.NONE),
    "unpacking root, none": partial(unpacking, below=local_root, compression=Compression.NONE),
    "unpacking root, zstd": partial(unpacking, below=local_root, compression=Compression.ZSTD),
    "unpacking root, zlib": partial(unpacking, below=local_root, compression=Compression.ZLIB),
    "routing": routing,
    "retrying": retrying,
    "content directory": content_directory,
    "fail fast": fail_fast,
    "pacing": pacing,
    "read caching": read_caching,
    "remote": partial(unpacking, below=remote, compression=Compression.NONE),
    "mirror": partial(unpacking, below=mirror, compression=Compression.ZSTD),
}

PROCESS = {"remote", "mirror"}  # stacks with real sockets
