"""The packed store that stands behind one CAFS server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import trio

from cafsfs.client.connection import ServerConnection
from cafsfs.client.pool import Pool
from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.errors import ConnectionBroken, RangeError
from cafsfs.store.contracts import PackedBody, PackedSource, PackedStat, PackedStore

T = TypeVar("T")

# Up to this packed length (bytes) a pull is cheaper than a probe with a connection of its own
# (protocol page, section 3.4).
SMALL = 256 << 10
_PROBES = 2  # at once: each makes a deployed server read the whole blob (protocol page, 3.4)
_PROBE_BUFFER = 4 << 10  # bytes of receive buffer: about 6 KB travel then
_CHECKS = 1000  # pipelined at once: 42 KB of questions, 4 KB of answers
_QUICK = 2  # connections for questions, so that they never queue behind bodies


class RemoteStore(PackedStore):
    """One root of one server.

    Bodies and questions (SIZE, CHCK) have pools of their own if ``quick_lane`` is true: then a
    lookup is answered while all of ``connections`` are busy with large blobs.
    """

    def __init__(
        self,
        server: Server,
        root: str,
        *,
        connections: int = 4,
        quick_lane: bool = False,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.name = str(server)
        self._deadlines = deadlines or Deadlines()
        self._connect = partial(ServerConnection.open, server, root.encode(), self._deadlines)
        self._bulk = Pool(self._connect, limit=connections)
        self._quick = Pool(self._connect, limit=_QUICK) if quick_lane else self._bulk
        self._probes = trio.Semaphore(_PROBES)

    def close(self) -> None:
        """Close the idle connections."""
        self._bulk.close()
        self._quick.close()

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        absent: set[Digest] = set()
        asked = iter(digests)
        while batch := list(islice(asked, _CHECKS)):
            connection, found = await self._ask(self._quick, partial(_check, batch))
            self._quick.release(connection)
            absent |= found
        return absent

    async def inspect(self, digest: Digest) -> PackedStat:
        connection, length = await self._ask(self._quick, lambda each: each.measure(digest))
        self._quick.release(connection)
        if length <= SMALL:
            return PackedStat(length, None)
        async with self._probes:
            probe = await self._connect(receive_buffer=_PROBE_BUFFER)
            try:
                return PackedStat(length, await probe.peek(digest, length))
            finally:
                probe.close()

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        if offset or length is not None:
            # Deployed servers answer a range with the wrong bytes (protocol page, section 3.1).
            raise RangeError("ranges of a remote blob are not supported")
        connection, body = await self._ask(self._bulk, lambda each: each.pull(digest))
        try:
            yield body
        finally:
            self._bulk.release(connection)

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        # The source is opened for each try: a second one starts at its first byte.
        connection, _ = await self._ask(self._bulk, lambda each: each.stream(digest, source()))
        self._bulk.release(connection)

    async def _ask(
        self, pool: Pool, operation: Callable[[ServerConnection], Awaitable[T]]
    ) -> tuple[ServerConnection, T]:
        """Run ``operation`` on a pooled connection; the caller releases the connection.

        One that proves dead before any byte of the answer is replaced once by a fresh one: it had
        been idle, and the server (or a firewall) had closed it.
        """
        connection = await pool.acquire()
        reused = connection.uses > 0
        try:
            return connection, await operation(connection)
        except ConnectionBroken as error:
            if error.answered or not reused:
                pool.release(connection)
                raise
        except BaseException:
            pool.release(connection)
            raise
        connection = await pool.replace(connection)
        try:
            return connection, await operation(connection)
        except BaseException:
            pool.release(connection)
            raise


async def _check(digests: list[Digest], connection: ServerConnection) -> set[Digest]:
    return await connection.check(digests)
