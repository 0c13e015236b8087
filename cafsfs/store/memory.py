"""Stores in memory: for tests, and for trying a stack without a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, RangeError
from cafsfs.packing import HEADER_LENGTH, Header, hash_bytes
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    PackedBody,
    PackedSource,
    PackedStat,
    PackedStore,
)


class MemorySink:
    """Content collected in memory."""

    def __init__(self) -> None:
        self.content = bytearray()

    def restart(self) -> None:
        self.content.clear()

    def write(self, data: bytes | memoryview, /) -> None:
        self.content += data


class NullSink:
    """Content that nobody wants: for learning a length, or whether a blob is sound."""

    def restart(self) -> None:
        pass

    def write(self, data: bytes | memoryview, /) -> None:
        pass


class MemorySource:
    """Content that is in memory already."""

    settled = False

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        piece = self._content[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)


class MemoryStore(ContentStore):
    """Content in a dictionary."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return set(digests) - self._blobs.keys()

    async def stat(self, digest: Digest) -> BlobStat:
        await trio.lowlevel.checkpoint()
        return BlobStat(size=len(self._get(digest)), source="memory")

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        stat = await self.stat(digest)
        sink.restart()
        sink.write(self._get(digest))
        return stat

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        content = bytearray(source.size)
        offset = 0
        while count := source.read_at(memoryview(content)[offset:], offset):
            offset += count
        if hash_bytes(content) != digest:
            raise CorruptBlob(f"the content to store is not that of {digest}")
        self._blobs[digest] = bytes(content)
        return ("memory",)

    def _get(self, digest: Digest) -> bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise BlobNotFound(digest) from None


class MemoryBody:
    """A packed body that is in memory already."""

    def __init__(self, packed: bytes) -> None:
        self._left = memoryview(packed)
        self.length: int | None = len(packed)

    async def readinto(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class MemoryPackedStore(PackedStore):
    """Packed blobs in a dictionary, unverified: ``blobs`` is open to tests that spoil them."""

    name = "memory"

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return set(digests) - self.blobs.keys()

    async def inspect(self, digest: Digest) -> PackedStat:
        await trio.lowlevel.checkpoint()
        packed = self._get(digest)
        return PackedStat(len(packed), Header.parse(packed[:HEADER_LENGTH]))

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        await trio.lowlevel.checkpoint()
        packed = self._get(digest)
        end = len(packed) if length is None else offset + length
        if offset > len(packed) or end > len(packed):
            raise RangeError(f"bytes {offset} to {end} lie outside the {len(packed)} of {digest}")
        yield MemoryBody(packed[offset:end])

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        packed = bytearray()
        buffer = memoryview(bytearray(1 << 16))
        body = source()
        while count := await body.readinto(buffer):
            packed += buffer[:count]
        self.blobs[digest] = bytes(packed)

    def _get(self, digest: Digest) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError:
            raise BlobNotFound(digest) from None
