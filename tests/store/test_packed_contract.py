"""Each sentence of PackedStore's docstrings, for every implementation."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CorruptBlob,
    RangeError,
    ServerRefused,
    StoreError,
    Unavailable,
)
from cafsfs.packing import Compression, Header, hash_bytes
from cafsfs.store.contracts import PackedBody
from cafsfs.store.memory import MemoryBody
from tests.store.samples import (
    ABSENT,
    MIB,
    SIZES,
    content_of,
    descriptors,
    eventually,
    packed,
    strays,
)
from tests.store.scripted import ScriptedBody
from tests.store.stacks import PACKED_STACKS, PROCESS, PackedStack


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.process] if name in PROCESS else [])
        for name in PACKED_STACKS
    ]
)
async def stack(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PackedStack]:
    async with PACKED_STACKS[request.param](tmp_path) as made:
        yield made


async def deposit(
    stack: PackedStack, content: bytes, compression: Compression = Compression.NONE
) -> tuple[Digest, bytes]:
    digest, blob = hash_bytes(content), packed(content, compression)
    await stack.store.deposit(digest, lambda: MemoryBody(blob))
    return digest, blob


async def read_all(body: PackedBody, *, step: int = 300_000) -> bytes:
    read = bytearray()
    buffer = memoryview(bytearray(step))
    while count := await body.readinto(buffer):
        read += buffer[:count]
    return bytes(read)


async def fetch(
    stack: PackedStack, digest: Digest, *, offset: int = 0, length: int | None = None
) -> bytes:
    async with stack.store.fetch(digest, offset=offset, length=length) as body:
        return await read_all(body)


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_deposited_is_fetched(stack: PackedStack, size: int) -> None:
    digest, blob = await deposit(stack, content_of(size))
    async with stack.store.fetch(digest) as body:
        assert body.length in {None, len(blob)}
        assert await read_all(body) == blob
        assert await body.readinto(memoryview(bytearray(1))) == 0


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("size", [0, 5000, 2 * MIB])
async def test_inspect_tells_length_and_header(
    stack: PackedStack, compression: Compression, size: int
) -> None:
    digest, blob = await deposit(stack, content_of(size), compression)
    stat = await stack.store.inspect(digest)
    assert stat is not None
    assert stat.length == len(blob)
    assert stat.header in {None, Header(compression, size or None)}


async def test_an_absent_blob_is_not_found(stack: PackedStack) -> None:
    with pytest.raises(BlobNotFound):
        await stack.store.inspect(ABSENT)
    with pytest.raises(BlobNotFound):
        await fetch(stack, ABSENT)


async def test_find_absent(stack: PackedStack) -> None:
    present = {(await deposit(stack, content_of(100, each)))[0] for each in range(1, 8)}
    absent = {Digest(secrets.token_bytes(32)) for _ in range(2500)}
    assert await stack.store.find_absent([]) == set()
    assert await stack.store.find_absent(present) == set()
    assert await stack.store.find_absent(present | absent) == absent


async def test_depositing_twice_is_fine(stack: PackedStack) -> None:
    digest, blob = await deposit(stack, content_of(70_000))
    assert await deposit(stack, content_of(70_000)) == (digest, blob)
    assert await fetch(stack, digest) == blob


@pytest.mark.parametrize("size", [0, 1, 3 * MIB])
async def test_a_body_without_a_length_is_stored(stack: PackedStack, size: int) -> None:
    content = content_of(size)
    await stack.store.deposit(hash_bytes(content), lambda: ScriptedBody(packed(content)))
    assert await fetch(stack, hash_bytes(content)) == packed(content)


WRONG = {
    "another content": packed(content_of(MIB, 9)),
    "nothing": b"",
    "half a header": packed(b"")[:9],
    "no header": b"BLOB" + packed(content_of(MIB))[4:],
    "truncated": packed(content_of(MIB))[:-1],
    "goes on": packed(content_of(MIB)) + b"x",
    "truncated zstd": packed(content_of(MIB), Compression.ZSTD)[:-1],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
async def test_what_is_wrong_is_refused_by_who_verifies(
    stack: PackedStack, tmp_path: Path, wrong: bytes
) -> None:
    digest = hash_bytes(content_of(MIB))
    if not stack.verifies:  # takes everything, as deployed servers do
        await stack.store.deposit(digest, lambda: ScriptedBody(wrong))
        assert await fetch(stack, digest) == wrong
        return
    with pytest.raises((CorruptBlob, ServerRefused)):
        await stack.store.deposit(digest, lambda: ScriptedBody(wrong))
    assert await stack.store.find_absent([digest]) == {digest}
    with pytest.raises(BlobNotFound):
        await fetch(stack, digest)
    assert strays(tmp_path) == []


@pytest.mark.parametrize("error", [StoreError, Unavailable])
async def test_the_error_of_a_source_is_raised_and_nothing_stored(
    stack: PackedStack, tmp_path: Path, error: type[Exception]
) -> None:
    content = content_of(2 * MIB)
    with pytest.raises(error, match="no more"):
        await stack.store.deposit(
            hash_bytes(content), lambda: ScriptedBody(packed(content), error=error("no more"))
        )
    assert await stack.store.find_absent([hash_bytes(content)]) == {hash_bytes(content)}
    assert await eventually(lambda: not strays(tmp_path))


async def test_what_is_handed_out_is_not_verified(stack: PackedStack) -> None:
    digest, blob = await deposit(stack, content_of(100_000))
    stack.spoil(digest)
    spoiled = await fetch(stack, digest)
    assert len(spoiled) == len(blob)
    assert spoiled != blob


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 16), (16, None), (MIB, MIB), (MIB + 1, None), (0, 0), (2 * MIB, 16)]
)
async def test_a_range_is_exact_or_refused(
    stack: PackedStack, offset: int, length: int | None
) -> None:
    digest, blob = await deposit(stack, content_of(2 * MIB))
    if not stack.ranges:
        with pytest.raises(RangeError):
            await fetch(stack, digest, offset=offset, length=length)
        return
    end = len(blob) if length is None else offset + length
    async with stack.store.fetch(digest, offset=offset, length=length) as body:
        assert body.length == end - offset
        assert await read_all(body) == blob[offset:end]


@pytest.mark.parametrize(("offset", "length"), [(117, None), (0, 117), (100, 17), (10**9, 1)])
async def test_a_range_outside_the_blob_is_an_error(
    stack: PackedStack, offset: int, length: int | None
) -> None:
    digest, blob = await deposit(stack, content_of(100))
    assert len(blob) == 116
    with pytest.raises(RangeError):
        await fetch(stack, digest, offset=offset, length=length)
    assert await fetch(stack, digest) == blob


async def test_several_fetches_at_once(stack: PackedStack) -> None:
    stored = [await deposit(stack, content_of(size, 3)) for size in (10, 70_000, 2 * MIB)]
    fetched: list[bytes] = []

    async def fetch_one(digest: Digest) -> None:
        fetched.append(await fetch(stack, digest))

    async with trio.open_nursery() as nursery:
        for digest, _ in stored * 5:
            nursery.start_soon(fetch_one, digest)
    assert sorted(fetched) == sorted(blob for _, blob in stored * 5)


async def test_a_fetch_given_up_leaves_nothing(stack: PackedStack) -> None:
    digest, blob = await deposit(stack, content_of(5 * MIB))
    small, _ = await deposit(stack, content_of(10))
    await fetch(stack, small)
    before = descriptors()
    with trio.CancelScope() as scope:
        async with stack.store.fetch(digest) as body:
            await body.readinto(memoryview(bytearray(1000)))
            scope.cancel()
            await read_all(body)
    async with stack.store.fetch(digest) as body:
        await body.readinto(memoryview(bytearray(1000)))
    assert await eventually(lambda: descriptors() <= before)
    assert await fetch(stack, digest) == blob


async def test_a_cancelled_deposit_leaves_nothing(stack: PackedStack, tmp_path: Path) -> None:
    class Stalling(ScriptedBody):
        async def readinto(self, buffer: memoryview) -> int:
            count = await super().readinto(buffer)
            if count == 0:
                scope.cancel()
                await trio.sleep_forever()
            return count

    content = content_of(3 * MIB)
    digest = hash_bytes(content)
    small, _ = await deposit(stack, content_of(10))
    await fetch(stack, small)
    before = descriptors()
    with trio.CancelScope() as scope:
        await stack.store.deposit(digest, lambda: Stalling(packed(content)))
    assert await eventually(lambda: descriptors() <= before and not strays(tmp_path))
    assert await stack.store.find_absent([digest]) == {digest}


async def test_it_has_a_name(stack: PackedStack) -> None:
    assert stack.store.name
