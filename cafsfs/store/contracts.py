"""The two contracts of the house: blobs by their content, and blobs as they are packed.

A feature is a decorator over a contract, so stacks read aloud:
``ReadCachingStore(cache, FallbackStore([UnpackingStore(RemoteStore(…)), …]))``.

Content and packed bytes have different verbs on purpose: a type checker then catches a mix-up.
One class crosses between them and verifies on the way: ``UnpackingStore``.

Every method raises only CafsError (and lets Cancelled pass). The docstrings name what callers tell
apart; StoreError, ServerRefused and RemoteProtocolError may come from any. Only an OSError that a
sink raises passes as it is, and nobody is asked instead: a full disk here is not the other side's
fault. Deadlines are each implementation's own duty: no method waits for ever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from cafsfs.digest import Digest
from cafsfs.packing import Compression, Header


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


class ContentSource(Protocol):
    """Where the content of one blob comes from; read by position, so that a retry is simple.

    Called from worker threads.
    """

    @property
    def size(self) -> int:
        """Bytes of content."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` with what stands at ``offset``; returns the count, 0 at the end only.

        Raises CorruptBlob if the content is known to have changed since it was hashed.
        """


class ContentStore(ABC):
    """Blobs by the hash of their content. Whatever it hands out was verified against the hash."""

    @abstractmethod
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Which of ``digests`` are absent; raises Unavailable where that cannot be told."""

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

    @abstractmethod
    async def put(self, digest: Digest, source: ContentSource) -> None:
        """Store the content of ``source`` under ``digest``, which the caller has computed.

        Storing what is there already is fine. Raises Unavailable, ServerRefused, StoreError, and
        CorruptBlob where the content is found not to have that hash: then nothing is stored.
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
    async def inspect(self, digest: Digest) -> PackedStat:
        """The packed length, and the header unless a fetch is the cheapest way to see it.

        Raises BlobNotFound, Unavailable, and CorruptBlob for what has no sound header.
        """

    @abstractmethod
    def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[PackedBody]:
        """Open the packed blob, or ``length`` bytes of it (None: to its end) from ``offset`` on.

        Raises BlobNotFound, Unavailable, ServerRefused, and RangeError for a range that lies
        outside the blob or that this store cannot give.
        """

    @abstractmethod
    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        """Store the packed blob that ``source`` opens.

        Raises Unavailable, ServerRefused, StoreError, CorruptBlob.
        """
