"""Ask for many blobs over few connections: commands go ahead of answers, answers come in lots.

A round trip, a task, a thread hop and a receive for each blob of 4 KiB cost several times what the
blob itself costs. So each connection is sent a window of commands in one segment; whatever one
receive brings is parsed in place, and all whole blobs in it, the *lot*, go to the taker in one hop.

An error hits its own blob only. Where a connection fails, the blob that was due next bears it, as
if it had been pulled alone; those behind it, which the server had hardly begun, are asked for again
on another connection. Each failed connection so costs one blob, and the batch comes to its end.
After wrong bytes nothing more that a connection says is believed, but for bodies that verify.
Where no connection can be made, or a fresh one says nothing until its deadline, or hardly anything
after another had to be given up as late, one more would cost the same time again: with the last
connection's end all that is left fails. Who else waits for a connection of the server gets one
after a second, and the batch takes its place in the queue.

No PULL is preceded by SIZE, which would cost the server and us half as much again: only where an
answer is late is its blob measured, to know whether the server may still be reading it from disk.
Where not even that is answered the server is frozen, and no further connection is tried.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from cafsfs.client.connection import ANSWERS_TOGETHER, RemoteBody, ServerConnection
from cafsfs.client.pool import Pool
from cafsfs.client.resuming import ResumingBody
from cafsfs.client.servers import Deadlines
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    LocalProtocolError,
    ServerRefused,
    TimedOut,
)
from cafsfs.store.contracts import Failures, PackedTaker, Wanted
from cafsfs.wire import (
    NEED_DATA,
    Absent,
    Data,
    EndOfBody,
    FileError,
    Measure,
    PackedLength,
    Pull,
    Take,
)

K = TypeVar("K")

# Commands ahead of their answers, on one connection: 14 KB, which every receive buffer takes. So
# our sends never wait for a server that itself waits for us to read.
WINDOW = 256
AHEAD = 4 << 20  # bytes of bodies that are asked for ahead, as far as their sizes can be guessed
LARGE = 256 << 10  # bytes; a longer body is streamed, not taken whole
_BUFFER = 2 * LARGE  # bytes of each connection; what one receive brings is one lot
_GLANCE = 0.1  # seconds for what has come already
# Seconds after which a connection goes to who waits for it. The answers that are under way come
# first, a round trip in which nothing is asked: a tenth of the time, over a line of 100 ms.
_TURN = 1.0
_GUESS = 4 << 10  # bytes; the length of a blob, before the first has come


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One server, as a pipeline needs it.

    ``measure`` tells the packed length of a blob, in bytes, on a connection of its own.
    ``going_on`` makes of a large body one that goes on where it breaks, over another connection.
    """

    name: str
    pool: Pool
    deadlines: Deadlines
    measure: Callable[[Digest], Awaitable[int]]
    going_on: Callable[[Digest, RemoteBody], AbstractAsyncContextManager[ResumingBody]]


class Batch(ABC, Generic[K]):
    """What one server is to be asked, over several connections.

    ``together``: so many answers are late, all of them, after ``source.deadlines.question``.
    """

    def __init__(self, source: Source, wanted: Sequence[K], *, together: int) -> None:
        self.source = source
        self.together = together
        self.failures: Failures[K] = {}
        self._waiting = deque(wanted)
        self._unsettled = len(wanted)
        self._connections = 1
        self._idle = trio.CancelScope()  # around those who wait for a connection
        self._guess = float(_GUESS)
        self._given_up: CafsError | None = None
        self._late = False  # a connection has been, already

    @abstractmethod
    def command(self, each: K) -> Pull | Measure:
        """What the server is asked."""

    @abstractmethod
    async def hand_over(self, lot: Sequence[tuple[K, memoryview | int]]) -> Failures[K]:
        """Take answers: whole bodies, or packed lengths; CorruptBlob is the connection's end."""

    async def take_body(self, each: K, body: RemoteBody) -> bool:
        """Take a body that is too large for a lot; raises CafsError, OSError.

        True if it broke, and came over another connection from then on.
        """
        raise LocalProtocolError(f"nobody has asked for {each}, or for {body}")

    async def patience(self, each: K) -> float:
        """Seconds in all that the answer may take that is late already.

        Raises TimedOut where the server gives no sign of life at all.
        """
        del each
        await trio.lowlevel.checkpoint()
        return self.source.deadlines.question

    async def run(self, connections: int) -> Failures[K]:
        """Ask for all, over up to so many connections at once; returns what failed."""
        self._connections = min(connections, len(self._waiting))
        async with trio.open_nursery() as nursery:
            self._idle = nursery.cancel_scope
            for _ in range(self._connections):
                nursery.start_soon(self._work)
        for each in self._waiting:
            assert self._given_up is not None
            self.failures[each] = self._given_up
        return self.failures

    # --- decisions, none of them waits

    def take(self, ahead: int) -> list[K]:
        """What a connection shall ask for next, with ``ahead`` blobs asked for already.

        Half a window at a time, and the last blobs divided fairly.
        """
        window = max(2, min(WINDOW, int(AHEAD / self._guess)))
        if ahead > window // 2:
            return []
        share = -(-len(self._waiting) // self._connections)
        count = min(window - ahead, share)
        return [self._waiting.popleft() for _ in range(count)]

    def give_back(self, wanted: Iterable[K]) -> None:
        """They are to be asked for again."""
        self._waiting.extendleft(reversed(list(wanted)))

    def settle(self, count: int, failures: Failures[K]) -> None:
        """So many blobs are done with, these with errors."""
        self.failures |= failures
        self._unsettled -= count
        if self._unsettled == 0:
            self._idle.cancel()  # who still waits for a connection needs none

    def saw(self, length: int) -> None:
        """A body of ``length`` bytes was announced."""
        self._guess += (length - self._guess) / 16

    # --- one connection after another

    async def _work(self) -> None:
        while self._waiting:
            try:
                connection = await self.source.pool.acquire()
            except CafsError as error:
                self._given_up = error
                return
            try:
                if not await self._use(connection):
                    return
            finally:
                self.source.pool.release(connection)

    async def _use(self, connection: ServerConnection) -> bool:
        """Pull over ``connection`` until nothing waits, or its turn is over.

        False if a further one is not worth it.
        """
        stale, late = connection.uses > 0, self._late
        conversation = Conversation(self, connection)
        try:
            await conversation.run()
        except (CafsError, OSError) as error:
            connection.close()
            asked = conversation.asked
            # An idle connection that the server had closed: no blob is to blame.
            spared = stale and not conversation.heard and isinstance(error, ConnectionBroken)
            spared |= conversation.outlived
            if not spared and not conversation.doubtful:
                self.settle(1, {asked.popleft(): error})
            self.give_back(asked)
            if isinstance(error, TimedOut):
                self._late = True
                hopeless = late and conversation.answered < WINDOW
                if conversation.frozen or hopeless or not conversation.heard:
                    self._given_up = error
                    return False
        except BaseException:
            connection.close()
            raise
        return True


class PullBatch(Batch[Wanted]):
    """Blobs that ``taker`` takes."""

    def __init__(self, source: Source, wanted: Sequence[Wanted], taker: PackedTaker) -> None:
        super().__init__(source, wanted, together=1)
        self._taker = taker

    def command(self, each: Wanted) -> Pull:
        return Pull(each.digest)

    async def hand_over(self, lot: Sequence[tuple[Wanted, memoryview | int]]) -> Failures[Wanted]:
        bodies = [(wanted, body) for wanted, body in lot if isinstance(body, memoryview)]
        return await self._taker.take(bodies)

    async def take_body(self, each: Wanted, body: RemoteBody) -> bool:
        async with self.source.going_on(each.digest, body) as lasting:
            await self._taker.take_body(each, lasting)
        return lasting.went_on

    async def patience(self, each: Wanted) -> float:
        """Perhaps the server is still reading a large blob: only its length tells."""
        try:
            length = await self.source.measure(each.digest)
        except TimedOut:
            raise
        except CafsError:  # perhaps it lets no further connection in
            length = 0
        return self.source.deadlines.for_pull(length)


class SizeBatch(Batch[Digest]):
    """Blobs whose packed length (bytes) ``told`` is told."""

    def __init__(
        self, source: Source, digests: Sequence[Digest], told: Callable[[Digest, int], object]
    ) -> None:
        super().__init__(source, digests, together=ANSWERS_TOGETHER)
        self._told = told

    def command(self, each: Digest) -> Measure:
        return Measure(each)

    async def hand_over(self, lot: Sequence[tuple[Digest, memoryview | int]]) -> Failures[Digest]:
        for digest, length in lot:
            if isinstance(length, int):
                self._told(digest, length)
        await trio.lowlevel.checkpoint()
        return {}


class Conversation(Generic[K]):
    """Commands and their answers on one connection."""

    def __init__(self, batch: Batch[K], connection: ServerConnection) -> None:
        self._batch = batch
        self._connection = connection
        self._deadlines = batch.source.deadlines
        # Not filled with zeroes first, which would take longer than to receive sixteen small blobs.
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER))
        self._filled = 0
        self._body: tuple[int, int] | None = None  # of a small blob: where it begins, and ends
        self._pace = self._deadlines.pace()  # of that body
        self._lot: list[tuple[K, memoryview | int | CafsError]] = []
        self._since = trio.current_time()  # the end of the last answer, or of so many together
        self._together = 0  # answers since then
        self.asked: deque[K] = deque()  # the first is the next to be answered
        self.heard = False  # anything at all
        self.answered = 0
        self.frozen = False  # the whole server
        self.doubtful = False  # it has sent wrong bytes
        self.outlived = False  # by its last body, which went on over another connection

    async def run(self) -> None:
        """Returns when nothing waits, or after its turn if somebody else waits for a connection.

        Raises what is wrong with the connection, or its next blob. Then ``asked`` holds what was
        asked for in vain.
        """
        end, pool = trio.current_time() + _TURN, self._batch.source.pool
        over = False
        while True:
            if not over and (more := self._batch.take(len(self.asked))):
                self.asked += more
                await self._connection.ask([self._batch.command(each) for each in more])
            if not self.asked:
                return
            await self._receive()
            await self._deal_with_answers()
            self._make_room()
            over = pool.contended and trio.current_time() >= end

    async def _receive(self) -> None:
        free = self._buffer[self._filled :]
        if self._body is None:
            count = await self._await_answer(free)
        else:
            count = await self._connection.receive(free, self._pace)
        self._filled += count
        self.heard = True

    async def _await_answer(self, buffer: memoryview) -> int:
        """All of an answer comes within its deadline, counted from the end of the one before."""
        with suppress(TimedOut):
            return await self._receive_by(buffer, self._since + self._deadlines.question)
        patience = 0.0
        try:
            patience = await self._batch.patience(self.asked[0])
        except TimedOut:
            self.frozen = True
        try:  # what has come meanwhile is in time
            due = max(self._since + patience, trio.current_time() + _GLANCE)
            return await self._receive_by(buffer, due)
        except TimedOut:
            name, seconds = self._batch.source.name, trio.current_time() - self._since
            raise TimedOut(f"{name} gave no answer within {seconds:.0f} s") from None

    async def _receive_by(self, buffer: memoryview, due: float) -> int:
        return await self._connection.receive(buffer, max(0.0, due - trio.current_time()))

    async def _deal_with_answers(self) -> None:
        """Parse all that was received."""
        large: Take | None = None
        broken: CafsError | None = None
        while True:
            try:
                large = self._parse()
            except CafsError as error:  # what came before it counts
                broken = error
            await self._hand_over()
            if broken is not None:
                raise broken
            if large is None:
                return
            await self._take_large(large)

    async def _take_large(self, take: Take) -> None:
        went_on = await self._batch.take_body(self.asked[0], self._connection.body(take))
        self.asked.popleft()
        self.answered += 1
        self._since = trio.current_time()
        self._batch.settle(1, {})
        if went_on:
            self.outlived = True
            raise ConnectionBroken(f"connection to {self._batch.source.name} broke in a body")

    def _parse(self) -> Take | None:
        """Collect whole answers in the lot, until all is parsed (None) or a large body begins."""
        connection, asked, lot = self._connection, self.asked, self._lot
        while (event := connection.next_event()) is not NEED_DATA:
            if isinstance(event, Take):
                self._batch.saw(event.length)
                if event.length > LARGE:
                    return event
                start = self._filled - connection.unread
                if (body := connection.take_body()) is not None:
                    lot.append((asked.popleft(), body))
                else:
                    self._body = (start, start + event.length)
                    self._pace = self._deadlines.pace()
            elif isinstance(event, EndOfBody):
                assert self._body is not None
                start, end = self._body
                self._body = None
                lot.append((asked.popleft(), self._buffer[start:end]))
            elif isinstance(event, PackedLength):
                lot.append((asked.popleft(), event.length))
            elif isinstance(event, Absent):
                wanted = asked.popleft()
                lot.append((wanted, BlobNotFound(self._batch.command(wanted).digest)))
            elif isinstance(event, FileError):
                error = ServerRefused(f"{self._batch.source.name} answers ERIO")
                lot.append((asked.popleft(), error))
            elif not isinstance(event, Data):
                raise connection.unexpected(event)
        return None

    async def _hand_over(self) -> None:
        """Settle what the lot settles; raises CorruptBlob if the server has sent wrong bytes."""
        if not self._lot:
            return
        lot, self._lot = self._lot, []
        answers = [(each, said) for each, said in lot if not isinstance(said, CafsError)]
        came = trio.current_time()
        failures = await self._batch.hand_over(answers) if answers else {}
        self._since += trio.current_time() - came  # what came while nobody listened is not late
        self.answered += len(lot)
        self._together += len(lot)
        if self._together >= self._batch.together:
            self._since, self._together = trio.current_time(), 0
        wrong: CorruptBlob | None = None
        again: list[K] = []
        for each, said in lot:
            if not isinstance(said, CafsError):
                error = failures.get(each)
                if isinstance(error, CorruptBlob):
                    wrong = error
            elif wrong is None:
                failures[each] = said
            else:  # who says that it is absent?
                again.append(each)
        self._batch.settle(len(lot) - len(again), failures)
        self._batch.give_back(again)
        if wrong is not None:
            self.doubtful = True
            raise wrong

    def _make_room(self) -> None:
        """Move the beginning of an incomplete body to the front of the buffer."""
        if self._body is None:
            self._filled = 0
            return
        start, end = self._body
        have = self._filled - start
        self._buffer[:have] = self._buffer[start : self._filled]
        self._body = (0, end - start)
        self._filled = have
