"""The two contracts of the house: blobs by their content, and blobs as they are packed.

A feature is a decorator over a contract, so stacks read aloud:
``ReadCachingStore(cache, FallbackStore([UnpackingStore(RemoteStore(…)), …]))``.

Content and packed bytes have different verbs on purpose: a type checker then catches a mix-up.
One class crosses between them and verifies on the way: ``UnpackingStore``.

Every method raises only CafsError (and lets Cancelled pass). The docstrings name what callers tell
apart; StoreError, ServerRefused and RemoteProtocolError may come from any. Only what a sink raises
that is no CafsError passes as it is, mostly an OSError, and nobody is asked instead: a full disk
here is not the other side's fault. Deadlines are each implementation's own duty: no method waits
for ever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CafsError
from cafsfs.packing import Compression, Header

K = TypeVar("K")
T = TypeVar("T")

_AT_ONCE = 4  # of a batch, in a store that has no better way than one after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStat:
    """What is known of a blob. Sizes are in bytes.

    ``size`` is the length of the content; None where only a pull tells it, or where a pull is the
    cheapest way to learn it. ``packed_size``, ``compression`` and ``source`` (the server, or the
    directory, that told) are None where nobody has told yet. ``verified_at`` is when we last saw
    all of the content and its hash agree, in seconds since 1970.
    """

    size: int | None
    packed_size: int | None = None
    compression: Compression | None = None
    source: str | None = None
    verified_at: int | None = None


class ContentSink(Protocol):
    """Where the content of one blob goes. Called from worker threads, one call at a time."""

    def restart(self) -> None:
        """A first or further attempt begins at byte 0: what came before may be wrong."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take the next piece; ``data`` is valid only during the call."""


class Destination(ContentSink, Protocol):
    """Where one blob of a batch goes; from its first byte to its end in one hop, if it is small."""

    def commit(self, stat: BlobStat, /) -> None:
        """All of the content is written and verified. Called from worker threads.

        Raises OSError; ``abandon`` follows then.
        """

    def abandon(self) -> None:
        """An attempt has failed: let go of what it has written; quick, for it is called anywhere.

        ``restart`` may follow. Called any number of times, but not after ``commit`` has succeeded.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """One blob of a batch; one that is wanted in two places is two of these."""

    digest: Digest
    destination: Destination


Failures = dict[K, CafsError | OSError]
"""Those of a batch that failed, and why; an OSError is always one of a destination."""


class ContentSource(Protocol):
    """Where the content of one blob comes from; read by position, so that a retry is simple.

    Called from worker threads.
    """

    @property
    def size(self) -> int:
        """Bytes of content."""

    @property
    def settled(self) -> bool:
        """True if ``read_at`` sees every change since it was hashed: nobody needs to hash again."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` with what stands at ``offset``; returns the count, 0 at the end only.

        Raises CorruptBlob if the content is known to have changed since it was hashed.
        """


class ContentStore(ABC):
    """Blobs by the hash of their content. Whatever it hands out was verified against the hash."""

    @abstractmethod
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Which of ``digests`` are absent; raises Unavailable where that cannot be told."""

    async def find_unseen(
        self, digests: Collection[Digest]
    ) -> tuple[set[Digest], CafsError | None]:
        """Which of ``digests`` nobody has, of those who could be asked.

        With an error not all could be: then they may be there all the same.
        """
        try:
            return await self.find_missing(digests), None
        except CafsError as error:
            return set(digests), error

    @abstractmethod
    async def stat(self, digest: Digest) -> BlobStat:
        """What can be told without reading the whole blob.

        Raises BlobNotFound, Unavailable, and CorruptBlob for what shows at once to be no blob.
        """

    @abstractmethod
    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        """Write the content to ``sink``; returns, with ``size`` set, only when it is verified.

        Raises BlobNotFound, Unavailable, CorruptBlob, ServerRefused, RemoteProtocolError. After an
        error or a cancellation the sink holds bytes that nobody vouches for.
        """

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        """Pull a batch, in any order; returns those that failed, and raises nothing for them.

        Each error is what ``pull`` would have raised for that blob, and hits it alone. Whatever is
        not returned was committed; a destination that was not is abandoned, by a cancellation too.
        ``at_once`` bounds the connections that are used, where None leaves that to the store.
        """

        async def pull(each: Wanted) -> None:
            try:
                stat = await self.pull(each.digest, each.destination)
                await trio.to_thread.run_sync(each.destination.commit, stat, limiter=limiter)
            except BaseException:
                each.destination.abandon()
                raise

        limiter = trio.CapacityLimiter(at_once or _AT_ONCE)
        return await one_by_one(pull, wanted, at_once=at_once or _AT_ONCE)

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        """Stat a batch: ``told`` is called for each blob, in any order; returns those that failed.

        Each error is what ``stat`` would have raised for that blob, and hits it alone.
        """

        async def stat(digest: Digest) -> None:
            told(digest, await self.stat(digest))

        return await one_by_one(stat, digests, at_once=_AT_ONCE)

    @abstractmethod
    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        """Store the content of ``source`` under ``digest``, which the caller has computed.

        Returns the names of those who have it now: servers, or a directory. Storing what is there
        already is fine. Raises Unavailable (TooFewReplicas where some have it, and not as many as
        should), ServerRefused, StoreError, and CorruptBlob where the content is found not to have
        that hash: then nothing is stored.
        """


class PackedBody(Protocol):
    """Packed bytes on their way, header first."""

    @property
    def length(self) -> int | None:
        """Bytes in all; None where only the end tells."""

    async def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes; returns 0 at the end only.

        Raises Unavailable if it breaks off, StoreError for a sick disk.
        """


class PackedTaker(Protocol):
    """Who takes the packed blobs of a batch, small ones by the lot."""

    async def take(self, lot: Sequence[tuple[Wanted, memoryview]]) -> Failures[Wanted]:
        """Take whole packed blobs, and say which were of no use, and why.

        They are valid during the call only. CorruptBlob: they are not what was wanted.
        """

    async def take_body(self, wanted: Wanted, body: PackedBody) -> None:
        """Take one that is large, or of unknown length; raises CafsError, OSError."""


PackedSource = Callable[[], PackedBody]
"""Opens a packed body at its start; called again for a second try."""


@dataclass(frozen=True, slots=True)
class PackedStat:
    """A packed blob: its length in bytes, and its header where reading that alone is cheap."""

    length: int
    header: Header | None


class PackedStore(ABC):
    """Packed blobs by the hash of their content. What it hands out is *not* verified.

    Packed bytes change under a key (servers recompress): never splice two fetches, never key
    anything by their length (protocol page, section 3.2).
    """

    name: str
    """What messages and attributes call this store: ``host:port``, or a directory."""

    @abstractmethod
    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        """Which of ``digests`` are absent; raises Unavailable where that cannot be told."""

    @abstractmethod
    async def inspect(self, digest: Digest) -> PackedStat | None:
        """The packed length, and the header unless a fetch is the cheapest way to see it.

        None where only the end of a fetch tells the length. Raises BlobNotFound, Unavailable, and
        CorruptBlob for what has no sound header.
        """

    @abstractmethod
    def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[PackedBody]:
        """Open the packed blob, or ``length`` bytes of it (None: to its end) from ``offset`` on.

        Raises BlobNotFound, Unavailable, ServerRefused, and RangeError for a range that lies
        outside the blob or that this store cannot give.
        """

    async def deliver(self, digest: Digest, take: Callable[[PackedBody], Awaitable[T]]) -> T:
        """Hand the packed blob to ``take``; returns what that returns.

        A store that cannot be sure how its bytes are meant calls it once more if it raises
        CorruptBlob, with the other body that they may be. Raises what ``fetch`` and ``take`` do.
        """
        async with self.fetch(digest) as body:
            return await take(body)

    async def fetch_many(
        self, wanted: Sequence[Wanted], taker: PackedTaker, *, at_once: int | None = None
    ) -> Failures[Wanted]:
        """Fetch a batch, in any order, and hand it to ``taker``; returns those that failed.

        Each error is what ``deliver`` or ``taker`` would have raised for that blob, and hits it
        alone. ``at_once`` bounds the connections that are used.
        """

        async def fetch(each: Wanted) -> None:
            await self.deliver(each.digest, lambda body: taker.take_body(each, body))

        return await one_by_one(fetch, wanted, at_once=at_once or _AT_ONCE)

    async def inspect_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, PackedStat | None], object]
    ) -> Failures[Digest]:
        """Inspect a batch: ``told`` is called for each blob; returns those that failed, and why."""

        async def inspect(digest: Digest) -> None:
            told(digest, await self.inspect(digest))

        return await one_by_one(inspect, digests, at_once=_AT_ONCE)

    @abstractmethod
    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        """Store the packed blob that ``source`` opens.

        Raises Unavailable, ServerRefused, StoreError, CorruptBlob.
        """


async def one_by_one(
    deed: Callable[[K], Awaitable[None]], wanted: Sequence[K], *, at_once: int
) -> Failures[K]:
    """Do ``deed`` for all, so many at a time; returns those that failed, and why."""
    failures: Failures[K] = {}
    waiting = iter(wanted)

    async def work() -> None:
        for each in waiting:
            try:
                await deed(each)
            except (CafsError, OSError) as error:
                failures[each] = error

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, len(wanted))):
            nursery.start_soon(work)
    return failures
