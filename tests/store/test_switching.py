"""A store takes the place of another one, and what is under way ends where it began."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, UsageError
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, ContentStore
from cafsfs.store.memory import MemorySink, MemorySource, MemoryStore
from cafsfs.store.switching import Succession, SwitchingStore
from tests.store.scripted import ScriptedStore

CONTENT = b"content"
DIGEST = hash_bytes(CONTENT)


async def test_what_is_under_way_ends_where_it_began() -> None:
    former, later = ScriptedStore(CONTENT), ScriptedStore()
    former.gate = trio.Event()
    store, sink = SwitchingStore(former), MemorySink()
    switched = trio.Event()

    async def switch() -> None:
        await store.switch(later)
        switched.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.pull, DIGEST, sink)
        await wait_all_tasks_blocked()
        nursery.start_soon(switch)
        await wait_all_tasks_blocked()
        assert not switched.is_set()
        with pytest.raises(BlobNotFound):
            await store.stat(DIGEST)  # the later one is asked at once
        former.gate.set()
    assert switched.is_set()
    assert sink.content == CONTENT


async def test_who_has_nothing_to_do_is_left_at_once() -> None:
    former, later = ScriptedStore(), ScriptedStore(CONTENT)
    store = SwitchingStore(former)
    with pytest.raises(BlobNotFound):
        await store.stat(DIGEST)
    await store.switch(later)
    assert (await store.stat(DIGEST)).size == len(CONTENT)
    assert store.current is later


async def test_a_pull_that_is_cancelled_holds_nobody() -> None:
    former = ScriptedStore(CONTENT)
    former.gate = trio.Event()
    store = SwitchingStore(former)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.pull, DIGEST, MemorySink())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await store.switch(MemoryStore())


async def test_every_verb_is_passed_on() -> None:
    store = SwitchingStore(MemoryStore())
    await store.put(DIGEST, MemorySource(CONTENT))
    assert await store.find_missing([DIGEST]) == set()
    assert await store.find_unseen([DIGEST]) == (set(), None)
    told: dict[Digest, BlobStat] = {}
    assert await store.stat_many([DIGEST], told.__setitem__) == {}
    assert told[DIGEST].size == len(CONTENT)
    assert await store.pull_many([]) == {}


class Openings:
    """Opens stores, and notes which are open."""

    def __init__(self) -> None:
        self.open: set[ContentStore] = set()

    @asynccontextmanager
    async def of(self, store: ContentStore | None) -> AsyncIterator[ContentStore]:
        """As the network of a mount does: with tasks beside it."""
        async with trio.open_nursery() as nursery:
            if store is None:
                raise UsageError("the secret cannot be read")
            self.open.add(store)
            yield store
            self.open.remove(store)
            nursery.cancel_scope.cancel()


async def test_a_former_store_is_closed_when_nobody_waits_for_it() -> None:
    former, later, openings = ScriptedStore(CONTENT), MemoryStore(), Openings()
    former.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        succession = Succession(nursery)
        await succession.begin(openings.of(former))
        async with trio.open_nursery() as pulling:
            pulling.start_soon(succession.store.pull, DIGEST, MemorySink())
            await wait_all_tasks_blocked()
            await succession.renew(openings.of(later))
            await wait_all_tasks_blocked()
            assert succession.store.current is later
            assert openings.open == {former, later}
            former.gate.set()
        await wait_all_tasks_blocked()
        assert openings.open == {later}
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_opened_takes_no_place() -> None:
    first, openings = MemoryStore(), Openings()
    async with trio.open_nursery() as nursery:
        succession = Succession(nursery)
        await succession.begin(openings.of(first))
        with pytest.raises(UsageError, match="cannot be read"):
            await succession.renew(openings.of(None))
        assert succession.store.current is first
        assert openings.open == {first}
        nursery.cancel_scope.cancel()
