"""Connections to one server, kept for the next command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cafsfs.client.connection import ServerConnection

# Deployed servers close a connection that was idle for 30 minutes; we do it first.
MAX_IDLE = 25 * 60  # seconds


class Pool:
    """At most ``limit`` connections; who has to wait is served in order of arrival.

    The most recently used idle connection is taken first, so that the others may grow old.
    """

    def __init__(self, connect: Callable[[], Awaitable[ServerConnection]], *, limit: int) -> None:
        self._connect = connect
        self._places = trio.Semaphore(limit)
        self._idle: list[tuple[float, ServerConnection]] = []  # oldest first
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} free={self._places.value}>"

    async def acquire(self) -> ServerConnection:
        """A connection that is ready for a command; to be given back by ``release``."""
        await self._places.acquire()
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
        if connection.reusable and not self._closed:
            self._idle.append((trio.current_time(), connection))
        else:
            connection.close()
        self._places.release()

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
            self._places.release()
            raise

    def _outdated(self) -> list[ServerConnection]:
        """Take out what has been idle for too long."""
        limit = trio.current_time() - MAX_IDLE
        old = [connection for since, connection in self._idle if since < limit]
        self._idle = [(since, each) for since, each in self._idle if since >= limit]
        return old
