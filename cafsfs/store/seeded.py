"""Look into a read-only tier before a slower store is asked."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Failures,
    Wanted,
)

log = logging.getLogger(__name__)

K = TypeVar("K")


class SeededStore(ContentStore):
    """``seed`` before ``upstream``. A seed may fail: whatever is wrong with it is a miss.

    Not a FallbackStore: there a store that fails might have had the blob, and nothing is absent
    until it answers. What is in no seed is upstream's to tell. Nothing is put into a seed.
    """

    def __init__(self, seed: ContentStore, upstream: ContentStore) -> None:
        self._seed = seed
        self._upstream = upstream

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing = set(digests)
        try:
            missing = await self._seed.find_missing(missing)
        except CafsError as error:
            log.warning("the seed is passed over: %s", error)
        return await self._upstream.find_missing(missing) if missing else missing

    async def stat(self, digest: Digest) -> BlobStat:
        try:
            return await self._seed.stat(digest)
        except CafsError as error:
            _pass_over(error)
        return await self._upstream.stat(digest)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        try:
            return await self._seed.pull(digest, sink)
        except CafsError as error:
            _pass_over(error)
        return await self._upstream.pull(digest, sink)

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._first(lambda store, left: store.stat_many(left, told), digests)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._first(lambda store, left: store.pull_many(left, at_once=at_once), wanted)

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._upstream.put(digest, source)

    async def _first(
        self,
        operation: Callable[[ContentStore, Sequence[K]], Awaitable[Failures[K]]],
        wanted: Sequence[K],
    ) -> Failures[K]:
        failures = await operation(self._seed, wanted)
        left = [each for each, error in failures.items() if isinstance(error, CafsError)]
        for error in {str(each): each for each in failures.values()}.values():
            if isinstance(error, CafsError):
                _pass_over(error)
        for each in left:
            del failures[each]
        return failures | await operation(self._upstream, left) if left else failures


def _pass_over(error: CafsError) -> None:
    if not isinstance(error, BlobNotFound):
        log.warning("the seed is passed over: %s", error)
