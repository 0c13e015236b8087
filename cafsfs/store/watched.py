"""Tell how far each pull is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from cafsfs.digest import Digest
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Destination,
    Failures,
    Wanted,
)


class WatchedStore(ContentStore):
    """Passes everything to ``upstream``.

    ``on_write(digest, end)`` is called from worker threads: the content is there up to the byte
    ``end``. A further attempt begins at 0.
    """

    def __init__(self, upstream: ContentStore, on_write: Callable[[Digest, int], object]) -> None:
        self._upstream = upstream
        self._on_write = on_write

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._upstream.find_missing(digests)

    async def stat(self, digest: Digest) -> BlobStat:
        return await self._upstream.stat(digest)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        watched = _WatchedSink(sink, lambda end: self._on_write(digest, end))
        return await self._upstream.pull(digest, watched)

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._upstream.stat_many(digests, told)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        def watched(each: Wanted) -> Wanted:
            on_write = partial(self._on_write, each.digest)
            return Wanted(each.digest, _WatchedDestination(each.destination, on_write))

        of = {watched(each): each for each in wanted}
        failures = await self._upstream.pull_many(list(of), at_once=at_once)
        return {of[each]: error for each, error in failures.items()}

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._upstream.put(digest, source)


class _WatchedSink:
    def __init__(self, sink: ContentSink, on_write: Callable[[int], object]) -> None:
        self._sink = sink
        self._on_write = on_write
        self._end = 0

    def restart(self) -> None:
        self._end = 0
        self._sink.restart()

    def write(self, data: bytes | memoryview, /) -> object:
        result = self._sink.write(data)
        self._end += len(data)
        self._on_write(self._end)
        return result


class _WatchedDestination(_WatchedSink):
    def __init__(self, destination: Destination, on_write: Callable[[int], object]) -> None:
        super().__init__(destination, on_write)
        self.commit = destination.commit
        self.abandon = destination.abandon
