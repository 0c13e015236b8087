"""The frame walker: whole, byte by byte, at every truncation, and against what zstd writes."""

from __future__ import annotations

import time

import pytest
import zstandard

from cafsfs.errors import CorruptBlob
from cafsfs.packing.frames import FrameWalker
from tests.packing.samples import (
    COMPRESSED,
    RAW,
    RESERVED,
    RLE,
    TEXT,
    block,
    frame,
    skippable_frame,
    slices,
    zstd_frame,
)

NOISE = bytes(range(256)) * 2000  # half a megabyte: several blocks

HELLO = frame(block(RAW, 5, b"hello", last=True))

FRAMES = {
    "empty": zstd_frame(b""),
    "empty, no size": zstandard.ZstdCompressor().compressobj().flush(),
    "one byte size": zstd_frame(b"x" * 200),
    "two byte size": zstd_frame(b"x" * 300),
    "four byte size": zstd_frame(b"x" * 70_000),
    "no size": zstd_frame(TEXT, sized=False),
    "checksum": zstd_frame(TEXT, checksum=True),
    "raw blocks": frame(block(RAW, 3, b"abc"), block(RAW, 0, b"", last=True)),
    "rle block": frame(block(RLE, 9000, b"a", last=True)),
    "skippable": skippable_frame(b"anything at all"),
    "skippable, last kind": skippable_frame(b"", kind=15),
    "several": zstd_frame(TEXT, checksum=True) + skippable_frame(b"abc") + zstd_frame(b""),
}


def walk(data: bytes, *, step: int | None = None, max_window: int = 8 << 20) -> None:
    walker = FrameWalker(max_window=max_window)
    for piece in slices(data, step or max(len(data), 1)):
        feed(walker, piece)
    walker.finish()


def feed(walker: FrameWalker, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[walker.feed(left) :]


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES.keys())
@pytest.mark.parametrize("step", [None, 1, 2, 7])
def test_whole_frames_are_taken_in_any_slicing(data: bytes, step: int | None) -> None:
    walk(data, step=step)


@pytest.mark.parametrize("data", [data for name, data in FRAMES.items() if name != "several"])
def test_frames_are_whole_at_their_ends_only(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(CorruptBlob):
            walk(data[:length], step=max(length, 1))


@pytest.mark.parametrize("level", [1, 3, 9])
def test_large_frames_end_where_zstd_ends_them(level: int) -> None:
    data = zstandard.ZstdCompressor(level=level).compress(NOISE)
    walk(data + HELLO, step=1000)
    for cut in (1, 2, 3, 4, 5):
        with pytest.raises(CorruptBlob):
            walk(data[:-cut])


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
def test_it_stops_behind_every_frame(step: int) -> None:
    walker = FrameWalker(max_window=1 << 20)
    ends: list[tuple[int, int | None]] = []
    data = memoryview(FRAMES["several"] + HELLO)
    at = 0
    while at < len(data):
        at += walker.feed(data[at : at + step])
        if walker.between_frames:
            ends.append((at, walker.content_length))
    first = len(FRAMES["checksum"])
    assert ends == [
        (first, len(TEXT)),
        (first + 11, 0),
        (first + 11 + len(FRAMES["empty"]), 0),
        (len(data), None),
    ]


def test_no_frame_is_not_whole() -> None:
    with pytest.raises(CorruptBlob, match="before its first zstd frame"):
        FrameWalker(max_window=1024).finish()


@pytest.mark.parametrize("garbage", [b"\x00", b"\x28\xb4", b"\x4f", b"\x60", b"\x50\x2a\x4e"])
def test_a_wrong_magic_is_refused_at_its_first_wrong_byte(garbage: bytes) -> None:
    walker = FrameWalker(max_window=1 << 20)
    feed(walker, HELLO + garbage[:-1])
    with pytest.raises(CorruptBlob, match="where a zstd frame should begin"):
        walker.feed(memoryview(garbage[-1:]))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_beginning_of_a_magic_is_refused_at_the_end(length: int) -> None:
    walker = FrameWalker(max_window=1 << 20)
    feed(walker, HELLO + HELLO[:length])
    with pytest.raises(CorruptBlob, match="ends within"):
        walker.finish()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x28\xb5\x2f\xfd\x08", "reserved bit"),
        (frame(block(RESERVED, 0, b"")), "reserved type"),
        (frame(block(COMPRESSED, 0, b"", last=True)), "compressed to nothing"),
        (frame(block(RAW, (128 << 10) + 1, b"")), "its frame allows 131072"),
        (frame(block(COMPRESSED, 1025, b""), window_log=10), "its frame allows 1024"),
        (b"\x28\xb5\x2f\xfd\x20\x04" + block(RLE, 5, b"a"), "its frame allows 4"),
    ],
)
def test_what_no_decoder_takes_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptBlob, match=message):
        walk(data, step=1)


@pytest.mark.parametrize(
    ("header", "window"),
    [
        pytest.param("00 00", 1 << 10, id="smallest"),
        pytest.param("00 68", 8 << 20, id="level 19"),
        pytest.param("00 6f", (8 << 20) // 8 * 15, id="mantissa"),
        pytest.param("00 ff", (1 << 41) // 8 * 15, id="largest"),
        pytest.param("20 c8", 200, id="single segment, one byte"),
        pytest.param("60 00 00", 256, id="single segment, two bytes"),
        pytest.param("60 ff ff", 65535 + 256, id="single segment, two bytes, all"),
        pytest.param("a0 00 00 00 04", 64 << 20, id="single segment, four bytes"),
        pytest.param("e0 00 00 00 00 00 00 00 01", 1 << 56, id="single segment, eight bytes"),
        pytest.param("63 00 00 00 00 01 00", 257, id="behind a dictionary"),
    ],
)
def test_the_window_is_read_as_rfc_8878_has_it(header: str, window: int) -> None:
    data = b"\x28\xb5\x2f\xfd" + bytes.fromhex(header) + block(RAW, 0, b"", last=True)
    walk(data, step=1, max_window=window)
    with pytest.raises(CorruptBlob, match=f"a window of {window} bytes"):
        walk(data, step=1, max_window=window - 1)


def test_skipping_4_gib_is_arithmetic() -> None:
    walker = FrameWalker(max_window=1 << 20)
    walker.feed(memoryview(b"\x50\x2a\x4d\x18" + b"\xff" * 4))
    mebibyte = memoryview(bytes(1 << 20))
    started = time.process_time()
    for _ in range(4095):
        walker.feed(mebibyte)
    walker.feed(mebibyte[:-1])
    walker.finish()
    assert time.process_time() - started < 1
