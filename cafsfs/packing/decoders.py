"""Decode the three kinds of body into a sink, piece by piece and in bounded memory."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable
from typing import IO, Final, Protocol, cast

import zstandard

from cafsfs.errors import CorruptBlob
from cafsfs.packing.frames import FrameWalker
from cafsfs.packing.header import Compression

MAX_PIECE: Final = 256 << 10  # bytes; any size above a zstd block (128 KiB) unpacks equally fast

# At every full piece of output the zlib module copies the input that is left, and 64 KiB of input
# may give 64 MiB: steps of this size keep the copies at an eighth of the output.
_ZLIB_STEP: Final = 64 << 10

# Where the sink raises, zstandard goes on to the end of what it was given (see _ZstdSink): of this
# size it may unpack to 4 GiB, in about a second, and in steps of it no blob unpacks slower (text;
# noise, which nobody compresses, 6 ms in 64 MiB).
_ZSTD_STEP: Final = 128 << 10

Write = Callable[[bytes | memoryview], object]


class Decoder(Protocol):
    """Turns a body, fed in any slicing, into content for a sink."""

    @property
    def memory(self) -> int:
        """Bytes that it keeps between two calls, as far as the body has told by now."""

    def feed(self, data: memoryview) -> None:
        """Decode more of the body; raises CorruptBlob as soon as it is certain that it is none."""

    def finish(self) -> None:
        """Raise CorruptBlob if the body may not end here."""

    def release(self) -> None:
        """Free its memory, whoever still knows it; it is of no more use."""


def decoder_for(compression: Compression, write: Write, *, max_window: int) -> Decoder:
    """Return the decoder of one body.

    It calls ``write`` with pieces of 1 to MAX_PIECE bytes, for NONE with views of the input as
    long as that was. What ``write`` raises passes through. ``max_window`` (bytes) is zstd's.
    """
    match compression:
        case Compression.NONE:
            return _StoredDecoder(write)
        case Compression.ZLIB:
            return _ZlibDecoder(write)
        case Compression.ZSTD:
            return _ZstdDecoder(write, max_window)


class _StoredDecoder:
    memory = 0

    def __init__(self, write: Write) -> None:
        self._write = write

    def feed(self, data: memoryview) -> None:
        if data:
            self._write(data)

    def finish(self) -> None:
        """Any end will do: only lengths and the hash tell."""

    def release(self) -> None:
        """There is nothing to free."""


class _ZlibDecoder:
    memory = 40 << 10  # 32 KiB of window, 7 KiB of state

    def __init__(self, write: Write) -> None:
        self._write = write
        self._stream = zlib.decompressobj()

    def feed(self, data: memoryview) -> None:
        for at in range(0, len(data), _ZLIB_STEP):
            self._feed_step(data[at : at + _ZLIB_STEP])

    def finish(self) -> None:
        if not self._stream.eof:
            raise CorruptBlob("packed blob ends within its zlib stream")

    def release(self) -> None:
        """So little is not worth it."""

    def _feed_step(self, data: memoryview) -> None:
        if self._stream.eof:
            raise CorruptBlob("packed blob goes on after the end of its zlib stream")
        left: bytes | memoryview = data
        full = True
        while full and not self._stream.eof:
            piece = self._decompress(left)
            if piece:
                self._write(piece)
            full = len(piece) == MAX_PIECE  # then more may be pending, even if all input is used
            left = self._stream.unconsumed_tail
        if self._stream.unused_data:
            raise CorruptBlob("packed blob goes on after the end of its zlib stream")

    def _decompress(self, data: bytes | memoryview) -> bytes:
        try:
            return self._stream.decompress(data, MAX_PIECE)
        except zlib.error as error:
            raise CorruptBlob(f"packed blob does not unpack: {error}") from error


class _ZstdDecoder:
    def __init__(self, write: Write, max_window: int) -> None:
        self._walker = FrameWalker(max_window=max_window)
        self._sink = _ZstdSink(write)
        # stream_writer asks for a file and uses nothing of it but write(). It is invisible to the
        # garbage collector: if it owned the way to the sink, a failure that is remembered there,
        # with its traceback that leads back here, would keep its window for ever.
        self._writer: zstandard.ZstdDecompressionWriter | None = zstandard.ZstdDecompressor(
            max_window_size=max_window
        ).stream_writer(
            cast("IO[bytes]", _WeakFile(self._sink)), write_size=MAX_PIECE, closefd=False
        )

    @property
    def memory(self) -> int:
        return self._walker.memory

    def feed(self, data: memoryview) -> None:
        while data:
            taken = self._walker.feed(data)
            self._decode(data[:taken])
            if self._walker.between_frames:
                self._check_frame_length()
            data = data[taken:]

    def finish(self) -> None:
        self._walker.finish()

    def release(self) -> None:
        self._writer = None

    def _decode(self, data: memoryview) -> None:
        for at in range(0, len(data), _ZSTD_STEP):
            self._decode_step(data[at : at + _ZSTD_STEP])

    def _decode_step(self, data: memoryview) -> None:
        assert self._writer is not None
        try:
            self._writer.write(data)
        except zstandard.ZstdError as error:
            if self._sink.failure is None:
                raise CorruptBlob(f"packed blob does not unpack: {error}") from error
        if self._sink.failure is not None:
            raise self._sink.failure

    def _check_frame_length(self) -> None:
        # The decoder takes the last byte of a frame only when all of its content is written.
        found, announced = self._sink.written_of_frame, self._walker.content_length
        if announced is not None and found != announced:
            raise CorruptBlob(f"zstd frame unpacks to {found} bytes, it announces {announced}")
        self._sink.written_of_frame = 0


class _ZstdSink:
    """Counts; and remembers what the sink raised, from when on it gets nothing any more.

    An exception that passes through zstandard 0.25 costs the buffer of MAX_PIECE bytes for ever.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self.failure: BaseException | None = None
        self.written_of_frame = 0

    def write(self, piece: bytes) -> None:
        if self.failure is not None:
            return
        try:
            self._write(piece)
        except BaseException as error:
            self.failure = error
        else:
            self.written_of_frame += len(piece)


class _WeakFile:
    """Writes to a sink that it does not keep alive."""

    def __init__(self, sink: _ZstdSink) -> None:
        self._sink = weakref.ref(sink)

    def write(self, piece: bytes) -> None:
        sink = self._sink()
        assert sink is not None
        sink.write(piece)
