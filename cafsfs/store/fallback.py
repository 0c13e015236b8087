"""Ask the next store when one cannot answer."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError, CorruptBlob, Unavailable
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

_SHUNNED_FOR = 10.0  # seconds
_REMEMBERED = 10_000  # blobs of which a store had wrong bytes


class FallbackStore(ContentStore):
    """Several places of the same content, the preferred one first.

    An operation goes on to the next store on any error: a wrong hash is that store's fault, and
    another may have the right bytes. Only wrong content to ``put`` is wrong everywhere. A blob is
    absent only when all stores have said so; if one of them failed, its error is raised instead,
    for it might have had the blob. A store that could not be reached, or was too slow, is asked
    last for ten seconds: else each new blob would wait for it anew. One that had wrong bytes of a
    blob is asked last for that blob from then on: who reads it while it comes would see them again.
    """

    def __init__(self, stores: Sequence[ContentStore]) -> None:
        if not stores:
            raise ValueError("a FallbackStore needs at least one store")
        self._stores = tuple(stores)
        self._failed_at: dict[ContentStore, float] = {}
        self._wrong: OrderedDict[tuple[ContentStore, Digest], None] = OrderedDict()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing = set(digests)
        failure: CafsError | None = None
        for store in self._in_order():
            if not missing:
                break
            try:
                missing &= await store.find_missing(missing)
            except CafsError as error:
                self._note(store, error, None)
                failure = _graver(failure, error)
        if missing and failure is not None:
            raise failure
        return missing

    async def stat(self, digest: Digest) -> BlobStat:
        return await self._first(digest, lambda store: store.stat(digest))

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        return await self._first(digest, lambda store: store.pull(digest, sink))

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._first_for_each(lambda store, left: store.stat_many(left, told), digests)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._first_for_each(
            lambda store, left: store.pull_many(left, at_once=at_once), wanted
        )

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._first(
            digest, lambda store: store.put(digest, source), but=(CorruptBlob,)
        )

    async def _first(
        self,
        digest: Digest,
        operation: Callable[[ContentStore], Awaitable[T]],
        *,
        but: tuple[type[CafsError], ...] = (),
    ) -> T:
        absent: BlobNotFound | None = None
        failure: CafsError | None = None
        order = self._in_order(digest)
        for store in order:
            try:
                return await operation(store)
            except but:
                raise
            except BlobNotFound as error:
                absent = error
            except CafsError as error:
                self._note(store, error, digest)
                if store is not order[-1]:
                    log.warning("going on with the next server: %s", error)
                failure = _graver(failure, error)
        raise failure or absent or AssertionError("a FallbackStore has at least one store")

    async def _first_for_each(
        self,
        operation: Callable[[ContentStore, Sequence[K]], Awaitable[Failures[K]]],
        wanted: Sequence[K],
    ) -> Failures[K]:
        """Each store is asked for what those before it could not give."""
        failures: Failures[K] = {}
        left, order = wanted, self._in_order()
        for store in order:
            if not left:
                break
            found = await operation(store, left)
            # A destination that fails is nobody's fault here: no other store is asked.
            blamed = {each: error for each, error in found.items() if isinstance(error, CafsError)}
            failures |= {each: _gravest(failures.get(each), found[each]) for each in found}
            for each in set(left) - found.keys():
                failures.pop(each, None)
            reasons = [each for each in blamed.values() if not isinstance(each, BlobNotFound)]
            for error in reasons:
                self._note(store, error, None)
            if store is not order[-1]:
                for reason in dict.fromkeys(map(str, reasons)):
                    log.warning("going on with the next server: %s", reason)
            left = list(blamed)
        return failures

    def _in_order(self, digest: Digest | None = None) -> list[ContentStore]:
        """As given, but those last that have just kept somebody waiting in vain, or were wrong."""
        since = trio.current_time() - _SHUNNED_FOR

        def rank(store: ContentStore) -> tuple[bool, bool]:
            wrong = digest is not None and (store, digest) in self._wrong
            return wrong, self._failed_at.get(store, since) > since

        return sorted(self._stores, key=rank)

    def _note(self, store: ContentStore, error: CafsError, digest: Digest | None) -> None:
        if isinstance(error, Unavailable):
            self._failed_at[store] = trio.current_time()
        elif isinstance(error, CorruptBlob) and digest is not None:
            self._wrong[store, digest] = None
            if len(self._wrong) > _REMEMBERED:
                self._wrong.popitem(last=False)


def _graver(first: CafsError | None, second: CafsError) -> CafsError:
    """What to report of two failures: wrong bytes tell more than a server that is not there."""
    if first is None or (isinstance(first, Unavailable) and not isinstance(second, Unavailable)):
        return second
    return first


def _gravest(first: CafsError | OSError | None, second: CafsError | OSError) -> CafsError | OSError:
    """What to report of one blob: absent only if all have said so; a full disk before all else."""
    if first is None or isinstance(first, BlobNotFound) or isinstance(second, OSError):
        return second
    if isinstance(second, BlobNotFound) or isinstance(first, OSError):
        return first
    return _graver(first, second)
