"""Unpack a packed blob and check that its content is what its name says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cafsfs.errors import CorruptBlob
from cafsfs.packing.hashing import Hasher, hash_bytes
from cafsfs.packing.header import HEADER_LENGTH, Compression, Header
from cafsfs.packing.unpack import DEFAULT_LIMITS, Unpacker, UnpackLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from cafsfs.digest import Digest


class VerifyingUnpacker:
    """An Unpacker that hashes what it hands to ``write`` and compares with ``digest``.

    Servers verify nothing (protocol page, section 3), so whoever pulls does. Each piece is
    written first and hashed afterwards: the hash runs over the very bytes that the sink was given.
    ``write`` may be None, to verify only. All else is as in Unpacker.
    """

    def __init__(
        self,
        digest: Digest,
        write: Callable[[bytes | memoryview], object] | None,
        *,
        packed_length: int | None,
        limits: UnpackLimits = DEFAULT_LIMITS,
    ) -> None:
        self._digest = digest
        self._hasher = Hasher()
        sink = self._hasher.update if write is None else _HashingSink(write, self._hasher).write
        self._unpacker = Unpacker(sink, packed_length=packed_length, limits=limits)

    @property
    def header(self) -> Header | None:
        """The header; None until its 16 bytes have come."""
        return self._unpacker.header

    @property
    def content_length(self) -> int | None:
        """The announced content length in bytes; None until the header came, or if unknown."""
        return self._unpacker.content_length

    @property
    def written(self) -> int:
        """Bytes of content that were written and hashed."""
        return self._unpacker.written

    @property
    def memory(self) -> int:
        """Bytes that the decoder keeps between two calls; what was fed so far tells."""
        return self._unpacker.memory

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Unpack more packed bytes; raises what ``Unpacker.feed`` does."""
        self._unpacker.feed(data)

    def release(self) -> None:
        """Free the decoder's memory, as ``Unpacker.release``."""
        self._unpacker.release()

    def finish(self) -> int:
        """Say that this was all, and return the content length in bytes.

        Raises CorruptBlob if the content does not hash to the digest, and what
        ``Unpacker.finish`` raises.
        """
        length = self._unpacker.finish()
        _compare(self._hasher.digest(), self._digest)
        return length


def unpack_whole(
    digest: Digest,
    packed: memoryview,
    write: Callable[[bytes | memoryview], object],
    *,
    limits: UnpackLimits = DEFAULT_LIMITS,
) -> tuple[Header, int]:
    """Unpack a packed blob that is all there; returns its header and its content length in bytes.

    As VerifyingUnpacker does it, and raises what that raises. Content that is stored as it is is
    written only if its hash is right, in one piece; that takes a fifth of the time.
    """
    header = Header.parse(packed[:HEADER_LENGTH])
    if header.compression is Compression.NONE:
        header.content_length_in(len(packed))
        content = packed[HEADER_LENGTH:]
        _compare(hash_bytes(content), digest)
        if content:
            write(content)
        return header, len(content)
    unpacker = VerifyingUnpacker(digest, write, packed_length=len(packed), limits=limits)
    try:
        unpacker.feed(packed)
        return header, unpacker.finish()
    finally:
        unpacker.release()


def _compare(found: Digest, expected: Digest) -> None:
    if found != expected:
        raise CorruptBlob(f"content hashes to {found}, expected {expected}")


class _HashingSink:
    """Write, then hash; an object of its own for the reason that ``_BoundedSink`` gives."""

    def __init__(self, write: Callable[[bytes | memoryview], object], hasher: Hasher) -> None:
        self._write = write
        self._hasher = hasher

    def write(self, piece: bytes | memoryview) -> None:
        self._write(piece)
        self._hasher.update(piece)
