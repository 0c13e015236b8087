"""The cache and its upkeep against a model: two processes, kills, power cuts, hands in the files.

What must hold however these follow each other: every byte that is served is right, what stands
whole in the directory is found, pins stay, bounds are held unless what is open or pinned forbids
it, and after a walk over the files the books are what is on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cafsfs.errors import BlobNotFound, StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import curation, trust
from cafsfs.store.cache.blob_files import PINNED
from cafsfs.store.cache.bounds import excess
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.local_root import blob_path
from tests.store.samples import content_of, pull, put
from tests.store.stacks import Caches, upkeep_of

T = TypeVar("T")

CONTENTS = [content_of(size, variant) for variant, size in enumerate((0, 10, 100, 9000), 1)]
DIGESTS = [hash_bytes(content) for content in CONTENTS]
BLOBS = st.integers(0, len(CONTENTS) - 1)
BOUNDS = st.sampled_from([0, 60, 109, 9050, 20_000])
PROCESSES = st.integers(0, 1)
PLACES = st.integers(0, 10_000)


class CacheMachine(RuleBasedStateMachine):
    """``zeroed``: what a power cut has left of some files; ``unsynced``: what one would zero."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.caches = Caches()
        self.processes: dict[int, DiskCache] = {}
        self.held: dict[int, list[tuple[int, CachedFile]]] = {0: [], 1: []}
        self.bounds = {0: 20_000, 1: 20_000}
        self.boot = 0
        self.zeroed: set[int] = set()
        self.unsynced: set[int] = set()
        self.pinned: set[int] = set()

    def teardown(self) -> None:
        for process in list(self.processes):
            self.kill(process)
        self.caches.close()
        shutil.rmtree(self.directory)

    def path(self, blob: int) -> Path:
        return blob_path(self.directory / "blobs", DIGESTS[blob])

    def standing(self) -> set[int]:
        return {blob for blob in range(len(CONTENTS)) if self.path(blob).exists()}

    def started(self, process: int) -> DiskCache:
        if process not in self.processes:
            with mock.patch.object(trust, "boot_id", return_value=f"boot {self.boot}"):
                self.processes[process] = self.caches.open(self.directory, self.bounds[process])
        return self.processes[process]

    def run(self, process: int, work: Callable[[DiskCache], Awaitable[T]]) -> T:
        cache = self.started(process)

        async def main() -> T:
            return await work(cache)

        return trio.run(main)

    # --- what a process does

    @initialize(bounds=st.tuples(BOUNDS, BOUNDS))
    def choose_bounds(self, bounds: tuple[int, int]) -> None:
        """Each process may have one of its own."""
        self.bounds = dict(enumerate(bounds))

    @rule(process=PROCESSES, blob=BLOBS, flush=st.booleans())
    def put(self, process: int, blob: int, *, flush: bool) -> None:
        fresh = blob not in self.standing() or blob in self.zeroed
        self.run(process, lambda cache: put(cache, CONTENTS[blob]))
        assert self.path(blob).read_bytes() == CONTENTS[blob]
        self.zeroed.discard(blob)
        if fresh:
            self.unsynced.add(blob)
        if flush:
            self.flush(process)

    @rule(process=PROCESSES, blob=BLOBS, offset=PLACES, length=PLACES)
    def read(self, process: int, blob: int, offset: int, length: int) -> None:
        async def read(cache: DiskCache) -> None:
            file = await cache.open(DIGESTS[blob])
            try:
                expected = CONTENTS[blob][offset : offset + length]
                assert await file.read(offset, length) == expected
            finally:
                file.close()

        self._served(process, blob, read)

    def pull(self, process: int, blob: int) -> None:
        async def pull_it(cache: DiskCache) -> None:
            assert await pull(cache, DIGESTS[blob]) == CONTENTS[blob]

        self._served(process, blob, pull_it)

    def ask(self, process: int, blob: int) -> None:
        """A size is told from memory, or from the index: right, even if the bytes are not."""

        async def ask(cache: DiskCache) -> int | None:
            try:
                return (await cache.stat(DIGESTS[blob])).size
            except BlobNotFound:
                return None

        size = self.run(process, ask)
        assert size in {None, len(CONTENTS[blob])}
        if size is None:
            assert blob not in self.standing()
            self.zeroed.discard(blob)

    def hold(self, process: int, blob: int) -> None:
        async def hold(cache: DiskCache) -> None:
            self.held[process].append((blob, await cache.open(DIGESTS[blob])))

        self._served(process, blob, hold)

    @rule(process=PROCESSES, blob=BLOBS, how=st.sampled_from(["pull", "ask", "hold"]))
    def use(self, process: int, blob: int, how: str) -> None:
        match how:
            case "pull":
                self.pull(process, blob)
            case "ask":
                self.ask(process, blob)
            case _:
                self.hold(process, blob)

    def _served(
        self, process: int, blob: int, work: Callable[[DiskCache], Awaitable[None]]
    ) -> None:
        """It is found if it is there, and whole; else it is a miss, and gone."""
        whole = blob in self.standing() - self.zeroed
        try:
            self.run(process, work)
        except BlobNotFound:
            assert not whole
            assert not self.path(blob).exists()
            self.zeroed.discard(blob)
        else:
            assert whole

    @rule(process=PROCESSES)
    def release(self, process: int) -> None:
        async def release(_: DiskCache) -> None:
            while self.held[process]:
                blob, file = self.held[process].pop()
                assert await file.read(0, 10_000) == CONTENTS[blob]
                file.close()

        self.run(process, release)
        assert self.started(process).ledger.lingering == 0

    # --- what its upkeep does

    @rule(process=PROCESSES)
    def round(self, process: int) -> None:
        async def round_(cache: DiskCache) -> None:
            await upkeep_of(cache).flush()
            await cache.measure()
            over = excess(cache.bounds, cache.fill())
            evicted = await upkeep_of(cache).round()
            if not over:
                assert evicted.blobs == 0
            if not excess(cache.bounds, cache.fill()):
                return
            for each in await cache.listing():
                blob = DIGESTS.index(each.digest)
                # What a power cut has zeroed stays pinned until somebody looks at it; and what was
                # pinned and is removed by hand has its row until the next walk over the files.
                stays = self.pinned | (self.zeroed & self.standing())
                stays |= {DIGESTS.index(e) for e in cache.ledger.index.pins()} - self.standing()
                assert blob in stays or blob in {held for held, _ in self.held[process]}
                assert blob not in self.zeroed or self._is_marked(blob)

        self.run(process, round_)

    @rule(process=PROCESSES)
    def flush(self, process: int) -> None:
        self.run(process, lambda cache: upkeep_of(cache).flush())

    @rule(process=PROCESSES)
    def adopt(self, process: int) -> None:
        async def adopt(cache: DiskCache) -> None:
            await upkeep_of(cache).adopt()
            sizes = {DIGESTS[blob]: self.path(blob).stat().st_size for blob in self.standing()}
            assert {each.digest: each.size for each in await cache.listing()} == sizes
            assert (cache.ledger.used, cache.ledger.blobs) == (sum(sizes.values()), len(sizes))
            assert cache.ledger.complete
            marked = {blob for blob in self.standing() if self._is_marked(blob)}
            assert {DIGESTS[blob] for blob in marked} <= set(cache.ledger.index.pins())

        self.run(process, adopt)

    @rule(process=PROCESSES)
    def sync(self, process: int) -> None:
        self.run(process, lambda cache: upkeep_of(cache).sync())
        self.unsynced.clear()

    # --- what a user orders

    @rule(process=PROCESSES, blob=BLOBS)
    def pin(self, process: int, blob: int) -> None:
        try:
            absent = self.run(process, lambda cache: curation.pin(cache, [DIGESTS[blob]]))
        except StoreError:  # more than the bound
            return
        assert absent == ({DIGESTS[blob]} if blob not in self.standing() else set())
        if not absent:
            self.pinned.add(blob)

    @rule(process=PROCESSES, blob=BLOBS)
    def unpin(self, process: int, blob: int) -> None:
        self.run(process, lambda cache: curation.unpin(cache, [DIGESTS[blob]]))
        self.pinned.discard(blob)

    @rule(process=PROCESSES, blob=BLOBS)
    def evict(self, process: int, blob: int) -> None:
        removed = self.run(process, lambda cache: curation.evict(cache, [DIGESTS[blob]]))
        if removed.pinned:
            assert blob not in self.standing() or self._is_marked(blob)
        else:
            assert blob not in self.standing()
            self.zeroed.discard(blob)

    @rule(process=PROCESSES)
    def verify(self, process: int) -> None:
        standing = self.standing()
        done = self.run(process, lambda cache: curation.verify(cache, repair=True, jobs=1))
        wrong = {DIGESTS[blob] for blob in self.zeroed & standing}
        assert done.wrong.keys() == done.discarded == wrong
        assert done.blobs == len(standing)
        self.zeroed.clear()

    # --- what befalls it

    @rule(blob=BLOBS)
    def remove_by_hand(self, blob: int) -> None:
        self.path(blob).unlink(missing_ok=True)
        self.zeroed.discard(blob)
        self.pinned.discard(blob)

    @rule(process=PROCESSES)
    def leave(self, process: int) -> None:
        self.release(process)
        self.run(process, self.caches.leave)
        del self.processes[process]
        self.unsynced.clear()

    @rule(process=PROCESSES)
    def kill(self, process: int) -> None:
        for _, file in self.held[process]:
            file.close()
        self.held[process].clear()
        if process in self.processes:
            self.caches.crash(self.processes.pop(process))

    @rule()
    def cut_power(self) -> None:
        for process in (0, 1):
            self.kill(process)
        self.boot += 1
        for blob in self.unsynced & self.standing():
            path = self.path(blob)
            before = path.stat()
            os.truncate(path, 0)
            os.truncate(path, before.st_size)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            if CONTENTS[blob]:
                self.zeroed.add(blob)

    @rule(process=PROCESSES, blob=BLOBS, synced=st.booleans())
    def write_and_cut_power(self, process: int, blob: int, *, synced: bool) -> None:
        """What chance finds too seldom: nothing between the write, the cut and the read."""
        self.put(process, blob, flush=True)
        if synced:
            self.sync(process)
        self.cut_power()
        self.read(1 - process, blob, 0, 10_000)

    @precondition(lambda self: not self.processes)
    @rule(garbage=st.booleans())
    def lose_index(self, garbage: bool) -> None:
        for each in self.directory.glob("index.sqlite*"):
            each.unlink()
        if garbage:
            (self.directory / "index.sqlite").write_bytes(b"garbage" * 1000)

    # ---

    def _is_marked(self, blob: int) -> bool:
        return self.path(blob).stat().st_mode & 0o777 == PINNED

    @invariant()
    def pins_survive(self) -> None:
        self.pinned -= self.zeroed  # what proves wrong is thrown away, pinned or not
        for blob in self.pinned:
            assert self._is_marked(blob)

    @invariant()
    def nothing_is_in_flight(self) -> None:
        partial = self.directory / "partial"
        assert not partial.exists() or not os.listdir(partial)


def test_as_the_model(expect_log: Callable[[str], None]) -> None:
    expect_log("WARNING cafsfs.store.cache.disk_cache: what the cache had for .* was not its cont")
    expect_log("WARNING cafsfs.store.cache.database: .*")
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(deadline=None, stateful_step_count=40),
    )
    _show_what_is_logged()


def _show_what_is_logged() -> None:
    """What the machine may do or not, done for certain."""
    machine = CacheMachine()
    try:
        machine.put(0, 3, flush=True)
        machine.cut_power()
        machine.read(1, 3, 0, 100)
        machine.cut_power()
        machine.lose_index(garbage=True)
        machine.adopt(0)
    finally:
        machine.teardown()
