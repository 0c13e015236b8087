"""Connections to one server, kept for the next command.

Every wait here has an end. Who waits for a place gets it in order of arrival, or an error:

- Where connecting fails, those who wait would only meet the same failure, one after the other: they
  fail with it. Unless it came at once, as from a server that lets no further connection in, and one
  of the pool is at work: they wait for that.
- Where nothing has moved on any connection of the pool for ``patience`` seconds, nobody knows that
  a place will ever be free. A queue behind long transfers that move is none of that kind.

While connecting fails, one at a time tries: a thousand opens on a dead server make one connect each
deadline, and not a thousand.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from cafsfs.client.connection import ServerConnection
from cafsfs.errors import CafsError, TimedOut

# Deployed servers close a connection that was idle for 30 minutes; we do it first.
MAX_IDLE = 25 * 60  # seconds

_PATIENCE = 0.25  # seconds that one waits for a place before the reserve is opened
# Connects on their way at once: over a line of 100 ms a reserve of 252 is there in two seconds.
_CONNECTING = 32
_AT_WORK = 1.0  # seconds since a connection at work moved anything, at most


@dataclass(slots=True, eq=False)
class _Waiter:
    """Who waits for a place. Settled, he has an error, a connection, or is to make one."""

    since: float
    pressing: bool = False  # he has waited long enough for the reserve to be opened
    settled: trio.Event = field(default_factory=trio.Event)
    connection: ServerConnection | None = None
    error: CafsError | None = None


class Pool:
    """At most ``limit`` connections; who has to wait is served in order of arrival.

    The most recently used idle connection is taken first, so that the others may grow old. Who has
    waited for a quarter of a second gets a connection of his own, of up to ``reserve`` more: many
    long transfers then go on side by side. They are closed when nobody waits any more. ``name`` is
    what an error calls the server.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[ServerConnection]],
        *,
        name: str,
        limit: int,
        reserve: int = 0,
        patience: float = 30.0,
    ) -> None:
        self._connect = connect
        self._name = name
        self._limit = limit
        self._reserve = reserve
        self._patience = patience
        self._used = 0  # places, of those who connect too
        self._beyond = 0  # places that there are beyond the limit
        self._connecting = 0
        self._failing = False  # the last connect has failed
        self._waiting: deque[_Waiter] = deque()
        self._busy: set[ServerConnection] = set()
        self._idle: list[tuple[float, ServerConnection]] = []  # oldest first
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} free={self._limit + self._beyond - self._used}>"

    @property
    def contended(self) -> bool:
        """Does anybody wait for a place?"""
        return bool(self._waiting)

    async def acquire(self) -> ServerConnection:
        """A connection that is ready for a command; to be given back by ``release``.

        Raises what connecting raises, and TimedOut where nothing moves; see the module.
        """
        for old in self._outdated():
            old.close()
        waiter = _Waiter(trio.current_time())
        self._waiting.append(waiter)
        self._serve()
        try:
            await self._wait(waiter)
        except BaseException:
            self._withdraw(waiter)
            raise
        return waiter.connection or await self._fresh()

    async def replace(self, dead: ServerConnection) -> ServerConnection:
        """A fresh connection in the place of one that proved dead; raises as connecting does.

        If that fails the place is free again: there is nothing to release.
        """
        dead.close()
        self._busy.discard(dead)
        self._connecting += 1
        return await self._fresh()

    def release(self, connection: ServerConnection) -> None:
        """Give a connection back: kept if it is sound, closed if anything was unexpected."""
        self._busy.discard(connection)
        if self._leave() and connection.reusable and not self._closed:
            self._idle.append((trio.current_time(), connection))
        else:
            connection.close()
        self._serve()

    def adopt(self, connection: ServerConnection) -> bool:
        """Count one more connection that the caller has from elsewhere, if there is room for it.

        ``release`` gives the place back, with the connection in it.
        """
        if self._waiting or self._used >= self._limit + self._beyond:
            return False
        self._used += 1
        self._busy.add(connection)
        return True

    def hung_up(self) -> bool:
        """Has the server ended connections that were idle? They are forgotten."""
        ended = [pair for pair in self._idle if not pair[1].reusable]
        for pair in ended:
            self._idle.remove(pair)
            pair[1].close()
        return bool(ended)

    def close(self) -> None:
        """Close the idle connections, and those in use when they are released.

        A pool that is closed still connects for who asks it, but keeps nothing.
        """
        self._closed = True
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()

    # --- waiting

    async def _wait(self, waiter: _Waiter) -> None:
        while True:
            with trio.move_on_at(self._due(waiter)):
                await waiter.settled.wait()
            if waiter.settled.is_set():
                break
            self._look_after(waiter)
        if waiter.error is not None:
            raise waiter.error

    async def _fresh(self) -> ServerConnection:
        """Connect, with a place that is counted already; free again where that fails."""
        try:
            connection = await self._connect()
        except BaseException as error:
            self._connecting -= 1
            self._leave()
            if isinstance(error, CafsError):
                self._failing = True
                self._refuse(error)
            self._serve()
            raise
        self._connecting -= 1
        self._failing = False
        self._busy.add(connection)
        self._serve()
        return connection

    # --- decisions, none of them waits

    def _serve(self) -> None:
        """Let in who may be let in, the first of the queue first."""
        while self._waiting:
            waiter = self._waiting[0]
            full = self._used >= self._limit + self._beyond
            if full and not (waiter.pressing and self._beyond < self._reserve):
                return
            connection = self._take_idle()
            if connection is None:
                if self._connecting >= (1 if self._failing else _CONNECTING):
                    return
                self._connecting += 1
            else:
                self._busy.add(connection)
            self._beyond += full
            self._used += 1
            self._waiting.popleft()
            waiter.connection = connection
            waiter.settled.set()

    def _withdraw(self, waiter: _Waiter) -> None:
        """He goes, before he was served or with what he has got."""
        if not waiter.settled.is_set():
            self._waiting.remove(waiter)
        elif waiter.connection is not None:
            self.release(waiter.connection)
        elif waiter.error is None:
            self._connecting -= 1
            self._leave()
        self._serve()

    def _refuse(self, error: CafsError) -> None:
        """All who wait fail as connecting has, if nothing says that a place will be free."""
        at_work = self._moved_at() > trio.current_time() - _AT_WORK
        if at_work and not isinstance(error, TimedOut):
            return
        for waiter in self._waiting:
            waiter.error = copy.copy(error)  # each raises it with a traceback of his own
            waiter.settled.set()
        self._waiting.clear()

    def _due(self, waiter: _Waiter) -> float:
        """When somebody should look after who waits."""
        if self._reserve and not waiter.pressing:
            return waiter.since + _PATIENCE
        return max(waiter.since, self._moved_at()) + self._patience

    def _look_after(self, waiter: _Waiter) -> None:
        if self._due(waiter) > trio.current_time():  # something has moved meanwhile
            return
        if self._reserve and not waiter.pressing:
            waiter.pressing = True
            self._serve()
            return
        raise TimedOut(
            f"no connection to {self._name} was free for {self._patience:g} s, "
            f"and nothing moved on any of {self._used}",
            hint="is the server frozen, or nobody reading what it sends?",
        )

    def _moved_at(self) -> float:
        return max((each.moved_at for each in self._busy), default=-math.inf)

    def _leave(self) -> bool:
        """Free a place; False if there is one less from now on."""
        self._used -= 1
        if self._beyond and not self._waiting:
            self._beyond -= 1
            return False
        return True

    def _take_idle(self) -> ServerConnection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None

    def _outdated(self) -> list[ServerConnection]:
        """Take out what has been idle for too long."""
        limit = trio.current_time() - MAX_IDLE
        old = [connection for since, connection in self._idle if since < limit]
        self._idle = [(since, each) for since, each in self._idle if since >= limit]
        return old
