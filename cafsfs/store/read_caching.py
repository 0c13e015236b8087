"""Put a fast store in front of a slow one, and pull each blob once, however many want it.

The whole way of a read: ``fuse/operations.py`` → ``vfs/filesystem.py`` → ``OpenBlob.read`` here →
``CachedFile.read`` in ``cache/``; and while the blob is not there yet, ``_load`` here →
``upstream.pull`` (routing, retrying, unpacking, remote) → a partial file of the cache, from which
large blobs are read as they come (``cache/progress.py``).
"""

from __future__ import annotations

import errno
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial as bind

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError, CorruptBlob, StoreError, TimedOut, Unavailable
from cafsfs.metrics import Metrics
from cafsfs.packing import Compression
from cafsfs.store.cache.blob_files import Looked
from cafsfs.store.cache.bounds import CacheUsage
from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Listed
from cafsfs.store.cache.partials import FULL, Partial
from cafsfs.store.cache.progress import Contradiction, Progress
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore

log = logging.getLogger(__name__)

_REMEMBERED = 1 << 17  # stats of blobs that are not cached; about 40 MB at most
_FAILURES = 1000  # blobs of which the last failure is remembered
_CHEAP = 256 << 10  # bytes of a blob of which a server can be asked everything
_MENDS = 3  # times that a read has a blob pulled anew, which somebody spoils again and again
_SOON_HASHED = 64 << 20  # bytes: 20 ms from memory, and less than a second from most disks
_OPEN_FOLLOWS = 2.0  # seconds from a lookup to the open that it was for, mostly
_STALLED = 1.0  # seconds without progress after which a read counts as stalled, see StalledReads
_NEARLY = 0.99  # of a time: clocks are no exact numbers
_GLANCES = 10  # looks at the progress of a pull in the time that a reader waits without any
# Of a blob that is read while it comes, this end is shown only when the hash is verified: who reads
# wrong bytes gets to no end of file. A request of the kernel's is that large by default.
HELD_BACK = 128 << 10  # bytes


@dataclass(slots=True)
class _Pulling:
    """The content is on its way, or is being verified.

    With ``anew`` what the cache has is known to be wrong; only with ``stream`` it
    may be read early.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    progress: Progress = field(default_factory=Progress)
    anew: bool = False
    stream: bool = True
    cached: bool = False  # nothing had to be pulled


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A pull in flight. ``size`` is None while nobody has told it; ``length`` bytes have come.

    ``age`` and ``still`` (since anything has moved) are in seconds. It was opened by ``users``;
    ``waiting`` of their reads wait for it now.
    """

    digest: Digest
    size: int | None
    length: int
    age: float
    still: float
    users: int
    waiting: int


@dataclass(slots=True)
class StalledReads:
    """How many reads wait for pulls that have not moved for a second; and how many may."""

    limit: int | None = None
    count: int = 0

    def glance(self, seconds: float) -> float:
        """How long to wait before one looks whether a pull has moved."""
        return seconds if self.limit is None else min(seconds, _STALLED)

    def note(self, still: float, *, counted: bool) -> bool:
        """A read has waited for so long without progress; is it to be ``counted`` from now on?

        Raises Unavailable if there are too many.
        """
        if still < _STALLED:
            self.count -= counted
            return False
        if not counted:
            if self.limit is not None and self.count >= self.limit:
                raise Unavailable(f"{self.count} reads wait already for pulls that do not move")
            self.count += 1
        return True


@dataclass(slots=True)
class _Ready:
    file: CachedFile


@dataclass(slots=True)
class _Failed:
    error: CafsError


class OpenBlob:
    """A blob that is open: shared by all who have it open, so that it is pulled once.

    A failure is remembered: readers that ask again two or three times get the same answer.
    """

    def __init__(
        self,
        digest: Digest,
        moving: Callable[[], int],
        stalled: StalledReads,
        mend: Callable[[OpenBlob, CachedFile, CafsError], object],
    ) -> None:
        self.digest = digest
        self._moving = moving
        self._stalled = stalled
        self._mend = mend
        self._stuck_at: int | None = None
        self.users = 0
        self.waiting = 0  # reads
        self.cached = False  # it was there when it was opened
        self.retired: list[CachedFile] = []  # found wrong; others may be reading from them yet
        self.state: _Pulling | _Ready | _Failed = _Pulling()

    def __repr__(self) -> str:
        return f"<OpenBlob {self.digest!r} users={self.users} {type(self.state).__name__[1:]}>"

    async def wait(self, patience: float, *, end: int | None = None) -> CachedFile:
        """The content, as soon as it is verified, or as soon as all up to ``end`` may be seen.

        Raises what the pull raised, or TimedOut after ``patience`` seconds (and up to a tenth
        more) without progress of the pull, or a tenth of that where somebody has waited in vain
        and nothing has moved since; how long it takes in all does not matter.
        """
        counted = False
        seen, since = self._progress(), trio.current_time()
        stuck_at = self._stuck_at  # where somebody before us has given up
        self.waiting += 1
        try:
            while isinstance(self.state, _Pulling):
                pulling = self.state
                file = None if end is None else pulling.progress.look(end)
                if file is not None:
                    return file
                if self._progress() != seen:
                    seen, since = self._progress(), trio.current_time()
                still = trio.current_time() - since
                # The kernel asks again after an error; where nothing has moved, it is told sooner.
                if still > _NEARLY * (patience / _GLANCES if seen == stuck_at else patience):
                    self._stuck_at = seen
                    raise TimedOut(f"the pull of {self.digest} has not moved for {patience:g} s")
                counted = self._stalled.note(still, counted=counted)
                with trio.move_on_after(self._stalled.glance(patience / _GLANCES)):
                    await pulling.progress.news(end)
        finally:
            self.waiting -= 1
            self._stalled.count -= counted
        match self.state:
            case _Ready(file):
                return file
            case _Failed(error):
                # A fresh traceback: each of many readers would add its own to it.
                raise error.with_traceback(None)

    async def read(
        self, offset: int, length: int, *, patience: float, size: int | None = None
    ) -> bytes | memoryview:
        """min(length, size − offset) bytes, or an error: never less; raises as ``wait``.

        What is returned is valid until the next checkpoint, as of ``CachedFile.read``.
        ``size`` is what the reader takes for that of the blob: what is the end to him, he gets only
        verified.

        A cached file that was changed by somebody else, or cannot be read, is pulled again.
        """
        end: int | None = offset + length
        if size is not None and offset + length > size - HELD_BACK:
            end = None
        match self.state:
            case _Ready(file):
                pass
            case _:
                file = await self.wait(patience, end=end)
        for _ in range(_MENDS):
            try:
                return await file.read(offset, length)
            except (CorruptBlob, StoreError) as error:
                self._mend(self, file, error)
            file = await self.wait(patience, end=end)
        return await file.read(offset, length)

    def _progress(self) -> int:
        """Of this pull; before its first byte, of all: it may be waiting for its turn."""
        match self.state:
            case _Pulling(progress=Progress(count=count)) if count:
                return count
            case _:
                return -self._moving()


class _Inquiry:
    """A stat on its way, shared by all who ask for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: BlobStat | CafsError | None = None


class ReadCachingStore(ContentStore):
    """``cache`` in front of ``upstream``. Pulls and inquiries run as tasks of ``nursery``.

    With ``finish_pulls`` a pull goes on when its last reader leaves. Blobs of more than
    ``verify_first`` bytes are read while they come (None: no blob is), all but their last 128 KiB,
    which are shown when the hash is verified.

    ``on_size_changed(digest)`` is called when a size that was given out proves wrong;
    ``on_unverified(digest)`` when readers have seen content that will not be verified any more, by
    then every read of it fails.
    """

    def __init__(
        self,
        cache: DiskCache,
        upstream: ContentStore,
        nursery: trio.Nursery,
        *,
        finish_pulls: bool = False,
        verify_first: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._cache = cache
        self._finish_pulls = finish_pulls
        self._verify_first = verify_first
        self._upstream = upstream
        self._nursery = nursery
        self._metrics = metrics or Metrics()
        self._pieces = 0  # that ended pulls have brought
        self._open: dict[Digest, OpenBlob] = {}
        self._inquiries: dict[Digest, _Inquiry] = {}
        self._told: OrderedDict[Digest, BlobStat] = OrderedDict()  # what servers said, or pulls
        self._failures: OrderedDict[Digest, str] = OrderedDict()
        self.stalled = StalledReads()
        self.on_size_changed: Callable[[Digest], None] = lambda _: None
        self.on_unverified: Callable[[Digest], None] = lambda _: None

    def reconsider(self, *, finish_pulls: bool, verify_first: int | None) -> None:
        """Do otherwise from now on; pulls that are under way stay as they began."""
        self._finish_pulls = finish_pulls
        self._verify_first = verify_first

    # --- from memory, never waiting

    @property
    def usage(self) -> CacheUsage:
        """How full the cache is."""
        return self._cache.usage

    @property
    def pulling(self) -> int:
        """Pulls in flight."""
        return sum(1 for blob in self._open.values() if isinstance(blob.state, _Pulling))

    def inflight(self) -> list[InFlight]:
        """The pulls in flight, the oldest first."""
        now = time.monotonic()
        found = []
        for blob in self._open.values():
            if isinstance(blob.state, _Pulling):
                progress, told = blob.state.progress, self._told.get(blob.digest)
                pull = InFlight(
                    digest=blob.digest,
                    size=None if told is None else told.size,
                    length=progress.length,
                    age=now - progress.began,
                    still=now - progress.moved_at,
                    users=blob.users,
                    waiting=blob.waiting,
                )
                found.append(pull)
        return sorted(found, key=lambda each: -each.age)

    def cached_size(self, digest: Digest) -> int | None:
        """The size of a blob that is known to be cached, else None."""
        return self._cache.known_size(digest)

    def is_pulling(self, digest: Digest) -> bool:
        """True while the blob is in flight."""
        blob = self._open.get(digest)
        return blob is not None and isinstance(blob.state, _Pulling)

    def last_failure(self, digest: Digest) -> str | None:
        """Why its last pull or inquiry failed; None if it did not, or that is forgotten."""
        return self._failures.get(digest)

    def _note_outcome(self, digest: Digest, error: CafsError | None) -> None:
        self._failures.pop(digest, None)
        if error is not None:
            self._failures[digest] = f"{type(error).__name__}: {error}"
            if len(self._failures) > _FAILURES:
                self._failures.popitem(last=False)

    # --- from the cache's index and disk

    async def listing(self) -> list[Listed]:
        """The blobs known to be cached."""
        return await self._cache.listing()

    async def is_cached(self, digest: Digest) -> bool:
        """Is the blob there, of a size that was verified?"""
        try:
            return await self._cache.vouched_size(digest) is not None
        except (BlobNotFound, StoreError):
            return False

    async def is_pinned(self, digest: Digest) -> bool:
        """Is the blob never to be evicted?"""
        return await self._cache.is_pinned(digest)

    async def recall(self, digest: Digest) -> BlobStat | None:
        """What is remembered of a blob, from its pull or from what a server has told."""
        try:
            entry = await self._cache.describe(digest)
        except StoreError:
            entry = None
        if entry is None or entry.source is None:
            return self._told.get(digest)
        return BlobStat(
            size=entry.size,
            packed_size=entry.packed_size,
            compression=Compression[entry.compression.upper()] if entry.compression else None,
            source=entry.source,
            verified_at=int(entry.verified),
        )

    # --- the contract

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        try:
            missing = await self._cache.find_missing(digests)
        except StoreError as error:  # a cache may fail; a question may not fail because of it
            log.warning("%s; asking upstream", error)
            missing = set(digests)
        return await self._upstream.find_missing(missing) if missing else missing

    async def stat(self, digest: Digest) -> BlobStat:
        """With ``size`` set. If nothing but a pull tells the size, it starts one.

        A caller who is cancelled leaves the inquiry running: the next one finds its answer.
        """
        size = self._cache.known_size(digest)
        if size is not None:
            return BlobStat(size=size, source="cache")
        told = self._told.get(digest)
        if told is not None and told.size is not None:
            return told
        inquiry = self._inquiries.get(digest)
        if inquiry is None:
            inquiry = self._inquiries[digest] = _Inquiry()
            self._nursery.start_soon(self._inquire, digest, inquiry)
        await inquiry.done.wait()
        if isinstance(inquiry.outcome, CafsError):
            raise inquiry.outcome.with_traceback(None)
        if inquiry.outcome is None:
            raise Unavailable("the inquiry was given up")
        return inquiry.outcome

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        blob = self.open(digest)
        try:
            file = await blob.wait(patience=float("inf"))  # upstream has its own deadlines
            return await file.copy_to(sink, digest)
        except (CorruptBlob, StoreError) as error:
            if not isinstance(blob.state, _Ready):
                raise
            log.warning("%s; pulling %s again", error, digest)
        finally:
            self.close(blob)
        await self._cache.drop(digest)
        return await self._upstream.pull(digest, sink)

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._upstream.put(digest, source)

    async def fetch(self, digest: Digest) -> int:
        """Have the blob in the cache; returns its size."""
        blob = self.open(digest)
        try:
            return (await blob.wait(patience=float("inf"))).size  # upstream has its own deadlines
        finally:
            self.close(blob)

    # --- open blobs

    def would_stream(self, digest: Digest) -> bool:
        """May it be read before it is verified, if it is opened now?"""
        cached = self._cache.known_size(digest) is not None
        return not cached and digest not in self._open and self._to_stream(digest) is not None

    def open(self, digest: Digest, *, stream: bool = True) -> OpenBlob:
        """Open a blob without waiting: it is pulled if it must be, and reads wait for it.

        To be closed by ``close``. Readers of one blob share it; after a failure the next ``open``
        tries again. Without ``stream`` it is verified before the first byte, if nobody else has
        opened it before.
        """
        blob = self._open.get(digest)
        if blob is None:
            blob = self._open[digest] = OpenBlob(
                digest, self._progress_of_all, self.stalled, self._pull_anew
            )
            blob.state = _Pulling(stream=stream)
            self._nursery.start_soon(self._load, blob)
        blob.users += 1
        return blob

    def close(self, blob: OpenBlob) -> None:
        """The last one to close stops a pull, unless another process waits for it."""
        blob.users -= 1
        if blob.users:
            return
        match blob.state:
            case _Pulling() if self._finish_pulls or self._cache.is_wanted(blob.digest):
                return  # ``_settle`` sees that nobody is left
            case _Pulling() as pulling:
                pulling.scope.cancel()
                self._note_seen(blob, pulling)
            case _Ready(file):
                file.close()
            case _Failed():
                pass
        self._take_out(blob)

    async def _close_later(self, blob: OpenBlob) -> None:
        try:
            if isinstance(blob.state, _Ready):
                await trio.sleep(_OPEN_FOLLOWS)
        finally:
            self.close(blob)

    def _take_out(self, blob: OpenBlob) -> None:
        """The next ``open`` begins anew."""
        if self._open.get(blob.digest) is blob:
            del self._open[blob.digest]
        while not blob.users and blob.retired:
            blob.retired.pop().close()

    def _progress_of_all(self) -> int:
        """Grows while any pull moves or ends."""
        states = [blob.state for blob in self._open.values()]
        return self._pieces + sum(e.progress.count for e in states if isinstance(e, _Pulling))

    def _pull_anew(self, blob: OpenBlob, file: CachedFile, error: CafsError) -> None:
        """A cached file has proved wrong: bring the blob once more, for all its readers."""
        if isinstance(blob.state, _Pulling) and file in blob.state.progress.files:
            blob.state.progress.stop_streaming()
            return
        if blob.state != _Ready(file):
            return  # somebody else was quicker
        unreadable = False
        if isinstance(error.__cause__, OSError):
            self._cache.note_trouble(error.__cause__)
            unreadable = error.__cause__.errno != errno.ETIMEDOUT  # what hangs is not to be touched
        again = "pulling" if isinstance(error, StoreError) else "verifying"
        log.warning("%s; %s %s again", error, again, blob.digest)
        blob.retired.append(file)
        # What was only changed is hashed again: somebody may have done no more than touch it.
        # Nor is it read early: readers may have the end of what was right.
        blob.state = _Pulling(anew=unreadable, stream=False)
        self._nursery.start_soon(self._load, blob)

    def fail_all(self, error: CafsError) -> None:
        """Wake every waiter with ``error``: before the filesystem goes away."""
        for blob in list(self._open.values()):
            if isinstance(blob.state, _Pulling):
                blob.state.scope.cancel()
                self._settle(blob, _Failed(error))
        for inquiry in self._inquiries.values():
            inquiry.outcome = error
            inquiry.done.set()

    async def _load(self, blob: OpenBlob) -> None:
        """Bring a blob from pulling to ready or failed; CafsError reaches all its readers."""
        pulling = blob.state
        if not isinstance(pulling, _Pulling):
            return  # failed by ``fail_all`` before this task had its first turn
        outcome: _Ready | _Failed = _Failed(Unavailable(f"the pull of {blob.digest} was stopped"))
        try:
            with pulling.scope:
                outcome = _Ready(await self._bring_agreeing(blob.digest, pulling))
                blob.cached = pulling.cached
        except CafsError as error:
            outcome = _Failed(error)
        except Exception as error:
            log.exception("pulling %s failed", blob.digest)
            outcome = _Failed(StoreError(f"pulling {blob.digest} failed: {error}"))
        finally:  # also if the nursery is cancelled: nobody waits for what never comes
            blob.retired += pulling.progress.files
            self._settle(blob, outcome)

    def _settle(self, blob: OpenBlob, outcome: _Ready | _Failed) -> None:
        pulling = blob.state
        if isinstance(pulling, _Pulling):
            self._pieces += 1 + pulling.progress.count
            blob.state = outcome
            self._note_outcome(blob.digest, outcome.error if isinstance(outcome, _Failed) else None)
            pulling.progress.wake()
            if isinstance(outcome, _Failed):
                self._note_seen(blob, pulling)
        if isinstance(outcome, _Failed) or not blob.users:
            self._take_out(blob)
        if isinstance(outcome, _Ready) and not (blob.users and blob.state is outcome):
            outcome.file.close()  # all readers have left meanwhile, or were told otherwise

    def _note_seen(self, blob: OpenBlob, pulling: _Pulling) -> None:
        if pulling.progress.take_seen():
            self.on_unverified(blob.digest)

    async def _bring_agreeing(self, digest: Digest, pulling: _Pulling) -> CachedFile:
        """The content, which is what readers have seen of it while it came."""
        try:
            file = await self._bring(digest, pulling)
            try:
                await self._cache.check_seen(file, pulling.progress)
            except BaseException:
                file.close()
                raise
        except Contradiction as error:
            raise CorruptBlob(
                f"{digest} comes otherwise than readers have seen it, {error}: servers disagree"
            ) from error
        return file

    async def _bring(self, digest: Digest, pulling: _Pulling) -> CachedFile:
        """The content, from the cache or into it; a cache may fail, a read may not for that."""
        if pulling.anew:
            await self._cache.drop(digest)
        try:
            return await self._pull(digest, pulling)
        except Unavailable:
            if not self._cache.bypassed:
                raise
            with suppress(BlobNotFound, StoreError):  # better a sick disk than nobody at all
                return await self._cache.open(digest, pulling.progress, bypassed=True)
            raise
        except OSError as error:
            if error.errno in FULL:
                raise StoreError(
                    f"no room for {digest}, neither in the cache nor in a temporary file",
                    hint="free some space on the cache's disk, or in $TMPDIR",
                ) from error
            self._cache.note_trouble(error)
        try:
            return await self._pull(digest, pulling)  # past the cache
        except OSError as error:
            raise StoreError(f"cannot keep {digest}: {error.strerror}") from error

    def _check_cached(self, digest: Digest, file: CachedFile) -> CachedFile:
        try:
            self._check_size(digest, BlobStat(size=file.size, source="cache"))
        except CorruptBlob:
            file.close()
            raise
        return file

    async def _pull(self, digest: Digest, pulling: _Pulling) -> CachedFile:
        told = self._told.get(digest)
        expected = None if told is None else told.size
        streamed = self._to_stream(digest) if pulling.stream else None
        if streamed is not None:
            opened = bind(self._cache.reader, size=streamed)
            pulling.progress.stream(streamed - HELD_BACK, opened)
        claimed = await self._cache.claim(digest, expected=expected, progress=pulling.progress)
        if isinstance(claimed, CachedFile):
            self._metrics.cache_hits += 1
            pulling.cached = True
            return self._check_cached(digest, claimed)
        self._metrics.cache_misses += 1
        return await self._fill(claimed)

    def _to_stream(self, digest: Digest) -> int | None:
        """The length of a blob that is to be read while it comes, else None."""
        told = self._told.get(digest)
        size = None if told is None else told.size
        if size is None or self._verify_first is None or size <= self._verify_first:
            return None
        return size

    async def _fill(self, partial: Partial) -> CachedFile:
        began = trio.current_time()
        digest = partial.digest
        self._metrics.pulls += 1
        try:
            try:
                stat = await self._upstream.pull(digest, partial)
            except (CorruptBlob, Contradiction):
                # Its length may have been given out on the word of whoever sent the wrong bytes.
                self._retract(digest)
                raise
            self._check_size(digest, stat)
            file = await self._cache.commit(partial, stat)
        except CafsError as error:
            self._metrics.pull_errors += 1
            elapsed = trio.current_time() - began
            self._metrics.traced("pull", elapsed, {"hash": digest.hex}, str(error))
            told = {"hash": digest, "seconds": elapsed, "error": type(error).__name__}
            log.info(
                "pulling %s failed after %.3f s: %s",
                *(digest, elapsed, error),
                extra={"fields": told},
            )
            raise
        except trio.Cancelled:
            elapsed = trio.current_time() - began
            self._metrics.traced("pull", elapsed, {"hash": digest.hex}, "given up")
            told = {"hash": digest, "seconds": elapsed}
            log.info(
                "pulling %s was given up after %.3f s: nobody reads it",
                *(digest, elapsed),
                extra={"fields": told},
            )
            raise
        finally:
            await self._cache.discard(partial)
        self._metrics.pulled_bytes += file.size
        self._metrics.received_bytes += stat.packed_size or file.size
        elapsed = trio.current_time() - began
        came: dict[str, str | int | None] = {
            "hash": digest.hex,
            "bytes": file.size,
            "server": stat.source,
        }
        self._metrics.traced("pull", elapsed, came)
        log.info(
            "pulled %s: %d bytes from %s in %.3f s",
            *(digest, file.size, stat.source, elapsed),
            extra={"fields": {**came, "seconds": elapsed}},
        )
        return file

    # --- sizes

    async def _inquire(self, digest: Digest, inquiry: _Inquiry) -> None:
        try:
            inquiry.outcome = await self._find_out(digest)
        except CafsError as error:
            inquiry.outcome = error
        except Exception as error:
            log.exception("asking for %s failed", digest)
            inquiry.outcome = StoreError(f"asking for {digest} failed: {error}")
        finally:
            del self._inquiries[digest]
            if isinstance(inquiry.outcome, CafsError):
                self._note_outcome(digest, inquiry.outcome)
            inquiry.done.set()

    async def _find_out(self, digest: Digest) -> BlobStat:
        looked = Looked(present=False)
        with suppress(StoreError):
            looked = await self._cache.look(digest)
        # Hashing what nobody vouches for takes a moment for a small blob, and tells the truth.
        if looked.present and (looked.size is not None or looked.on_disk <= _SOON_HASHED):
            with suppress(BlobNotFound, StoreError):
                return await self._cache.stat(digest)
        try:
            stat = await self._ask(digest, looked)
        except CafsError:
            if looked.present:
                with suppress(BlobNotFound, StoreError):
                    return await self._cache.stat(digest)
            raise
        if stat.size is None and not looked.present:
            stat = replace(stat, size=looked.size)
        if stat.size is None:
            blob = self.open(digest)
            try:
                file = await blob.wait(patience=float("inf"))  # upstream has its own deadlines
                stat = self._told.get(digest) or BlobStat(size=file.size)
            finally:
                if self._cache.known_size(digest) is None:  # not cached: the open is to find it
                    self._nursery.start_soon(self._close_later, blob)
                else:
                    self.close(blob)
        self._cache.ledger.remember_length(digest, stat.size)
        self._remember(digest, stat)
        return stat

    async def _ask(self, digest: Digest, looked: Looked) -> BlobStat:
        """What upstream says. A length that is known already is not asked for again.

        To tell that of a large blob, a deployed server reads all of it (protocol page, 3.4).
        """
        if looked.present or (looked.size or 0) <= _CHEAP:
            return await self._upstream.stat(digest)
        if await self._upstream.find_missing([digest]):
            raise BlobNotFound(digest)
        return BlobStat(size=looked.size)

    def _check_size(self, digest: Digest, stat: BlobStat) -> None:
        """A length that was given out and proves wrong would truncate every copy: fail instead.

        The verified one is remembered, or the next lookup would be told the same lie.
        """
        told = self._told.get(digest)
        self._remember(digest, stat)
        if told is not None and told.size not in {None, stat.size}:
            self._cache.ledger.remember_length(digest, stat.size)
            self.on_size_changed(digest)
            raise CorruptBlob(f"{digest} has {stat.size} bytes, {told.source} said {told.size}")

    def _remember(self, digest: Digest, stat: BlobStat) -> None:
        self._told[digest] = stat
        self._told.move_to_end(digest)
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    def _retract(self, digest: Digest) -> None:
        if self._told.pop(digest, None) is not None:
            self._cache.ledger.remember_length(digest, None)
            self.on_size_changed(digest)
