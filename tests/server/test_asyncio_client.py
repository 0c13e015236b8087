"""The asyncio client from PyPI and ours, each reading from our server what the other has stored."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from cafsfs.client import CafsClient
from cafsfs.digest import Digest
from cafsfs.packing import Compression
from cafsfs.secret import Secret
from cafsfs.server import Gate
from tests.server.stand import Stand, digest_of, serving

pytestmark = pytest.mark.process

_PROJECT = Path(__file__).parent.parent.parent
_NOISE = Random(1).randbytes(1 << 20)
_TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 200
# Half of it can be compressed, and none of its pieces are alike.
_LARGE = b"".join(b"%07d" % number + _NOISE[number : number + 249] for number in range(163_840))

CONTENTS = {
    "empty": b"",
    "one": b"1",
    "below the bound of compression": _TEXT[:1023],
    "at the bound of compression": _TEXT[:1024],
    "text": _TEXT,
    "gzip": gzip.compress(_TEXT * 10 + _NOISE),
    "zeros": bytes(5 << 20),
    "large": _LARGE,
}

each_compression = pytest.mark.parametrize("compression", Compression, ids=lambda c: c.name)


async def _asyncio_client(stand: Stand, **request: Any) -> Any:
    asked = json.dumps({"server": stand.address, **request}).encode()
    command = [sys.executable, "-m", "tests.server.asyncio_peer"]
    with trio.fail_after(60):
        done = await trio.run_process(command, stdin=asked, capture_stdout=True, cwd=_PROJECT)
    return json.loads(done.stdout)


def _files(directory: Path) -> list[Path]:
    directory.mkdir()
    for name, content in CONTENTS.items():
        (directory / name).write_bytes(content)
    return [directory / name for name in CONTENTS]


def test_the_large_file_is_large() -> None:
    assert len(_LARGE) == 40 << 20


@each_compression
async def test_it_uploads_and_we_read(tmp_path: Path, compression: Compression) -> None:
    paths = _files(tmp_path / "files")
    (tmp_path / "store").mkdir()
    async with serving(tmp_path / "store") as stand:
        hashes = await _asyncio_client(
            stand,
            do="upload",
            paths=[str(path) for path in paths],
            compression=compression.value.decode(),
        )
        assert hashes == [digest_of(content).hex for content in CONTENTS.values()]
        async with CafsClient("/root", [stand.address]) as client:
            copies = [tmp_path / "copies" / path.name for path in paths]
            await client.pull_batch(zip(hashes, copies, strict=True), retry=False)
            for name, copy, content in zip(hashes, copies, CONTENTS.values(), strict=True):
                assert copy.read_bytes() == content
                assert await client.size(name, retry=False) == len(content)
        # It reads its own, too.
        await _download_and_compare(stand, hashes, tmp_path / "own")


@each_compression
async def test_we_upload_and_it_reads(tmp_path: Path, compression: Compression) -> None:
    paths = _files(tmp_path / "files")
    (tmp_path / "store").mkdir()
    async with serving(tmp_path / "store") as stand:
        async with CafsClient("/root", [stand.address]) as client:
            hashes = await client.stream_batch(paths, compression, retry=False)
        await _download_and_compare(stand, hashes, tmp_path / "copies")
        absent = digest_of(b"absent").hex
        seen = await _asyncio_client(stand, do="look", hashes=[*hashes, absent])
        packed = {name: stand.path(Digest.parse(name)).stat().st_size for name in hashes}
        assert seen.pop(absent) is None
        assert seen == packed


async def test_it_needs_no_secret_where_encryption_is_optional(tmp_path: Path) -> None:
    """It speaks version 001 only; from here, a private address, that is enough."""
    paths = _files(tmp_path / "files")
    (tmp_path / "store").mkdir()
    secret = Secret(b"0123456789abcdef")
    gate = Gate(secret=secret, required=False)
    async with serving(tmp_path / "store", gate=gate) as stand:
        request = {"paths": [str(path) for path in paths], "compression": "ZSTD"}
        hashes = await _asyncio_client(stand, do="upload", **request)
        await _download_and_compare(stand, hashes, tmp_path / "copies")
        async with CafsClient("/root", [stand.address], secret=secret, auth="required") as client:
            blobs = [(name, tmp_path / "ours" / name) for name in hashes]
            await client.pull_batch(blobs, retry=False)
            for (_, copy), content in zip(blobs, CONTENTS.values(), strict=True):
                assert copy.read_bytes() == content


async def _download_and_compare(stand: Stand, hashes: list[str], directory: Path) -> None:
    blobs = {name: str(directory / name) for name in hashes}
    assert await _asyncio_client(stand, do="download", blobs=blobs) == len(hashes)
    for name, content in zip(hashes, CONTENTS.values(), strict=True):
        assert (directory / name).read_bytes() == content
