"""Pass everything on: for stores that change one thing of another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

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


class PassingStore(ContentStore):
    """Passes everything to ``upstream``; a subclass says what it does otherwise."""

    def __init__(self, upstream: ContentStore) -> None:
        self._upstream = upstream

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._upstream.find_missing(digests)

    async def stat(self, digest: Digest) -> BlobStat:
        return await self._upstream.stat(digest)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        return await self._upstream.pull(digest, sink)

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._upstream.stat_many(digests, told)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._upstream.pull_many(wanted, at_once=at_once)

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._upstream.put(digest, source)

    async def _pull_many_through(
        self,
        wrap: Callable[[Wanted], Destination],
        wanted: Sequence[Wanted],
        at_once: int | None,
    ) -> Failures[Wanted]:
        """``pull_many``, with another destination around that of each blob."""
        of = {Wanted(each.digest, wrap(each)): each for each in wanted}
        failures = await self._upstream.pull_many(list(of), at_once=at_once)
        return {of[each]: error for each, error in failures.items()}
