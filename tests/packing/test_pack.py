"""Packing: what is written, and how it is chosen."""

from __future__ import annotations

import zlib

import pytest
import zstandard

from cafsfs.errors import CorruptBlob, LocalProtocolError, UsageError
from cafsfs.packing import HEADER_LENGTH, Compression, Header, Packer, choose_compression
from tests.packing.samples import SAMPLES, TEXT, pack, unpack

ZSTD, ZLIB, NONE = Compression.ZSTD, Compression.ZLIB, Compression.NONE


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("length", [None, 1800])
def test_a_blob_begins_with_a_full_header(compression: Compression, length: int | None) -> None:
    assert Packer(compression, length).begin() == Header(compression, length).pack()


def test_none_returns_its_input_itself() -> None:
    packer = Packer(NONE, None)
    for data in (TEXT, memoryview(TEXT)):
        assert packer.feed(data) is data
    assert packer.finish() == b""


@pytest.mark.parametrize(("name", "compression"), [("none", NONE), ("zstd", ZSTD), ("zlib", ZLIB)])
def test_we_write_what_the_recorded_blobs_hold(name: str, compression: Compression) -> None:
    (sample,) = (sample for sample in SAMPLES if sample.name == name)
    assert unpack([sample.packed]) == TEXT
    packed = pack(TEXT, compression)
    assert packed[:HEADER_LENGTH] == sample.packed[:HEADER_LENGTH]
    assert unpack([packed]) == TEXT


@pytest.mark.parametrize("content", [b"", TEXT])
def test_zstd_is_one_frame_that_tells_its_size_if_it_is_known(content: bytes) -> None:
    known = pack(content, ZSTD, step=100)[HEADER_LENGTH:]
    assert zstandard.get_frame_parameters(known).content_size == len(content)
    assert _decompressobj_reads_all(known, content)


def test_zstd_is_one_frame_if_the_size_is_unknown() -> None:
    unknown = pack(TEXT, ZSTD, announce=False, step=100)[HEADER_LENGTH:]
    sizeless = zstandard.CONTENTSIZE_UNKNOWN
    assert zstandard.get_frame_parameters(unknown).content_size == sizeless
    assert _decompressobj_reads_all(unknown, TEXT)


def _decompressobj_reads_all(frames: bytes, content: bytes) -> bool:
    reader = zstandard.ZstdDecompressor().decompressobj()
    return reader.decompress(frames) == content and reader.eof and reader.unused_data == b""


def test_zlib_is_one_stream() -> None:
    assert zlib.decompress(pack(TEXT, ZLIB, step=100)[HEADER_LENGTH:]) == TEXT


def test_levels() -> None:
    assert len(pack(TEXT, ZLIB, level=9)) < len(pack(TEXT, ZLIB, level=0))
    assert pack(TEXT, ZSTD) == pack(TEXT, ZSTD, level=3)
    assert pack(TEXT, ZLIB) == pack(TEXT, ZLIB, level=6)
    assert unpack([pack(TEXT, ZSTD, level=19)]) == TEXT
    assert Packer(NONE, None, level=99).feed(TEXT) is TEXT


@pytest.mark.parametrize(("compression", "level"), [(ZSTD, 0), (ZSTD, 20), (ZLIB, -1), (ZLIB, 10)])
def test_a_level_that_there_is_not_is_refused(compression: Compression, level: int) -> None:
    with pytest.raises(UsageError, match=f"{compression.name} has no level {level}"):
        Packer(compression, None, level=level)


def test_the_highest_level_has_the_window_of_recompressed_blobs() -> None:
    packer = Packer(ZSTD, 1 << 40, level=19)
    body = bytes(packer.feed(bytes(64 << 20)))
    assert zstandard.get_frame_parameters(body).window_size == 8 << 20


@pytest.mark.parametrize("compression", Compression)
def test_less_than_announced_is_refused_at_the_end(compression: Compression) -> None:
    packer = Packer(compression, 10)
    packer.feed(b"123456789")
    with pytest.raises(CorruptBlob, match="has 9 bytes, 10 were announced"):
        packer.finish()


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("announced", [0, 10])
def test_more_than_announced_is_refused_at_once(compression: Compression, announced: int) -> None:
    packer = Packer(compression, announced)
    packer.feed(bytes(announced))
    with pytest.raises(CorruptBlob, match=f"more than the {announced} bytes"):
        packer.feed(b"x")
    with pytest.raises(CorruptBlob):
        packer.finish()


@pytest.mark.parametrize("compression", Compression)
def test_nothing_comes_after_finish(compression: Compression) -> None:
    packer = Packer(compression, None)
    packer.finish()
    with pytest.raises(LocalProtocolError):
        packer.feed(b"x")
    with pytest.raises(LocalProtocolError):
        packer.finish()


@pytest.mark.parametrize("preferred", Compression)
def test_small_content_is_stored_as_it_is(preferred: Compression) -> None:
    assert choose_compression(1023, b"The ", preferred) is NONE
    assert choose_compression(1024, b"The ", preferred) is preferred


@pytest.mark.parametrize("magic", ["1f 8b", "42 5a 68", "50 4b 03", "28 b5 2f fd", "78 01"])
def test_compressed_content_is_stored_as_it_is(magic: str) -> None:
    start = bytes.fromhex(magic)
    assert choose_compression(1 << 20, start, ZSTD) is NONE
    assert choose_compression(1 << 20, (start + b"xx")[:4], ZSTD) is NONE
    assert choose_compression(1 << 20, start[:-1] + b"\0", ZSTD) is ZSTD


def test_other_zlib_magics_are_not_known_as_in_the_asyncio_client() -> None:
    assert choose_compression(1 << 20, b"\x78\x9c", ZSTD) is ZSTD
