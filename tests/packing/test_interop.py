"""Both ways between our packing and that of the asyncio client (``cafs_cache_cdn_client``)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cafs_cache_cdn_client.cafs.blob import package
from cafs_cache_cdn_client.cafs.blob.hash_ import calc_hash_file
from cafs_cache_cdn_client.cafs.blob.utils import choose_compression as their_choice

from cafsfs.packing import Compression, choose_compression, hash_file
from tests.packing.samples import TEXT, pack, slices, unpack

CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "text": TEXT,
    "several blocks": bytes(range(251)) * 2000,
}

pytestmark = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())


class Reader:
    """Their AsyncReader over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    async def read(self, size: int = -1) -> bytes:
        piece = self._data[self._at :] if size < 0 else self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece


class Writer:
    """Their AsyncWriter into bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes, /) -> None:
        self.data += data

    async def flush(self) -> None:
        """Nothing is buffered."""


async def their_pack(content: bytes, compression: Compression, chunk_size: int) -> bytes:
    packer = package.Packer(
        Reader(content), package.CompressionT(compression.value), chunk_size=chunk_size
    )
    packed: bytes = await packer.read()
    return packed


async def their_unpack(packed: bytes, step: int) -> bytes:
    writer = Writer()
    unpacker = package.Unpacker(writer)
    for piece in slices(packed, step):
        await unpacker.write(piece)
    await unpacker.flush()
    return bytes(writer.data)


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("step", [100, 1 << 20])
def test_we_read_what_they_write(content: bytes, compression: Compression, step: int) -> None:
    packed = asyncio.run(their_pack(content, compression, step))
    for length in (None, len(packed)):
        assert unpack(slices(packed, step), packed_length=length) == content


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("step", [100, 1 << 20])
@pytest.mark.parametrize("announce", [True, False])
def test_they_read_what_we_write(
    content: bytes, compression: Compression, step: int, announce: bool
) -> None:
    packed = pack(content, compression, announce=announce, step=step)
    assert asyncio.run(their_unpack(packed, step)) == content


def test_we_name_blobs_as_they_do(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert asyncio.run(calc_hash_file(path)) == hash_file(path).hex


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("start", ["1f8b", "425a68", "504b03", "28b52ffd", "7801", "789c", ""])
def test_we_choose_as_they_do(
    content: bytes, compression: Compression, start: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex(start) + content)
    theirs = their_choice(path, package.CompressionT(compression.value))
    ours = choose_compression(path.stat().st_size, path.read_bytes()[:4], compression)
    assert ours.value == theirs.value
