"""Keeping a cache within its bounds, its index true, and its trust on the disk.

All of this happens beside the reads and never holds one up: a task of the process that has the
cache open, and worker threads of its own.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CafsError, StoreError
from cafsfs.metrics import Metrics
from cafsfs.store.cache.blob_files import is_marked
from cafsfs.store.cache.bounds import LOW_WATERMARK, Amount, Bounds, excess
from cafsfs.store.cache.disk_cache import DiskCache, Keeper
from cafsfs.store.cache.durability import since_boot, syncfs
from cafsfs.store.cache.index import Changes, Entry, Index, Totals, works_on
from cafsfs.store.cache.partials import FULL, Shelter
from cafsfs.store.cache.premises import Premises, Session

log = logging.getLogger(__name__)

T = TypeVar("T")

_PERIOD = 2.0  # seconds between two writes of the index, and two looks at the disk
_BACKLOG = 1000  # changes that are written at once
_SYNC_PERIOD = 300.0  # seconds; what is younger is verified again after a power cut
_LAST_SYNC = 10.0  # seconds that an unmount waits for it
_SILENCE = 60.0  # seconds between two complaints of the same
_AGING_PERIOD = 60.0  # seconds between two looks for what is too old
_STEP = 60.0  # seconds by which a clock jumps that was set; adjtime slews by less in a minute
_SETTLED = 600.0  # seconds after that in which nothing expires
_BELIEVED = 3600.0  # seconds without it after which times to come are taken for mistakes
_BATCH = 256  # blobs evicted at once
_DURABLE = 10_000  # rows marked at once
_HEX_NAME = re.compile(r"[0-9a-f]{64}")
_SHARE = 0.25  # of one core for the walk over a cache whose index is not complete


@asynccontextmanager
async def open_disk_cache(
    directory: Path,
    *,
    bounds: Bounds | None = None,
    metrics: Metrics | None = None,
    what: str = "cafsfs",
    background: bool = False,
    keep: bool = True,
) -> AsyncIterator[DiskCache]:
    """A cache in ``directory``, kept within ``bounds`` while it is open.

    ``what`` is shown to who asks who uses it. In the ``background`` pulls give way to those of
    others, who keep the cache within their own bounds. Without ``keep`` nothing is done but what
    the caller does. Raises StoreError for a directory that cannot be used. At the end all that
    was learnt is written to the index; what the disk has within ten seconds is trusted after a
    power cut.
    """
    premises = await trio.to_thread.run_sync(Premises, directory)
    index = await trio.to_thread.run_sync(_open_index, premises)
    cache = DiskCache(
        premises, index, bounds=bounds, metrics=metrics, shelter=Shelter(), background=background
    )
    upkeep = cache.keeper = Upkeep(cache)
    try:
        async with trio.open_nursery() as nursery:
            bound = cache.bounds.size.of(cache.disk[0]) if keep and not background else None
            premises.enter(Session(os.getpid(), what, bound))
            if keep:
                nursery.start_soon(upkeep.run)
            yield cache
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await upkeep.finish(sync=keep)
        index.close()
        premises.close()


def _open_index(premises: Premises) -> Index:
    if premises.read_only is not None:
        log.warning("the cache can only be read: %s", premises.read_only)
        return Index.in_memory()
    if not works_on(premises.fstype):
        log.warning(
            "the cache `%s` is on %s, where its index cannot be kept: what is cached is verified "
            "again after each mount",
            *(premises.directory, premises.fstype),
        )
        return Index.in_memory()
    try:
        return Index.open(premises.index)
    except StoreError as error:
        log.warning("the index of the cache is kept in memory only: %s", error)
        return Index.in_memory()


@dataclass(slots=True)
class Evicted:
    """What an eviction has brought; bytes."""

    blobs: int = 0
    bytes: int = 0


class _Clock:
    """Has somebody set the machine's clock? One without a battery is right only after a while."""

    def __init__(self) -> None:
        self._offset = self._since = 0.0
        self.stepped = False
        self._look()

    def steady_for(self) -> float:
        """Seconds since it was set, or since we look."""
        before = self._offset
        if abs(self._look() - before) > _STEP:
            self.stepped = True
            self._since = since_boot()
        return since_boot() - self._since

    def _look(self) -> float:
        now = since_boot()
        self._since = self._since or now
        self._offset = time.time() - now
        return self._offset


class Upkeep(Keeper):
    """What a cache needs to be done beside the reads."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._ledger = cache.ledger
        self._index = cache.ledger.index
        # One thread for each: a batch that is written holds up no look at the index, and a slow
        # disk that is synced no eviction.
        self._writing = trio.CapacityLimiter(1)
        self._looking = trio.CapacityLimiter(1)
        self._syncing = trio.CapacityLimiter(1)
        self._evicting = trio.Lock()
        self._flushing = trio.Lock()
        self._rebuilds = self._index.rebuilds
        self._aged = float("-inf")
        self._clock = _Clock()
        self._said = ""
        self._silent_until = float("-inf")

    # --- the task

    async def run(self) -> None:
        """Until cancelled; whatever fails is logged, and tried again the next time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._now_and_then, self.sync, _SYNC_PERIOD)
            nursery.start_soon(self._adopt_now_and_then)
            while True:
                cache = self._cache
                with trio.move_on_after(_PERIOD):
                    await cache.wake.wait()
                cache.wake = trio.Event()
                await self._try(self.round)
                if cache.wake.is_set():  # bounds that cannot be held now: not in a busy loop
                    await trio.sleep(_PERIOD / 10)

    async def _now_and_then(self, deed: Callable[[], Awaitable[object]], period: float) -> None:
        while True:
            await trio.sleep(period)
            await self._try(deed)

    async def _adopt_now_and_then(self) -> None:
        await self._try(self._adopt_if_needed)
        await self._now_and_then(self._adopt_if_needed, _AGING_PERIOD)

    async def _try(self, deed: Callable[[], Awaitable[object]]) -> None:
        """Whatever is wrong with the upkeep, the mount goes on."""
        try:
            await deed()
        except CafsError as error:
            self._complain(str(error))
        except Exception:
            log.exception("the upkeep of the cache failed")

    def _complain(self, what: str) -> None:
        """In the log, but not every two seconds while it lasts."""
        now = trio.current_time()
        if what != self._said or now >= self._silent_until:
            log.warning("%s", what)
            self._said, self._silent_until = what, now + _SILENCE

    async def round(self) -> Evicted:
        """Write the index, look at the disk, evict what is over the bounds or too old."""
        failure: StoreError | None = None
        try:
            await self.flush()
        except StoreError as error:  # the bounds hold all the same
            failure = error
        await self._cache.measure()
        evicted = await self.evict()
        if trio.current_time() - self._aged >= _AGING_PERIOD:
            self._aged = trio.current_time()
            await self._expire(evicted)
        if failure is not None:
            raise failure
        return evicted

    async def finish(self, *, sync: bool = True) -> None:
        """Write what is left to be written; with ``sync`` it is trusted after a power cut."""
        try:
            await self.flush()
            if sync:
                with trio.move_on_after(_LAST_SYNC):
                    await self.sync()
        except StoreError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("the upkeep of the cache failed")
        else:
            self._cache.premises.leave()

    # --- the index

    async def flush(self) -> None:
        async with self._flushing:
            changes = self._ledger.begin_flush()

            def write() -> Totals:
                # What another process has brought again since we removed it keeps its row.
                changes.removed = {each for each in changes.removed if not self._has(each)}
                if changes:
                    self._index.apply(changes)
                return self._index.totals()

            try:
                totals = await trio.to_thread.run_sync(write, limiter=self._writing)
            except BaseException:
                self._ledger.undo_flush()
                raise
            self._ledger.end_flush(totals)

    async def sync(self) -> None:
        """Have all on the disk, and note that it is."""
        if self._cache.premises.read_only is not None:
            return
        before = since_boot()
        premises = self._cache.premises
        try:
            await trio.to_thread.run_sync(
                syncfs, premises.descriptor, limiter=self._syncing, abandon_on_cancel=True
            )
        except OSError as error:
            log.warning("the cache could not be written to its disk: %s", error.strerror)
            if error.errno not in FULL:
                self._cache.note_trouble(error)
            # What was lost, nobody tells: everything that no syncfs has covered may be.
            await self.flush()
            await self._in_thread(lambda: self._index.distrust(self._cache.trust.boot))
            self._ledger.distrust()
            return

        def mark() -> int:
            # What a process before us has written, and its errors, our descriptor knows nothing of.
            return self._index.mark_durable(
                self._cache.trust.boot, before, _DURABLE, since=premises.opened_at
            )

        while await trio.to_thread.run_sync(mark, limiter=self._writing) == _DURABLE:
            pass

    # --- eviction

    async def make_room(self, count: int) -> bool:
        metrics = self._cache.metrics
        before = metrics.evictions
        async with self._evicting:
            # Whoever had his turn before us may have made room for us, too. Not by what statvfs
            # says is free: a quota may be used up, or all inodes are.
            if metrics.evictions > before:
                return True
            with suppress(StoreError):
                await self.flush()  # else the index does not know what is to be evicted
            wanted = max(count, int(self._cache.fill().committed * (1 - LOW_WATERMARK)), 1)
            evicted = Evicted()
            with suppress(StoreError):
                await self._evict_oldest(wanted, 0, evicted)
                if not evicted.blobs:
                    await self._evict_any(wanted, evicted)
            return evicted.blobs > 0

    async def evict(self) -> Evicted:
        """Evict what is over the bounds, least recently used first."""
        cache = self._cache
        evicted = Evicted()
        bounds = cache.bounds
        if cache.read_only is not None:
            return evicted
        if cache.background:
            # A mount does it mostly, by a bound of its own, and that one counts.
            bound = await self._in_thread(cache.premises.largest_bound)
            if bound is not None:
                bounds = replace(bounds, size=Amount(bound), free=Amount(), files=None)
        if not excess(bounds, cache.fill()):
            return evicted
        async with self._evicting:
            over = excess(bounds, cache.fill())
            if over:
                await self._evict_oldest(over.bytes, over.files, evicted)
                self._mind_the_disk(bounds)
        return evicted

    def _mind_the_disk(self, bounds: Bounds) -> None:
        """Who has too full a disk has a cache that keeps nothing: he is to know."""
        cache = self._cache
        total, free = cache.disk
        if free < bounds.free.of(total) and not cache.ledger.used:
            self._complain(
                f"the cache keeps nothing: `{cache.premises.directory}` has less free than "
                "--cache-free wants to be left"
            )

    async def _evict_oldest(self, size: int, files: int, evicted: Evicted) -> None:
        """Evict so many bytes and files; what others evict meanwhile counts.

        What comes in meanwhile does not: mostly it was counted already, as content in flight.
        """
        bytes_goal, files_goal = self._ledger.used - size, self._ledger.blobs - files
        bytes_before, blobs_before = evicted.bytes, evicted.blobs
        # That stand first, and are not to be evicted: open here, pinned, stuck, or gone already.
        kept = 0
        while True:
            left = min(size - (evicted.bytes - bytes_before), self._ledger.used - bytes_goal)
            files_left = min(
                files - (evicted.blobs - blobs_before), self._ledger.blobs - files_goal
            )
            if left <= 0 and files_left <= 0:
                break
            offset = kept
            batch = await self._in_thread(lambda: self._index.oldest(_BATCH, offset=offset))  # noqa: B023
            if not batch:
                break
            chosen: list[Digest] = []
            gain = 0
            for digest, blob_size, used in batch:
                if gain >= left and len(chosen) >= files_left:
                    break
                if self._ledger.is_gone(digest) or (used > 0 and self._ledger.is_open(digest)):
                    kept += 1
                    continue
                chosen.append(digest)
                gain += blob_size
            kept += await self._evict_these(chosen, evicted)

    async def _evict_any(self, size: int, evicted: Evicted) -> None:
        """Where the disk is full and the index knows nothing, for it cannot be written either."""
        blobs = self._cache.premises.blobs
        start = secrets.randbelow(256)
        tops = [*range(start, 256), *range(start)]
        files = (found for top in tops for found in blob_files(blobs, top))
        while evicted.bytes < size:
            batch = await self._in_thread(lambda: list(islice(files, _BATCH)))
            if not batch:
                break
            digests = [Digest.parse(path.name) for path, _ in batch]
            await self._evict_these([e for e in digests if not self._ledger.is_open(e)], evicted)

    async def _evict_these(self, chosen: list[Digest], evicted: Evicted) -> int:
        """Returns how many of them could not be evicted."""
        if not chosen:
            return 0
        gone = await self._cache.remove(chosen, pinned=False)
        evicted.blobs += len(gone)
        evicted.bytes += sum(gone.values())
        self._cache.metrics.evictions += len(gone)
        self._cache.metrics.evicted_bytes += sum(gone.values())
        with suppress(StoreError):  # on a full disk, or while another process holds it: go on
            await self.flush()
        return len(await self._in_thread(lambda: [e for e in chosen if self._has(e)]))

    def _has(self, digest: Digest) -> bool:
        return os.path.lexists(self._cache.path(digest))

    async def _expire(self, evicted: Evicted) -> None:
        bounds = self._cache.bounds
        now = time.time()
        steady = self._clock.steady_for()
        if steady >= _BELIEVED:  # times to come are those of a clock that was wrong then, not now
            await self._in_thread(lambda: self._index.clamp(now))
        if bounds.ttl is None and bounds.tti is None:
            return
        if self._clock.stepped and steady < _SETTLED:
            return  # it may be wrong, and nothing comes back
        self._ledger.use_what_is_open()
        await self.flush()
        pulled = None if bounds.ttl is None else now - bounds.ttl
        used = None if bounds.tti is None else now - bounds.tti

        def find() -> list[tuple[Digest, int, float]]:
            return self._index.expired(_BATCH, pulled_before=pulled, used_before=used)

        async with self._evicting:
            while batch := await self._in_thread(find):
                if await self._evict_these([digest for digest, _, _ in batch], evicted):
                    break  # those that stay would be found again

    # --- the files

    async def _adopt_if_needed(self) -> None:
        """Walk over the files if the index may lack some, or know some that are gone."""
        premises = self._cache.premises
        dead = await self._in_thread(premises.dead_sessions)
        try:
            if dead or not self._ledger.complete or self._index.rebuilds != self._rebuilds:
                self._rebuilds = self._index.rebuilds
                await self.adopt(share=_SHARE)
                while dead:
                    premises.forget(*dead.pop())
        finally:
            for descriptor, _ in dead:
                os.close(descriptor)

    async def adopt(self, *, share: float = 1.0) -> None:
        """Make the index agree with the files; what is new to it is verified when it is used.

        Uses ``share`` of one core. Raises StoreError.
        """
        await self.flush()
        self._ledger.lost = False  # what is lost from now on makes another walk necessary
        blobs = self._cache.premises.blobs
        generation = self._index.generation
        empty = not self._ledger.blobs and not await self._in_thread(lambda: _entries(blobs))
        for first in range(0 if empty else 256):
            began = time.perf_counter()
            changes, pinned = await self._in_thread(lambda: self._compare(first))  # noqa: B023
            if changes:
                await self._in_thread(lambda: self._index.apply(changes))  # noqa: B023
            if pinned:
                await self._in_thread(lambda: self._index.pin(pinned))  # noqa: B023
            if share < 1:
                await trio.sleep((time.perf_counter() - began) * (1 / share - 1))
        await self._in_thread(lambda: self._index.set_complete(True, generation=generation))
        await self.flush()
        log.debug("cache: %d blobs, %d bytes", self._ledger.blobs, self._ledger.used)

    def _compare(self, first: int) -> tuple[Changes, list[Digest]]:
        """What the index has to learn of the blobs that begin with this byte; and the pins."""
        known = self._index.below(bytes([first]))
        changes = Changes()
        pinned = []
        for path, stat in blob_files(self._cache.premises.blobs, first):
            digest = Digest.parse(path.name)
            if is_marked(stat):
                pinned.append(digest)
            if known.pop(digest, None) != stat.st_size:
                used = max(stat.st_atime, stat.st_mtime)
                entry = self._ledger.find(digest)
                if entry is None:
                    changes.entries[digest] = Entry(
                        digest=digest, size=stat.st_size, pulled=stat.st_mtime, used=used
                    )
                elif entry.size != stat.st_size:  # changed by somebody else
                    changes.entries[digest] = replace(entry, size=stat.st_size, verified=0.0)
        # Removed files lose their row after their name: those that are left here may just be it,
        # or have been committed since we looked.
        changes.removed |= {each for each in known if not self._has(each)}
        return changes, pinned

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of the upkeep's; raises StoreError for an OSError."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._looking)
        except OSError as error:
            raise StoreError(f"cannot use the cache: {error.strerror}") from error


def blob_files(blobs: Path, first: int | None = None) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of blobs below ``blobs``, of those whose hash begins with ``first`` if given.

    In the order of their hashes.
    """
    tops = range(256) if first is None else [first]
    for top in tops:
        for second in _entries(blobs / f"{top:02x}"):
            for found in _entries(second.path):
                with suppress(FileNotFoundError):
                    stat = found.stat(follow_symlinks=False)
                    if S_ISREG(stat.st_mode) and _HEX_NAME.fullmatch(found.name):
                        yield Path(found.path), stat


def _entries(directory: Path | str) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        return sorted(entries, key=lambda each: each.name)
    return []
