"""The header: what each field means, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.errors import CorruptBlob, UsageError
from cafsfs.packing import HEADER_LENGTH, Compression, Header
from tests.packing.samples import SAMPLES, Sample

FULL = b"ZSTD\x10\x00\x01\x00\x08\x07\x00\x00\x00\x00\x00\x00"


def test_every_field_is_read() -> None:
    assert Header.parse(FULL) == Header(Compression.ZSTD, 1800, recompressed=True)


def test_every_field_is_written() -> None:
    assert Header(Compression.ZSTD, 1800, recompressed=True).pack() == FULL


def test_a_memoryview_will_do() -> None:
    assert Header.parse(memoryview(FULL)) == Header.parse(FULL)


@pytest.mark.parametrize("compression", Compression)
def test_the_header_of_the_asyncio_client(compression: Compression) -> None:
    assert Header.parse(compression.value + bytes(12)) == Header(compression, None)


def test_unknown_flags_are_ignored() -> None:
    assert Header.parse(b"NONE\x10\x00\xfe\xff" + bytes(8)) == Header(Compression.NONE, None)


def test_an_unknown_length_is_written_as_0() -> None:
    assert Header(Compression.ZLIB, None).pack() == b"ZLIB\x10" + bytes(11)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"LZMA" + FULL[4:], id="magic"),
        pytest.param(b"zstd" + FULL[4:], id="lower case"),
        pytest.param(FULL[:4] + b"\x11\x00" + FULL[6:], id="header length 17"),
        pytest.param(FULL[:4] + b"\x00\x10" + FULL[6:], id="header length 4096"),
        pytest.param(FULL[:15], id="short"),
        pytest.param(FULL + b"\x00", id="long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_bad_header_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptBlob):
        Header.parse(data)


@pytest.mark.parametrize("length", [-1, 1 << 64])
def test_a_length_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(UsageError):
        Header(Compression.NONE, length)


@given(
    st.sampled_from(Compression),
    st.none() | st.integers(1, (1 << 64) - 1),
    st.booleans(),
)
def test_what_is_packed_is_parsed(
    compression: Compression, length: int | None, recompressed: bool
) -> None:
    header = Header(compression, length, recompressed)
    assert len(header.pack()) == HEADER_LENGTH
    assert Header.parse(header.pack()) == header


@given(st.binary(min_size=HEADER_LENGTH, max_size=HEADER_LENGTH))
def test_any_16_bytes_are_a_header_or_corrupt(data: bytes) -> None:
    try:
        header = Header.parse(data)
    except CorruptBlob:
        return
    assert header.pack()[:4] == data[:4]


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_recorded_headers(sample: Sample) -> None:
    header = Header.parse(sample.packed[:HEADER_LENGTH])
    assert (header.content_length or 0) == sample.announced
    assert header.recompressed == (sample.name == "repacked")


def test_the_packed_length_tells_the_content_length_of_none() -> None:
    assert Header(Compression.NONE, None).content_length_in(16) == 0
    assert Header(Compression.NONE, None).content_length_in(1816) == 1800
    assert Header(Compression.NONE, 1800).content_length_in(1816) == 1800


def test_a_none_header_that_contradicts_the_packed_length_is_corrupt() -> None:
    with pytest.raises(CorruptBlob, match="announces 1800 bytes, 1799 are stored"):
        Header(Compression.NONE, 1800).content_length_in(1815)


@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.ZLIB])
def test_only_the_field_tells_the_content_length_of_the_others(compression: Compression) -> None:
    assert Header(compression, 1800).content_length_in(97) == 1800
    assert Header(compression, None).content_length_in(97) is None


@pytest.mark.parametrize("compression", Compression)
def test_a_packed_length_below_16_is_corrupt(compression: Compression) -> None:
    with pytest.raises(CorruptBlob):
        Header(compression, None).content_length_in(15)
