"""Let many who want one blob each share a batch."""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CafsError, StoreError, Unavailable
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentStore,
    Failures,
    Wanted,
)
from cafsfs.store.passing import PassingStore

log = logging.getLogger(__name__)

_MOST = 64  # blobs of a batch: an error is told when all of its batch are done


class GatheringStore(PassingStore):
    """Pulls from ``upstream``, up to ``at_once`` of them as they are; those beyond in batches.

    Who comes when ``at_once`` pulls and batches are under way waits for one of them to end. Then a
    fair share of all who wait goes out as one ``pull_many`` over one connection, as a task of
    ``nursery``: so many small blobs cost few round trips, and a large one holds up its own batch
    only. Who has no more than ``at_once`` pulls at a time sees no difference.

    Each caller has his own result. One who is cancelled leaves the others alone, and his sink is
    not touched any more when ``pull`` has ended.
    """

    def __init__(self, upstream: ContentStore, nursery: trio.Nursery, *, at_once: int) -> None:
        super().__init__(upstream)
        self._nursery = nursery
        self._at_once = at_once
        self._under_way = 0  # pulls and batches
        self._waiting: deque[_Caller] = deque()

    def __repr__(self) -> str:
        return f"<GatheringStore under_way={self._under_way} waiting={len(self._waiting)}>"

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        if self._under_way < self._at_once:
            self._under_way += 1
            try:
                return await self._upstream.pull(digest, sink)
            finally:
                self._go_on()
        caller = _Caller(digest, sink)
        self._waiting.append(caller)
        try:
            return await caller.outcome()
        finally:
            if caller in self._waiting:
                self._waiting.remove(caller)
            await caller.leave()

    def _go_on(self) -> None:
        """A place is free: for a share of those who wait, if there are any."""
        self._under_way -= 1
        share = min(_MOST, -(-len(self._waiting) // self._at_once))
        if share:
            self._under_way += 1
            batch = _Batch([self._waiting.popleft() for _ in range(share)])
            self._nursery.start_soon(self._pull, batch)

    async def _pull(self, batch: _Batch) -> None:
        try:
            await batch.run(self._upstream)
        finally:
            self._go_on()


class _Batch:
    """Callers whose blobs go together."""

    def __init__(self, callers: Sequence[_Caller]) -> None:
        self._callers = callers
        self._scope = trio.CancelScope()
        for each in callers:
            each.on_leave = self._note_leave

    async def run(self, upstream: ContentStore) -> None:
        """Pull all; whatever happens, each caller is told something."""
        failures: Failures[Wanted] = {}
        other: CafsError = Unavailable("the batch of pulls was given up")
        wanted = {each: Wanted(each.digest, each) for each in self._callers}
        try:
            with self._scope:
                failures = await upstream.pull_many(list(wanted.values()), at_once=1)
        except Exception as error:
            log.exception("a batch of pulls failed")
            other = StoreError(f"a batch of pulls failed: {error}")
        finally:
            for each in self._callers:
                each.end(failures.get(wanted[each], other))

    def _note_leave(self) -> None:
        if not any(each.waiting for each in self._callers):
            self._scope.cancel()


class _Caller:
    """One who waits for his blob; a Destination for the batch, which ends where he leaves.

    The lock is never held while the sink is called: the event loop takes it, and a sink may wait
    for the event loop.
    """

    def __init__(self, digest: Digest, sink: ContentSink) -> None:
        self.digest = digest
        self.on_leave: Callable[[], object] = lambda: None
        self._sink = sink
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self._stat: BlobStat | None = None
        self._failure: Exception | None = None
        self._lock = Lock()
        self._busy = False  # a thread is in the sink
        self._gone = False
        self._idle = trio.Event()

    # --- for who calls, on the event loop

    async def outcome(self) -> BlobStat:
        """What becomes of the pull; raises as it, and what the sink has raised."""
        await self._done.wait()
        if self._stat is None:
            assert self._failure is not None
            raise self._failure.with_traceback(None)  # others may have the same
        return self._stat

    @property
    def waiting(self) -> bool:
        """Is there any use in going on for him?"""
        return self._stat is None and not self._gone

    async def leave(self) -> None:
        """Nobody touches the sink from now on; who is about it comes to his end first."""
        with self._lock:
            self._gone = True
            busy = self._busy
        if self._stat is None:  # else the batch goes on to its end, and its connection to the next
            self.on_leave()
        if busy:
            with trio.CancelScope(shield=True):
                await self._idle.wait()

    def end(self, failure: Exception) -> None:
        """The batch is done; if the blob has not come, that is the reason unless the sink is."""
        self._failure = self._failure or failure
        self._done.set()

    # --- for the batch, in threads

    def restart(self) -> None:
        self._touch(self._sink.restart)

    def write(self, data: bytes | memoryview, /) -> None:
        self._touch(lambda: self._sink.write(data))

    def commit(self, stat: BlobStat, /) -> None:
        self._stat = stat
        self._tell(self._done)

    def abandon(self) -> None:
        """The end of the batch tells why; before it, there may be another attempt."""

    def _touch(self, deed: Callable[[], object]) -> None:
        self._begin()
        try:
            deed()
        except (CafsError, OSError):
            raise
        except Exception as error:  # his own, and no end to the batch
            self._failure = error
            raise OSError(errno.ECANCELED, "the sink takes no more") from error
        finally:
            self._finish()

    def _begin(self) -> None:
        with self._lock:
            if self._gone:  # an OSError: no other server is asked for it
                raise OSError(errno.ECANCELED, "nobody waits for the blob any more")
            self._busy = True

    def _finish(self) -> None:
        with self._lock:
            self._busy = False
            gone = self._gone
        if gone:
            self._tell(self._idle)

    def _tell(self, event: trio.Event) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(event.set)
