"""Tell how far each pull is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cafsfs.digest import Digest
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentStore,
    Destination,
    Failures,
    Wanted,
)
from cafsfs.store.passing import PassingStore


class WatchedStore(PassingStore):
    """Passes everything to ``upstream``.

    ``on_write(digest, end)`` is called from worker threads: the content is there up to the byte
    ``end``. A further attempt begins at 0.
    """

    def __init__(self, upstream: ContentStore, on_write: Callable[[Digest, int], object]) -> None:
        super().__init__(upstream)
        self._on_write = on_write

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        watched = _WatchedSink(sink, lambda end: self._on_write(digest, end))
        return await self._upstream.pull(digest, watched)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        def watched(each: Wanted) -> _WatchedDestination:
            return _WatchedDestination(each.destination, partial(self._on_write, each.digest))

        return await self._pull_many_through(watched, wanted, at_once)


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
