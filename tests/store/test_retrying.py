"""What is tried again, and how often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import ContentStore, Wanted
from cafsfs.store.memory import MemorySource
from cafsfs.store.retrying import RetryingStore
from tests.store.samples import FullDisk, MemoryDestination, content_of, pull, pull_many, stat_many
from tests.store.scripted import ScriptedStore

CONTENT = content_of(3000)
DIGEST = hash_bytes(CONTENT)

VERBS: dict[str, Callable[[ContentStore], Awaitable[object]]] = {
    "find_missing": lambda store: store.find_missing([DIGEST]),
    "stat": lambda store: store.stat(DIGEST),
    "pull": lambda store: pull(store, DIGEST),
    "stat_many": lambda store: stat_many(store, DIGEST),
    "pull_many": lambda store: pull_many(store, DIGEST),
    "put": lambda store: store.put(DIGEST, MemorySource(CONTENT)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_a_broken_connection_is_tried_again(verb: str, attempts: int) -> None:
    store = ScriptedStore(CONTENT)
    store.errors = [ConnectionBroken(f"attempt {each}") for each in range(1, attempts)]
    await VERBS[verb](RetryingStore(store, attempts=attempts))
    assert store.calls == [verb.removesuffix("_many")] * attempts


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_the_last_error_is_raised(verb: str, attempts: int) -> None:
    store = ScriptedStore(CONTENT)
    store.errors = [ConnectionBroken(f"attempt {each}") for each in range(1, 9)]
    with pytest.raises(ConnectionBroken, match=f"attempt {attempts}"):
        await VERBS[verb](RetryingStore(store, attempts=attempts))
    assert store.calls == [verb.removesuffix("_many")] * attempts


@pytest.mark.parametrize(
    "error",
    [Unreachable, TimedOut, CorruptBlob, ServerRefused, RemoteProtocolError, BlobNotFound],
)
@pytest.mark.parametrize("verb", VERBS)
async def test_nothing_else_is(verb: str, error: type[CafsError]) -> None:
    store = ScriptedStore(CONTENT)
    store.errors = [error("once")]
    with pytest.raises(error):
        await VERBS[verb](RetryingStore(store, attempts=4))
    assert store.calls == [verb.removesuffix("_many")]


async def test_a_second_attempt_does_not_splice() -> None:
    """What the first attempt wrote before it broke is gone."""
    store = ScriptedStore(CONTENT, step=1000)
    store.breaks = [2, 1]
    assert await pull(RetryingStore(store, attempts=3), DIGEST) == CONTENT
    assert store.calls == ["pull"] * 3


async def test_the_error_of_a_sink_is_not_tried_again() -> None:
    store = ScriptedStore(CONTENT)
    with pytest.raises(OSError, match="No space"):
        await RetryingStore(store, attempts=4).pull(DIGEST, FullDisk())
    assert store.calls == ["pull"]


async def test_of_a_batch_only_those_are_tried_again_that_the_connection_hit() -> None:
    contents = [b"one", b"two", b"three"]
    store = ScriptedStore(*contents)
    store.errors = [ConnectionBroken("once"), ServerRefused("for good")]
    wanted = [Wanted(hash_bytes(each), MemoryDestination()) for each in contents]
    failures = await RetryingStore(store, attempts=4).pull_many(wanted, at_once=1)
    assert [type(each) for each in failures.values()] == [ServerRefused]
    assert list(failures) == [wanted[1]]
    assert store.calls == ["pull"] * 4
