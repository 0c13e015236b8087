"""Try again what a broken connection has interrupted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from cafsfs.digest import Digest
from cafsfs.errors import ConnectionBroken
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
T = TypeVar("T")


class RetryingStore(ContentStore):
    """Repeats an operation whose connection broke, up to ``attempts`` times in all.

    Only that: a server that cannot be reached or that let a deadline pass would cost the same
    time again, and wrong bytes would be wrong again. Of a batch those are repeated that it hit.
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

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._retry_many(lambda left: self._store.stat_many(left, told), digests)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._retry_many(
            lambda left: self._store.pull_many(left, at_once=at_once), wanted
        )

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._retry(lambda: self._store.put(digest, source))

    async def _retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._attempts):
            try:
                return await operation()
            except ConnectionBroken as error:
                log.info("attempt %d of %d: %s", attempt, self._attempts, error)
        return await operation()

    async def _retry_many(
        self, operation: Callable[[Sequence[K]], Awaitable[Failures[K]]], wanted: Sequence[K]
    ) -> Failures[K]:
        failures = await operation(wanted)
        for attempt in range(1, self._attempts):
            left = [k for k, error in failures.items() if isinstance(error, ConnectionBroken)]
            if not left:
                break
            error = failures[left[0]]
            log.info("attempt %d of %d: %d of them: %s", attempt, self._attempts, len(left), error)
            for each in left:
                del failures[each]
            failures |= await operation(left)
        return failures
