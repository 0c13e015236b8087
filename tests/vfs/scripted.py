"""An upstream that does as it is told, and a filesystem over it without FUSE."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError
from cafsfs.metrics import Metrics
from cafsfs.packing import Compression, hash_bytes
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.memory import MemorySource
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import Attributes, FileSystem
from cafsfs.vfs.nodes import Fixed
from tests.store.stacks import upkeep_of

BORN_NS = 1_700_000_000 * 10**9
ROOT, BLAKE3, CONTROL = (each.value for each in Fixed)


class Gate:
    """A place to wait at; open unless somebody has shut it."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self.reached = trio.Event()

    def shut(self) -> None:
        self._open = trio.Event()
        self.reached = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._open.wait()


class ScriptedStore(ContentStore):
    """Blobs in memory. Questions and pulls wait at their gates and end with ``error``, if set.

    ``told`` are sizes that stat tells in place of the right ones; None for "only a pull tells".
    """

    def __init__(self) -> None:
        self.content: dict[Digest, bytes] = {}
        self.told: dict[Digest, int | None] = {}
        self.error: CafsError | None = None
        self.questions = Gate()
        self.pulls = Gate()
        self.asked: list[Digest] = []
        self.pulled: list[Digest] = []

    def add(self, content: bytes) -> Digest:
        digest = hash_bytes(content)
        self.content[digest] = content
        return digest

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        raise NotImplementedError

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        raise NotImplementedError

    async def stat(self, digest: Digest) -> BlobStat:
        self.asked.append(digest)
        await self.questions.pass_through()
        return self._stat(digest, self.told.get(digest, len(self._content(digest))))

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        """The first byte comes before the gate, the others behind it."""
        self.pulled.append(digest)
        content = self._content(digest)
        sink.restart()
        sink.write(content[:1])
        await self.pulls.pass_through()
        sink.write(self._content(digest)[1:])
        return self._stat(digest, len(content))

    def _content(self, digest: Digest) -> bytes:
        if self.error is not None:
            raise self.error
        try:
            return self.content[digest]
        except KeyError:
            raise BlobNotFound(digest) from None

    def _stat(self, digest: Digest, size: int | None) -> BlobStat:
        return BlobStat(
            size=size,
            packed_size=len(self.content[digest]) + 16,
            compression=Compression.ZSTD,
            source="there:2403",
            verified_at=1_234_567_890,
        )


@dataclass
class Scene:
    """A filesystem, and what stands below it."""

    upstream: ScriptedStore
    cache: DiskCache
    store: ReadCachingStore
    fs: FileSystem
    metrics: Metrics
    stale: list[int] = field(default_factory=list)

    async def lookup(self, digest: Digest) -> Attributes:
        return await self.fs.lookup(ROOT, digest.hex.encode())

    async def cached(self, content: bytes) -> Digest:
        """Bring a blob into the cache that was there before anybody looked."""
        digest = self.upstream.add(content)
        await self.cache.put(digest, MemorySource(content))
        return digest

    async def evict(self) -> None:
        """As the upkeep of the cache does every now and then."""
        await upkeep_of(self.cache).round()

    async def open(self, digest: Digest) -> int:
        handle, _ = await self.fs.open((await self.lookup(digest)).inode)
        return handle


async def entries(fs: FileSystem, inode: int) -> list[tuple[str, Attributes]]:
    """A whole listing, without the two entries that every directory has."""
    handle = await fs.opendir(inode)
    found = []
    for name, attributes, _ in fs.readdir(handle, 0):
        if name not in {b".", b".."}:
            fs.listed(attributes.inode)
            found.append((name.decode(), attributes))
    fs.release(handle)
    return found
