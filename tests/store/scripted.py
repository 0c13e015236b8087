"""A store that does as it is told: counts, fails, stalls, drips."""

from __future__ import annotations

import math
from collections.abc import Collection

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, ConnectionBroken
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore


class ScriptedStore(ContentStore):
    """Holds ``contents``. What it does is set by attributes, what was done to it is read from them.

    ``calls``: the verbs it was asked, in order; ``asked`` brings each as it comes in.
    ``errors``: raised by the next calls, one each.
    ``breaks``: the next pulls break off after so many pieces, one each.
    ``gate``: where set, every call waits there.
    ``flow``: where set, a pull spends one of it for each piece of ``step`` bytes.
    ``told``: sizes that ``stat`` tells instead of the true ones.
    ``cancelled``: how many calls were.
    ``hung_up``: it has ended connections that nobody uses, as a server that is killed does.
    """

    def __init__(self, *contents: bytes, step: int = 1 << 20) -> None:
        self.blobs = {hash_bytes(content): content for content in contents}
        self.calls: list[str] = []
        self._arrivals, self.asked = trio.open_memory_channel[str](math.inf)
        self.errors: list[Exception] = []
        self.breaks: list[int] = []
        self.gate: trio.Event | None = None
        self.flow: trio.Semaphore | None = None
        self.told: dict[Digest, int | None] = {}
        self.cancelled = 0
        self.hung_up = False
        self._step = step

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await self._begin("find_missing")
        return set(digests) - self.blobs.keys()

    async def stat(self, digest: Digest) -> BlobStat:
        await self._begin("stat")
        size = len(self._get(digest))
        return BlobStat(size=self.told.get(digest, size), packed_size=size + 16, source="scripted")

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        await self._begin("pull")
        content = self._get(digest)
        sink.restart()
        end = self.breaks.pop(0) * self._step if self.breaks else None
        for at in range(0, len(content), self._step):
            if at == end:
                raise ConnectionBroken("in the middle of a blob")
            if self.flow is not None:
                await self._wait(self.flow)
            sink.write(content[at : at + self._step])
        return BlobStat(size=len(content), packed_size=len(content) + 16, source="scripted")

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        await self._begin("put")
        content = bytearray(source.size)
        source.read_at(memoryview(content), 0)
        self.blobs[digest] = bytes(content)
        return ("scripted",)

    async def _begin(self, verb: str) -> None:
        self.calls.append(verb)
        self._arrivals.send_nowait(verb)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self._wait(self.gate)
        if self.errors:
            raise self.errors.pop(0)

    async def _wait(self, barrier: trio.Event | trio.Semaphore) -> None:
        try:
            await (barrier.wait() if isinstance(barrier, trio.Event) else barrier.acquire())
        except trio.Cancelled:
            self.cancelled += 1
            raise

    def _get(self, digest: Digest) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError:
            raise BlobNotFound(digest) from None


class ScriptedBody:
    """A packed body that comes in small pieces, tells its length or not, and may break off."""

    def __init__(
        self,
        packed: bytes,
        *,
        length: int | None = None,
        step: int = 100_003,
        error: Exception | None = None,
    ) -> None:
        self._left = memoryview(packed)
        self._step = step
        self._error = error
        self.length = length

    async def readinto(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), len(self._left), self._step)
        if count == 0 and self._error is not None:
            raise self._error
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
