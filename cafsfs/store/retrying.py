"""Try again what a broken connection has interrupted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from cafsfs.digest import Digest
from cafsfs.errors import ConnectionBroken
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore

log = logging.getLogger(__name__)

T = TypeVar("T")


class RetryingStore(ContentStore):
    """Repeats an operation whose connection broke, up to ``attempts`` times in all.

    Only that: a server that cannot be reached or that let a deadline pass would cost the same
    time again, and wrong bytes would be wrong again.
    """

    def __init__(self, store: ContentStore, *, attempts: int) -> None:
        self._store = store
        self._attempts = attempts

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._retry(lambda: self._store.find_missing(digests))

    async def stat(self, digest: Digest) -> BlobStat:
        return await self._retry(lambda: self._store.stat(digest))

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        return await self._retry(lambda: self._store.pull(digest, sink))

    async def put(self, digest: Digest, source: ContentSource) -> None:
        await self._retry(lambda: self._store.put(digest, source))

    async def _retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts):
            try:
                return await operation()
            except ConnectionBroken as error:
                log.info("attempt %d of %d: %s", attempt, self._attempts, error)
        return await operation()
