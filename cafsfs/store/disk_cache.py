"""A bounded cache of content on disk: one file a blob, so that every seek is local.

``<directory>/blobs/ab/cd/<hash>`` holds complete, verified content; ``<directory>/partial/`` what
is in flight. A blob is committed by a rename after its hash was verified, so nothing under
``blobs/`` was ever unverified. A file in ``partial/`` is locked (flock) while its writer lives;
what is not locked is debris.

The bound is on the bytes of committed blobs, least recently used first out. Use is remembered
over restarts in the files' modification time. Bookkeeping is done on the event loop only, disk
work in threads of one limiter only.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.metrics import Metrics
from cafsfs.packing import Hasher
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.files import FileSink
from cafsfs.store.local_root import blob_path, is_blob
from cafsfs.store.pump import PIECE

log = logging.getLogger(__name__)

T = TypeVar("T")

_WORKERS = 4  # threads for the cache's disk
_HEX_NAME = re.compile(r"[0-9a-f]{64}")
_HEX_PAIR = re.compile(r"[0-9a-f]{2}")
# A partial file is created a moment before it is locked; only older ones are judged by their lock.
_DEBRIS_AGE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How full the cache is; sizes in bytes."""

    used: int
    bound: int
    blobs: int


class CachedFile:
    """An open file of verified content. It stays readable when the cache evicts its name.

    ``inline`` are the flags of preadv2 for reads on the event loop: they must not wait for a disk.
    """

    def __init__(
        self,
        descriptor: int,
        size: int,
        limiter: trio.CapacityLimiter,
        *,
        inline: int = os.RWF_NOWAIT,
    ) -> None:
        self._descriptor = descriptor
        self.size = size
        self._limiter = limiter
        self._flags = inline
        self._inline = True

    def close(self) -> None:
        """To be called when no read is under way: its descriptor may be another file's then."""
        os.close(self._descriptor)

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """Exactly what is in the file there: min(length, size − offset) bytes, or an error.

        Answered on the event loop if the data is in memory (41 µs against 110 through a thread),
        else in a thread. Raises CorruptBlob if the file is shorter than it was, StoreError for a
        sick disk.
        """
        length = max(0, min(length, self.size - offset))
        buffer = bytearray(length)
        done = self._read_from_memory(buffer, offset) if self._inline else 0
        if done < length:
            work = memoryview(buffer)[done:]
            await trio.to_thread.run_sync(
                self._read_from_disk, work, offset + done, limiter=self._limiter
            )
        return buffer

    async def copy_to(self, sink: ContentSink, digest: Digest) -> BlobStat:
        """Write all to ``sink``, verifying it once more; raises CorruptBlob, StoreError."""
        if await _copy(self, sink, self._limiter) != digest:
            raise CorruptBlob(f"the cached bytes of {digest} are not its content")
        return BlobStat(size=self.size, source="cache", verified_at=int(time.time()))

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """As a ContentSource; raises StoreError for a sick disk."""
        try:
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise StoreError(f"cannot read the cache: {error.strerror}") from error

    def _read_from_memory(self, buffer: bytearray, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [buffer], offset, self._flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # EIO and the like: let the thread report it
                return 0
            self._inline = False  # some filesystems over a network, for example
            return 0

    def _read_from_disk(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = self.read_at(buffer, offset)
            if count == 0:
                raise CorruptBlob(f"a cached blob of {self.size} bytes has none at {offset}")
            buffer = buffer[count:]
            offset += count


class Partial:
    """A blob on its way into the cache. The file is made with the first byte, in a thread.

    As a sink it raises OSError.
    """

    def __init__(self, digest: Digest, directory: Path) -> None:
        self.digest = digest
        self.path = directory / f"{digest.hex}.{secrets.token_hex(4)}"
        self._sink: FileSink | None = None
        self.descriptor = -1

    @property
    def progress(self) -> int:
        """Grows with every piece; to be read from any thread."""
        return 0 if self._sink is None else self._sink.progress

    @property
    def written(self) -> int:
        """Bytes of content so far; to be read from any thread."""
        return 0 if self._sink is None else self._sink.written

    def restart(self) -> None:
        if self._sink is None:
            # Whoever clears a cache by hand removes this directory too.
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sink = FileSink(self.descriptor)
        self._sink.restart()

    def write(self, data: bytes | memoryview, /) -> None:
        if self._sink is None:
            self.restart()
        assert self._sink is not None
        self._sink.write(data)

    def release(self) -> int:
        """Hand the descriptor over: there is nothing to discard any more."""
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def discard(self) -> None:
        """Close and remove, unless it was committed; blocks. What cannot be removed is debris."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with suppress(OSError):
                self.path.unlink()


class DiskCache(ContentStore):
    """Content in ``directory``, at most ``max_bytes`` of it.

    ``on_change(digest)`` is called on the event loop when a blob came in or was evicted.
    """

    def __init__(self, directory: Path, *, max_bytes: int, metrics: Metrics | None = None) -> None:
        self._blobs = directory / "blobs"
        self._partials = directory / "partial"
        self._max_bytes = max_bytes
        self._metrics = metrics or Metrics()
        self._limiter = trio.CapacityLimiter(_WORKERS)
        self._sizes: OrderedDict[Digest, int] = OrderedDict()  # least recently used first
        self._used = 0
        # Evicted, but their names still stand: not to be noted as cached, nor to be committed.
        self._leaving: dict[Digest, trio.Event] = {}
        self.on_change: Callable[[Digest], None] = lambda _: None
        try:
            for each in (directory, self._blobs, self._partials):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot use `{directory}` as a cache: {error.strerror}",
                hint="name another directory with --cache-dir",
            ) from error
        # tmpfs refuses RWF_NOWAIT, and has everything in memory: first reads are twice as fast
        # without a thread.
        self._inline = 0 if _is_in_memory(directory) else os.RWF_NOWAIT

    # --- what is there

    @property
    def usage(self) -> CacheUsage:
        """From memory, so that it never waits."""
        return CacheUsage(self._used, self._max_bytes, len(self._sizes))

    def known_size(self, digest: Digest) -> int | None:
        """The size of a cached blob if it is known without asking the disk."""
        return self._sizes.get(digest)

    def listing(self) -> list[Digest]:
        """The blobs known to be cached, in the order of their names."""
        return sorted(self._sizes, key=lambda each: each.raw)  # four times as fast as by Digest

    async def scan(self) -> None:
        """Learn what a former mount has left, and clear its debris; runs beside the mount.

        A cache that cannot be looked through is a cache all the same: that is logged, not raised.
        """
        try:
            found = await self._in_thread(lambda: sorted(self._walk()))
        except StoreError as error:
            log.warning("what a former mount has left is not known: %s", error)
            found = []
        for _, digest, size in reversed(found):
            # What was used since is younger than all these.
            if digest not in self._sizes and digest not in self._leaving:
                self._sizes[digest] = size
                self._sizes.move_to_end(digest, last=False)
                self._used += size
        await self.clear_debris()
        await self._evict()
        log.debug("cache: %d blobs, %d bytes", len(self._sizes), self._used)

    async def clear_debris(self) -> None:
        """Remove what writers that were killed have left in ``partial/``."""
        try:
            await self._in_thread(self._clear_debris)
        except StoreError as error:
            log.warning("what killed writers have left is not cleared: %s", error)

    async def look_again(self) -> None:
        """``scan``, and clear debris once more when the youngest of it is old enough to judge.

        A mount that was killed and restarted at once would keep it for all of its life.
        """
        await self.scan()
        await trio.sleep(_DEBRIS_AGE + 1)
        await self.clear_debris()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        unknown = [each for each in digests if each not in self._sizes]
        return await self._in_thread(lambda: {e for e in unknown if not is_blob(self._path(e))})

    async def stat(self, digest: Digest) -> BlobStat:
        size = self._sizes.get(digest)
        if size is None:
            size = await self._in_thread(lambda: self._stat(digest))
            self._note(digest, size)
        return BlobStat(size=size, source="cache")

    # --- content out

    async def open(self, digest: Digest) -> CachedFile:
        """Open a cached blob and note its use; raises BlobNotFound, StoreError."""
        known = self._sizes.get(digest)
        try:
            descriptor, size = await self._in_thread(lambda: self._open(digest))
        except BlobNotFound:
            if known is not None:  # somebody else has removed it
                self._forget(digest)
            raise
        file = CachedFile(descriptor, size, self._limiter, inline=self._inline)
        if known not in {None, size}:  # somebody else has truncated it
            file.close()
            await self.drop(digest)
            raise BlobNotFound(digest)
        if os.fstat(descriptor).st_nlink:  # else it was evicted while a thread opened it
            self._note(digest, size)
        return file

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
        self._forget(digest)
        await self._unlink([digest])

    # --- content in

    def begin(self, digest: Digest) -> Partial:
        """A sink for the content of ``digest``; to be committed or discarded."""
        return Partial(digest, self._partials)

    async def commit(self, partial: Partial) -> CachedFile:
        """Give a verified partial file its name and hand it out open, in one step.

        In one step, because eviction could win a race between two. The partial file is used up
        then, and still the caller's if this raises: OSError, or Cancelled.
        """

        def rename() -> None:
            if partial.descriptor < 0:  # a sink that was not used at all
                partial.restart()
            path = self._path(partial.digest)
            path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            partial.path.rename(path)

        while (leaving := self._leaving.get(partial.digest)) is not None:
            await leaving.wait()  # else the new file would be unlinked in place of the old one
        await trio.to_thread.run_sync(rename, limiter=self._limiter)
        # No checkpoint from here to the note: what has its name is counted.
        descriptor, size = partial.release(), partial.written
        file = CachedFile(descriptor, size, self._limiter, inline=self._inline)
        self._note(partial.digest, file.size)
        if file.size > self._max_bytes:  # goes first, or it would drive out all others before
            self._sizes.move_to_end(partial.digest, last=False)
        self.on_change(partial.digest)
        await self._evict()
        return file

    async def discard(self, partial: Partial) -> None:
        """Close and remove a partial file; nothing to do for one that was committed.

        In a thread, because removing a large file takes its time; even if cancelled.
        """
        if partial.descriptor >= 0:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(partial.discard, limiter=self._limiter)

    async def put(self, digest: Digest, source: ContentSource) -> None:
        partial = self.begin(digest)
        try:
            if await _copy(source, partial, self._limiter) != digest:
                raise CorruptBlob(f"the content to store is not that of {digest}")
            (await self.commit(partial)).close()
        except OSError as error:
            raise StoreError(f"cannot write the cache: {error.strerror}") from error
        finally:
            await self.discard(partial)

    # --- bookkeeping, on the event loop

    def _note(self, digest: Digest, size: int) -> None:
        """Note that a blob is there and was just used."""
        if digest in self._leaving:
            return
        self._used += size - self._sizes.pop(digest, 0)
        self._sizes[digest] = size

    def _forget(self, digest: Digest) -> None:
        if digest in self._sizes:
            self._used -= self._sizes.pop(digest)
            self.on_change(digest)

    async def _evict(self) -> None:
        """Take out what is over the bound; never raises, for a cache may fail, a read may not."""
        doomed: dict[Digest, int] = {}
        while self._used > self._max_bytes and self._sizes:
            # No checkpoint in this loop: what is taken out here is counted out here.
            digest, size = self._sizes.popitem(last=False)
            self._used -= size
            doomed[digest] = size
        if not doomed:
            return
        gone = trio.Event()
        self._leaving.update(dict.fromkeys(doomed, gone))
        stuck = await self._unlink(doomed)
        for digest, size in doomed.items():
            del self._leaving[digest]
            if digest in stuck:
                self._note(digest, size)  # as the youngest: the next round takes others first
                continue
            self._metrics.evictions += 1
            self._metrics.evicted_bytes += size
            self.on_change(digest)
        gone.set()

    async def _unlink(self, digests: Collection[Digest]) -> set[Digest]:
        """Remove blobs and return those that could not be removed, with a warning in the log.

        Even if cancelled: what was counted out and is still there would not be in the books.
        """
        stuck: dict[Digest, OSError] = {}

        def unlink() -> None:
            for digest in digests:
                try:
                    self._path(digest).unlink(missing_ok=True)
                except OSError as error:
                    stuck[digest] = error

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(unlink, limiter=self._limiter)
        for digest, error in stuck.items():
            log.warning("cannot remove %s from the cache: %s", digest, error.strerror)
        return set(stuck)

    # --- disk, in threads

    def _path(self, digest: Digest) -> Path:
        return blob_path(self._blobs, digest)

    def _open(self, digest: Digest) -> tuple[int, int]:
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        try:
            with suppress(OSError):  # a read-only cache is a cache all the same
                os.utime(descriptor)
            return descriptor, os.fstat(descriptor).st_size
        except BaseException:
            os.close(descriptor)
            raise

    def _stat(self, digest: Digest) -> int:
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise BlobNotFound(digest) from None

    def _walk(self) -> Iterator[tuple[float, Digest, int]]:
        """Time of last use, digest and size of every blob."""
        for first in _names(self._blobs, _HEX_PAIR):
            trio.from_thread.check_cancelled()  # the mount may end before a large cache is known
            for second in _names(first, _HEX_PAIR):
                for path in _names(second, _HEX_NAME):
                    with suppress(FileNotFoundError):
                        stat = path.lstat()
                        if S_ISREG(stat.st_mode):
                            yield stat.st_mtime, Digest.parse(path.name), stat.st_size

    def _clear_debris(self) -> None:
        for path in self._partials.iterdir():
            with suppress(OSError):  # locked: its writer lives; gone: its writer was quicker
                # A time to come is that of a clock that was wrong.
                if 0 <= time.time() - path.stat().st_mtime < _DEBRIS_AGE:
                    continue
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise StoreError(f"cannot use the cache: {error.strerror}") from error


async def _copy(source: ContentSource, sink: ContentSink, limiter: trio.CapacityLimiter) -> Digest:
    """Copy all content; returns its hash. A hop a piece, so that it can be cancelled between two.

    Raises what ``source`` and ``sink`` raise.
    """
    hasher = Hasher()
    buffer = memoryview(bytearray(max(1, min(PIECE, source.size))))

    def copy_piece() -> int:
        if offset == 0:
            sink.restart()
        count = source.read_at(buffer, offset)
        sink.write(buffer[:count])
        hasher.update(buffer[:count])
        return count

    offset = 0
    while count := await trio.to_thread.run_sync(copy_piece, limiter=limiter):
        offset += count
        if offset >= source.size:
            break
    return hasher.digest()


def _names(directory: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(directory):
            if pattern.fullmatch(name):
                yield directory / name


def _is_in_memory(directory: Path) -> bool:
    """Is ``directory`` on a tmpfs or ramfs? By mountinfo: Python has no statfs that tells types."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == wanted:
            return after.split(" ")[0] in {"tmpfs", "ramfs"}
    return False
