"""Verifying: the hash runs over what the sink was given, and has the last word."""

from __future__ import annotations

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import CorruptBlob
from cafsfs.packing import (
    Compression,
    Header,
    UnpackLimits,
    VerifyingUnpacker,
    hash_bytes,
    unpack_whole,
)
from tests.packing.samples import SAMPLES, TEXT, Sample, pack, slices

WRONG = Digest(bytes(32))


def verify(packed: bytes, digest: Digest, packed_length: int | None, step: int = 1 << 20) -> int:
    unpacker = VerifyingUnpacker(digest, None, packed_length=packed_length)
    for piece in slices(packed, step):
        unpacker.feed(piece)
    return unpacker.finish()


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("step", [1, 1000])
def test_recorded_blobs_are_what_their_name_says(sample: Sample, step: int) -> None:
    for length in (None, len(sample.packed)):
        assert verify(sample.packed, sample.digest, length, step) == sample.content_length


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_recorded_blobs_truncated_anywhere_are_refused(sample: Sample) -> None:
    for length in range(len(sample.packed)):
        for announced in (None, length, len(sample.packed)):
            with pytest.raises(CorruptBlob):
                verify(sample.packed[:length], sample.digest, announced)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("extra", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("garbage", [b"\0", b"\x28\xb5\x2f\xfd"])
def test_recorded_blobs_with_bytes_behind_them_are_refused(
    sample: Sample, extra: int, garbage: bytes
) -> None:
    packed = sample.packed + (garbage * 100)[:extra]
    for announced in (None, len(sample.packed), len(packed)):
        for step in (1, len(packed)):
            with pytest.raises(CorruptBlob):
                verify(packed, sample.digest, announced, step)


@pytest.mark.parametrize("compression", Compression)
def test_content_of_another_name_is_refused(compression: Compression) -> None:
    packed = pack(TEXT, compression)
    with pytest.raises(CorruptBlob) as caught:
        verify(packed, WRONG, len(packed))
    assert str(caught.value) == f"content hashes to {hash_bytes(TEXT)}, expected {WRONG}"


@pytest.mark.parametrize("compression", Compression)
def test_the_sink_gets_the_content(compression: Compression) -> None:
    content = bytearray()
    packed = pack(TEXT, compression)
    unpacker = VerifyingUnpacker(hash_bytes(TEXT), content.extend, packed_length=len(packed))
    assert (unpacker.header, unpacker.content_length) == (None, None)
    unpacker.feed(packed)
    assert unpacker.header == Header(compression, len(TEXT))
    assert unpacker.content_length == len(TEXT)
    assert unpacker.finish() == unpacker.written == len(TEXT)
    assert content == TEXT


def test_the_hash_runs_over_what_is_there_after_the_write() -> None:
    packed = bytearray(pack(b"abcd", Compression.NONE))

    def overwrite(piece: bytes | memoryview) -> None:
        packed[16:] = b"wxyz"

    unpacker = VerifyingUnpacker(hash_bytes(b"wxyz"), overwrite, packed_length=len(packed))
    unpacker.feed(memoryview(packed))
    assert unpacker.finish() == 4


def test_limits_are_handed_on() -> None:
    unpacker = VerifyingUnpacker(
        hash_bytes(TEXT), None, packed_length=None, limits=UnpackLimits(ceiling=len(TEXT) - 1)
    )
    with pytest.raises(CorruptBlob, match="ceiling"):
        unpacker.feed(pack(TEXT, Compression.ZSTD, announce=False))


# --- all at once


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_a_whole_blob_is_unpacked_as_one_that_comes_in_pieces(sample: Sample) -> None:
    content = bytearray()
    packed = memoryview(sample.packed)
    header, size = unpack_whole(sample.digest, packed, content.extend)
    assert header == Header.parse(packed[:16])
    assert size == len(content) == sample.content_length
    assert hash_bytes(content) == sample.digest
    for wrong in (packed[:-1], packed[:15], memoryview(sample.packed + b"\0")):
        with pytest.raises(CorruptBlob):
            unpack_whole(sample.digest, wrong, content.extend)


@pytest.mark.parametrize("compression", Compression)
def test_a_whole_blob_of_another_name_is_refused(compression: Compression) -> None:
    packed = memoryview(pack(TEXT, compression))
    content = bytearray()
    with pytest.raises(CorruptBlob) as caught:
        unpack_whole(WRONG, packed, content.extend)
    assert str(caught.value) == f"content hashes to {hash_bytes(TEXT)}, expected {WRONG}"
    if compression is Compression.NONE:
        assert content == b""  # what is stored as it is is not even written
    with pytest.raises(CorruptBlob, match="ceiling"):
        unpack_whole(
            hash_bytes(TEXT),
            memoryview(pack(TEXT, Compression.ZLIB, announce=False)),
            content.extend,
            limits=UnpackLimits(ceiling=len(TEXT) - 1),
        )


def test_a_whole_blob_whose_header_disagrees_with_its_length_is_refused() -> None:
    packed = bytearray(pack(b"abcd", Compression.NONE))
    packed[8] = 5
    with pytest.raises(CorruptBlob, match="announces 5 bytes, 4 are stored"):
        unpack_whole(hash_bytes(b"abcd"), memoryview(packed), lambda _: None)
