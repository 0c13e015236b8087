"""Ordinary files as sinks and sources of content."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CorruptBlob, StoreError
from cafsfs.packing import Hasher, hash_file
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.pump import PIECE

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


# A stamp of this age (nanoseconds) differs from that of any later change: filesystems count in
# nanoseconds, ticks of 10 ms or, the coarsest, in steps of 2 s.
_GRAIN = 2_500_000_000


class FileSink:
    """Content written to a file that is open for writing; raises OSError.

    ``written`` (bytes, of this attempt) and ``progress`` (pieces, of all attempts) may be read from
    any thread. ``on_write`` is told the bytes of each piece, in the worker thread.
    """

    def __init__(
        self, descriptor: int, *, on_write: Callable[[int], object] = lambda _: None
    ) -> None:
        self._descriptor = descriptor
        self._on_write = on_write
        self.written = 0
        self.progress = 0

    def restart(self) -> None:
        if self.written:
            os.ftruncate(self._descriptor, 0)
        self.written = 0

    def write(self, data: bytes | memoryview, /) -> None:
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, self.written)
            self.written += count
            left = left[count:]
        self.progress += 1
        self._on_write(len(data))


class FileSource:
    """The content of a file, as it was when it was hashed.

    Raises StoreError for a file that cannot be read; blocks while it hashes. A file that changes
    after that would be uploaded under a name that is not its own: reading it raises CorruptBlob.

    It is ``settled``, and need not be hashed a second time while it is uploaded, if its time stamps
    show every change that is still possible. They do where they are old enough for a new one to
    differ, and where nobody has it open for writing, or mapped: who has may write to a page that is
    dirty already, and no stamp tells. Not seen is a change that somebody takes back, stamps of
    modification and all, before the upload ends; and one by another machine that a network
    filesystem has not told us of.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._stamp, self._changed = self._look()
                self.size = self._stamp[0]
                old = time.time_ns() - max(self._stamp[1], self._changed) >= _GRAIN
                self.settled = old and _has_no_writer(self._descriptor)
                # Not by its path: that may name another file by now, and a file that is truncated
                # while it is mapped into memory kills the process.
                self.digest = hash_file(self._descriptor)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            hint = "is the name right?" if error.errno == errno.ENOENT else None
            raise StoreError(f"cannot read `{path}`: {error.strerror}", hint=hint) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        try:
            count = os.preadv(self._descriptor, [buffer[: max(0, self.size - offset)]], offset)
        except OSError as error:
            raise StoreError(f"cannot read `{self._path}`: {error.strerror}") from error
        # Looked at after each piece, so that the last piece of a changed file is never sent.
        if not self._is_unchanged():
            raise CorruptBlob(
                f"`{self._path}` changed while it was being uploaded",
                hint="upload it again when nothing writes to it",
            )
        return count

    def _is_unchanged(self) -> bool:
        stamp, changed = self._look()
        if stamp == self._stamp and self.settled and changed != self._changed:
            # Its name, its mode, or its content and then its time: only its bytes tell.
            self._changed = changed
            return hash_file(self._descriptor) == self.digest
        return stamp == self._stamp

    def _look(self) -> tuple[tuple[int, int], int]:
        """Size and time of modification; and the time of any change, which nobody can set."""
        stat = os.fstat(self._descriptor)
        if not S_ISREG(stat.st_mode):
            raise StoreError(f"cannot read `{self._path}`: it is no regular file")
        return (stat.st_size, stat.st_mtime_ns), stat.st_ctime_ns


def _has_no_writer(descriptor: int) -> bool:
    """Is no descriptor and no mapping of the file open for writing? False where nobody can tell.

    The kernel gives a lease for reading only then. Given back at once, it holds nobody up for
    longer than a microsecond; the signal for whoever breaks it in between is one that is ignored.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # somebody has; or it is not ours, or its filesystem has no leases
        return False
    return True


async def pull_to_file(
    store: ContentStore,
    digest: Digest,
    path: Path,
    *,
    limiter: trio.CapacityLimiter,
    on_write: Callable[[int], object] = lambda _: None,
) -> BlobStat:
    """Pull a blob to ``path``; a reader of ``path`` sees the old file or all of the new one.

    Written to a temporary file beside ``path``, verified, then renamed. Makes missing parent
    directories. Raises what ``store.pull`` raises, and StoreError for a directory that cannot be
    written. After an error or a cancellation there is no temporary file.
    """

    def prepare() -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(temporary, _NEW_FILE, 0o666)

    temporary = _beside(os.fspath(path), secrets.token_hex(4))
    try:
        descriptor = await trio.to_thread.run_sync(prepare, limiter=limiter)
        try:
            try:
                stat = await store.pull(digest, FileSink(descriptor, on_write=on_write))
            finally:
                os.close(descriptor)  # network filesystems tell here that their disk is full
            await trio.to_thread.run_sync(os.rename, temporary, path, limiter=limiter)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise StoreError(f"cannot write `{path}`: {error.strerror}") from error
    return stat


class ReplacingFile:
    """A Destination that puts a file in the place of ``path``; raises OSError.

    Readers of ``path`` see the old file or all of the new one. Written to a temporary file beside
    it, which is there from the first byte to the end only; ``mark`` in its name makes it unique.
    Makes missing parent directories.
    """

    def __init__(self, path: Path, *, mark: str) -> None:
        self._path = os.fspath(path)
        self._temporary = _beside(self._path, mark)
        self._descriptor: int | None = None
        self._written = 0

    def restart(self) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        elif self._written:
            os.ftruncate(self._descriptor, 0)
        self._written = 0

    def _open(self) -> int:
        try:
            return os.open(self._temporary, _NEW_FILE, 0o666)
        except FileNotFoundError:  # looked at only then: most directories are there
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            return os.open(self._temporary, _NEW_FILE, 0o666)

    def write(self, data: bytes | memoryview, /) -> None:
        if self._descriptor is None:
            raise AssertionError("restart comes before the first byte")
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, self._written)
            self._written += count
            left = left[count:]

    def commit(self, _stat: BlobStat, /) -> None:
        if self._descriptor is None:
            raise AssertionError("restart comes before the end")
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.close(descriptor)  # network filesystems tell here that their disk is full
            os.rename(self._temporary, self._path)
        except OSError:
            self._remove()
            raise

    def abandon(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self._temporary)


def _beside(path: str, mark: str) -> str:
    """A name for a temporary file in the directory of ``path``."""
    directory, slash, name = path.rpartition("/")
    start = os.fsdecode(os.fsencode(name)[:200])  # a file name has 255 bytes, not characters
    return f"{directory}{slash}.{start}.{mark}.part"


async def copy_content(
    source: ContentSource, sink: ContentSink, limiter: trio.CapacityLimiter
) -> Digest:
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
