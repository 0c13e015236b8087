"""Read what is behind a URL from its first byte to its last, over as many connections as it takes.

A body that breaks off goes on only where the server can prove that it still has the same (protocol
page, section 3.2): by the ETag or the time of modification, by the length, and by the last bytes
that came, which are asked for once more. What vouches for the whole is the hash, as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from cafsfs.client.servers import Deadlines
from cafsfs.client.web import Answer, Span, Version
from cafsfs.errors import (
    BlobNotFound,
    ConnectionBroken,
    ConnectTimedOut,
    RemoteProtocolError,
    ServerRefused,
    Unavailable,
    Unreachable,
)

log = logging.getLogger(__name__)

# Seconds before each attempt to go on. All of them are there again after each _WORTH bytes.
_PAUSES = (0.0, 0.5, 2.0)
_WORTH = 1 << 20  # bytes; below that it is as cheap to begin anew, with whatever is there by then
_OVERLAP = 16  # bytes asked for once more, to be compared

Ask = Callable[[Mapping[str, str]], Awaitable[Answer]]
"""Asks for the same once more, with these headers; raises CafsError."""


class Download:
    """The body of ``answer``, which this object closes.

    ``again`` asks for the same once more. ``on_lie`` is called where a range that was asked for
    brings other bytes.
    """

    def __init__(
        self, answer: Answer, again: Ask, deadlines: Deadlines, *, on_lie: Callable[[str], None]
    ) -> None:
        self.length = answer.length
        self._answer = answer
        self._again = again
        self._deadlines = deadlines
        self._pace = deadlines.pace()
        self._on_lie = on_lie
        self._version = Version.of(answer.headers)
        self._taken = 0
        self._tail = b""  # the last bytes that came
        self._ahead = b""  # read already, and to come next
        self._resumed_at = 0
        self._attempts = 0

    async def read(self) -> bytes:
        """The next piece, b"" at the end only.

        Raises TimedOut for what is slower than the deadlines allow, and what was raised at the last
        attempt to go on: ConnectionBroken, mostly. To begin anew is up to the caller.
        """
        while True:
            piece, self._ahead = self._ahead, b""
            if not piece:
                try:
                    piece = await self._answer.read(self._pace)
                except ConnectionBroken as error:
                    await self._resume(error)
                    continue
            self._taken += len(piece)
            self._tail = (self._tail + piece)[-_OVERLAP:]
            return piece

    async def read_start(self, count: int) -> bytes:
        """The first bytes: ``count`` at least, unless there are fewer."""
        start = b""
        while len(start) < count and (piece := await self.read()):
            start += piece
        return start

    async def close(self) -> None:
        """Let go of the connection, which is kept if all has come."""
        await self._answer.close()

    async def _resume(self, broken: ConnectionBroken) -> None:
        if self._taken < _WORTH or self.length is None or self._version is None:
            raise broken
        if self._taken - self._resumed_at >= _WORTH:
            self._attempts = 0
        self._resumed_at = self._taken
        failure: Unavailable = broken
        while self._attempts < len(_PAUSES):
            await trio.sleep(_PAUSES[self._attempts])
            self._attempts += 1
            try:
                same = await self._take_up(self.length, self._version)
            except ConnectTimedOut:  # costs more than all the pauses
                raise
            except (ConnectionBroken, Unreachable) as error:
                failure = error
                continue
            except (BlobNotFound, ServerRefused, RemoteProtocolError) as error:
                log.info("cannot go on: %s", error)
                same = False
            if not same:
                break
            log.info("%s; going on from byte %d of %d", broken, self._taken, self.length)
            return
        raise failure

    async def _take_up(self, length: int, version: Version) -> bool:
        """Go on with another answer, if it is of the same."""
        await self._answer.close()
        start = self._taken - len(self._tail)
        self._answer = answer = await self._again(
            {"Range": f"bytes={start}-", "If-Range": version.text}
        )
        span = Span.of(answer.headers)
        if answer.status != 206 or Version.of(answer.headers) != version:
            return False  # it has changed, or the server knows no ranges
        if span != Span(start, length, length):
            self._on_lie("it was asked for the rest of a body, and announces something else")
            return False
        pace = self._deadlines.pace()
        overlap = b""
        while len(overlap) < len(self._tail) and (piece := await answer.read(pace)):
            overlap += piece
        if overlap[: len(self._tail)] != self._tail:
            self._on_lie("the rest of a body has other bytes where it begins")
            return False
        self._ahead = overlap[len(self._tail) :]
        self._pace = pace
        return True
