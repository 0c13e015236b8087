"""Unpack a packed blob, fed in any slicing, into a sink: bounded in memory, refusing what is wrong.

The lengths are checked here, bodies are decoded in ``decoders.py``. Not checked here is the hash,
see ``verify.py``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cafsfs.errors import CorruptBlob, LocalProtocolError, UsageError
from cafsfs.packing.decoders import Decoder, decoder_for
from cafsfs.packing.frames import FrameWalker
from cafsfs.packing.header import HEADER_LENGTH, Compression, Header

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST_WINDOW: Final = 1 << 10  # what libzstd takes for a bound: ZSTD_WINDOWLOG_ABSOLUTEMIN …
_LARGEST_WINDOW: Final = 1 << 31  # … and ZSTD_WINDOWLOG_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """How far unpacking may go before a blob is refused.

    ``max_window``: bytes of history that a zstd frame may ask its decoder to keep, by default
    32 MiB; it bounds the memory of one unpacking. Blobs that a server recompressed (level 19) have
    8 MiB (protocol page, section 1); zstd itself goes beyond 32 MiB only from level 21.

    ``ceiling``: bytes of content at the most, by default 64 GiB, where neither the header nor the
    packed length announces how many will come. An announced length is a bound of its own.

    Raises UsageError for a window outside 1 KiB to 2 GiB or a ceiling below 0.
    """

    max_window: int = 32 << 20
    ceiling: int = 64 << 30

    def __post_init__(self) -> None:
        if not _LEAST_WINDOW <= self.max_window <= _LARGEST_WINDOW:
            raise UsageError(f"a zstd window of {self.max_window} bytes is not 1 KiB to 2 GiB")
        if self.ceiling < 0:
            raise UsageError(f"a ceiling of {self.ceiling} bytes is below 0")


DEFAULT_LIMITS: Final = UnpackLimits()


class _Stage(enum.Enum):
    OPEN = enum.auto()
    FINISHED = enum.auto()
    BROKEN = enum.auto()


class Unpacker:
    """Unpacks one packed blob into ``write``.

    ``write`` gets the content in order, in pieces of 1 byte to 256 KiB. Content that is stored
    as it is (NONE) comes as views of what was fed, neither copied nor cut: whoever feeds a buffer
    that is used again has a sink that is done with a piece when it returns. An exception that
    ``write`` raises passes through ``feed`` untouched.

    ``packed_length`` is the length of the packed blob in bytes, with its header; None if only its
    end will tell, as in a STRM upload. Raises CorruptBlob if it is below 16.

    After any exception the unpacker is of no more use, since content may be lost in its decoder.
    """

    def __init__(
        self,
        write: Callable[[bytes | memoryview], object],
        *,
        packed_length: int | None,
        limits: UnpackLimits = DEFAULT_LIMITS,
    ) -> None:
        if packed_length is not None and packed_length < HEADER_LENGTH:
            raise CorruptBlob(f"a packed blob of {packed_length} bytes has no room for its header")
        self._sink = _BoundedSink(write, limits.ceiling)
        self._packed_length = packed_length
        self._limits = limits
        self._stage = _Stage.OPEN
        self._received = 0
        self._head = bytearray()
        self._header: Header | None = None
        self._content_length: int | None = None
        self._decoder: Decoder | None = None

    @property
    def header(self) -> Header | None:
        """The header; None until its 16 bytes have come."""
        return self._header

    @property
    def content_length(self) -> int | None:
        """The announced content length in bytes; None until the header came, or if unknown."""
        return self._content_length

    @property
    def written(self) -> int:
        """Bytes of content that ``write`` has taken."""
        return self._sink.written

    @property
    def memory(self) -> int:
        """Bytes that the decoder keeps between two calls; what was fed so far tells."""
        return 0 if self._decoder is None else self._decoder.memory

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Unpack more packed bytes, of any number.

        Raises CorruptBlob as soon as it is certain that they are no blob: a bad header, bytes
        after the end, more content than announced or than the ceiling, a window too large,
        anything the decoder refuses. Raises LocalProtocolError after ``finish`` or an exception.
        """
        self._leave_open()
        view = memoryview(data).cast("B")
        self._received += len(view)
        if self._packed_length is not None and self._received > self._packed_length:
            raise CorruptBlob(f"packed blob goes on after its {self._packed_length} bytes")
        body = view if self._decoder is not None else self._take_header(view)
        if self._decoder is not None:
            self._decoder.feed(body)
        self._stage = _Stage.OPEN

    def finish(self) -> int:
        """Say that this was all, and return the content length in bytes.

        Raises CorruptBlob if the packed blob is truncated or the content not as long as
        announced; LocalProtocolError after ``finish`` or an exception.
        """
        self._leave_open()
        if self._decoder is None:
            raise CorruptBlob(f"packed blob ends within its header, after {self._received} bytes")
        if self._packed_length is not None and self._received < self._packed_length:
            raise CorruptBlob(
                f"packed blob ends after {self._received} of {self._packed_length} bytes"
            )
        self._decoder.finish()
        if self._content_length is not None and self.written != self._content_length:
            raise CorruptBlob(
                f"blob unpacks to {self.written} bytes, {self._content_length} are announced"
            )
        self.release()
        self._stage = _Stage.FINISHED
        return self.written

    def release(self) -> None:
        """Free the decoder's memory, whoever still knows this: nothing more will be fed."""
        if self._decoder is not None:
            self._decoder.release()
            self._decoder = None

    def _leave_open(self) -> None:
        """Claim the unpacker; it stays broken if the caller does not get to the end."""
        if self._stage is not _Stage.OPEN:
            raise LocalProtocolError(f"the unpacker is {self._stage.name.lower()}")
        self._stage = _Stage.BROKEN

    def _take_header(self, data: memoryview) -> memoryview:
        missing = HEADER_LENGTH - len(self._head)
        self._head += data[:missing]
        if len(self._head) == HEADER_LENGTH:
            self._start_body(Header.parse(bytes(self._head)))
        return data[missing:]

    def _start_body(self, header: Header) -> None:
        self._header = header
        if self._packed_length is None:
            self._content_length = header.content_length
        else:
            self._content_length = header.content_length_in(self._packed_length)
        self._sink.announce(self._content_length)
        self._decoder = decoder_for(
            header.compression, self._sink.write, max_window=self._limits.max_window
        )


def foresee_memory(start: memoryview) -> int:
    """Bytes that a decoder will keep for the packed blob that begins with ``start``.

    64 bytes tell of the first zstd frame; where they are fewer, or no blob at all, it returns 0.
    """
    try:
        compression = Header.parse(bytes(start[:HEADER_LENGTH])).compression
        if compression is Compression.ZSTD:
            walker = FrameWalker(max_window=_LARGEST_WINDOW)
            walker.feed(start[HEADER_LENGTH:64])
            return walker.memory
    except CorruptBlob:  # said when it is unpacked
        return 0
    return decoder_for(compression, lambda _: None, max_window=_LARGEST_WINDOW).memory


class _BoundedSink:
    """Counts what goes into a sink and refuses what is too much.

    An object of its own, and not a method of the unpacker: no circle of references keeps a
    decoder's window in memory until the garbage collector comes by.
    """

    def __init__(self, write: Callable[[bytes | memoryview], object], ceiling: int) -> None:
        self._write = write
        self._bound = ceiling
        self._refusal = f"blob unpacks to more than the ceiling of {ceiling} bytes"
        self.written = 0

    def announce(self, length: int | None) -> None:
        if length is not None:
            self._bound = length
            self._refusal = f"blob unpacks to more than the announced {length} bytes"

    def write(self, piece: bytes | memoryview) -> None:
        if self.written + len(piece) > self._bound:
            raise CorruptBlob(self._refusal)
        self._write(piece)
        self.written += len(piece)
