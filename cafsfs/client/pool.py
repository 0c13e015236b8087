"""Connections to one server, kept for the next command."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from cafsfs.client.connection import ServerConnection

# Deployed servers close a connection that was idle for 30 minutes; we do it first.
MAX_IDLE = 25 * 60  # seconds

_PATIENCE = 0.25  # seconds that one waits for a place before the reserve is opened


class Pool:
    """At most ``limit`` connections; who has to wait is served in order of arrival.

    The most recently used idle connection is taken first, so that the others may grow old. Who has
    waited for a quarter of a second gets a connection of his own, of up to ``reserve`` more: many
    long transfers then go on side by side. They are closed when nobody waits any more.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[ServerConnection]],
        *,
        limit: int,
        reserve: int = 0,
    ) -> None:
        self._connect = connect
        self._places = trio.Semaphore(limit)
        self._reserve = reserve
        self._beyond = 0  # the limit
        self._idle: list[tuple[float, ServerConnection]] = []  # oldest first
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} free={self._places.value}>"

    async def acquire(self) -> ServerConnection:
        """A connection that is ready for a command; to be given back by ``release``."""
        await self._enter()
        # No checkpoint between here and the pop: nobody else gets this connection.
        for old in self._outdated():
            old.close()
        while self._idle:
            _, connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return await self._fresh()

    async def replace(self, dead: ServerConnection) -> ServerConnection:
        """A fresh connection in the place of one that proved dead; raises as ``acquire``.

        If that fails the place is free again: there is nothing to release.
        """
        dead.close()
        return await self._fresh()

    def release(self, connection: ServerConnection) -> None:
        """Give a connection back: kept if it is sound, closed if anything was unexpected."""
        if self._leave() and connection.reusable and not self._closed:
            self._idle.append((trio.current_time(), connection))
        else:
            connection.close()

    def take_place(self) -> bool:
        """Count one more connection that the caller has from elsewhere, if there is room for it.

        ``release`` gives the place back, with the connection in it.
        """
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    def close(self) -> None:
        """Close the idle connections, and those in use when they are released.

        A pool that is closed still connects for who asks it, but keeps nothing.
        """
        self._closed = True
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _fresh(self) -> ServerConnection:
        try:
            return await self._connect()
        except BaseException:
            self._leave()
            raise

    async def _enter(self) -> None:
        with trio.move_on_after(_PATIENCE if self._reserve else math.inf):
            return await self._places.acquire()
        if self._beyond < self._reserve:
            self._beyond += 1
        else:
            await self._places.acquire()
        return None

    def _leave(self) -> bool:
        """Free a place; False if there is one less from now on."""
        if self._beyond and not self._places.statistics().tasks_waiting:
            self._beyond -= 1
            return False
        self._places.release()
        return True

    def _outdated(self) -> list[ServerConnection]:
        """Take out what has been idle for too long."""
        limit = trio.current_time() - MAX_IDLE
        old = [connection for since, connection in self._idle if since < limit]
        self._idle = [(since, each) for since, each in self._idle if since >= limit]
        return old
