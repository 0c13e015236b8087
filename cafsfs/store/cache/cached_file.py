"""An open file of verified content."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CorruptBlob, StoreError
from cafsfs.store.contracts import BlobStat, ContentSink
from cafsfs.store.files import copy_content

# Closing the last descriptor of a removed file frees its blocks: not on the event loop from here on
_LARGE = 1 << 20  # bytes
# Behind who reads a file from one end to the other, its pages are dropped: the kernel keeps them a
# second time for the mount. A step costs about a millisecond, in a thread that nobody waits for.
_STEP = 8 << 20  # bytes dropped at once
_BEHIND = 4 << 20  # bytes that stay: requests of one reader overtake each other, by 1 MiB at most
_ASTRAY = 1 << 20  # bytes; who goes further away than that does not read in sequence
# Pages that are not yet written cannot be dropped, and being told to would have the kernel write
# them at once. After 30 s it does so by itself.
_WRITTEN = 60_000_000_000  # nanoseconds

# A disk that takes longer hangs: before the readers' patience (30 s) is at its end, the blob is to
# have come from elsewhere.
HUNG = 10.0  # seconds


# One for all reads of an event loop: a fresh one for each would leave holes in the heap that add up
# to 150 MB with 200 readers.
_BUFFER: trio.lowlevel.RunVar[memoryview] = trio.lowlevel.RunVar("read buffer")
_USUAL = 1 << 20  # bytes; no request of the kernel's is larger


def _shared_buffer(length: int) -> memoryview:
    try:
        buffer = _BUFFER.get()
    except LookupError:
        buffer = memoryview(bytearray(_USUAL))
        _BUFFER.set(buffer)
    return buffer[:length] if length <= len(buffer) else memoryview(bytearray(length))


class CachedFile:
    """An open file of verified content. It stays readable when the cache evicts its name.

    ``stamp`` is its time of modification (nanoseconds) when it was verified: a file that was
    written to since is CorruptBlob, and not one byte of it is handed out. None where nobody else
    can reach the file. ``inline`` are the flags of preadv2 for reads on the event loop: they must
    not wait for a disk. ``on_close`` is called once.
    """

    settled = False

    def __init__(
        self,
        descriptor: int,
        size: int,
        limiter: trio.CapacityLimiter,
        *,
        inline: int = os.RWF_NOWAIT,
        stamp: int | None = None,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self._descriptor = descriptor
        self.size = size
        self._limiter = limiter
        self._flags = inline
        self._inline = True
        self._stamp = stamp
        self._on_close = on_close
        # On tmpfs, where reads never wait, memory is all there is.
        written = stamp is not None and time.time_ns() - stamp >= _WRITTEN
        self._trail = _Trail() if inline and written else None
        self._dropping = False

    def fileno(self) -> int:
        """Its descriptor."""
        return self._descriptor

    def close(self) -> None:
        """To be called when no read is under way: its descriptor may be another file's then."""
        self._on_close()
        if self.size >= _LARGE and not os.fstat(self._descriptor).st_nlink:
            trio.lowlevel.start_thread_soon(lambda: os.close(self._descriptor), lambda _: None)
        else:
            os.close(self._descriptor)

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly what is in the file there: min(length, size − offset) bytes, or an error.

        What is returned is valid until the next checkpoint of any task: other reads use its memory
        again. Answered on the event loop if the data is in memory (41 µs against 110 through a
        thread), else in a thread. Raises CorruptBlob if the file is not what it was when it was
        verified, StoreError for a sick disk.
        """
        length = max(0, min(length, self.size - offset))
        buffer, done = memoryview(b""), 0
        if self._inline:
            buffer = _shared_buffer(length)
            done = self._read_from_memory(buffer, offset)
        if done < length:
            own = memoryview(bytearray(length))
            own[:done] = buffer[:done]
            await self._read_in_thread(own[done:], offset + done)
            buffer = own
        self._check_unchanged()
        if self._trail is not None:
            self._trail.follow(offset, length)
            if not self._dropping and self._trail.is_long:
                self._drop(*self._trail.take())
        return buffer

    def _drop(self, offset: int, count: int) -> None:
        """Have the kernel forget pages, off the event loop, and one step at a time."""
        try:
            descriptor = os.dup(self._descriptor)  # ours may be closed meanwhile
        except OSError:  # no descriptor is left, and a reader wants no more than its bytes
            return
        self._dropping = True

        def advise() -> None:
            try:
                os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

        def advised(_: object) -> None:
            self._dropping = False  # in the thread; who reads it a moment late misses nothing

        trio.lowlevel.start_thread_soon(advise, advised)

    async def _read_in_thread(self, buffer: memoryview, offset: int) -> None:
        """Cancelled, or when the disk hangs, the thread is left to itself, and ``buffer`` to it."""
        with trio.move_on_after(HUNG):
            await trio.to_thread.run_sync(
                lambda: self._read_from_disk(buffer, offset),
                limiter=self._limiter,
                abandon_on_cancel=True,
            )
            return
        raise StoreError("cannot read the cache: its disk does not answer") from OSError(
            errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)
        )

    async def copy_to(self, sink: ContentSink, digest: Digest) -> BlobStat:
        """Write all to ``sink``, verifying it once more; raises CorruptBlob, StoreError."""
        if await copy_content(self, sink, self._limiter) != digest:
            raise CorruptBlob(f"the cached bytes of {digest} are not its content")
        return BlobStat(size=self.size, source="cache", verified_at=int(time.time()))

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """As a ContentSource; raises StoreError for a sick disk."""
        try:
            return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise StoreError(f"cannot read the cache: {error.strerror}") from error

    def _read_from_memory(self, buffer: memoryview, offset: int) -> int:
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

    def _check_unchanged(self) -> None:
        """After the bytes were read, so that none of them are younger. Costs 1 µs."""
        if self._stamp is None:
            return
        now = os.fstat(self._descriptor)
        if now.st_mtime_ns != self._stamp or now.st_size != self.size:
            raise CorruptBlob("a cached blob was changed by somebody else")


class _Trail:
    """What a reader leaves behind, as long as it reads in sequence."""

    def __init__(self) -> None:
        self._start = 0
        self._front = 0

    def follow(self, offset: int, length: int) -> None:
        """Note a read."""
        if abs(offset - self._front) > _ASTRAY:
            self._start = self._front = offset
        self._front = max(self._front, offset + length)

    @property
    def is_long(self) -> bool:
        """Is there a step to be dropped?"""
        return self._front - _BEHIND - self._start >= _STEP

    def take(self) -> tuple[int, int]:
        """Where what may be dropped begins, and its bytes; it is not told again."""
        start, self._start = self._start, self._front - _BEHIND
        return start, self._start - start
