"""Several places of the same content: who is asked, and what is raised when none has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import product

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    CorruptBlob,
    ServerRefused,
    StoreError,
    Unreachable,
)
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import ContentStore, Wanted
from cafsfs.store.memory import MemorySource
from tests.store.routes import routed
from tests.store.samples import ABSENT, FullDisk, MemoryDestination, pull, pull_many, stat_many
from tests.store.scripted import ScriptedStore

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)
ORDERS = [
    order for count in (1, 2, 3) for order in product(("ok", "absent", "failed"), repeat=count)
]


def make(outcome: str) -> ScriptedStore:
    store = ScriptedStore(*([CONTENT] if outcome == "ok" else []))
    if outcome == "failed":
        store.errors = [Unreachable("nobody is there")]
    return store


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        routed()


DOWN = "WARNING cafsfs.store.router: . is down, the others are asked: nobody is there"

VERBS: dict[str, Callable[[ContentStore, Digest], Awaitable[object]]] = {
    "stat": lambda store, digest: store.stat(digest),
    "pull": pull,
    "stat_many": stat_many,
    "pull_many": pull_many,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_absent_only_if_all_say_so(
    order: tuple[str, ...], verb: str, expect_log: Callable[[str], None]
) -> None:
    stores = [make(outcome) for outcome in order]
    store = routed(*stores)
    operation = VERBS[verb](store, DIGEST)
    asked = order.index("ok") + 1 if "ok" in order else len(order)
    if "failed" in order[: min(asked, len(order) - 1)]:
        expect_log("WARNING cafsfs.store.routing: going on with the next server: nobody")
    if "failed" in order[:asked] and len(order) > 1:
        expect_log(DOWN)
    if "ok" in order:
        await operation
    elif "failed" in order:
        with pytest.raises(Unreachable):
            await operation
    else:
        with pytest.raises(BlobNotFound):
            await operation
    assert [len(store.calls) for store in stores] == [1] * asked + [0] * (len(order) - asked)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_find_missing_needs_an_answer_of_all(
    order: tuple[str, ...], expect_log: Callable[[str], None]
) -> None:
    if "failed" in order and len(order) > 1:
        expect_log(DOWN)
    store = routed(*(make(outcome) for outcome in order))
    if "failed" in order:
        with pytest.raises(Unreachable):
            await store.find_missing([DIGEST, ABSENT])
    else:
        missing = {ABSENT} if "ok" in order else {DIGEST, ABSENT}
        assert await store.find_missing([DIGEST, ABSENT]) == missing
    if "ok" in order:
        store = routed(*(make(outcome) for outcome in order))
        assert await store.find_missing([DIGEST]) == set()


async def test_find_missing_asks_only_for_what_is_still_missing() -> None:
    first, second, third = ScriptedStore(b"1"), ScriptedStore(b"2"), ScriptedStore(b"3")
    store = routed(first, second, third)
    assert await store.find_missing([hash_bytes(b"1"), hash_bytes(b"2")]) == set()
    assert third.calls == []


@pytest.mark.parametrize("graver", [CorruptBlob, ServerRefused, StoreError])
@pytest.mark.parametrize("graver_first", [True, False])
async def test_of_two_failures_the_one_that_tells_more(
    graver: type[CafsError], graver_first: bool, expect_log: Callable[[str], None]
) -> None:
    expect_log("going on")
    expect_log(DOWN)
    stores = [make("failed"), make("failed"), make("failed")]
    stores[0 if graver_first else 1].errors = [graver("tells more")]
    with pytest.raises(graver, match="tells more"):
        await pull(routed(*stores), DIGEST)
    stores = [make("failed"), make("failed")]
    stores[0 if graver_first else 1].errors = [graver("tells more")]
    with pytest.raises(graver, match="tells more"):
        await routed(*stores).find_missing([DIGEST])


async def test_wrong_bytes_of_one_are_no_fault_of_the_next(
    expect_log: Callable[[str], None],
) -> None:
    expect_log("going on with the next server: wrong bytes")
    first, second = make("ok"), make("ok")
    first.errors = [CorruptBlob("wrong bytes")]
    assert await pull(routed(first, second), DIGEST) == CONTENT


async def test_wrong_content_is_wrong_everywhere() -> None:
    first, second = ScriptedStore(), ScriptedStore()
    first.errors = [CorruptBlob("it changed")]
    with pytest.raises(CorruptBlob):
        await routed(first, second).put(DIGEST, MemorySource(CONTENT))
    assert second.calls == []


async def test_a_full_disk_here_is_no_reason_to_ask_another() -> None:
    second = make("ok")
    with pytest.raises(OSError, match="No space"):
        await routed(make("ok"), second).pull(DIGEST, FullDisk())
    assert second.calls == []


async def test_of_a_batch_the_next_store_is_asked_for_what_is_left(
    expect_log: Callable[[str], None],
) -> None:
    contents = [b"%d" % number for number in range(5)]
    first, second = ScriptedStore(*contents[:3]), ScriptedStore(*contents[1:4])
    first.errors = [ServerRefused("it is tired")]
    expect_log("WARNING cafsfs.store.routing: going on with the next server: it is tired")
    wanted = [Wanted(hash_bytes(each), MemoryDestination()) for each in contents]
    failures = await routed(first, second).pull_many(wanted, at_once=1)
    assert {each: type(error) for each, error in failures.items()} == {
        wanted[0]: ServerRefused,  # nobody has said that it is nowhere
        wanted[4]: BlobNotFound,
    }
    assert (len(first.calls), len(second.calls)) == (5, 3)
