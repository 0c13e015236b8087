"""Content on disk, shared by processes: one file a blob, so that every seek is local.

``<directory>/blobs/ab/cd/<hash>``  complete content, verified before it got this name
``<directory>/partial/<hash>``      content in flight: see ``partials.py``
``<directory>/index.sqlite``        what is remembered of the blobs: see ``index.py``
``<directory>/sessions/…``          a locked file for each process that uses the cache now
``<directory>/foreground``          read-locked while a mount pulls: prefetching gives way

What is not trusted without looking (``trust.py``) is hashed when it is opened first; a wrong one is
thrown away, and that is a miss. The mode of a file tells whether it is pinned, so that pins outlive
the index.

Removing goes from the file to the index, adding from the file to the index: killed at any point,
the index lacks a file, or has a row without one, and both are found out by looking.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from functools import partial as bind
from pathlib import Path
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.metrics import Metrics
from cafsfs.packing import hash_file
from cafsfs.store.cache import partials
from cafsfs.store.cache.blob_files import BlobFiles, Claimed, Found, Looked
from cafsfs.store.cache.bounds import Bounds, CacheUsage, Fill, excess
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.handover import hurry
from cafsfs.store.cache.index import Entry, Index, Listed
from cafsfs.store.cache.ledger import Known, Ledger
from cafsfs.store.cache.partials import FULL, ROOMS, Following, Partial, Shelter, Verdict
from cafsfs.store.cache.premises import Premises
from cafsfs.store.cache.progress import Progress
from cafsfs.store.cache.trouble import Trouble
from cafsfs.store.cache.trust import Trust
from cafsfs.store.cache.watching import watch
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.files import copy_content
from cafsfs.store.local_root import is_blob

log = logging.getLogger(__name__)

T = TypeVar("T")

_WORKERS = 4  # threads for the cache's disk
_HASHERS = 2  # threads that verify what is not trusted
_WATCHERS = 8  # threads that look at what other processes pull; a look takes microseconds


class Keeper:
    """Who keeps a cache within its bounds and writes its index: ``Upkeep``. This one does not."""

    async def make_room(self, _count: int) -> bool:
        """The disk is full: evict, and tell whether that was of any use."""
        await trio.lowlevel.checkpoint()
        return False

    async def flush(self) -> None:
        """Write what is known to the index; raises StoreError."""
        await trio.lowlevel.checkpoint()


class DiskCache(ContentStore):
    """Content in a directory; ``open_disk_cache`` makes one that is kept within its bounds.

    A cache may fail: what it cannot read is BlobNotFound or StoreError, which is a miss; what it
    cannot keep is served from a private file. ``on_change(digest)`` is called on the event loop
    when a blob came in, or went.
    """

    def __init__(
        self,
        premises: Premises,
        index: Index,
        *,
        bounds: Bounds | None = None,
        metrics: Metrics | None = None,
        shelter: Shelter | None = None,
        background: bool = False,
    ) -> None:
        self.premises = premises
        self.bounds = bounds or Bounds()
        self.metrics = metrics or Metrics()
        self.ledger = Ledger(index)
        self.trust = Trust()
        self._files = BlobFiles(premises, self.ledger, self.trust)
        self._shelter = shelter or Shelter()
        self.background = background
        self._limiter = trio.CapacityLimiter(_WORKERS)
        self._claiming = trio.CapacityLimiter(_WORKERS)
        self._sheltered = trio.CapacityLimiter(_WORKERS)
        self._asking = trio.CapacityLimiter(_WORKERS)
        self._hashing = trio.CapacityLimiter(_HASHERS)
        # Apart from the others: a pull that waits in a thread for room must not keep it from being
        # made.
        self._removing = trio.CapacityLimiter(1)
        self._watching = trio.CapacityLimiter(_WATCHERS)
        self._held: set[Partial] = set()
        self._seen_partial = 0  # bytes in flight, of all processes, when somebody last looked
        self.disk = premises.measure()  # bytes in all, and free ones
        # Being evicted, and their names still stand: not to be noted, nor to be committed.
        self.leaving: dict[Digest, trio.Event] = {}
        self._trouble = Trouble(premises.directory, premises.read_only)
        self.wake = trio.Event()  # set: there is something to do for whoever keeps it in bounds
        self.on_change: Callable[[Digest], None] = lambda _: None
        self.keeper = Keeper()
        # tmpfs refuses RWF_NOWAIT, and has everything in memory: first reads are twice as fast
        # without a thread.
        self._inline = 0 if premises.in_memory else os.RWF_NOWAIT

    # --- from memory, never waiting

    @property
    def usage(self) -> CacheUsage:
        """How full it is."""
        fill = self.fill()
        return CacheUsage(
            used=fill.used,
            bound=self.bounds.size.of(fill.disk_total),
            blobs=fill.files,
            partial=fill.partial,
            lingering=fill.lingering,
            complete=self.ledger.complete,
            trouble=self.trouble,
            room=max(0, fill.disk_free - self.bounds.free.of(fill.disk_total)),
        )

    @property
    def trouble(self) -> str | None:
        """Why the cache is not used, or not written to, at the moment."""
        return self._trouble.reason

    @property
    def bypassed(self) -> bool:
        """Is the disk left alone at the moment?"""
        return self._trouble.bypassed

    @property
    def read_only(self) -> str | None:
        """Why the cache cannot be written to, if it cannot."""
        return self._trouble.read_only

    def fill(self) -> Fill:
        """How full it is, with what is in flight."""
        total, free = self.disk
        # Asked twice a blob, with 64 in flight: so the bound is reckoned once.
        bound = self.bounds.size.of(total)
        ours = sum(room for each in self._held if (room := each.room) <= bound)
        return Fill(
            committed=self.ledger.used,
            files=self.ledger.blobs,
            partial=max(self._seen_partial, ours),
            lingering=self.ledger.lingering,
            disk_total=total,
            disk_free=free,
        )

    def known_size(self, digest: Digest) -> int | None:
        """The size of a cached blob if it is known without asking the disk."""
        known = self.ledger.known(digest)
        return None if known is None else known.size

    def is_wanted(self, digest: Digest) -> bool:
        """Does another process wait for what we pull?"""
        # Of a copy: threads ask, too.
        return any(each.digest == digest and each.wanted for each in list(self._held))

    def gives_way(self, digest: Digest) -> bool:
        """Should prefetching go slow: a mount pulls, and nobody waits for this blob?"""
        return self.premises.in_foreground() and not self.is_wanted(digest)

    # --- what is there

    async def listing(self) -> list[Listed]:
        """The blobs known to be cached, in the order of their names."""
        try:
            await self.keeper.flush()
        except StoreError as error:  # a full disk, say: what is in the index can be read
            log.warning("%s", error)
        return await self.in_thread(self.ledger.index.listing)

    async def describe(self, digest: Digest) -> Entry | None:
        """All that is remembered of a cached blob."""
        return await self._ask(lambda: self.ledger.find(digest))

    async def is_pinned(self, digest: Digest) -> bool:
        """Is the blob never to be evicted?"""
        return await self._ask(lambda: self.ledger.index.is_pinned(digest))

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        unknown = [each for each in digests if self.ledger.known(each) is None]
        return await self._ask(lambda: {e for e in unknown if not is_blob(self.path(e))})

    async def stat(self, digest: Digest) -> BlobStat:
        """The size that was verified; hashes a blob that nobody vouches for."""
        size = await self.vouched_size(digest)
        if size is None:
            file = await self.open(digest)
            file.close()
            size = file.size
        return BlobStat(size=size, source="cache")

    async def vouched_size(self, digest: Digest) -> int | None:
        """The size that was verified; None for a blob that nobody vouches for.

        Raises BlobNotFound, StoreError.
        """
        looked = await self.look(digest)
        if not looked.present:
            raise BlobNotFound(digest)
        return looked.size

    async def look(self, digest: Digest) -> Looked:
        """What can be told of a blob without reading it, in one hop; raises StoreError.

        Cancelled, it leaves its thread behind: a disk that hangs does not hold up who asks.
        """
        size = self.known_size(digest)
        if size is not None:
            return Looked(present=True, size=size)
        if self._trouble.bypassed:
            return Looked(present=False)
        looked, known = await self._ask(lambda: self._files.look(digest))
        if known is not None:
            self._note(digest, known)
        return looked

    # --- content out

    async def open(
        self, digest: Digest, progress: Progress | None = None, *, bypassed: bool = False
    ) -> CachedFile:
        """Open a cached blob and note its use; verifies it first where it is not trusted.

        With ``bypassed`` also from a disk that is left alone at the moment. Raises BlobNotFound,
        also for what proved wrong and was thrown away, and StoreError.
        """
        if self._trouble.bypassed and not bypassed:
            raise BlobNotFound(digest)
        known = self.ledger.known(digest)
        try:
            found = await self._in_disk_thread(lambda: self._files.open(digest, known))
        except BlobNotFound:
            self._miss(digest)
            raise
        return await self._admit(digest, found, progress or Progress())

    async def _admit(self, digest: Digest, found: Found, progress: Progress) -> CachedFile:
        """Hand out an open file of the cache, if it is the blob."""
        file = self._file(digest, found.descriptor, found.stat)
        try:
            if not found.trusted:
                await self._trust_or_verify(digest, found, progress)
        except BaseException:
            file.close()
            raise
        if not self._is_oversize(file.size):  # that one goes first, or all others would
            self.ledger.use(digest)
        return file

    def _miss(self, digest: Digest) -> None:
        if self.ledger.forget(digest):  # somebody else has removed it
            self.on_change(digest)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        file = await self.open(digest)
        try:
            return await file.copy_to(sink, digest)
        except CorruptBlob:
            await self.drop(digest)
            raise
        finally:
            file.close()

    async def drop(self, digest: Digest) -> None:
        """Take out a blob whose cached bytes have proved wrong: a broken cache is a miss."""
        self.metrics.cache_discards += 1
        await self.remove([digest])

    async def remove(
        self, digests: Collection[Digest], *, pinned: bool = True
    ) -> dict[Digest, int]:
        """Remove blobs; returns the sizes of those that were there. Even if cancelled.

        Without ``pinned`` those are spared, by their mark at this very moment. What cannot be
        removed is a warning in the log. A commit of the same blob waits: else the
        new file would be removed in place of the old one.
        """
        done = trio.Event()
        self.leaving.update(dict.fromkeys(digests, done))
        with trio.CancelScope(shield=True):
            remove = bind(self._files.remove, digests, pinned=pinned)
            gone, absent = await trio.to_thread.run_sync(remove, limiter=self._removing)
        for digest in digests:
            if self.leaving.get(digest) is done:
                del self.leaving[digest]
        done.set()
        for digest, size in gone.items():
            self.ledger.strike(digest, size)
            self.on_change(digest)
        for digest in absent:
            self.ledger.strike(digest, None)
        return gone

    # --- content in

    async def claim(
        self, digest: Digest, *, expected: int | None = None, progress: Progress | None = None
    ) -> Partial | CachedFile:
        """The blob; or become the one who pulls it, unless another process does: then wait.

        Returns the open blob, or a sink for its content, to be committed or discarded. Where the
        cache cannot be written to, the sink is private. ``expected`` is the size if it is known.
        Raises OSError where the sink cannot hold what readers have seen by ``progress``.
        """
        progress = progress or Progress()
        claimed = await self._claim(digest, expected, progress)
        if progress.seen and isinstance(claimed, Partial):
            try:
                await trio.to_thread.run_sync(claimed.recall, limiter=self._limiter)
            except BaseException:
                await self.discard(claimed)
                raise
        return claimed

    async def _claim(
        self, digest: Digest, expected: int | None, progress: Progress
    ) -> Partial | CachedFile:
        anew = False
        while not self._trouble.bypassed:
            try:
                found = await self._try_claim(digest, anew=anew)
                if isinstance(found, Found):
                    return await self._admit(digest, found, progress)
                self._miss(digest)
                claimed = (
                    await self._follow(found, progress) if isinstance(found, Following) else found
                )
                if isinstance(claimed, CachedFile):
                    return claimed
                if isinstance(claimed, tuple):
                    partial = self._own(digest, *claimed, expected, progress)
                    return await self._finished(partial, progress) or partial
            except BlobNotFound:  # what was there is thrown away, if it could be
                anew = True
            except StoreError:  # it is noted; what comes is served without it
                break
            else:
                if claimed is None:
                    break
        return Partial(digest, None, -1, self._shelter, expected=expected, progress=progress)

    async def _try_claim(self, digest: Digest, *, anew: bool) -> Claimed:
        """None where the cache cannot take it."""
        known = self.ledger.known(digest)
        if known is not None and not anew and (found := self._files.open_at_once(digest, known)):
            return found
        writable = self.read_only is None
        open_or_claim = bind(self._files.open_or_claim, digest, known, anew=anew, writable=writable)
        for attempt in range(ROOMS + 1):
            try:
                return await hurry(open_or_claim, self._claiming)
            except OSError as error:
                last = attempt == ROOMS or error.errno not in FULL
                if last or not await self.keeper.make_room(0):
                    self.note_trouble(error)
                    break
        return None

    async def commit(self, partial: Partial, stat: BlobStat | None = None) -> CachedFile:
        """Give a verified partial file its name and hand it out open, in one step.

        In one step, because eviction could win a race between two. What the disk has no room for
        is handed out without a name, and not cached. The partial file is used up then, and still
        the caller's if this raises: OSError (no room anywhere), or Cancelled.
        """
        digest = partial.digest
        while (leaving := self.leaving.get(digest)) is not None:
            await leaving.wait()
        try:
            found, replaced = await self._name(partial)
        except OSError as error:
            if error.errno not in FULL or not await self.keeper.make_room(0):
                self.note_trouble(error)
            found, replaced = await self._name(partial, once_more=True)
        # No checkpoint from here on: what has its name is counted.
        self._let_go(partial)
        shared = partial.path is not None
        descriptor, released = partial.release()
        if not shared:
            self.metrics.uncached += 1
            return CachedFile(descriptor, partial.written, self._sheltered, on_close=released)
        used = not self._is_oversize(found.st_size)
        entry = self.trust.entry(digest, found, stat, used=used)
        self.ledger.enter(entry, replaced=replaced)
        file = self._file(digest, descriptor, found)
        self.on_change(digest)
        self.check_bounds()
        return file

    async def discard(self, partial: Partial) -> None:
        """Close and remove a partial file; nothing to do for one that was committed.

        In a thread, because removing a large file takes its time; even if cancelled.
        """
        self._let_go(partial)
        if partial.descriptor >= 0:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial.discard, limiter=self._limiter)

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        claimed = await self.claim(digest, expected=source.size)
        if isinstance(claimed, CachedFile):
            claimed.close()
            return (str(self.premises.directory),)
        try:
            if await copy_content(source, claimed, self._limiter) != digest:
                raise CorruptBlob(f"the content to store is not that of {digest}")
            (await self.commit(claimed)).close()
        except OSError as error:
            raise StoreError(f"cannot write the cache: {error.strerror}") from error
        finally:
            await self.discard(claimed)
        return (str(self.premises.directory),)

    def reader(self, descriptor: int, size: int) -> CachedFile:
        """A file to read content from that is not complete yet; it will have ``size`` bytes."""
        return CachedFile(descriptor, size, self._limiter, inline=self._inline)

    async def check_seen(self, file: CachedFile, progress: Progress) -> None:
        """Raise Contradiction if ``file`` is not what readers have seen; StoreError."""
        if progress.seen and not progress.is_shown(file.fileno()):
            await self.in_thread(bind(progress.compare, file))

    # --- upkeep

    async def measure(self) -> None:
        """Look at the disk, and at what all processes have in flight; clears debris."""
        writable = self.read_only is None

        def look() -> tuple[tuple[int, int], list[int]]:
            in_flight = partials.sweep(self.premises.partials) if writable else []
            return self.premises.measure(), in_flight

        self.disk, in_flight = await self.in_thread(look)
        self._seen_partial = sum(each for each in in_flight if not self._is_oversize(each))

    def rebound(self, bounds: Bounds) -> None:
        """Keep within other bounds from now on."""
        if bounds == self.bounds:
            return
        self.bounds = bounds
        self.premises.restate(bounds.size.of(self.disk[0]))
        self.check_bounds()

    def check_bounds(self) -> None:
        """Wake who keeps the cache in bounds, if it is not."""
        if excess(self.bounds, self.fill()):
            self.wake.set()

    async def look_again(self, digests: Collection[Digest] | None) -> None:
        """Another process has changed these blobs, or any of those that are known."""
        concerned = self.ledger.all_known() if digests is None else digests

        def look() -> dict[Digest, int | None]:
            return {each: self._files.size(each) for each in concerned}

        for digest, size in (await self.in_thread(look)).items():
            if self.ledger.known(digest) is not None:
                if size is None:
                    self.ledger.strike(digest, None)
                else:
                    self.ledger.forget(digest)
            self.on_change(digest)  # also of what we have forgotten: the kernel may not have
        self.wake.set()

    def note_trouble(self, error: OSError) -> None:
        """The disk has failed: leave it alone for a while, or write no more to it."""
        self._trouble.note(error)

    # --- trust

    async def _trust_or_verify(self, digest: Digest, found: Found, progress: Progress) -> None:
        """Return if the open file is the blob; else throw it away and raise BlobNotFound."""
        entry, stat = found.entry, found.stat
        if entry is not None and self.trust.covers(entry, stat):
            self._note(digest, Known(entry.size, entry.mtime_ns, entry.inode))
            return
        wrong = entry is not None and entry.verified and entry.size != stat.st_size
        if wrong or await self._hash(found.descriptor, progress) != digest:
            log.warning("what the cache had for %s was not its content; discarded", digest)
            await self.drop(digest)
            raise BlobNotFound(digest)
        if digest in self.leaving or not os.fstat(found.descriptor).st_nlink:
            return  # evicted meanwhile
        verified = self.entry_again(digest, stat, entry)
        self.ledger.enter(verified, replaced=None if entry is None else entry.size)

    def entry_again(self, digest: Digest, stat: os.stat_result, old: Entry | None) -> Entry:
        """What to remember of a cached blob that was just verified."""
        return self.trust.entry_again(digest, stat, old, used=not self._is_oversize(stat.st_size))

    async def _hash(self, descriptor: int, progress: Progress) -> Digest:
        def on_read(_: int) -> None:
            progress.step()
            trio.from_thread.check_cancelled()

        try:
            return await trio.to_thread.run_sync(
                bind(hash_file, descriptor, on_read=on_read), limiter=self._hashing
            )
        except OSError as error:
            self.note_trouble(error)
            raise StoreError(f"cannot read the cache: {error.strerror}") from error

    def _is_oversize(self, size: int) -> bool:
        """Larger than the bound: kept while it is open; if it counted, all others had to go."""
        return size > self.bounds.size.of(self.disk[0])

    # --- one pull in all processes

    async def _follow(
        self, following: Following, progress: Progress
    ) -> CachedFile | tuple[int, Path] | Verdict | None:
        """Wait for what another process pulls.

        Returns the blob, or the file to go on with and its path; GONE to begin anew; or None where
        the other one lives and does not move.
        """
        try:
            match await watch(following, progress, limiter=self._watching):
                case Verdict.COMMITTED:
                    # Verified by a process of the same owner, on this boot, which makes its entry.
                    found = os.fstat(following.descriptor)
                    self._note(following.digest, Known.of(found))
                    self.on_change(following.digest)
                    return self._file(following.digest, following.release(), found)
                case Verdict.TAKEN:
                    return following.release(), self.premises.partials / following.digest.hex
                case Verdict.GONE:
                    return Verdict.GONE
                case Verdict.MOVING:
                    log.warning("another process pulls %s and does not move", following.digest)
                    return None
        finally:
            following.close()

    def _own(
        self,
        digest: Digest,
        descriptor: int,
        path: Path,
        expected: int | None,
        progress: Progress,
    ) -> Partial:
        partial = Partial(
            digest,
            path,
            descriptor,
            self._shelter,
            expected=expected,
            progress=progress,
            make_room=lambda count: trio.from_thread.run(self.keeper.make_room, count),
            on_trouble=lambda error: trio.from_thread.run_sync(self.note_trouble, error),
        )
        self._held.add(partial)
        if not self.background:
            self.premises.pull_in_foreground(pulls=True)
        self.check_bounds()
        return partial

    def _let_go(self, partial: Partial) -> None:
        self._held.discard(partial)
        if not self._held and not self.background:
            self.premises.pull_in_foreground(pulls=False)

    async def _finished(self, partial: Partial, progress: Progress) -> CachedFile | None:
        """The blob, if who had it before us has died with all of it."""
        kept = partial.kept
        if not kept or partial.expected not in {None, kept}:
            return None
        try:
            if await self._hash(partial.descriptor, progress) == partial.digest:
                partial.accept_kept()
                return await self.commit(partial)
        except BaseException:
            await self.discard(partial)
            raise
        return None

    # --- disk

    def path(self, digest: Digest) -> Path:
        """Where a blob stands."""
        return self._files.path(digest)

    async def _name(
        self, partial: Partial, *, once_more: bool = False
    ) -> tuple[os.stat_result, int | None]:
        name = bind(self._files.name, partial, once_more=once_more)
        return await trio.to_thread.run_sync(name, limiter=self._limiter)

    def _file(self, digest: Digest, descriptor: int, stat: os.stat_result) -> CachedFile:
        counted = not self._is_oversize(stat.st_size)
        files = self.ledger.opened(digest, stat.st_size, counted=counted)

        def closed() -> None:
            self.ledger.closed(files)
            self.check_bounds()  # what was open was not evicted

        return CachedFile(
            descriptor,
            stat.st_size,
            self._limiter,
            inline=self._inline,
            stamp=stat.st_mtime_ns,
            on_close=closed,
        )

    def _note(self, digest: Digest, known: Known) -> None:
        if digest not in self.leaving:
            self.ledger.note(digest, known)

    async def _in_disk_thread(self, work: Callable[[], T]) -> T:
        """As ``in_thread``; an error is the disk's, and it is left alone for a while."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            self.note_trouble(error)
            raise StoreError(f"cannot read the cache: {error.strerror}") from error

    async def _ask(self, work: Callable[[], T]) -> T:
        """As ``in_thread``, for what only looks: cancelled, the thread is left to itself."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._asking, abandon_on_cancel=True)
        except OSError as error:
            raise StoreError(f"cannot use the cache: {error.strerror}") from error

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of the cache's; raises StoreError for an OSError."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise StoreError(f"cannot use the cache: {error.strerror}") from error
