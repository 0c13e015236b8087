"""Go on with a body whose connection broke or stalls, where exactly the same is still to be had.

Packed bytes change under a key (protocol page, section 3.2). So a body is gone on with only if its
length, its header and the bytes where it is taken up again are what they were; and what vouches for
the whole is the hash, as ever.

A connection may stall though its server is well: a box between us has forgotten it. So where not a
byte comes for ``stall`` seconds, one fresh connection is tried, if the server is known to go on
with the right bytes. Readers give up after about three times as long (``Deadlines.progress``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from cafsfs.client.connection import RemoteBody
from cafsfs.errors import ConnectionBroken, ConnectTimedOut, TimedOut, Unavailable, Unreachable
from cafsfs.packing import HEADER_LENGTH
from cafsfs.wire import CHUNK_STEP

log = logging.getLogger(__name__)

# Seconds before each attempt to go on: at once, and long enough for a server to be restarted. All
# of them are there again after each CHUNK_STEP of progress.
_PAUSES = (0.0, 0.5, 2.0)
_LANDMARK = 16  # bytes remembered of the chunk in which the body may be taken up again


class ResumingBody:
    """A whole packed body. ``reopen(head, chunk)`` gives it again from ``chunk`` × 1 MiB on.

    ``head`` is the header that it must still have. ``reopen`` returns None where the blob is not
    the same any more, or where this server cannot do it; the body then fails as it would without
    this class. ``on_lie`` is called where other bytes come than before. ``can_go_on`` tells without
    asking whether this server is known to do it.
    """

    def __init__(
        self,
        body: RemoteBody,
        reopen: Callable[[bytes, int], Awaitable[RemoteBody | None]],
        *,
        on_lie: Callable[[str], None],
        can_go_on: Callable[[], bool],
        stall: float,
    ) -> None:
        self.length: int = body.length
        self._body = body
        self._reopen = reopen
        self._on_lie = on_lie
        self._can_go_on = can_go_on
        self._stall = stall
        self._tried = False  # a fresh connection for a stall, and it has not come far
        self._taken = 0
        self._head = b""
        self._landmark = b""  # what stands at the last multiple of CHUNK_STEP below ``_taken``
        self._resumed_at = 0
        self._attempts = 0
        self._broken: ConnectionBroken | None = None  # why ``_body`` is of no use any more
        body.pace.stall = stall

    @property
    def went_on(self) -> bool:
        """True if it broke, and came over another connection from then on."""
        return self._resumed_at > 0

    async def readinto(self, buffer: memoryview) -> int:
        while True:
            try:
                if self._broken is not None:  # who read it was cancelled while it went on
                    raise self._broken.with_traceback(None)
                count = await self._body.readinto(buffer)
            except ConnectionBroken as error:
                # Below that it is as cheap to begin anew, with whatever the blob is by then.
                if self._taken < CHUNK_STEP:
                    raise
                self._broken = error
                self._body = await self._resume(error)
                self._broken = None
            except TimedOut as error:
                await self._leave_or_wait_on(error)
            else:
                self._note(buffer[:count])
                return count

    async def _leave_or_wait_on(self, error: TimedOut) -> None:
        pace = self._body.pace
        if self._tried or not pace.stalled:
            raise error
        if self._taken < CHUNK_STEP or not self._can_go_on():
            pace.stall = math.inf  # it has the rest of its time, here
            return
        self._tried = True
        with trio.move_on_after(2 * self._stall):
            self._body = await self._resume(error)
            return
        raise error

    def _note(self, piece: memoryview) -> None:
        if len(self._head) < HEADER_LENGTH:
            self._head += piece[: HEADER_LENGTH - len(self._head)]
        end = self._taken + len(piece)
        at = max(0, end - 1) // CHUNK_STEP * CHUNK_STEP
        if at >= self._taken:
            self._landmark = bytes(piece[at - self._taken :][:_LANDMARK])
        elif len(self._landmark) < _LANDMARK:
            self._landmark += piece[: _LANDMARK - len(self._landmark)]
        self._taken = end
        if self._tried and end - self._resumed_at >= CHUNK_STEP:
            self._tried = False
            self._body.pace.stall = self._stall

    async def _resume(self, broken: ConnectionBroken | TimedOut) -> RemoteBody:
        if self._taken - self._resumed_at >= CHUNK_STEP:
            self._attempts = 0
        self._resumed_at = self._taken
        failure: Unavailable = broken
        while self._attempts < len(_PAUSES):
            await trio.sleep(_PAUSES[self._attempts])
            self._attempts += 1
            try:
                body = await self._take_up()
            except ConnectTimedOut:  # it has cost more than all pauses: another server's turn
                raise
            except (ConnectionBroken, Unreachable) as error:
                failure = error
                continue
            if body is None:
                raise broken
            log.info("%s; going on from byte %d of %d", broken, self._taken, self.length)
            return body
        raise failure

    async def _take_up(self) -> RemoteBody | None:
        # From the chunk of the last byte that is known, so that at least that one can be compared.
        chunk = (self._taken - 1) // CHUNK_STEP
        body = await self._reopen(self._head, chunk)
        if body is None:
            return None
        body.pace.stall = self._stall * (2 if self._tried else 1)
        expected = self._landmark
        skipped = await body.skip(self._taken - chunk * CHUNK_STEP, look_at=len(expected))
        if skipped != expected:
            self._on_lie("a body that was asked for from its middle has other bytes there")
            return None
        return body
