"""Look into a read-only tier before a slower store is asked."""

from __future__ import annotations

import logging
from collections.abc import Collection

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore

log = logging.getLogger(__name__)


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

    async def put(self, digest: Digest, source: ContentSource) -> None:
        await self._upstream.put(digest, source)


def _pass_over(error: CafsError) -> None:
    if not isinstance(error, BlobNotFound):
        log.warning("the seed is passed over: %s", error)
