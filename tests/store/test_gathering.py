"""GatheringStore: who comes when all places are taken shares a batch, and nothing but that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, ConnectionBroken, StoreError, Unavailable
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import BlobStat, ContentSink, Failures, Wanted
from cafsfs.store.gathering import GatheringStore
from cafsfs.store.memory import MemorySink
from tests.store.samples import ABSENT, CallingSink, FullDisk, content_of
from tests.store.scripted import ScriptedStore

CONTENTS = [content_of(1000, variant) for variant in range(1, 200)]
DIGESTS = [hash_bytes(each) for each in CONTENTS]


class Upstream(ScriptedStore):
    """Calls its sinks in threads; ``batches``: the digests of each. Those wait at ``batch_gate``,
    and at ``end_gate`` when ``ending``.

    ``begun``: the first of them is here. ``crash``: raised by the next batch, which is a bug.
    """

    def __init__(self) -> None:
        super().__init__(*CONTENTS)
        self.opened = trio.Event()
        self.gate = self.opened
        self.batch_gate = trio.Event()
        self.batch_gate.set()
        self.ending = trio.Event()
        self.end_gate = trio.Event()
        self.end_gate.set()
        self.batches: list[list[Digest]] = []
        self.begun = trio.Event()
        self.alone: list[Digest] = []
        self.crash: Exception | None = None

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        if not any(digest in batch for batch in self.batches):
            self.alone.append(digest)
        await self._begin("pull")
        content = self._get(digest)
        await trio.to_thread.run_sync(sink.restart)
        await trio.to_thread.run_sync(sink.write, content)
        return BlobStat(size=len(content), source="scripted")

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        assert at_once == 1
        self.batches.append([each.digest for each in wanted])
        self.begun.set()
        await self._wait(self.batch_gate)
        if self.crash is not None:
            raise self.crash
        failures = await super().pull_many(wanted, at_once=at_once)
        self.ending.set()
        await self._wait(self.end_gate)
        return failures


class Pull:
    """A pull as a task."""

    def __init__(self, nursery: trio.Nursery, store: GatheringStore, digest: Digest) -> None:
        self.sink: ContentSink = MemorySink()
        self.digest = digest
        self.outcome: BlobStat | Exception | None = None
        self.scope = trio.CancelScope()
        self._store = store
        self._nursery = nursery

    def start(self) -> None:
        self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self.outcome = await self._store.pull(self.digest, self.sink)
            except Exception as error:
                self.outcome = error

    def left(self) -> bool:
        return self.scope.cancelled_caught

    @property
    def content(self) -> bytes:
        assert isinstance(self.sink, MemorySink)
        return bytes(self.sink.content)


class Scene:
    """``first`` hold all places until ``upstream.opened`` is set; ``others`` wait for one."""

    def __init__(
        self, nursery: trio.Nursery, *, at_once: int = 1, callers: trio.Nursery | None = None
    ) -> None:
        self.upstream = Upstream()
        self.store = GatheringStore(self.upstream, nursery, at_once=at_once)
        self._callers = callers or nursery
        self.first = [Pull(self._callers, self.store, each) for each in DIGESTS[:at_once]]
        self.others: list[Pull] = []

    async def begin(self, count: int, change: Callable[[list[Pull]], object] = len) -> None:
        """``count`` others come, one after the other; ``change`` is called with them before."""
        for each in self.first:
            each.start()
        await wait_all_tasks_blocked()
        digests = DIGESTS[len(self.first) :][:count]
        self.others = [Pull(self._callers, self.store, each) for each in digests]
        change(self.others)
        for each in self.others:
            each.start()
            await wait_all_tasks_blocked()
        assert self.upstream.batches == []

    def assert_came(self, *pulls: Pull) -> None:
        for each in pulls:
            assert isinstance(each.outcome, BlobStat), each.outcome
            assert each.outcome.size == 1000
            assert hash_bytes(each.content) == each.digest


async def test_those_beyond_come_in_one_batch() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(5)
        assert repr(scene.store) == "<GatheringStore under_way=1 waiting=5>"
        scene.upstream.opened.set()
    assert scene.upstream.batches == [DIGESTS[1:6]]
    assert scene.upstream.alone == DIGESTS[:1]
    scene.assert_came(*scene.first, *scene.others)
    assert repr(scene.store) == "<GatheringStore under_way=0 waiting=0>"


async def test_who_finds_a_place_goes_alone() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, at_once=4)
        await scene.begin(0)
        scene.upstream.opened.set()
    assert scene.upstream.batches == []
    scene.assert_came(*scene.first)


async def test_each_place_takes_a_fair_share_and_no_batch_is_too_long() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, at_once=2)
        await scene.begin(190)
        scene.upstream.opened.set()
    sizes = sorted(map(len, scene.upstream.batches), reverse=True)
    assert sizes[:3] == [64, 63, 32]
    scene.assert_came(*scene.first, *scene.others)


async def test_each_has_his_own_error() -> None:
    full = FullDisk()
    contradiction = RuntimeError("readers have seen something else")

    def contradict() -> None:
        raise contradiction

    def change(others: list[Pull]) -> None:
        others[0].sink = full
        others[1].digest = ABSENT
        others[2].sink = CallingSink(contradict)

    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(5, change)
        scene.upstream.opened.set()
    assert scene.others[0].outcome is full.error
    assert isinstance(scene.others[1].outcome, BlobNotFound)
    assert scene.others[2].outcome is contradiction
    scene.assert_came(*scene.others[3:])


async def test_a_connection_that_breaks_is_told_to_whom_it_hits() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(3)
        scene.upstream.errors = [ConnectionBroken("gone")] * 2
        scene.upstream.opened.set()
    assert isinstance(scene.first[0].outcome, ConnectionBroken)
    came = [each for each in scene.others if isinstance(each.outcome, BlobStat)]
    assert len(came) == 2
    scene.assert_came(*came)


async def test_who_leaves_the_queue_is_not_asked_for() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(3)
        scene.others[1].scope.cancel()
        await wait_all_tasks_blocked()
        scene.upstream.opened.set()
    assert scene.upstream.batches == [[DIGESTS[1], DIGESTS[3]]]
    scene.assert_came(scene.others[0], scene.others[2])


async def test_who_leaves_a_batch_is_left_alone_and_the_others_come() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(3)
        scene.upstream.batch_gate = trio.Event()
        scene.upstream.opened.set()
        await scene.upstream.begun.wait()
        scene.others[0].scope.cancel()
        await wait_all_tasks_blocked()
        assert scene.others[0].left()
        scene.upstream.batch_gate.set()
    assert scene.others[0].content == b""
    scene.assert_came(*scene.others[1:])


@pytest.mark.parametrize("on_the_loop", [False, True])
async def test_a_sink_is_not_touched_when_its_pull_has_ended(on_the_loop: bool) -> None:
    """Nor does the event loop wait for it meanwhile: it may be what the sink waits for.

    He is the first of his batch, which so is not given up when he leaves.
    """
    reached, go_on = trio.Event(), trio.Event()
    thread_may_go = threading.Event()

    def wait() -> None:
        trio.from_thread.run_sync(reached.set)
        if on_the_loop:
            trio.from_thread.run(go_on.wait)
        else:
            assert thread_may_go.wait(5)

    def change(others: list[Pull]) -> None:
        others[0].sink = CallingSink(wait)

    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(3, change)
        scene.upstream.opened.set()
        await reached.wait()
        scene.others[0].scope.cancel()
        await wait_all_tasks_blocked()
        assert not scene.others[0].left()
        go_on.set()
        thread_may_go.set()
    assert scene.others[0].left()
    scene.assert_came(*scene.others[1:])


async def test_a_batch_for_nobody_is_given_up() -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(2)
        scene.upstream.batch_gate = trio.Event()
        scene.upstream.opened.set()
        await scene.upstream.begun.wait()
        for each in scene.others:
            each.scope.cancel()
    assert scene.upstream.cancelled == 1
    assert repr(scene.store) == "<GatheringStore under_way=0 waiting=0>"


async def test_a_batch_whose_callers_have_what_they_want_comes_to_its_end() -> None:
    """Its connection is of use for the next one."""
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(2)
        scene.upstream.end_gate = trio.Event()
        scene.upstream.opened.set()
        await scene.upstream.ending.wait()
        await wait_all_tasks_blocked()
        scene.assert_came(*scene.others)
        scene.upstream.end_gate.set()
    assert scene.upstream.cancelled == 0


async def test_whose_batches_are_stopped_is_told() -> None:
    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        scene = Scene(nursery, callers=callers)
        await scene.begin(70)
        scene.upstream.batch_gate = trio.Event()
        scene.upstream.opened.set()
        await scene.upstream.begun.wait()
        nursery.cancel_scope.cancel()
    assert {type(each.outcome) for each in scene.others} == {Unavailable}


async def test_a_bug_is_a_failure_of_its_batch(expect_log: Callable[[str], None]) -> None:
    expect_log("a batch of pulls failed")
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin(2)
        scene.upstream.crash = ValueError("a bug")
        scene.upstream.opened.set()
    assert [type(each.outcome) for each in scene.others] == [StoreError, StoreError]
    scene.upstream.crash = None
    sink = MemorySink()
    assert (await scene.store.pull(DIGESTS[0], sink)).size == 1000


async def test_all_else_passes_through() -> None:
    async with trio.open_nursery() as nursery:
        store = GatheringStore(ScriptedStore(*CONTENTS), nursery, at_once=1)
        assert await store.find_missing([DIGESTS[0], ABSENT]) == {ABSENT}
        assert (await store.stat(DIGESTS[0])).size == 1000
        told: dict[Digest, BlobStat] = {}
        assert list(await store.stat_many([DIGESTS[0], ABSENT], told.__setitem__)) == [ABSENT]
        assert told[DIGESTS[0]].size == 1000
