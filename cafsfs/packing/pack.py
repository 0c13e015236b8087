"""Pack content into a blob, and decide how (protocol page, section 1)."""

from __future__ import annotations

import zlib
from typing import Final, Protocol

import zstandard

from cafsfs.errors import CorruptBlob, LocalProtocolError, UsageError
from cafsfs.packing.header import Compression, Header

_LEAST_COMPRESSED: Final = 1024  # bytes; as the asyncio client has it

_COMPRESSED_ALREADY: Final = (  # likewise
    b"\x1f\x8b",  # gzip
    b"\x42\x5a\x68",  # bzip2
    b"\x50\x4b\x03",  # zip
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\x78\x01",  # zlib
)

_DEFAULT_LEVEL: Final = {Compression.ZSTD: 3, Compression.ZLIB: 6}

# Above 19 zstd's windows grow to 128 MiB, which our own unpacking refuses.
_LEVELS: Final = {Compression.ZSTD: range(1, 20), Compression.ZLIB: range(10)}


def choose_compression(size: int, start: bytes, preferred: Compression) -> Compression:
    """Return ``preferred``, or NONE where compressing gains nothing.

    That is below 1,024 bytes (``size``, in bytes) and for content whose ``start``, its first four
    bytes, says gzip, bzip2, zip, zstd or zlib: the asyncio client's rule, checked in its source.
    """
    if size < _LEAST_COMPRESSED or start.startswith(_COMPRESSED_ALREADY):
        return Compression.NONE
    return preferred


# Bytes that an encoder keeps at its default level: zstd 2 MiB of window and 3.5 of tables (for
# level 3, from 1 GiB on), zlib 256 KiB.
ENCODER_MEMORY: Final = {
    Compression.NONE: 0,
    Compression.ZSTD: 6 << 20,
    Compression.ZLIB: 256 << 10,
}


class Packer:
    """Packs the content of one blob, piece by piece.

    ``content_length``, in bytes, goes into the header; None if it is not known before the end.
    ``level`` is the codec's: 1 to 19 for ZSTD (default 3), 0 to 9 for ZLIB (default 6), ignored
    for NONE. Raises UsageError for any other.

    Writes one zstd frame, since the asyncio client cannot read a second (protocol page, section
    1), with the content size in it where that is known; or one zlib stream.
    """

    def __init__(
        self, compression: Compression, content_length: int | None, *, level: int | None = None
    ) -> None:
        self._header = Header(compression, content_length)
        self._encoder = _encoder(self._header, level)
        self._fed = 0
        self._finished = False

    def begin(self) -> bytes:
        """Return the header, the first 16 bytes of the packed blob."""
        return self._header.pack()

    def feed(self, data: bytes | memoryview) -> bytes | memoryview:
        """Pack more content and return the packed bytes there are, maybe none.

        NONE returns ``data`` itself. Raises CorruptBlob if this is more than ``content_length``,
        LocalProtocolError after ``finish``.
        """
        self._require_unfinished()
        self._fed += memoryview(data).nbytes
        length = self._header.content_length
        if length is not None and self._fed > length:
            raise CorruptBlob(f"content has more than the {length} bytes announced")
        return self._encoder.compress(data)

    def finish(self) -> bytes:
        """Return the last packed bytes, maybe none.

        Raises CorruptBlob if the content fed was not ``content_length`` bytes where that was
        given, LocalProtocolError after ``finish``.
        """
        self._require_unfinished()
        length = self._header.content_length
        if length is not None and self._fed != length:
            raise CorruptBlob(f"content has {self._fed} bytes, {length} were announced")
        self._finished = True
        return self._encoder.flush()

    def _require_unfinished(self) -> None:
        if self._finished:
            raise LocalProtocolError("the packer is finished")


class _Encoder(Protocol):
    def compress(self, data: bytes | memoryview, /) -> bytes | memoryview: ...

    def flush(self) -> bytes: ...


class _Stored:
    def compress(self, data: bytes | memoryview) -> bytes | memoryview:
        return data

    def flush(self) -> bytes:
        return b""


def _encoder(header: Header, level: int | None) -> _Encoder:
    compression = header.compression
    if compression is Compression.NONE:
        return _Stored()
    if level is None:
        level = _DEFAULT_LEVEL[compression]
    if level not in _LEVELS[compression]:
        raise UsageError(
            f"{compression.name} has no level {level}",
            hint=f"levels are {_LEVELS[compression][0]} to {_LEVELS[compression][-1]}",
        )
    if compression is Compression.ZLIB:
        return zlib.compressobj(level)
    size = header.content_length
    compressor = zstandard.ZstdCompressor(level=level)
    return compressor.compressobj(size=-1 if size is None else size)
