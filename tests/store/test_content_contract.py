"""Each sentence of ContentStore's docstrings, for every implementation and stack."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, Wanted
from cafsfs.store.memory import MemorySink, MemorySource
from tests.store.samples import (
    ABSENT,
    MIB,
    SIZES,
    CallingSink,
    CallingSource,
    EndsEarly,
    FullDisk,
    MemoryDestination,
    ShortReads,
    content_of,
    descriptors,
    eventually,
    pull,
    put,
    strays,
)
from tests.store.stacks import CONTENT_STACKS, PROCESS, ContentStack


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.process] if name in PROCESS else [])
        for name in CONTENT_STACKS
    ]
)
async def stack(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentStack]:
    async with CONTENT_STACKS[request.param](tmp_path) as made:
        yield made


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_put_is_pulled(stack: ContentStack, size: int) -> None:
    content = content_of(size)
    digest = await put(stack.store, content)
    sink = MemorySink()
    stat = await stack.store.pull(digest, sink)
    assert sink.content == content
    assert stat.size == size


@pytest.mark.parametrize("size", SIZES)
async def test_stat_tells_the_size_or_leaves_it_to_a_pull(stack: ContentStack, size: int) -> None:
    digest = await put(stack.store, content_of(size))
    told = (await stack.store.stat(digest)).size
    if stack.tells_sizes:
        assert told == size
    else:
        assert told in {None, size}


async def test_an_absent_blob_is_not_found(stack: ContentStack) -> None:
    with pytest.raises(BlobNotFound):
        await stack.store.stat(ABSENT)
    with pytest.raises(BlobNotFound) as caught:
        await stack.store.pull(ABSENT, MemorySink())
    assert caught.value.hash == ABSENT.hex


async def test_put_tells_who_has_it(stack: ContentStack) -> None:
    content = content_of(100)
    for _ in range(2):  # storing what is there already is fine
        names = await stack.store.put(hash_bytes(content), MemorySource(content))
        assert len(names) == 1
        assert all(names)


async def test_find_missing_of_nothing(stack: ContentStack) -> None:
    assert await stack.store.find_missing([]) == set()


async def test_find_missing_of_many(stack: ContentStack) -> None:
    present = {await put(stack.store, content_of(100, variant)) for variant in range(1, 8)}
    absent = {Digest(secrets.token_bytes(32)) for _ in range(2500)}
    assert await stack.store.find_missing(present | absent) == absent
    assert await stack.store.find_missing(present) == set()


async def test_a_batch_is_pulled_and_an_error_hits_its_own_blob_only(stack: ContentStack) -> None:
    contents = [content_of(size, variant) for variant, size in enumerate((0, 1, 9, 5000, 2 * MIB))]
    wanted = [Wanted(await put(stack.store, each), MemoryDestination()) for each in contents]
    absent = Wanted(ABSENT, MemoryDestination())
    again = Wanted(wanted[0].digest, MemoryDestination())
    batch = [wanted[0], absent, *wanted[1:], again]
    failures = await stack.store.pull_many(batch, at_once=2)
    assert list(failures) == [absent]
    assert isinstance(failures[absent], BlobNotFound)
    for each, content in zip([*wanted, again], [*contents, contents[0]], strict=True):
        assert isinstance(each.destination, MemoryDestination)
        assert each.destination.ended[-1] == "committed"
        assert each.destination.content == content
    assert await stack.store.pull_many([]) == {}


async def test_a_batch_is_measured_and_an_error_hits_its_own_blob_only(stack: ContentStack) -> None:
    sizes = {await put(stack.store, content_of(size)): size for size in (0, 1, 5000, 2 * MIB)}
    digests = list(sizes)
    told: dict[Digest, BlobStat] = {}
    failures = await stack.store.stat_many([digests[0], ABSENT, *digests[1:]], told.__setitem__)
    assert list(failures) == [ABSENT]
    assert isinstance(failures[ABSENT], BlobNotFound)
    assert told.keys() == sizes.keys()
    for digest, size in sizes.items():
        assert told[digest].size in ({size} if stack.tells_sizes else {size, None})
    assert await stack.store.stat_many([], told.__setitem__) == {}


async def test_a_full_disk_is_the_error_of_one_destination(stack: ContentStack) -> None:
    class Full(MemoryDestination):
        def commit(self, stat: BlobStat, /) -> None:
            raise FullDisk().error

    content = content_of(5000)
    digest = await put(stack.store, content)
    full, good = Wanted(digest, Full()), Wanted(digest, MemoryDestination())
    failures = await stack.store.pull_many([full, good])
    assert list(failures) == [full]
    assert isinstance(failures[full], OSError)


async def test_putting_what_is_there_already_is_fine(stack: ContentStack) -> None:
    content = content_of(100_000)
    digest = await put(stack.store, content)
    assert await put(stack.store, content) == digest
    assert await pull(stack.store, digest) == content


@pytest.mark.parametrize("size", [0, 1, 2 * MIB])
async def test_wrong_content_is_corrupt_and_not_stored(
    stack: ContentStack, tmp_path: Path, size: int
) -> None:
    digest = hash_bytes(content_of(2 * MIB, 1))
    with pytest.raises(CorruptBlob):
        await stack.store.put(digest, MemorySource(content_of(size)))
    await _assert_absent(stack, digest)
    assert await eventually(lambda: not strays(tmp_path))


async def test_a_source_that_ends_early_is_corrupt(stack: ContentStack) -> None:
    digest = hash_bytes(content_of(2 * MIB + 1))
    with pytest.raises(CorruptBlob):
        await stack.store.put(digest, EndsEarly(content_of(2 * MIB)))
    await _assert_absent(stack, digest)


async def test_a_source_may_give_less_than_asked(stack: ContentStack) -> None:
    content = content_of(MIB + 5)
    await stack.store.put(hash_bytes(content), ShortReads(content))
    assert await pull(stack.store, hash_bytes(content)) == content


@pytest.mark.parametrize("size", [1, 3 * MIB])
async def test_corrupted_stored_bytes_are_not_handed_out(
    stack: ContentStack, size: int, expect_log: Callable[[str], None]
) -> None:
    if stack.spoil is None:
        pytest.skip("nobody can get at what it has stored")
    if stack.warns is not None:
        expect_log(stack.warns)
    digest = await put(stack.store, content_of(size))
    stack.spoil(digest)
    with pytest.raises(CorruptBlob):
        await stack.store.pull(digest, MemorySink())


async def test_a_pull_begins_its_sink_anew(stack: ContentStack) -> None:
    sink = MemorySink()
    for content in (content_of(2 * MIB), content_of(70_000), b""):
        await stack.store.pull(await put(stack.store, content), sink)
        assert sink.content == content


async def test_the_error_of_a_sink_passes_as_it_is(stack: ContentStack) -> None:
    content = content_of(2 * MIB)
    digest = await put(stack.store, content)
    full = FullDisk()
    with pytest.raises(OSError, match="No space") as caught:
        await stack.store.pull(digest, full)
    assert caught.value is full.error
    assert await pull(stack.store, digest) == content


async def test_several_pulls_at_once(stack: ContentStack) -> None:
    contents = [content_of(size, variant) for variant, size in enumerate((10, 70_000, MIB, 0), 1)]
    pulled: list[bytes] = []

    async def pull_one(digest: Digest) -> None:
        pulled.append(await pull(stack.store, digest))

    digests = [await put(stack.store, content) for content in contents]
    async with trio.open_nursery() as nursery:
        for digest in digests * 5:
            nursery.start_soon(pull_one, digest)
    assert sorted(pulled) == sorted(contents * 5)


async def test_a_cancelled_pull_leaves_nothing(stack: ContentStack, tmp_path: Path) -> None:
    content = content_of(5 * MIB)
    digest = await put(stack.store, content)
    other = await put(stack.store, content_of(100, 1))
    await pull(stack.store, other)
    before = descriptors()
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:
        await stack.store.pull(digest, CallingSink(lambda: token.run_sync_soon(scope.cancel)))
    # A cancelled connection is closed, and the server closes its end.
    assert await eventually(lambda: descriptors() <= before and not strays(tmp_path))
    assert await pull(stack.store, digest) == content


async def test_a_cancelled_put_leaves_nothing(stack: ContentStack, tmp_path: Path) -> None:
    content = content_of(5 * MIB)
    digest = hash_bytes(content)
    await pull(stack.store, await put(stack.store, content_of(100, 1)))
    before = descriptors()
    token = trio.lowlevel.current_trio_token()
    source = CallingSource(content, lambda: token.run_sync_soon(scope.cancel))
    with trio.CancelScope() as scope:
        await stack.store.put(digest, source)
    assert await eventually(lambda: descriptors() <= before and not strays(tmp_path))
    await stack.store.put(digest, MemorySource(content))
    assert await pull(stack.store, digest) == content


async def test_nothing_leaks_over_many_operations(stack: ContentStack, tmp_path: Path) -> None:
    digest = await put(stack.store, content_of(MIB + 1))
    await pull(stack.store, digest)
    before = descriptors()
    for _ in range(5):
        await put(stack.store, content_of(MIB + 1))
        await pull(stack.store, digest)
        await stack.store.stat(digest)
        with pytest.raises(BlobNotFound):
            await stack.store.pull(ABSENT, MemorySink())
        with pytest.raises(CorruptBlob):
            await stack.store.put(ABSENT, MemorySource(content_of(MIB + 1)))
        with pytest.raises(OSError, match="No space"):
            await stack.store.pull(digest, FullDisk())
    assert await eventually(lambda: descriptors() <= before and not strays(tmp_path))


async def _assert_absent(stack: ContentStack, digest: Digest) -> None:
    assert await stack.store.find_missing([digest]) == {digest}
    with pytest.raises(BlobNotFound):
        await stack.store.pull(digest, MemorySink())
