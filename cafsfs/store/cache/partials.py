"""Content on its way into a cache, written by one process and watched by others.

``partial/<hash>`` is the one file for a blob in flight. Who has its ``flock`` is the holder: it
pulls, verifies, and renames the file to its place under ``blobs/``. Who finds it locked follows:
the length of the file, which is written in order, is the progress; the rename and the lock given up
are the verdict; the lock gone without a rename means that the holder is dead, or has given up. A
follower holds a read lock (``F_OFD_SETLK``) on the file, by which the holder sees that somebody
waits. Neither kind of lock is lost by closing another descriptor of the file, as POSIX locks are
(fcntl(2)), and both end with their process.

A file in ``partial/`` that nobody has locked is debris, or the beginning for who takes it over.

Readers may see what is in the file before it is verified (``progress.py``), in all processes. So
nothing that is in it is ever changed: a holder that is sent something else than is there begins a
new file of that name, and the followers find theirs gone.

A holder that finds the disk full, or sick, goes on in a private file, elsewhere and without a
name: its readers are served, and nothing is cached.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from threading import Lock

from cafsfs.digest import Digest
from cafsfs.store.cache.progress import Progress, copy
from cafsfs.store.local_root import blob_path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PIECE = 1 << 20  # bytes, compared or copied at once
_AHEAD = 64 << 20  # bytes for which room is made before they come
# How often room is made for one piece: where that does not help, others hold what was evicted open.
ROOMS = 2
# Content for which there is no room on a disk: of all blobs together, and of one whose length
# is not known.
_MEMORY = 256 << 20
_MEMORY_EACH = 32 << 20
_WHOLE_FILE = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux (fcntl.h)
# Without waiting for who writes to a FIFO.
_TO_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Verdict(Enum):
    """What a follower sees."""

    MOVING = auto()  # the holder lives
    COMMITTED = auto()  # the file that we have open is the blob
    TAKEN = auto()  # the holder is gone, and the lock is ours
    GONE = auto()  # the holder has given up: begin anew


class Shelter:
    """Room for content that the cache has no room for: memory up to a budget, else ``directory``.

    Both without a name: nothing to clear up after a kill.
    """

    def __init__(self, directory: Path | None = None, *, memory: int = _MEMORY) -> None:
        self._directory = directory
        self._memory = memory
        self._lock = Lock()  # of the count: pulls run in several threads

    def open(self, needed: int, expected: int | None) -> tuple[int, int]:
        """A descriptor for ``needed`` bytes at least, and the bytes of memory taken for it.

        The latter are 0 for a file. What takes memory must not become larger than that, and gives
        it back by ``release``. Raises OSError.
        """
        wanted = _MEMORY_EACH if expected is None else max(1, expected)  # never for nothing
        if needed <= wanted and self._take(wanted):
            try:
                return os.memfd_create("cafsfs", os.MFD_CLOEXEC), wanted
            except OSError:
                self.release(wanted)
        directory = str(self._directory) if self._directory else tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=directory, prefix="cafsfs-") as file:
            return os.dup(file.fileno()), 0

    def release(self, memory: int) -> None:
        """Give memory back."""
        with self._lock:
            self._memory += memory

    def _take(self, memory: int) -> bool:
        with self._lock:
            enough = memory <= self._memory
            if enough:
                self._memory -= memory
            return enough


class Partial:
    """A blob in flight, as a sink; raises OSError. Its methods are for worker threads.

    ``write`` raises Contradiction where readers have seen something else of the blob.

    ``make_room(count)`` is called where the disk is full: True if it is worth another try.
    ``on_trouble(error)`` is told of all other errors of the disk, and where no room can be made.
    """

    def __init__(
        self,
        digest: Digest,
        path: Path | None,
        descriptor: int,
        shelter: Shelter,
        *,
        progress: Progress | None = None,
        expected: int | None = None,
        make_room: Callable[[int], bool] = lambda _: False,
        on_trouble: Callable[[OSError], object] = lambda _: None,
    ) -> None:
        self.digest = digest
        self.path = path  # None for a private one
        self.descriptor = descriptor
        self.expected = expected
        self._progress = progress or Progress()
        self.written = 0  # bytes of content of this attempt
        # What the file holds already, from an earlier attempt or a dead holder: compared with
        # what comes, not written again, so that followers see it grow only.
        self._kept = 0 if descriptor < 0 else os.fstat(descriptor).st_size
        self._shelter = shelter
        self._memory = 0
        self._shown = False  # to readers
        self._rooms = 0  # made since something was written
        self._make_room = make_room
        self._on_trouble = on_trouble

    def __repr__(self) -> str:
        return f"<Partial {self.digest!r} {'private' if self.path is None else 'shared'}>"

    @property
    def kept(self) -> int:
        """Bytes that a dead holder has left."""
        return self._kept

    @property
    def room(self) -> int:
        """Bytes that it takes, or will take soon.

        Not all that is expected at once: that is a server's word, and others have to go for it.
        """
        return max(self._kept, min(max(self.written, self.expected or 0), self.written + _AHEAD))

    @property
    def wanted(self) -> bool:
        """Does another process wait for it?"""
        return self.path is not None and self.descriptor >= 0 and is_range_locked(self.descriptor)

    def restart(self) -> None:
        self._kept = max(self._kept, self.written)
        self.written = 0

    def write(self, data: bytes | memoryview, /) -> None:
        left = self._compare(memoryview(data))
        while left:
            try:
                needed = self.written + len(left)
                if self.descriptor < 0 or 0 < self._memory < needed:
                    self._move(needed)
                count = os.pwrite(self.descriptor, left, self.written)
            except OSError as error:
                if self.path is None:
                    raise
                self._overcome(error, len(left))
                continue
            self.written += count
            self._rooms = 0
            left = left[count:]
        self._show()

    def _show(self) -> None:
        self._progress.come(self.written)
        if not self._shown:
            holds = max(self.written, self._kept)
            self._shown = self._progress.show(self.descriptor, holds=holds)
        if self._shown:
            self._progress.advance(self.written)

    def recall(self) -> None:
        """Have in it what readers have seen of the blob in another file: what comes is compared."""
        if self.descriptor >= 0 and self._progress.is_shown(self.descriptor):
            return
        if self.path is None:
            self._move(self._progress.seen)
        while True:
            try:
                if self.path is not None and self._kept:
                    self._renew(0)
                self._kept = self._progress.copy_seen(self.descriptor)
            except OSError as error:
                if self.path is None:
                    raise
                self._overcome(error, self._progress.seen)
            else:
                return

    def finish(self) -> None:
        """All is written: what is longer came from somebody else."""
        if self.descriptor < 0:
            self._move(0)  # an empty blob, of a private one
        if os.fstat(self.descriptor).st_size > self.written:
            os.ftruncate(self.descriptor, self.written)

    def accept_kept(self) -> None:
        """What a dead holder has left has proved to be all."""
        self.written = self._kept

    def make_private(self) -> None:
        """Take its name away; the content stays."""
        if self.path is not None:
            path, self.path = self.path, None
            with suppress(OSError):
                if is_at(self.descriptor, path):
                    path.unlink()

    def release(self) -> tuple[int, Callable[[], None]]:
        """The descriptor, and what to call when it is closed; nothing is left to discard."""
        descriptor, self.descriptor = self.descriptor, -1
        memory, self._memory = self._memory, 0
        return descriptor, lambda: self._shelter.release(memory)

    def discard(self) -> None:
        """Close and remove, unless it was committed; blocks."""
        if self.descriptor >= 0:
            self.make_private()  # before the lock is given up: nobody is to take it over
            os.close(self.descriptor)
            self.descriptor = -1
        self._shelter.release(self._memory)
        self._memory = 0

    def _compare(self, data: memoryview) -> memoryview:
        """Pass over what the file holds already; returns what is to be written."""
        while data and self.written < self._kept:
            count = min(len(data), self._kept - self.written, _PIECE)
            same = self._count_same(data[:count])
            self.written += same
            data = data[same:]
            if same < count:
                self._differ()
        return data

    def _count_same(self, data: memoryview) -> int:
        """How many bytes of ``data`` are what the file has next."""
        try:
            there = os.pread(self.descriptor, len(data), self.written)
        except OSError:  # writing will tell
            return 0
        if there == bytes(data):  # to compare a memoryview takes a hundred times as long
            return len(data)
        same, differs = 0, min(len(there), len(data))
        while same < differs:  # up to ``same`` they are; the first difference is before ``differs``
            middle = (same + differs + 1) // 2
            if there[same:middle] == data[same:middle]:
                same = middle
            else:
                differs = middle - 1
        return same

    def _differ(self) -> None:
        """What comes next is not what the file has."""
        self._progress.retract(self.written)
        if self.path is None:
            self._kept = 0
            return
        try:
            self._renew(self.written)
        except OSError as error:
            self._on_trouble(error)
            self._move(self.written)

    def _renew(self, length: int) -> None:
        """Go on in a new file of that name; ``length`` bytes of the old one stay.

        Others may have seen the old one: they find it gone.
        """
        assert self.path is not None
        path = self.path.with_suffix(".new")
        new = _begin(path)
        try:
            copy(self.descriptor, new, length, self._progress.step)
            path.rename(self.path)
        except BaseException:
            with suppress(OSError):
                if is_at(new, path):
                    path.unlink()
            os.close(new)
            raise
        unlock(self.descriptor)
        os.close(self.descriptor)
        self.descriptor, self._kept, self._shown = new, 0, False

    def _overcome(self, error: OSError, count: int) -> None:
        """After an error of the cache's disk: there is room again, or we are elsewhere."""
        if error.errno in FULL and self._rooms < ROOMS and self._make_room(count):
            self._rooms += 1
            return
        self._on_trouble(error)
        self._move(self.written + count)

    def _move(self, needed: int) -> None:
        """Go on in a private file; raises OSError if there is no room anywhere."""
        old, old_memory = self.descriptor, self._memory
        # What readers have seen is to be compared yet.
        length = max(self.written, min(self._kept, self._progress.shrink(self.written)))
        new, memory = self._shelter.open(max(needed, length), self.expected)
        try:
            copy(old, new, length, self._progress.step)
        except BaseException:
            os.close(new)
            self._shelter.release(memory)
            raise
        self._kept = length if length > self.written else 0
        self._shown = False
        self.make_private()
        self.descriptor, self._memory = new, memory
        if old >= 0:
            os.close(old)
        self._shelter.release(old_memory)


class Following:
    """A blob in flight in another process. To be closed, unless ``release`` was called.

    Its methods are for worker threads; they raise OSError.
    """

    def __init__(self, digest: Digest, path: Path, blobs: Path, descriptor: int) -> None:
        self.digest = digest
        self._path = path
        self._blob = blob_path(blobs, digest)
        self.descriptor = descriptor
        self.length = 0  # when we last looked
        with suppress(OSError):  # the holder may think that nobody waits; we go on then
            lock_range(descriptor)

    def look(self) -> Verdict:
        """How things stand."""
        locked = _try_lock(self.descriptor)
        if locked and is_at(self.descriptor, self._blob):
            # Not by its name alone: who took the wrong file for his own has named it so, and its
            # holder is not at its end.
            unlock(self.descriptor)  # others follow, too
            return Verdict.COMMITTED
        if not locked:
            self.length = os.fstat(self.descriptor).st_size
            return Verdict.MOVING
        if is_at(self.descriptor, self._path):
            return Verdict.TAKEN
        unlock(self.descriptor)
        # Committed between our two looks, or given up.
        return Verdict.COMMITTED if is_at(self.descriptor, self._blob) else Verdict.GONE

    def release(self) -> int:
        """Hand the descriptor over."""
        descriptor, self.descriptor = self.descriptor, -1
        unlock_range(descriptor)
        return descriptor

    def close(self) -> None:
        """Give up waiting."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def claim(directory: Path, blobs: Path, digest: Digest) -> tuple[int, Path] | Following:
    """Become the holder of ``partial/<hash>`` (a locked descriptor and its path), or follow.

    Raises OSError.
    """
    path = directory / digest.hex
    while True:
        descriptor = _open(path)
        try:
            if not _try_lock(descriptor):
                return Following(digest, path, blobs, descriptor)
            if is_at(descriptor, path):
                return descriptor, path
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # renamed or removed between our open and our lock


def sweep(directory: Path) -> list[int]:
    """Remove what dead holders have left; returns the sizes of what the living hold."""
    held: list[int] = []
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            with suppress(OSError):
                descriptor = os.open(path, _TO_LOOK)
                try:
                    if _try_lock(descriptor):
                        if is_at(descriptor, path):
                            path.unlink()
                    else:
                        held.append(os.fstat(descriptor).st_size)
                finally:
                    os.close(descriptor)
    return held


def measure(directory: Path) -> tuple[int, int]:
    """Bytes that the living hold, and bytes that dead holders have left."""
    held = left = 0
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            with suppress(OSError):
                descriptor = os.open(path, _TO_LOOK)
                try:
                    size = os.fstat(descriptor).st_size
                    if _try_lock(descriptor):
                        left += size
                    else:
                        held += size
                finally:
                    os.close(descriptor)
    return held, left


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:  # whoever clears a cache by hand removes this directory too
        for each in (path.parent.parent, path.parent):
            each.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _begin(path: Path) -> int:
    """A new file that is locked; what a dead process has left there goes. Raises OSError."""
    while True:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if _try_lock(descriptor) and is_at(descriptor, path):  # else it was taken for debris
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Has the open file this name? Raises OSError."""
    try:
        there = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give up the lock of a holder."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def lock_range(descriptor: int) -> None:
    """Take the lock of who waits; raises OSError."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE.pack(fcntl.F_RDLCK, 0, 0, 0, 0))


def unlock_range(descriptor: int) -> None:
    """Give up the lock of who waits."""
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE.pack(fcntl.F_UNLCK, 0, 0, 0, 0))


def is_range_locked(descriptor: int) -> bool:
    """Has anybody else a read lock on the file?"""
    asked = _WHOLE_FILE.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    kind: int = _WHOLE_FILE.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
