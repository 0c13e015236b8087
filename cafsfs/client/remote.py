"""The packed store that stands behind one CAFS server."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import trio

from cafsfs.client.connection import RemoteBody, ServerConnection
from cafsfs.client.credentials import NO_CREDENTIALS, Credentials
from cafsfs.client.pipeline import PullBatch, SizeBatch, Source
from cafsfs.client.pool import Pool
from cafsfs.client.ranges import Ranges
from cafsfs.client.resuming import ResumingBody
from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    ConnectionBroken,
    Crowded,
    RangeError,
    RemoteProtocolError,
    ServerRefused,
    UsageError,
)
from cafsfs.resolver import Resolver
from cafsfs.store.contracts import (
    Failures,
    PackedBody,
    PackedSource,
    PackedStat,
    PackedStore,
    PackedTaker,
    Wanted,
    one_by_one,
)
from cafsfs.store.memory import MemoryBody
from cafsfs.store.pump import first_error
from cafsfs.wire import MAX_ROOT

log = logging.getLogger(__name__)

T = TypeVar("T")

# Up to this packed length (bytes) a pull is cheaper than a probe with a connection of its own
# (protocol page, section 3.4).
SMALL = 256 << 10
_PROBES = 2  # at once: each makes a deployed server read the whole blob (protocol page, 3.4)
# Seconds over what that takes, after which a probe lets the next one in. A lookup has five: one
# that waits for two probes of blobs that are never answered still has most of them.
_PROBE_LATE = 2.0
_LATE_PROBES = 8  # at once beside the others, so that a server is not asked for more and more
_PROBE_BUFFER = 4 << 10  # bytes of receive buffer: about 6 KB travel then
_CHECKS = 1000  # pipelined at once: 42 KB of questions, 4 KB of answers
_PARKED_FOR = 2.0  # seconds that a probe waits for the open that mostly follows a lookup
_PARKED = 4  # probes at once that wait; the oldest makes room for the next
_QUICK = 4  # connections for questions and small blobs, so that they never queue behind large ones
_REMEMBERED = 1000  # blobs that were just measured as small


class RemoteStore(PackedStore):
    """One root of one server; raises UsageError for a root over 255 bytes.

    With ``parking``, as a mount wants it, large bodies have one pool, and questions (SIZE, CHCK)
    and blobs that were just measured as small another, of connections that are made and answered
    within ``deadlines.question``: a lookup succeeds while all of ``connections`` are busy. A pull
    that has waited a moment for one gets one of its own, of up to ``reserve`` more.

    A server is tested once for sound ranges, with the first large blob whose size is wanted. A
    sound one is asked for the header alone, and a pull from it whose connection breaks goes on
    where it was. From others the header comes with the whole blob behind it, on a connection of its
    own: with ``parking`` it is parked for two seconds in a task of that nursery, so that an open
    which follows goes on with it, and one lookup and one open make one PULL.
    """

    def __init__(
        self,
        server: Server,
        root: str,
        *,
        connections: int = 4,
        reserve: int = 0,
        parking: trio.Nursery | None = None,
        deadlines: Deadlines | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self.name = str(server)
        self.protocol: str | None = None  # what was spoken last; see ServerConnection
        self._has_secret = credentials.secret is not None
        self._deadlines = deadlines or Deadlines()
        resolver = Resolver(server.host, server.port)
        opening = partial(
            ServerConnection.open,
            server,
            _encode(root),
            credentials=credentials,
            resolver=resolver,
        )
        self._connect = partial(opening, self._deadlines)
        self._open_probe = partial(self._connect, receive_buffer=_PROBE_BUFFER)
        self._ranges = Ranges(self.name, self._open_probe)
        self._connections = connections
        patience = self._deadlines.progress
        self._pool = partial(Pool, name=self.name, patience=patience)
        self._bulk = self._pool(self._connect, limit=connections, reserve=reserve)
        hurried = replace(self._deadlines, connect=self._deadlines.question)
        self._open_hurriedly = partial(opening, hurried)
        self._quick = self._bulk
        if parking is not None:
            self._quick = self._pool(self._open_hurriedly, limit=_QUICK)
        self._small: OrderedDict[Digest, None] = OrderedDict()
        self._parking = parking
        self._parked: dict[Digest, _Parked] = {}  # oldest first
        self._probes = trio.Semaphore(_PROBES)
        self._late_probes = trio.Semaphore(_LATE_PROBES)

    def __repr__(self) -> str:
        return f"<RemoteStore {self.name} bulk={self._bulk!r} parked={len(self._parked)}>"

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are done."""
        self._bulk.close()
        self._quick.close()
        for digest in list(self._parked):
            self._unpark(digest)

    @property
    def ranges(self) -> str:
        """``sound``, ``unsound`` or ``untested``: whether ranges come with the right bytes."""
        return self._ranges.verdict

    def hung_up(self) -> bool:
        """Has it ended connections that were kept, and that nobody has used since?"""
        return any([self._bulk.hung_up(), self._quick.hung_up()])

    async def measure(self, digest: Digest) -> int:
        """The packed length in bytes, by SIZE alone; raises BlobNotFound, Unavailable."""
        connection, length = await self._ask(self._quick, lambda each: each.measure(digest))
        self._quick.release(connection)
        self._note_size(digest, length)
        return length

    async def greet(self) -> float:
        """Have a connection of its own greeted and accepted, within ``deadlines.question``.

        Returns about what a round trip takes, in seconds.
        """
        began = trio.current_time()
        connection = await self._open_hurriedly()
        connection.close()
        self._note_protocol(connection.protocol)
        return (trio.current_time() - began) / connection.round_trips

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        absent: set[Digest] = set()
        asked = iter(digests)
        while batch := list(islice(asked, _CHECKS)):
            connection, found = await self._ask(self._quick, partial(_check, batch))
            self._quick.release(connection)
            absent |= found
        return absent

    async def inspect(self, digest: Digest) -> PackedStat:
        if self._ranges.known_sound:
            stat = await self._glimpse(digest)
            if stat is not None:
                self._note_size(digest, stat.length)
                return stat
        length = await self.measure(digest)
        if length <= SMALL:
            return PackedStat(length, None)
        return await self._probe_in_turn(digest, length)

    async def _probe_in_turn(self, digest: Digest, length: int) -> PackedStat:
        await self._enter_probes(length)
        held = self._probes

        async def let_the_next_in() -> None:
            nonlocal held
            await trio.sleep(_PROBE_LATE + length / self._deadlines.disk_rate)
            await self._late_probes.acquire()
            held.release()
            held = self._late_probes

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(let_the_next_in)
                stat = await self._probe(digest, length)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            held.release()
        return stat

    async def _probe(self, digest: Digest, length: int) -> PackedStat:
        if await self._ranges.are_sound(digest, length):
            stat = await self._glimpse(digest)
            if stat is not None:
                return stat
        probe = await self._open_probe(must_grow=self._parking is not None)
        try:
            stat, body = await probe.peek(digest, length)
        except BaseException:
            probe.close()
            raise
        self._park(digest, _Parked(probe, body))
        return stat

    async def _enter_probes(self, length: int) -> None:
        """Wait for the probes before this one, as long as for its own answer."""
        patience = self._deadlines.for_pull(length)
        try:
            with trio.fail_after(patience):
                await self._probes.acquire()
        except trio.TooSlowError:
            raise Crowded(
                f"{self.name} was busy with other probes for {patience:.0f} s",
                hint="each has it read a large blob from its disk; try again, with fewer at once",
            ) from None

    def _note_protocol(self, protocol: str) -> None:
        if protocol == self.protocol:
            return
        self.protocol = protocol
        if self._has_secret and protocol == "001":
            log.warning(
                "%s offers no authentication, though we have a secret: it goes on in the clear;"
                " `--auth required` would refuse that",
                self.name,
            )

    async def _glimpse(self, digest: Digest) -> PackedStat | None:
        """What a sound server tells in one round trip; None if that is of no use."""

        async def glimpse(connection: ServerConnection) -> PackedStat | None:
            try:
                return await connection.glimpse(digest)
            except ServerRefused:  # what it says to a PULL of the whole blob tells more
                return None
            except RemoteProtocolError as error:
                self._ranges.condemn(error)
                return None

        connection, stat = await self._ask(self._quick, glimpse)
        self._quick.release(connection)
        return stat

    def _note_size(self, digest: Digest, length: int) -> None:
        if length <= SMALL:
            self._small[digest] = None
            if len(self._small) > _REMEMBERED:
                self._small.popitem(last=False)

    def _park(self, digest: Digest, parked: _Parked) -> None:
        if self._parking is None or digest in self._parked:
            parked.connection.close()
            return
        if len(self._parked) >= _PARKED:
            self._unpark(next(iter(self._parked)))
        self._parked[digest] = parked
        self._parking.start_soon(self._expire, digest, parked)

    def _unpark(self, digest: Digest) -> None:
        self._parked.pop(digest).connection.close()

    async def _expire(self, digest: Digest, parked: _Parked) -> None:
        try:
            with trio.move_on_after(_PARKED_FOR):
                await parked.taken.wait()
        finally:
            if self._parked.get(digest) is parked:
                self._unpark(digest)

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        if offset or length is not None:
            lane, body = await self._begin_range(digest, offset, length)
        else:
            lane, whole = await self._begin(digest)
            body = self._resuming(digest, whole, lane)
        try:
            yield body
        except BaseException:
            # Whatever is wrong with these bytes, the next answer may be it too: never reuse it.
            lane.keep = False
            raise
        finally:
            lane.leave()

    async def _begin(self, digest: Digest) -> tuple[_Lane, RemoteBody]:
        parked = self._parked.get(digest)
        if parked is not None and self._bulk.adopt(parked.connection):
            del self._parked[digest]
            parked.taken.set()
            return _Lane(self._bulk, parked.connection, keep=False), parked.body
        pool = self._bulk
        if digest in self._small:
            del self._small[digest]
            pool = self._quick
        connection, body = await self._ask(pool, lambda each: each.pull(digest))
        return _Lane(pool, connection), body

    async def _begin_range(
        self, digest: Digest, offset: int, length: int | None
    ) -> tuple[_Lane, PackedBody]:
        if not self._ranges.known_sound or length == 0:
            connection, whole = await self._ask(self._quick, lambda each: each.measure(digest))
            self._quick.release(connection)
            if not await self._ranges.are_sound(digest, whole):
                raise RangeError(f"{self.name} does not answer ranges with the right bytes")
            if length == 0 and offset <= whole:
                return _Lane(self._quick, None), MemoryBody(b"")
        connection, body = await self._ask(
            self._bulk, lambda each: each.pull_range(digest, offset, length)
        )
        return _Lane(self._bulk, connection), body

    def _resuming(self, digest: Digest, body: RemoteBody, lane: _Lane) -> ResumingBody:
        reopen = partial(self._reopen, digest, body.length, lane)
        return ResumingBody(
            body,
            reopen,
            on_lie=self._ranges.condemn,
            can_go_on=lambda: self._ranges.known_sound,
            stall=self._deadlines.progress / 3,
        )

    async def _reopen(
        self, digest: Digest, packed_length: int, lane: _Lane, head: bytes, chunk: int
    ) -> RemoteBody | None:
        """The rest of a body that broke off; None where it cannot be had of this server."""
        if not await self._ranges.are_sound(digest, packed_length):
            return None
        connection = await lane.renew()
        try:
            return await connection.pull_rest(digest, packed_length, head, chunk)
        except ServerRefused:
            return None
        except RemoteProtocolError as error:
            self._ranges.condemn(error)
            return None

    async def fetch_many(
        self, wanted: Sequence[Wanted], taker: PackedTaker, *, at_once: int | None = None
    ) -> Failures[Wanted]:
        connections = min(at_once or self._connections, self._connections)
        return await PullBatch(self._source(self._bulk), wanted, taker).run(connections)

    async def inspect_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, PackedStat], object]
    ) -> Failures[Digest]:
        large: list[Digest] = []

        def measured(digest: Digest, length: int) -> None:
            if length <= SMALL:
                told(digest, PackedStat(length, None))
            else:
                large.append(digest)

        async def probe(digest: Digest) -> None:
            told(digest, await self.inspect(digest))

        batch = SizeBatch(self._source(self._quick), digests, measured)
        failures = await batch.run(self._connections)
        return failures | await one_by_one(probe, large, at_once=_PROBES)

    def _source(self, pool: Pool) -> Source:
        return Source(
            name=self.name,
            pool=pool,
            deadlines=self._deadlines,
            measure=self._measure,
            going_on=self._going_on,
        )

    @asynccontextmanager
    async def _going_on(self, digest: Digest, body: RemoteBody) -> AsyncIterator[ResumingBody]:
        """``body``, which shares its connection; it goes on over one of its own."""
        lane = _Lane(self._pool(self._connect, limit=1), None, keep=False)
        try:
            yield self._resuming(digest, body, lane)
        finally:
            lane.leave()

    async def _measure(self, digest: Digest) -> int:
        """SIZE on a connection of its own: all others may be busy."""
        connection = await self._connect()
        try:
            return await connection.measure(digest)
        finally:
            connection.close()

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        # The source is opened for each try: a second one starts at its first byte.
        connection, _ = await self._ask(self._bulk, lambda each: each.upload(digest, source()))
        self._bulk.release(connection)

    async def _ask(
        self, pool: Pool, operation: Callable[[ServerConnection], Awaitable[T]]
    ) -> tuple[ServerConnection, T]:
        """Run ``operation`` on a pooled connection; the caller releases the connection.

        One that proves dead before any byte of the answer is replaced once by a fresh one: it had
        been idle, and the server (or a firewall) had closed it.
        """
        connection = await pool.acquire()
        self._note_protocol(connection.protocol)
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


@dataclass(slots=True)
class _Lane:
    """The place in a pool that a body has, and its connection: None while it has neither.

    ``keep``: the connection is the pool's own, and stays in it for the next command.
    """

    pool: Pool
    connection: ServerConnection | None
    keep: bool = True

    async def renew(self) -> ServerConnection:
        """Another connection in the place of one that broke; raises as ``Pool.acquire``."""
        dead, self.connection = self.connection, None
        if dead is None:
            connection = await self.pool.acquire()
        else:
            connection = await self.pool.replace(dead)
        self.connection = connection
        return connection

    def leave(self) -> None:
        """Give back what there is to give back."""
        if self.connection is None:
            return
        if not self.keep:
            self.connection.close()
        self.pool.release(self.connection)


@dataclass(slots=True, eq=False)
class _Parked:
    """A probe whose body waits to be wanted."""

    connection: ServerConnection
    body: RemoteBody
    taken: trio.Event = field(default_factory=trio.Event)


def _encode(root: str) -> bytes:
    try:
        name = root.encode()
    except UnicodeEncodeError as error:  # a lone surrogate: bytes of argv that are no UTF-8
        raise UsageError(f"root {root!r} is not UTF-8") from error
    if len(name) > MAX_ROOT:
        raise UsageError(f"a root has at most {MAX_ROOT} bytes, `{root}` has {len(name)}")
    return name


async def _check(digests: list[Digest], connection: ServerConnection) -> set[Digest]:
    return await connection.check(digests)
