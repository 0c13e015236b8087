"""The 16 bytes before every packed blob (protocol page, section 1)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from cafsfs.errors import CorruptBlob, UsageError

HEADER_LENGTH: Final = 16  # bytes

_FIELDS: Final = struct.Struct("<4sHHQ")  # magic, header length, flags, content length
_RECOMPRESSED: Final = 1 << 0
_CONTENT_LENGTH_END: Final = 1 << 64


class Compression(enum.Enum):
    """How the body is stored; each value is the magic that the header begins with."""

    NONE = b"NONE"
    ZSTD = b"ZSTD"
    ZLIB = b"ZLIB"


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a packed blob says.

    ``content_length`` is in bytes, None where the header does not tell: blobs of the asyncio
    client carry 0 there. So an empty blob's length comes back from ``parse`` as None, too.
    ``recompressed`` is flag bit 0, "already recompressed as far as it goes"; servers set it.

    Raises UsageError when made with a length that is negative or does not fit 64 bits.
    """

    compression: Compression
    content_length: int | None
    recompressed: bool = False

    def __post_init__(self) -> None:
        length = self.content_length
        if length is not None and not 0 <= length < _CONTENT_LENGTH_END:
            raise UsageError(f"a content length of {length} bytes does not fit the blob header")

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Header:
        """Read a header from exactly 16 bytes.

        A header length of 0 is taken, the asyncio client writes it; flags other than bit 0 are
        ignored. Raises CorruptBlob for an unknown magic, any other header length, or when
        ``data`` is not 16 bytes.
        """
        if len(data) != HEADER_LENGTH:
            raise CorruptBlob(f"a blob header has {HEADER_LENGTH} bytes, not {len(data)}")
        magic, header_length, flags, content_length = _FIELDS.unpack(data)
        try:
            compression = Compression(magic)
        except ValueError:
            raise CorruptBlob(f"not a packed blob: it begins with {magic!r}") from None
        if header_length not in {0, HEADER_LENGTH}:
            raise CorruptBlob(f"blob header announces a header of {header_length} bytes")
        return cls(compression, content_length or None, bool(flags & _RECOMPRESSED))

    def pack(self) -> bytes:
        """Return the full 16 bytes: header length 16, flags, content length (0 if unknown)."""
        flags = _RECOMPRESSED if self.recompressed else 0
        return _FIELDS.pack(self.compression.value, HEADER_LENGTH, flags, self.content_length or 0)

    def content_length_in(self, packed_length: int) -> int | None:
        """Return the content length, in bytes, of a packed blob of ``packed_length`` bytes.

        For NONE the packed length tells, always; for the others the header, if it does. None
        means that only unpacking tells (protocol page, section 1).

        Raises CorruptBlob if ``packed_length`` is below 16, or if the header of a NONE blob
        gives a length that the packed length contradicts.
        """
        if packed_length < HEADER_LENGTH:
            raise CorruptBlob(f"a packed blob of {packed_length} bytes has no room for its header")
        if self.compression is not Compression.NONE:
            return self.content_length
        stored = packed_length - HEADER_LENGTH
        if self.content_length and self.content_length != stored:
            raise CorruptBlob(
                f"blob header announces {self.content_length} bytes, {stored} are stored"
            )
        return stored
