"""Packed blobs to test with: the recorded ones, and zstd frames put together by hand."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from cafsfs.digest import Digest
from cafsfs.packing import Compression, Header, Packer, Unpacker, UnpackLimits

VECTORS = Path(__file__).parent.parent / "vectors" / "packed-blobs.json"

TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 40


@dataclass(frozen=True)
class Sample:
    """One blob as the deployed C++ server, or the asyncio client, packed it."""

    name: str
    packed: bytes
    content_length: int
    digest: Digest
    announced: int

    def __str__(self) -> str:
        return self.name


def _read_samples() -> Iterator[Sample]:
    for entry in json.loads(VECTORS.read_text())["samples"]:
        yield Sample(
            name=entry["name"],
            packed=bytes.fromhex(entry["packed_hex"]),
            content_length=entry["content_size"],
            digest=Digest.parse(entry["digest_hex"]),
            announced=entry["header_content_length"],
        )


SAMPLES = tuple(_read_samples())


def slices(data: bytes, length: int) -> Iterator[bytes]:
    for at in range(0, len(data), length):
        yield data[at : at + length]


def unpack(
    pieces: Iterable[bytes],
    *,
    packed_length: int | None = None,
    limits: UnpackLimits | None = None,
) -> bytes:
    """Unpack the pieces as they come; check that the sink and the result agree."""
    content = bytearray()
    unpacker = Unpacker(
        content.extend, packed_length=packed_length, limits=limits or UnpackLimits()
    )
    for piece in pieces:
        unpacker.feed(piece)
    assert unpacker.finish() == unpacker.written == len(content)
    return bytes(content)


def pack(
    content: bytes,
    compression: Compression,
    *,
    announce: bool = True,
    step: int = 1 << 20,
    level: int | None = None,
) -> bytes:
    packer = Packer(compression, len(content) if announce else None, level=level)
    body = b"".join(bytes(packer.feed(piece)) for piece in slices(content, step))
    return packer.begin() + body + packer.finish()


def blob(compression: Compression, body: bytes, *, announced: int | None = None) -> bytes:
    return Header(compression, announced).pack() + body


def zstd_blob(*frames: bytes, announced: int | None = None) -> bytes:
    return blob(Compression.ZSTD, b"".join(frames), announced=announced)


def zlib_blob(content: bytes, *, announced: int | None = None) -> bytes:
    return blob(Compression.ZLIB, zlib.compress(content), announced=announced)


def zstd_frame(content: bytes, *, checksum: bool = False, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized).compress(
        content
    )


def skippable_frame(payload: bytes, kind: int = 0) -> bytes:
    return bytes([0x50 | kind]) + b"\x2a\x4d\x18" + len(payload).to_bytes(4, "little") + payload


RAW, RLE, COMPRESSED, RESERVED = range(4)


def block(kind: int, size: int, body: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + body


def frame(*blocks: bytes, window_log: int = 17) -> bytes:
    """Return a frame of no announced size, without a checksum."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + b"".join(blocks)


def zstd_bomb(block_count: int) -> bytes:
    """Return a frame that unpacks each four of its bytes to 128 KiB."""
    more = block(RLE, 128 << 10, b"\0") * (block_count - 1)
    return frame(more, block(RLE, 128 << 10, b"\0", last=True))
