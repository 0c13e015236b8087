"""Cross from packed bytes to content, verifying on the way: the one place where that happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Self

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CafsError, CorruptBlob
from cafsfs.packing import (
    ENCODER_MEMORY,
    HEADER_LENGTH,
    Compression,
    Hasher,
    Packer,
    UnpackLimits,
    VerifyingUnpacker,
    choose_compression,
    foresee_memory,
    unpack_whole,
)
from cafsfs.store.budget import MemoryBudget, Share
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Failures,
    PackedBody,
    PackedStat,
    PackedStore,
    Wanted,
)
from cafsfs.store.pump import PIECE, pump


class UnpackingStore(ContentStore):
    """The content of a packed store, verified on both ways: servers verify nothing themselves.

    Unpacking, hashing and the sink's writes run in one hop a piece, in threads of ``limiter``.
    ``compression`` is what uploads are packed with where that is worth it. Buffers, decoders and
    encoders are taken from ``budget``, which many stores may share; where it is used up, pulls and
    compressed uploads wait when their server has begun to answer.
    """

    def __init__(
        self,
        packed: PackedStore,
        *,
        limiter: trio.CapacityLimiter,
        compression: Compression = Compression.NONE,
        limits: UnpackLimits | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._packed = packed
        self._budget = budget or MemoryBudget()
        self._limiter = limiter
        self._compression = compression
        self._limits = limits or UnpackLimits()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._packed.find_absent(digests)

    async def stat(self, digest: Digest) -> BlobStat:
        return self._read(await self._packed.inspect(digest))

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._packed.inspect_many(
            digests, lambda digest, packed: told(digest, self._read(packed))
        )

    def _read(self, packed: PackedStat | None) -> BlobStat:
        if packed is None:
            return BlobStat(size=None, source=self._packed.name)
        header = packed.header
        return BlobStat(
            size=None if header is None else header.content_length_in(packed.length),
            packed_size=packed.length,
            compression=None if header is None else header.compression,
            source=self._packed.name,
        )

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        try:
            return await self._packed.deliver(digest, partial(self._take, digest, sink))
        except CorruptBlob as error:
            raise self._accuse(digest, error) from error

    async def _take(self, digest: Digest, sink: ContentSink, body: PackedBody) -> BlobStat:
        unpacking = _Unpacking(digest, sink, body.length, self._limits)
        in_thread = partial(trio.to_thread.run_sync, limiter=self._limiter)

        async def feed(piece: memoryview) -> None:
            await share.keep(unpacking.foresee_memory(piece))
            await in_thread(unpacking.feed, piece)

        # Not before the server answers: who waits for a connection must not have what those need
        # who hold one.
        with self._budget.share() as share, unpacking:
            await pump(body.readinto, feed, length=body.length, share=share)
            if not unpacking.finished:
                await in_thread(unpacking.finish)
        return unpacking.stat(self._packed.name)

    def _accuse(self, digest: Digest, error: CorruptBlob) -> CorruptBlob:
        """Whose disk is it?"""
        return CorruptBlob(f"{self._packed.name} has wrong bytes of {digest}: {error}")

    # --- batches; this store takes what its packed store fetches

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._packed.fetch_many(wanted, self, at_once=at_once)

    async def take(self, lot: Sequence[tuple[Wanted, memoryview]]) -> Failures[Wanted]:
        """Unpack, verify, write and commit small blobs, all in one hop."""
        stored = Compression.NONE.value  # most are, and need no decoder
        decoders = [foresee_memory(packed) for _, packed in lot if packed[:4] != stored]
        with self._budget.share() as share:
            await share.keep(max(decoders, default=0))
            return await trio.to_thread.run_sync(self._take_lot, lot, limiter=self._limiter)

    def _take_lot(self, lot: Sequence[tuple[Wanted, memoryview]]) -> Failures[Wanted]:
        failures: Failures[Wanted] = {}
        for wanted, packed in lot:
            try:
                self._take_one(wanted, packed)
            except CorruptBlob as error:
                failures[wanted] = self._accuse(wanted.digest, error)
            except (CafsError, OSError) as error:
                failures[wanted] = error
        return failures

    def _take_one(self, wanted: Wanted, packed: memoryview) -> None:
        digest, destination = wanted.digest, wanted.destination

        def write(content: bytes | memoryview) -> None:
            trio.from_thread.check_cancelled()  # as in _Unpacking
            destination.write(content)

        try:
            destination.restart()
            header, size = unpack_whole(digest, packed, write, limits=self._limits)
            destination.commit(
                BlobStat(
                    size=size,
                    packed_size=len(packed),
                    compression=header.compression,
                    source=self._packed.name,
                    verified_at=int(time.time()),
                )
            )
        except BaseException:
            destination.abandon()
            raise

    async def take_body(self, wanted: Wanted, body: PackedBody) -> None:
        """Unpack, verify, write and commit one blob, in a hop a piece."""
        destination = wanted.destination
        try:
            stat = await self._take(wanted.digest, destination, body)
            await trio.to_thread.run_sync(destination.commit, stat, limiter=self._limiter)
        except BaseException as error:
            destination.abandon()
            if isinstance(error, CorruptBlob):
                raise self._accuse(wanted.digest, error) from error
            raise

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        with self._budget.share() as share:
            await self._packed.deposit(digest, partial(self._pack, digest, source, share))
        return (self._packed.name,)

    def _pack(self, digest: Digest, source: ContentSource, share: Share) -> PackedBody:
        content = _Content(digest, source)
        if self._compression is Compression.NONE:
            return _PlainBody(content, self._limiter)
        return _CompressedBody(content, self._compression, self._limiter, share)


class _Unpacking:
    """One attempt at a pull; ``feed`` and ``finish`` run in worker threads.

    Its decoder is freed at the end of ``with``, and with it up to 32 MiB: an error that somebody
    remembers knows all of this by its traceback.
    """

    def __init__(
        self, digest: Digest, sink: ContentSink, length: int | None, limits: UnpackLimits
    ) -> None:
        self._sink = sink
        self._length = length
        self._unpacker = VerifyingUnpacker(digest, self._write, packed_length=length, limits=limits)
        self._taken = 0
        self._size = 0
        self.finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unpacker.release()

    def foresee_memory(self, piece: memoryview) -> int:
        """Bytes that the decoder will keep; of ``piece``, the next one, only the first tells."""
        return foresee_memory(piece) if self._taken == 0 else self._unpacker.memory

    def feed(self, piece: memoryview) -> None:
        if self._taken == 0:
            self._sink.restart()
        self._taken += len(piece)
        self._unpacker.feed(piece)
        if self._taken == self._length:  # spares a small blob the second hop
            self.finish()

    def _write(self, content: bytes | memoryview) -> None:
        # One packed piece may unpack to gigabytes: who has left must not wait for them.
        trio.from_thread.check_cancelled()
        self._sink.write(content)

    def finish(self) -> None:
        self._size = self._unpacker.finish()
        self.finished = True

    def stat(self, source: str) -> BlobStat:
        header = self._unpacker.header
        return BlobStat(
            size=self._size,
            packed_size=self._taken,
            compression=None if header is None else header.compression,
            source=source,
            verified_at=int(time.time()),
        )


class _Content:
    """The content of a source, read once from its start; its last piece only if all was right."""

    def __init__(self, digest: Digest, source: ContentSource) -> None:
        self.size = source.size
        self._digest = digest
        self._source = source
        self._hasher = Hasher()
        self._offset = 0

    def read(self, buffer: memoryview) -> int:
        """Fill ``buffer`` as far as there is content; raises CorruptBlob in place of its end."""
        view = buffer[: self.size - self._offset]
        count = 0
        while count < len(view):
            got = self._source.read_at(view[count:], self._offset + count)
            if got == 0:
                raise CorruptBlob(f"the content to store ends before its {self.size} bytes")
            count += got
        self._offset += count
        if not self._source.settled:
            self._check_hash(view)
        return count

    def _check_hash(self, view: memoryview) -> None:
        self._hasher.update(view)
        if self._offset == self.size and self._hasher.digest() != self._digest:
            raise CorruptBlob(f"the content to store is not that of {self._digest}")


class _PlainBody:
    """A NONE body: the header, then the content as it is."""

    def __init__(self, content: _Content, limiter: trio.CapacityLimiter) -> None:
        self._content = content
        self._limiter = limiter
        self._header = Packer(Compression.NONE, content.size).begin()  # what is left of it
        self.length: int | None = HEADER_LENGTH + content.size

    async def readinto(self, buffer: memoryview) -> int:
        return await trio.to_thread.run_sync(self._read, buffer, limiter=self._limiter)

    def _read(self, buffer: memoryview) -> int:
        start = self._header[: len(buffer)]
        buffer[: len(start)] = start
        self._header = self._header[len(start) :]
        return len(start) + self._content.read(buffer[len(start) :])


class _CompressedBody:
    """A compressed body; packs as it is read."""

    length: int | None = None

    def __init__(
        self,
        content: _Content,
        compression: Compression,
        limiter: trio.CapacityLimiter,
        share: Share,
    ) -> None:
        self._content = content
        self._preferred = compression
        self._limiter = limiter
        self._share = share
        self._buffer = memoryview(bytearray(max(1, min(PIECE, content.size))))
        self._packer: Packer | None = None
        self._packed = memoryview(b"")  # packed, not yet read
        self._ended = False

    async def readinto(self, buffer: memoryview) -> int:
        # Our buffer, and the two of who sends; not sooner, for the reason that ``_pull`` gives.
        pieces = 3 * len(self._buffer)
        await self._share.keep(ENCODER_MEMORY[self._preferred] + pieces)
        return await trio.to_thread.run_sync(self._read, buffer, limiter=self._limiter)

    def _read(self, buffer: memoryview) -> int:
        while not self._packed and not self._ended:
            self._packed = memoryview(self._pack_more())
        count = min(len(buffer), len(self._packed))
        buffer[:count] = self._packed[:count]
        self._packed = self._packed[count:]
        return count

    def _pack_more(self) -> bytes | memoryview:
        piece = self._buffer[: self._content.read(self._buffer)]
        if self._packer is None:
            compression = choose_compression(self._content.size, bytes(piece[:4]), self._preferred)
            self._packer = Packer(compression, self._content.size)
            return self._packer.begin() + self._packer.feed(piece)
        if piece:
            return self._packer.feed(piece)
        self._ended = True
        return self._packer.finish()
