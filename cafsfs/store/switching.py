"""A store whose place another one can take while it is at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CafsError
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Failures,
    Wanted,
)


class SwitchingStore(ContentStore):
    """Passes everything to ``current``. What is under way ends where it began."""

    def __init__(self, current: ContentStore) -> None:
        self.current = current
        self._at_work: Counter[int] = Counter()
        self._left = trio.Event()

    async def switch(self, store: ContentStore) -> None:
        """Ask ``store`` from now on; returns when nobody waits for the former one any more."""
        former, self.current = self.current, store
        while self._at_work[id(former)]:
            await self._left.wait()
        await trio.lowlevel.checkpoint()

    @contextmanager
    def _held(self) -> Iterator[ContentStore]:
        store = self.current
        self._at_work[id(store)] += 1
        try:
            yield store
        finally:
            self._at_work[id(store)] -= 1
            self._left.set()
            self._left = trio.Event()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        with self._held() as store:
            return await store.find_missing(digests)

    async def find_unseen(
        self, digests: Collection[Digest]
    ) -> tuple[set[Digest], CafsError | None]:
        with self._held() as store:
            return await store.find_unseen(digests)

    async def stat(self, digest: Digest) -> BlobStat:
        with self._held() as store:
            return await store.stat(digest)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        with self._held() as store:
            return await store.pull(digest, sink)

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        with self._held() as store:
            return await store.stat_many(digests, told)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        with self._held() as store:
            return await store.pull_many(wanted, at_once=at_once)

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        with self._held() as store:
            return await store.put(digest, source)
