"""Pull no faster than a rate, and slower while somebody in the foreground pulls."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial

import trio

from cafsfs.digest import Digest
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentStore,
    Destination,
    Failures,
    Wanted,
)
from cafsfs.store.passing import PassingStore

_BURST = 0.25  # seconds of the rate that may be saved up while nothing is pulled
# A shorter wait (seconds) is put off, not forgotten: for blobs of 4 KiB at 20 MB/s (0.2 ms each)
# the hop to the event loop would cost as much as the wait.
_SHORTEST = 0.01
_STEP = 0.05  # seconds between two looks whether to go on
# Of a batch so many bytes stand back once: each blob for itself, the last of 64 small ones would
# come after a minute, and perhaps somebody waits for it by now.
_LOT = 256 << 10
_STEPS = 20  # a piece goes on after a second at the latest, or the server would give us up


class PacingStore(PassingStore):
    """Holds up the pulls from ``upstream``; all else passes through.

    ``rate``: bytes of content per second, over all pulls together; None does not limit. A piece
    (2 MiB, from most stores) passes whole. While ``give_way(digest)`` is true each piece waits,
    but not longer than a second: a pull that nobody waits for goes on slowly. Of a batch, blobs of
    256 KiB in all wait once. It is called from worker threads, once a piece or oftener.

    Nothing is read from a server meanwhile. A rate so low that a piece takes longer than the server
    waits for its peer (divided among the pulls at once) makes it close the connection.
    """

    def __init__(
        self,
        upstream: ContentStore,
        *,
        rate: float | None = None,
        give_way: Callable[[Digest], bool] = lambda _: False,
    ) -> None:
        super().__init__(upstream)
        self._bucket = _Bucket(math.inf if rate is None else rate)
        self._give_way = give_way

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        paced = _PacedSink(sink, self._bucket, lambda: self._give_way(digest))
        return await self._upstream.pull(digest, paced)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        turns = _Turns()

        def paced(each: Wanted) -> _PacedDestination:
            give_way = partial(self._give_way, each.digest)
            return _PacedDestination(each.destination, self._bucket, give_way, turns)

        return await self._pull_many_through(paced, wanted, at_once)


class _Bucket:
    """What may pass at ``rate`` bytes per second. Asked from many threads."""

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"a rate of {rate:g} bytes per second lets nothing pass")
        self._rate = rate
        self._lock = threading.Lock()
        self._paid_at = -math.inf  # when everything that was taken so far is paid for

    def take(self, count: int, now: float) -> float:
        """When ``count`` bytes may pass; they are counted as passed.

        What was taken before must be paid for, not these: a piece above the burst passes too.
        """
        with self._lock:
            due = max(self._paid_at, now - _BURST)
            self._paid_at = due + count / self._rate
        return due


class _PacedSink:
    """Waits in the task that waits for the thread, so that it can be cancelled meanwhile."""

    def __init__(self, sink: ContentSink, bucket: _Bucket, give_way: Callable[[], bool]) -> None:
        self._sink = sink
        self._bucket = bucket
        self._give_way = give_way
        self._clock = trio.lowlevel.current_clock()  # threads cannot ask for the current one

    def restart(self) -> None:
        self._sink.restart()

    def write(self, data: bytes | memoryview, /) -> object:
        # A hop to the event loop costs about 100 µs: only where there is something to wait for.
        if self._give_way() and self._is_my_turn(len(data)):
            trio.from_thread.run(self._stand_back)
        now = self._clock.current_time()
        due = self._bucket.take(len(data), now)
        if due - now >= _SHORTEST:
            trio.from_thread.run(trio.sleep_until, due)
        return self._sink.write(data)

    def _is_my_turn(self, _count: int) -> bool:
        return True

    async def _stand_back(self) -> None:
        for _ in range(_STEPS):
            await trio.sleep(_STEP)
            if not self._give_way():
                return


class _Turns:
    """Which blobs of a batch stand back for all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spared = 0  # bytes

    def take(self, count: int) -> bool:
        """Must this piece of ``count`` bytes stand back?"""
        with self._lock:
            if count <= self._spared:
                self._spared -= count
                return False
            self._spared = max(0, _LOT - count)
            return True


class _PacedDestination(_PacedSink):
    """A lot of small blobs is held up as a piece of that length would be."""

    def __init__(
        self,
        destination: Destination,
        bucket: _Bucket,
        give_way: Callable[[], bool],
        turns: _Turns,
    ) -> None:
        super().__init__(destination, bucket, give_way)
        self._turns = turns
        self.commit = destination.commit
        self.abandon = destination.abandon

    def _is_my_turn(self, count: int) -> bool:
        return self._turns.take(count)
