"""Walk over the structure of zstd frames without decoding them.

The streaming decoder does not tell whether its last frame is complete, and takes up to three
bytes of anything for the beginning of a magic. The structure (RFC 8878, section 3.1) tells:

    frame      magic (4) · descriptor (1) · window, dictionary, size (1–13) · blocks · checksum (4)
    block      header (3): bit 0 last, bits 1–2 type, then 21 bits of size · body
    skippable  magic (4), 184D2A50 to 184D2A5F · length (4) · that many bytes

Bodies are skipped by arithmetic, so the walk costs about a microsecond a block of up to 128 KiB.

It also makes refusals independent of how the input is sliced. libzstd (1.5.7) does not check the
window of a frame that comes in one piece with room for its content; in one that comes in several
it takes a compressed block of 0 bytes, and does not compare content and announced size if the last
block is empty (all tried).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from cafsfs.errors import CorruptBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC_TAIL: Final = b"\x2a\x4d\x18"  # behind a first byte of 50 to 5F

_SINGLE_SEGMENT: Final = 1 << 5
_RESERVED: Final = 1 << 3
_CHECKSUM: Final = 1 << 2
_CHECKSUM_LENGTH: Final = 4
_DICTIONARY_LENGTHS: Final = (0, 1, 2, 4)
_SIZE_LENGTHS: Final = (0, 2, 4, 8)

_MAX_BLOCK: Final = 128 << 10  # bytes; RFC 8878, section 3.1.1.2.4
_TABLES: Final = 160 << 10  # bytes; sizeof(ZSTD_DCtx), most of it one block's literals
_RLE_BLOCK: Final = 1
_COMPRESSED_BLOCK: Final = 2
_RESERVED_BLOCK: Final = 3


class _Field(enum.Enum):
    MAGIC = enum.auto()
    SKIPPABLE_LENGTH = enum.auto()
    DESCRIPTOR = enum.auto()
    FRAME_HEADER = enum.auto()
    BLOCK_HEADER = enum.auto()


class _Next(NamedTuple):
    """The field to read next, and its length in bytes."""

    field: _Field
    length: int


_AT_MAGIC: Final = _Next(_Field.MAGIC, 4)
_AT_SKIPPABLE_LENGTH: Final = _Next(_Field.SKIPPABLE_LENGTH, 4)
_AT_DESCRIPTOR: Final = _Next(_Field.DESCRIPTOR, 1)
_AT_BLOCK_HEADER: Final = _Next(_Field.BLOCK_HEADER, 3)


class FrameWalker:
    """Says of bytes fed in any slicing whether they are whole zstd frames, one after the other.

    ``max_window`` is the largest window, in bytes, that a frame may ask of its decoder.
    """

    def __init__(self, *, max_window: int) -> None:
        self._max_window = max_window
        self._next = _AT_MAGIC
        self._skip = 0
        self._held = bytearray()  # the part of the next field that has come
        self._started = False
        self._descriptor = 0
        self._max_block = 0
        self._content_length: int | None = None
        self._window = 0

    @property
    def memory(self) -> int:
        """Bytes that a streaming decoder keeps for the largest frame so far; 0 before the first.

        The window, three blocks beside it, and its tables: 2.6 MiB for zstd's level 3, 8.6 for 19.
        """
        if self._window == 0:
            return 0
        return self._window + 3 * min(self._window, _MAX_BLOCK) + _TABLES

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end with a frame, or there are none yet."""
        return self._next is _AT_MAGIC and not self._skip and not self._held

    @property
    def content_length(self) -> int | None:
        """Bytes of content that the last frame announces, if it does; 0 for a skippable one."""
        return self._content_length

    def feed(self, data: memoryview) -> int:
        """Walk to the end of ``data`` or of the next frame; return how many bytes that took.

        Raises CorruptBlob for what no decoder takes: a wrong magic, as soon as its first wrong
        byte comes, a reserved bit or block type, a block beyond the limit, a window too large.
        """
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
            else:
                step = min(self._next.length - len(self._held), end - at)
                self._hold(data[at : at + step])
            at += step
            if self.between_frames:
                break
        return at

    def finish(self) -> None:
        """Raise CorruptBlob unless the bytes fed so far are one frame or more, and all whole."""
        if not self._started:
            raise CorruptBlob("packed blob ends before its first zstd frame")
        if not self.between_frames:
            raise CorruptBlob("packed blob ends within a zstd frame")

    def _hold(self, data: memoryview) -> None:
        self._started = True
        self._held += data
        if self._next.field is _Field.MAGIC:
            _check_magic(self._held)
        if len(self._held) == self._next.length:
            field = bytes(self._held)
            self._held.clear()
            self._next, self._skip = _READERS[self._next.field](self, field)

    # A reader of a field returns the field to read next and how many bytes to skip before it.

    def _read_magic(self, field: bytes) -> tuple[_Next, int]:
        return (_AT_DESCRIPTOR if field == _FRAME_MAGIC else _AT_SKIPPABLE_LENGTH), 0

    def _read_skippable_length(self, field: bytes) -> tuple[_Next, int]:
        self._content_length = 0
        return _AT_MAGIC, int.from_bytes(field, "little")

    def _read_descriptor(self, field: bytes) -> tuple[_Next, int]:
        self._descriptor = field[0]
        if self._descriptor & _RESERVED:
            raise CorruptBlob("zstd frame header has its reserved bit set")
        return _Next(_Field.FRAME_HEADER, _frame_header_length(self._descriptor)), 0

    def _read_frame_header(self, field: bytes) -> tuple[_Next, int]:
        self._content_length = _content_length(self._descriptor, field)
        window = _window(self._descriptor, field)
        if window > self._max_window:
            raise CorruptBlob(
                f"zstd frame needs a window of {window} bytes, {self._max_window} are allowed"
            )
        self._window = max(self._window, window)
        self._max_block = min(window, _MAX_BLOCK)
        return _AT_BLOCK_HEADER, 0

    def _read_block_header(self, field: bytes) -> tuple[_Next, int]:
        bits = int.from_bytes(field, "little")
        last, kind, size = bits & 1, bits >> 1 & 3, bits >> 3
        if kind == _RESERVED_BLOCK:
            raise CorruptBlob("zstd block has the reserved type")
        if kind == _COMPRESSED_BLOCK and size == 0:
            raise CorruptBlob("zstd block is compressed to nothing")
        if size > self._max_block:
            raise CorruptBlob(f"zstd block of {size} bytes, its frame allows {self._max_block}")
        body = 1 if kind == _RLE_BLOCK else size
        if not last:
            return _AT_BLOCK_HEADER, body
        checksum = _CHECKSUM_LENGTH if self._descriptor & _CHECKSUM else 0
        return _AT_MAGIC, body + checksum


_READERS: Final[Mapping[_Field, Callable[[FrameWalker, bytes], tuple[_Next, int]]]] = {
    _Field.MAGIC: FrameWalker._read_magic,
    _Field.SKIPPABLE_LENGTH: FrameWalker._read_skippable_length,
    _Field.DESCRIPTOR: FrameWalker._read_descriptor,
    _Field.FRAME_HEADER: FrameWalker._read_frame_header,
    _Field.BLOCK_HEADER: FrameWalker._read_block_header,
}


def _check_magic(held: bytearray) -> None:
    skippable = held[0] & 0xF0 == 0x50 and _SKIPPABLE_MAGIC_TAIL.startswith(held[1:])
    if not skippable and not _FRAME_MAGIC.startswith(held):
        raise CorruptBlob(f"{bytes(held)!r} where a zstd frame should begin")


def _frame_header_length(descriptor: int) -> int:
    """Return the bytes between descriptor and first block: never 0, a window or a size is there."""
    window = 0 if descriptor & _SINGLE_SEGMENT else 1
    return window + _DICTIONARY_LENGTHS[descriptor & 3] + _size_length(descriptor)


def _size_length(descriptor: int) -> int:
    length = _SIZE_LENGTHS[descriptor >> 6]
    return 1 if length == 0 and descriptor & _SINGLE_SEGMENT else length


def _content_length(descriptor: int, field: bytes) -> int | None:
    length = _size_length(descriptor)
    if length == 0:
        return None
    # A size of two bytes is stored less 256, since one byte would do for what is smaller.
    return int.from_bytes(field[-length:], "little") + (256 if length == 2 else 0)


def _window(descriptor: int, field: bytes) -> int:
    """Return the window in bytes; a frame of a single segment keeps all of its content."""
    if descriptor & _SINGLE_SEGMENT:
        return _content_length(descriptor, field) or 0
    base = 1 << (10 + (field[0] >> 3))
    return base + (base >> 3) * (field[0] & 7)
