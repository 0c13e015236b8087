"""PUSH and STRM: what is stored was verified, what is refused leaves nothing, all stays in step."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
import trio

from tests.bad_server import pack
from tests.packing.samples import SAMPLES, Sample, zstd_bomb
from tests.server.stand import check, digest_of, pull, push, serving, size, stream, take

CONTENT = b"The quick brown fox jumps over the lazy dog.\n" * 100
DIGEST = digest_of(CONTENT)
ABSENT = digest_of(b"absent")
HOWS = ["none", "zstd", "zlib", "none-asyncio", "zstd-asyncio", "zlib-asyncio"]

GOOD = pack(CONTENT)
REFUSED = {
    "wrong content": pack(CONTENT[:-1] + b"!"),
    "wrong content, compressed": pack(CONTENT[:-1] + b"!", "zstd"),
    "cut short": pack(CONTENT, "zstd")[:-1],
    "cut within its header": GOOD[:9],
    "bytes behind the end": pack(CONTENT, "zlib") + b"more",
    "unknown magic": b"LZMA" + GOOD[4:],
    "a header that says more": pack(CONTENT, "zstd", announced=len(CONTENT) + 1),
    "a header that says less": pack(CONTENT, "zlib", announced=len(CONTENT) - 1),
    "a plain header that says more": pack(CONTENT, announced=len(CONTENT) + 1),
    "nothing": b"",
    "garbage": Random(1).randbytes(5000),
    "a bomb": struct.pack("<4sHHQ", b"ZSTD", 16, 0, 1000) + zstd_bomb(1000),
}


@pytest.mark.parametrize("how", HOWS)
async def test_push_and_stream_are_stored_as_they_came(tmp_path: Path, how: str) -> None:
    packed = pack(CONTENT, how)
    async with serving(tmp_path) as stand:
        for command in (push(DIGEST, packed), stream(DIGEST, packed), stream(DIGEST, packed)):
            async with await stand.greeted() as client:
                assert await client.ask(command) == b"HAVE"
                assert await client.ask(size(DIGEST), 12) == b"SIZE" + struct.pack(
                    "<Q", len(packed)
                )
                expected = take(DIGEST, len(packed)) + packed
                assert await client.ask(pull(DIGEST), len(expected)) == expected
            assert stand.path(DIGEST).read_bytes() == packed
            assert stand.stored() == [DIGEST.hex]
            stand.path(DIGEST).unlink()


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
async def test_every_recorded_packing_is_stored(tmp_path: Path, sample: Sample) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        assert await client.ask(stream(sample.digest, sample.packed, chunk=100)) == b"HAVE"
        assert stand.path(sample.digest).read_bytes() == sample.packed


@pytest.mark.parametrize("packed", REFUSED.values(), ids=list(REFUSED))
async def test_what_is_not_the_blob_is_erio_and_leaves_nothing(
    tmp_path: Path, packed: bytes
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        for upload in (push(DIGEST, packed), stream(DIGEST, packed)):
            assert await client.ask(upload + check(DIGEST), 8) == b"ERIONONE"
        assert stand.stored() == []
        # The right bytes are welcome afterwards, on the same connection.
        assert await client.ask(push(DIGEST, GOOD) + check(DIGEST), 8) == b"HAVEHAVE"


async def test_large_upload_of_wrong_content_is_read_to_its_end(tmp_path: Path) -> None:
    packed = bytearray(pack(Random(1).randbytes(6 << 20)))
    digest = digest_of(bytes(packed[16:]))
    packed[1000] ^= 1
    wrong = bytes(packed)
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        for upload in (push(digest, wrong), stream(digest, wrong)):
            assert await client.ask(upload + check(digest), 8) == b"ERIONONE"
        assert stand.stored() == []


async def test_what_is_there_already_is_read_and_not_written_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(pack(CONTENT, "zstd"), DIGEST)
        before = stand.path(DIGEST).stat()
        for upload in (push(DIGEST, GOOD), stream(DIGEST, GOOD), push(DIGEST, b"garbage")):
            assert await client.ask(upload + check(ABSENT), 8) == b"HAVENONE"
        assert stand.path(DIGEST).stat() == before


async def test_push_of_nothing_is_erio_unless_the_blob_is_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        assert await client.ask(push(DIGEST, b"") + check(ABSENT), 8) == b"ERIONONE"
        stand.keep(GOOD, DIGEST)
        assert await client.ask(push(DIGEST, b"") + check(ABSENT), 8) == b"HAVENONE"


@pytest.mark.parametrize("sent", [0, 10, len(GOOD)])
async def test_aborted_stream_is_erio_and_leaves_nothing(tmp_path: Path, sent: int) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        aborted = stream(DIGEST, GOOD[:sent], end=b"\xff\xff")
        assert await client.ask(aborted + check(DIGEST), 8) == b"ERIONONE"
        assert stand.stored() == []


async def test_aborted_stream_of_what_is_there_leaves_the_connection_in_step(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(GOOD, DIGEST)
        aborted = stream(DIGEST, GOOD[:30], end=b"\xff\xff")
        assert await client.ask(aborted + check(ABSENT), 8) == b"HAVENONE"


async def test_pipelined_small_uploads_are_all_stored(tmp_path: Path) -> None:
    contents = [Random(number).randbytes(50 * number) for number in range(200)]
    packed = {digest_of(each): pack(each) for each in contents}
    said = b"".join((push, stream)[number % 2](*each) for number, each in enumerate(packed.items()))
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        assert await client.ask(said, 4 * len(packed)) == b"HAVE" * len(packed)
        assert {digest: stand.path(digest).read_bytes() for digest in packed} == packed
        assert len(stand.stored()) == len(packed)


async def test_full_disk_is_erio_and_the_connection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async with serving(tmp_path) as stand, await stand.greeted() as client:
        monkeypatch.setattr("os.pwrite", refuse)
        assert await client.ask(push(DIGEST, GOOD) + check(DIGEST), 8) == b"ERIONONE"
        monkeypatch.undo()
        assert stand.stored() == []
        assert await client.ask(push(DIGEST, GOOD)) == b"HAVE"


async def test_two_clients_upload_the_same_blob_at_once(tmp_path: Path) -> None:
    content = Random(3).randbytes(4 << 20)
    digest = digest_of(content)
    answers: list[bytes] = []

    async def upload() -> None:
        async with await stand.greeted() as client:
            answers.append(await client.ask(stream(digest, pack(content))))

    async with serving(tmp_path) as stand:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(upload)
        assert answers == [b"HAVE"] * 4
        assert stand.stored() == [digest.hex]
