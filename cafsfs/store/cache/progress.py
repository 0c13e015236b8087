"""What is on its way: how far it is, and what of it readers may see before it is verified.

Content is written by one thread and read by others, on one file. What a reader was given, the hash
must have run over: so it is noted how far readers have seen, and whoever brings the content once
more (another server, another process) is compared with that. See section 4 of the design.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from threading import Lock

import trio

from cafsfs.store.cache.cached_file import CachedFile

_PIECE = 1 << 20  # bytes, compared at once


class Contradiction(Exception):
    """What comes now is not what readers have seen of the blob before.

    No CafsError, for nobody else is to be asked: whoever is right, the readers must be told.
    """


class Progress:
    """Grows while content is on its way, or is being verified. To be used from any thread.

    ``count`` grows with every step. After ``stream`` readers see what has come. ``length`` is how
    many bytes of content have come, ``began`` and ``moved_at`` tell when, in seconds of
    time.monotonic(): for who looks on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.length = 0
        self.moved_at = self.began = time.monotonic()
        self.files: list[CachedFile] = []  # shown so far; to be closed when nobody reads them
        self._lock = Lock()
        self._open: Callable[[int], CachedFile] | None = None
        self._limit = 0
        self._descriptor = -1  # of the last of ``files``
        self._end = 0  # of what may be seen
        self._seen = 0  # end of what readers were given
        self._wanted: int | None = None  # the least end that somebody waits for
        self._token: trio.lowlevel.TrioToken | None = None
        self._news = trio.Event()

    @property
    def seen(self) -> int:
        """End of what readers have been given, in bytes."""
        return self._seen

    # --- by who reads, on the event loop

    def stream(self, limit: int, opened: Callable[[int], CachedFile]) -> None:
        """Let readers see the first ``limit`` bytes as they come; ``opened`` makes the files."""
        self._limit = limit
        self._open = opened
        self._token = trio.lowlevel.current_trio_token()

    def stop_streaming(self) -> None:
        """Show nothing more, for what is there cannot be read."""
        self._limit = 0

    def look(self, end: int) -> CachedFile | None:
        """The file to read from, if all up to ``end`` is there: it counts as seen then."""
        with self._lock:
            if end > min(self._end, self._limit) or not self.files:
                return None
            self._seen = max(self._seen, end)
            return self.files[-1]

    def take_seen(self) -> bool:
        """Has anybody seen anything? Asked once: the answer is False from then on."""
        with self._lock:
            seen, self._seen = self._seen, 0
            self._limit = 0
        return seen > 0

    async def news(self, end: int | None) -> None:
        """Return when all up to ``end`` may be there, or ``wake`` was called."""
        with self._lock:
            if end is not None:
                if end <= min(self._end, self._limit) and self.files:
                    return
                self._wanted = end if self._wanted is None else min(end, self._wanted)
            news = self._news
        await news.wait()

    def wake(self) -> None:
        """Let all who wait look again."""
        self._news.set()
        self._news = trio.Event()

    # --- by who writes, in threads

    def show(self, descriptor: int, *, holds: int) -> bool:
        """Let readers see that file from now on; it ``holds`` what they have seen so far.

        False if they see nothing of it: it lacks some of that, or there is no streaming.
        """
        if self._open is None:
            return False
        try:
            # Not dup: that would share the lock of who writes, and keep it when he is gone.
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # out of descriptors: they wait for the end then
            return False
        with self._lock:
            if holds < self._seen:
                os.close(again)
                return False
            self.files.append(self._open(again))
            self._descriptor = again
            self._end = min(self._end, holds)
        return True

    def advance(self, end: int) -> None:
        """All up to ``end`` is in the file that is shown."""
        with self._lock:
            self._end = max(self._end, end)
            wanted = self._wanted is not None and self._wanted <= min(self._end, self._limit)
            if wanted:
                self._wanted = None
        if wanted and self._token is not None:
            self._token.run_sync_soon(self.wake, idempotent=True)

    def shrink(self, end: int) -> int:
        """Show nothing beyond ``end`` but what was seen already; returns the end of that."""
        with self._lock:
            self._end = max(self._seen, min(self._end, end))
            return self._seen

    def retract(self, end: int) -> None:
        """What stands from ``end`` on is wrong; raises Contradiction if it was seen."""
        if self.shrink(end) > end:
            raise Contradiction(f"at byte {end}")

    def is_shown(self, descriptor: int) -> bool:
        """Is that the file in which readers saw what they have seen? Raises OSError."""
        return self._descriptor >= 0 and os.path.samestat(
            os.fstat(self._descriptor), os.fstat(descriptor)
        )

    def copy_seen(self, descriptor: int) -> int:
        """Write what readers have seen to another file; returns its length. Raises OSError."""
        length = self.shrink(0)
        copy(self._descriptor, descriptor, length, self._step)
        return length

    def compare(self, file: CachedFile) -> None:
        """Raise Contradiction if ``file`` is not what readers have seen; OSError, StoreError."""
        length = self.shrink(0)
        buffer = memoryview(bytearray(min(_PIECE, length)))
        done = 0
        while done < length:
            self._step()
            count = file.read_at(buffer[: length - done], done)
            # As bytes: to compare a memoryview takes a hundred times as long (2 ms for a MiB).
            if not count or os.pread(self._descriptor, count, done) != bytes(buffer[:count]):
                raise Contradiction(f"behind byte {done}")
            done += count

    def step(self) -> None:
        """Something was done for those who wait: of many gigabytes, it may take minutes."""
        self.count += 1
        self.moved_at = time.monotonic()

    def come(self, length: int) -> None:
        """So many bytes of content are there."""
        self.length = length
        self.step()

    def _step(self) -> None:
        self.step()
        trio.from_thread.check_cancelled()


def copy(source: int, target: int, length: int, step: Callable[[], object]) -> None:
    """Copy the first ``length`` bytes of an open file, ``step`` by step; raises OSError."""
    done = 0
    while done < length:
        step()
        piece = os.pread(source, min(_PIECE, length - done), done)
        if not piece:
            raise OSError(errno.EIO, "a partial file became shorter")
        done += os.pwrite(target, piece, done)
