"""A store whose place another one can take while it is at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager

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
from cafsfs.store.pump import first_error

Opening = AbstractAsyncContextManager[ContentStore]
"""Opens a store when it is entered, and closes it when it is left."""


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


class Succession:
    """Stores that are opened one after the other, each held open until nobody waits for it.

    ``store`` is the one for all of them, once ``begin`` has opened the first.
    """

    store: SwitchingStore

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._retire: Callable[[], None] = lambda: None

    async def begin(self, opening: Opening) -> None:
        """Open the first; raises what that raises, in groups."""
        opened, self._retire = await self._nursery.start(self._keep, opening)
        self.store = SwitchingStore(opened)

    async def renew(self, opening: Opening) -> None:
        """Ask another one from now on; raises what opening it raises, and goes on as before.

        Pulls that are under way end where they began.
        """
        try:
            opened, retire = await self._nursery.start(self._keep, opening)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        former, self._retire = self._retire, retire

        async def leave() -> None:
            await self.store.switch(opened)
            former()

        self._nursery.start_soon(leave)

    @staticmethod
    async def _keep(
        opening: Opening, *, task_status: trio.TaskStatus[tuple[ContentStore, Callable[[], None]]]
    ) -> None:
        """Hold a store open until it is retired."""
        retired = trio.Event()
        async with opening as store:
            task_status.started((store, retired.set))
            await retired.wait()
