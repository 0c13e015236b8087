"""Crossing from packed bytes to content: what is refused, and what is told."""

from __future__ import annotations

import gc
import struct
import time
import zlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import zstandard

from cafsfs.digest import Digest
from cafsfs.errors import CorruptBlob, RangeError, Unavailable
from cafsfs.packing import (
    HEADER_LENGTH,
    Compression,
    Header,
    Unpacker,
    UnpackLimits,
    foresee_memory,
    hash_bytes,
)
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.contracts import PackedBody, PackedSource, PackedStat, PackedStore
from cafsfs.store.local_root import LocalRoot, blob_path
from cafsfs.store.memory import MemoryPackedStore, MemorySink
from cafsfs.store.unpacking import UnpackingStore
from tests.packing.samples import SAMPLES, Sample
from tests.store.samples import MIB, ShortReads, content_of, packed, pull, put
from tests.store.scripted import ScriptedBody

ZEROS = bytes(64 * MIB)


class CountingSink(MemorySink):
    """Counts bytes and begins, keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.begun = 0

    def restart(self) -> None:
        self.begun += 1

    def write(self, data: bytes | memoryview, /) -> None:
        self.taken += len(data)


class BodiesStore(PackedStore):
    """Serves one body, whatever is asked for."""

    name = "bodies"

    def __init__(self, body: ScriptedBody, header: Header | None = None) -> None:
        self._body = body
        self._header = header

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return set()

    async def inspect(self, digest: Digest) -> PackedStat:
        await trio.lowlevel.checkpoint()
        return PackedStat(1000, self._header)

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        await trio.lowlevel.checkpoint()
        yield self._body

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        raise RangeError("nothing is stored here")


def over(store: PackedStore, limits: UnpackLimits | None = None) -> UnpackingStore:
    return UnpackingStore(store, limiter=trio.CapacityLimiter(2), limits=limits)


def store_of(digest: Digest, blob: bytes, limits: UnpackLimits | None = None) -> UnpackingStore:
    memory = MemoryPackedStore()
    memory.blobs[digest] = blob
    return over(memory, limits)


def header(compression: bytes, content_length: int) -> bytes:
    return struct.pack("<4sHHQ", compression, 16, 0, content_length)


BOMBS = {
    "zstd": (b"ZSTD", zstandard.ZstdCompressor().compress(ZEROS)),
    "zstd, many frames": (b"ZSTD", zstandard.ZstdCompressor().compress(ZEROS[:MIB]) * 64),
    "zlib": (b"ZLIB", zlib.compress(ZEROS, 1)),
}


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
async def test_every_recorded_blob_is_read(sample: Sample, tmp_path: Path) -> None:
    path = blob_path(tmp_path / "blobs", sample.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(sample.packed)
    store = over(LocalRoot(tmp_path, limiter=trio.CapacityLimiter(2)))
    content = await pull(store, sample.digest)
    assert hash_bytes(content) == sample.digest
    assert (await store.stat(sample.digest)).size in {None, sample.content_length}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_goes_no_further_than_announced(bomb: str) -> None:
    magic, body = BOMBS[bomb]
    sink = CountingSink()
    with pytest.raises(CorruptBlob, match="more than the announced 5000 bytes"):
        await store_of(hash_bytes(ZEROS), header(magic, 5000) + body).pull(hash_bytes(ZEROS), sink)
    assert sink.taken <= 5000


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_of_unknown_length_goes_no_further_than_the_ceiling(bomb: str) -> None:
    magic, body = BOMBS[bomb]
    sink = CountingSink()
    store = store_of(hash_bytes(ZEROS), header(magic, 0) + body, UnpackLimits(ceiling=3 * MIB))
    with pytest.raises(CorruptBlob, match="ceiling"):
        await store.pull(hash_bytes(ZEROS), sink)
    assert sink.taken <= 3 * MIB


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_length_that_only_unpacking_tells(bomb: str) -> None:
    magic, body = BOMBS[bomb]
    store = store_of(hash_bytes(ZEROS), header(magic, 0) + body)
    assert (await store.stat(hash_bytes(ZEROS))).size is None
    sink = CountingSink()
    assert (await store.pull(hash_bytes(ZEROS), sink)).size == len(ZEROS) == sink.taken


CONTENT = content_of(2 * MIB)
NAME = hash_bytes(CONTENT)
WRONG = {
    "empty": (b"", "no room for its header"),
    "half a header": (packed(CONTENT)[:15], "no room for its header"),
    "bad magic": (b"BLOB" + packed(CONTENT)[4:], "not a packed blob"),
    "another content": (packed(content_of(2 * MIB, 1)), "hashes to"),
    "empty content": (packed(b""), "hashes to"),
    "a length that disagrees": (header(b"NONE", 5) + CONTENT, "announces 5 bytes"),
    "announced longer": (
        header(b"ZSTD", 3 * MIB) + packed(CONTENT, Compression.ZSTD)[16:],
        "are announced",
    ),
    "truncated none": (packed(CONTENT)[:-1], "announces"),
    "truncated zstd": (packed(CONTENT, Compression.ZSTD)[:-1], "ends"),
    "truncated zlib": (packed(CONTENT, Compression.ZLIB)[:-1], "ends"),
    "after the end of zlib": (packed(CONTENT, Compression.ZLIB) + b"x", "after"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_wrong_bytes_are_corrupt(wrong: str) -> None:
    blob, message = WRONG[wrong]
    with pytest.raises(CorruptBlob, match=message):
        await pull(store_of(NAME, blob), NAME)


@pytest.mark.parametrize(
    "wrong", ["empty", "half a header", "bad magic", "a length that disagrees"]
)
async def test_what_shows_at_once_stat_tells(wrong: str) -> None:
    with pytest.raises(CorruptBlob):
        await store_of(NAME, WRONG[wrong][0]).stat(NAME)


async def test_a_window_too_large_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(CONTENT) + compressor.flush()
    blob = header(b"ZSTD", len(CONTENT)) + body
    assert await pull(store_of(NAME, blob), NAME) == CONTENT
    with pytest.raises(CorruptBlob):
        await pull(store_of(NAME, blob, UnpackLimits(max_window=1 << 20)), NAME)


@pytest.mark.parametrize("compression", Compression)
async def test_a_body_that_does_not_tell_its_length(compression: Compression) -> None:
    store = over(BodiesStore(ScriptedBody(packed(CONTENT, compression), step=70_001)))
    assert await pull(store, NAME) == CONTENT


async def test_a_body_that_breaks_off_passes_its_error() -> None:
    body = ScriptedBody(packed(CONTENT)[:MIB], length=2 * MIB + 16, error=Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        await pull(over(BodiesStore(body)), NAME)


async def test_an_error_that_is_remembered_keeps_no_decoder() -> None:
    """With all that its traceback knows."""
    broken = packed(CONTENT, Compression.ZSTD)
    body = ScriptedBody(broken[: len(broken) // 2], length=len(broken), error=Unavailable("gone"))
    earlier = unpackers()
    with pytest.raises(Unavailable) as remembered:
        await pull(over(BodiesStore(body)), NAME)
    [ours] = [each for each in unpackers() if all(each is not other for other in earlier)]
    assert ours.memory == 0
    del remembered


def unpackers() -> list[Unpacker]:
    """All that somebody knows."""
    return [each for each in gc.get_objects() if isinstance(each, Unpacker)]


async def test_a_body_that_simply_ends_is_corrupt() -> None:
    body = ScriptedBody(packed(CONTENT)[:MIB], length=2 * MIB + 16)
    with pytest.raises(CorruptBlob):
        await pull(over(BodiesStore(body)), NAME)


async def test_what_a_pull_tells() -> None:
    before = int(time.time())
    memory = MemoryPackedStore()
    memory.blobs[NAME] = packed(CONTENT, Compression.ZSTD)
    sink = CountingSink()
    stat = await over(memory).pull(NAME, sink)
    assert (stat.size, stat.packed_size) == (len(CONTENT), len(memory.blobs[NAME]))
    assert (stat.compression, stat.source) == (Compression.ZSTD, "memory")
    assert stat.verified_at is not None
    assert before <= stat.verified_at <= time.time()
    assert (sink.begun, sink.taken) == (1, len(CONTENT))


async def test_what_stat_tells() -> None:
    memory = MemoryPackedStore()
    memory.blobs[NAME] = packed(CONTENT, Compression.ZLIB)
    stat = await over(memory).stat(NAME)
    assert (stat.size, stat.packed_size) == (len(CONTENT), len(memory.blobs[NAME]))
    assert (stat.compression, stat.source) == (Compression.ZLIB, "memory")
    assert stat.verified_at is None
    # A RemoteStore leaves the header of a small blob to a pull.
    stat = await over(BodiesStore(ScriptedBody(b""))).stat(NAME)
    assert (stat.size, stat.packed_size, stat.compression) == (None, 1000, None)


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize(
    ("content", "worth_it"),
    [(b"", False), (b"x" * 1023, False), (b"x" * 1024, True), (b"PK\x03" + b"x" * MIB, False)],
)
async def test_uploads_are_packed_where_it_is_worth_it(
    compression: Compression, content: bytes, worth_it: bool
) -> None:
    memory = MemoryPackedStore()
    store = UnpackingStore(memory, limiter=trio.CapacityLimiter(2), compression=compression)
    digest = await put(store, content)
    written = Header.parse(memory.blobs[digest][:HEADER_LENGTH])
    assert written.compression is (compression if worth_it else Compression.NONE)
    assert written.content_length == (len(content) or None)
    assert await pull(store, digest) == content


@pytest.mark.parametrize("compression", Compression)
async def test_a_second_try_of_an_upload_starts_at_the_first_byte(compression: Compression) -> None:
    class TakesTwo(MemoryPackedStore):
        async def deposit(self, digest: Digest, source: PackedSource) -> None:
            await source().readinto(memoryview(bytearray(1000)))
            await super().deposit(digest, source)

    store = UnpackingStore(TakesTwo(), limiter=trio.CapacityLimiter(2), compression=compression)
    await store.put(NAME, ShortReads(CONTENT))
    assert await pull(store, NAME) == CONTENT


# --- memory


class LookingSink(CountingSink):
    """Remembers what the budget had given out at each write."""

    def __init__(self, budget: MemoryBudget) -> None:
        super().__init__()
        self._budget = budget
        self.seen: list[int] = []

    def write(self, data: bytes | memoryview, /) -> None:
        super().write(data)
        self.seen.append(self._budget.held)


@pytest.mark.parametrize("compression", Compression)
async def test_buffers_and_decoders_are_of_the_budget(compression: Compression) -> None:
    budget = MemoryBudget()
    memory = MemoryPackedStore()
    memory.blobs[NAME] = blob = packed(CONTENT, compression)
    sink = LookingSink(budget)
    store = UnpackingStore(memory, limiter=trio.CapacityLimiter(2), budget=budget)
    await store.pull(NAME, sink)
    decoder = foresee_memory(memoryview(blob))
    assert (decoder == 0) is (compression is Compression.NONE)
    assert min(sink.seen) >= decoder + min(64 << 10, len(blob))
    assert budget.held == 0


async def test_a_later_frame_with_a_larger_window_is_counted() -> None:
    budget = MemoryBudget()
    blob = header(b"ZSTD", len(CONTENT))
    for part, window in ((CONTENT[:MIB], 10), (CONTENT[MIB:], 20)):
        parameters = zstandard.ZstdCompressionParameters(window_log=window)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        blob += compressor.compress(part) + compressor.flush()
    memory = MemoryPackedStore()
    memory.blobs[NAME] = blob
    sink = LookingSink(budget)
    store = UnpackingStore(memory, limiter=trio.CapacityLimiter(2), budget=budget)
    await store.pull(NAME, sink)
    assert sink.seen[0] < MIB < sink.seen[-1]
    assert budget.held == 0


@pytest.mark.parametrize("compression", Compression)
async def test_two_pulls_and_an_upload_take_turns_where_there_is_no_memory(
    compression: Compression,
) -> None:
    budget = MemoryBudget(0)
    memory = MemoryPackedStore()
    memory.blobs[NAME] = packed(CONTENT, compression)
    store = UnpackingStore(
        memory, limiter=trio.CapacityLimiter(2), budget=budget, compression=compression
    )
    other = content_of(3 * MIB, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.pull, NAME, CountingSink())
        nursery.start_soon(store.pull, NAME, CountingSink())
        nursery.start_soon(put, store, other)
    assert await pull(store, hash_bytes(other)) == other
    assert budget.held == 0


@pytest.mark.parametrize("wrong", WRONG)
async def test_nothing_is_held_after_an_error(wrong: str) -> None:
    budget = MemoryBudget()
    memory = MemoryPackedStore()
    memory.blobs[NAME] = WRONG[wrong][0]
    store = UnpackingStore(memory, limiter=trio.CapacityLimiter(2), budget=budget)
    with pytest.raises(CorruptBlob):
        await store.pull(NAME, CountingSink())
    assert budget.held == 0
