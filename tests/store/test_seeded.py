"""A read-only tier in front: it may have the blob, or be wrong, but it is never in the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cafsfs.errors import BlobNotFound, CafsError, CorruptBlob, StoreError, Unreachable
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import Wanted
from cafsfs.store.memory import MemorySource
from cafsfs.store.seeded import SeededStore
from tests.store.samples import ABSENT, MemoryDestination, pull, pull_many, stat_many
from tests.store.scripted import ScriptedStore

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)
OTHER = b"only upstream has this"
WRONG = [StoreError("the disk is sick"), CorruptBlob("wrong bytes"), Unreachable("not mounted")]


async def test_what_the_seed_has_is_asked_of_nobody_else() -> None:
    upstream = ScriptedStore(CONTENT)
    store = SeededStore(ScriptedStore(CONTENT), upstream)
    assert await pull(store, DIGEST) == CONTENT
    assert (await store.stat(DIGEST)).size == len(CONTENT)
    assert await store.find_missing([DIGEST]) == set()
    assert upstream.calls == []


@pytest.mark.parametrize("error", WRONG, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("verb", ["stat", "pull", "stat_many", "pull_many", "find_missing"])
async def test_whatever_is_wrong_with_the_seed_is_a_miss(
    verb: str, error: CafsError, expect_log: Callable[[str], None]
) -> None:
    seed = ScriptedStore(CONTENT)
    seed.errors = [error]
    store = SeededStore(seed, ScriptedStore(CONTENT))
    expect_log(f"WARNING cafsfs.store.seeded: the seed is passed over: {error}")
    match verb:
        case "stat":
            assert (await store.stat(DIGEST)).size == len(CONTENT)
        case "pull":
            assert await pull(store, DIGEST) == CONTENT
        case "stat_many":
            assert (await stat_many(store, DIGEST)).size == len(CONTENT)
        case "pull_many":
            assert await pull_many(store, DIGEST) == CONTENT
        case _:
            assert await store.find_missing([DIGEST, ABSENT]) == {ABSENT}


async def test_what_the_seed_lacks_is_upstreams_to_tell() -> None:
    upstream = ScriptedStore(OTHER)
    store = SeededStore(ScriptedStore(CONTENT), upstream)
    assert await pull(store, hash_bytes(OTHER)) == OTHER
    with pytest.raises(BlobNotFound):
        await store.stat(ABSENT)
    upstream.errors = [Unreachable("nobody is there")]
    with pytest.raises(Unreachable):  # nobody could tell: not a word of it being absent
        await pull(store, ABSENT)


async def test_a_sick_seed_does_not_make_a_blob_more_than_absent(
    expect_log: Callable[[str], None],
) -> None:
    seed = ScriptedStore()
    seed.errors = [StoreError("the disk is sick")]
    expect_log("WARNING cafsfs.store.seeded: the seed is passed over: the disk is sick")
    with pytest.raises(BlobNotFound):
        await SeededStore(seed, ScriptedStore()).stat(ABSENT)


async def test_nothing_is_put_into_the_seed() -> None:
    seed, upstream = ScriptedStore(), ScriptedStore()
    await SeededStore(seed, upstream).put(DIGEST, MemorySource(CONTENT))
    assert seed.calls == []
    assert upstream.blobs == {DIGEST: CONTENT}


async def test_of_a_batch_upstream_is_asked_for_the_rest() -> None:
    class Full(MemoryDestination):
        def write(self, data: bytes | memoryview, /) -> None:
            raise OSError(28, "No space left on device")

    upstream = ScriptedStore(CONTENT, OTHER)
    store = SeededStore(ScriptedStore(CONTENT), upstream)
    batch = [Wanted(DIGEST, MemoryDestination()), Wanted(hash_bytes(OTHER), MemoryDestination())]
    assert await store.pull_many(batch) == {}
    assert upstream.calls == ["pull"]
    full = Wanted(DIGEST, Full())  # nobody else is asked: it is the destination's fault
    assert [type(error) for error in (await store.pull_many([full])).values()] == [OSError]
    assert upstream.calls == ["pull"]
