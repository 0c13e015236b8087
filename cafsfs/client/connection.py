"""One conversation with one server: handshake, then commands, one at a time.

A connection on which anything unexpected happened (an error, a cancellation in the middle) is no
longer ``reusable``: the state machine in ``wire/`` is then not at rest, and the pool closes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Literal

import trio

from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unavailable,
)
from cafsfs.packing import HEADER_LENGTH, Header
from cafsfs.store.contracts import PackedBody, PackedStat
from cafsfs.store.pump import pump
from cafsfs.transport import Transport
from cafsfs.wire import (
    MAX_STREAM_CHUNK,
    NEED_DATA,
    Aborted,
    Absent,
    Accepted,
    BadRequest,
    Check,
    Connection,
    Data,
    EndOfBody,
    Event,
    FileError,
    Greeting,
    Have,
    Measure,
    Message,
    NeedData,
    PackedLength,
    Pull,
    Role,
    Root,
    Stream,
    Take,
    Version,
    chunk_prefix,
)

_CONTROL_BUFFER = 64 << 10  # bytes; TAKE and a small blob come in one read


class ServerConnection:
    """A connection that has been greeted and has named its root."""

    def __init__(self, transport: Transport, server: Server, deadlines: Deadlines) -> None:
        self._transport = transport
        self._server = server
        self._deadlines = deadlines
        self._wire = Connection(Role.CLIENT)
        self._control = memoryview(bytearray(_CONTROL_BUFFER))
        self._received_before = 0  # what had come in when the current command was sent
        self._closed = False
        self.uses = 0  # commands so far; 0 on a fresh connection

    @classmethod
    async def open(
        cls,
        server: Server,
        root: bytes,
        deadlines: Deadlines,
        *,
        receive_buffer: int | None = None,
    ) -> ServerConnection:
        """Connect, greet, name the root.

        Raises Unreachable, TimedOut, ConnectionBroken, RemoteProtocolError, ServerRefused, and
        LocalProtocolError for a root over 255 bytes.
        """
        connection: ServerConnection | None = None
        try:
            with trio.fail_after(deadlines.connect):
                transport = await Transport.connect(
                    server.host, server.port, receive_buffer=receive_buffer
                )
                connection = cls(transport, server, deadlines)
                await connection._greet(root)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, trio.TooSlowError):
                what = "greeting from" if connection is not None else "connection to"
                raise TimedOut(
                    f"no {what} {server} within {deadlines.connect:g} s",
                    hint="is it a CAFS server, and can it be reached from here?",
                ) from None
            raise
        return connection

    def __repr__(self) -> str:
        return f"<ServerConnection {self._server} uses={self.uses} {self._wire!r}>"

    @property
    def reusable(self) -> bool:
        """True if the next command may be sent on it."""
        return not self._closed and self._wire.at_rest and self._transport.seems_alive()

    def close(self) -> None:
        """Close at once."""
        self._closed = True
        self._transport.close()

    async def _greet(self, root: bytes) -> None:
        deadline = self._deadlines.connect
        greeting = await self._next(deadline)
        if not isinstance(greeting, Greeting):
            raise self._unexpected(greeting)
        # The root may go before the verdict is read: that saves a round trip.
        await self._send(Version(1), Root(root))
        verdict = await self._next(deadline)
        if isinstance(verdict, BadRequest):
            hint = None
            if greeting.version > 1:
                hint = "it demands authentication, which this version of cafsfs does not speak yet"
            raise ServerRefused(f"{self._server} refuses protocol version 001", hint=hint)
        if not isinstance(verdict, Accepted):
            raise self._unexpected(verdict)

    # --- commands

    async def check(self, digests: Sequence[Digest]) -> set[Digest]:
        """Which of ``digests`` are absent. All are asked before the first answer is read.

        The caller bounds their number: answers of four bytes that nobody reads would fill the
        buffers of both sides after some tens of thousands.
        """
        await self._command(*(Check(digest) for digest in digests))
        absent = set()
        for digest in digests:
            answer = await self._answer(self._deadlines.question)
            if isinstance(answer, Absent):
                absent.add(digest)
            elif not isinstance(answer, Have):
                raise self._unexpected(answer)
        return absent

    async def measure(self, digest: Digest) -> int:
        """The packed length in bytes; raises BlobNotFound."""
        await self._command(Measure(digest))
        answer = await self._answer(self._deadlines.question)
        if isinstance(answer, Absent):
            raise BlobNotFound(digest)
        if not isinstance(answer, PackedLength):
            raise self._unexpected(answer)
        return answer.length

    async def pull(self, digest: Digest) -> RemoteBody:
        """Ask for the whole packed blob; returns when its length is announced.

        SIZE goes before PULL in the same segment: it costs the server nothing and no round trip,
        and tells how long the answer to PULL may take.
        """
        await self._command(Measure(digest), Pull(digest))
        measured = await self._answer(self._deadlines.answer, may_refuse=True)
        if isinstance(measured, BadRequest):  # it closes now: no answer to PULL will come
            raise self._unexpected(measured)
        length = measured.length if isinstance(measured, PackedLength) else 0
        answer = await self._answer(self._deadlines.for_pull(length))
        if isinstance(answer, Absent):
            raise BlobNotFound(digest)
        if not isinstance(answer, Take):
            raise self._unexpected(answer)
        return self._body(answer)

    async def peek(self, digest: Digest, packed_length: int) -> tuple[PackedStat, RemoteBody]:
        """Ask for the whole packed blob and look at its header; the body can be read, or given up.

        ``packed_length`` (bytes, from ``measure``) sets the deadline only: the length returned is
        that of the blob whose header is returned, for a server may have recompressed it between.
        """
        await self._command(Pull(digest))
        answer = await self._answer(self._deadlines.for_pull(packed_length))
        if isinstance(answer, Absent):
            raise BlobNotFound(digest)
        if not isinstance(answer, Take):
            raise self._unexpected(answer)
        body = self._body(answer)
        header = Header.parse(await body.peek(HEADER_LENGTH))
        return PackedStat(answer.length, header), body

    async def stream(self, digest: Digest, body: PackedBody) -> None:
        """Upload ``body`` with STRM; raises ServerRefused if the server does not store it.

        Where ``body`` fails, the stream is aborted and the connection stays in step, unless a
        chunk was cut off in the middle.
        """
        await self._command(Stream(digest))
        sent = 0
        in_step = True

        async def send(piece: memoryview) -> None:
            nonlocal sent, in_step
            in_step = False  # until all of it is written: reading ahead may fail and cancel us
            await self._write(_chunked(piece))
            sent += len(piece)
            in_step = True

        try:
            await pump(body.readinto, send, length=body.length)
        except Unavailable:
            raise
        except CafsError:
            if in_step:
                with suppress(CafsError):  # what ``body`` raised tells more
                    await self._send(Aborted())
                    await self._answer(self._deadlines.answer, may_refuse=True)
            raise
        await self._send(EndOfBody())
        answer = await self._answer(self._deadlines.for_pull(sent))
        if not isinstance(answer, Have):
            raise self._unexpected(answer)

    # --- many commands ahead of their answers, see pipeline.py

    async def ask(self, commands: Sequence[Message]) -> None:
        """Send commands, in one segment; the caller bounds what is sent ahead of its answers."""
        await self._command(*commands)

    async def receive(self, buffer: memoryview, deadline: float) -> int:
        """Read what comes within ``deadline`` seconds; to be parsed before ``buffer`` changes."""
        count = await self._receive(buffer, deadline)
        self._wire.receive_data(buffer[:count])
        return count

    @property
    def unread(self) -> int:
        """Bytes of what was received last that are not yet parsed."""
        return self._wire.unread

    def next_event(self) -> Event | Literal[NeedData.NEED_DATA]:
        """Parse more of what was received; raises RemoteProtocolError."""
        return self._next_event()

    def body(self, take: Take) -> RemoteBody:
        """The body that ``take``, the event just returned, announces; to be read before all else.

        Its beginning stands in the buffer last received into.
        """
        return self._body(take)

    def unexpected(self, event: Event) -> RemoteProtocolError:
        """For an answer that nothing was asked for."""
        return self._unexpected(event)

    # --- bytes in and out

    async def _command(self, *messages: Message) -> None:
        self.uses += 1
        self._received_before = self._transport.received
        await self._send(*messages)

    async def _send(self, *messages: Message | EndOfBody | Aborted) -> None:
        data = b"".join(self._wire.send(message) for message in messages)
        await self._write([data])

    async def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        with self._noting_answer():
            await self._transport.send(parts, deadline=self._deadlines.progress)

    async def _answer(self, deadline: float, *, may_refuse: bool = False) -> Event:
        event = await self._next(deadline)
        if isinstance(event, FileError) and not may_refuse:
            raise ServerRefused(f"{self._server} answers ERIO")
        return event

    async def _next(self, deadline: float) -> Event:
        """The next event; all of it comes within ``deadline`` seconds, or TimedOut is raised."""
        event = self._next_event()
        if event is not NEED_DATA:
            return event
        try:
            with trio.fail_after(deadline):
                while event is NEED_DATA:
                    count = await self._receive(self._control, deadline)
                    self._wire.receive_data(self._control[:count])
                    event = self._next_event()
        except trio.TooSlowError:
            raise TimedOut(f"{self._server} gave no answer within {deadline:g} s") from None
        return event

    def _next_event(self) -> Event | Literal[NeedData.NEED_DATA]:
        try:
            return self._wire.next_event()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self._server}: {error}") from error

    async def _receive(self, buffer: memoryview, deadline: float) -> int:
        with self._noting_answer():
            count = await self._transport.recv_into(buffer, deadline=deadline)
            if count == 0:
                raise ConnectionBroken(f"{self._server} closed the connection")
        return count

    @contextmanager
    def _noting_answer(self) -> Iterator[None]:
        try:
            yield
        except ConnectionBroken as error:
            error.answered = self._transport.received > self._received_before
            raise

    def _body(self, take: Take) -> RemoteBody:
        start = memoryview(b"")
        event = self._next_event()
        if isinstance(event, Data):  # what came in one read with TAKE
            start = event.data
            event = self._next_event()
        if not (event is NEED_DATA or isinstance(event, EndOfBody)):
            raise self._unexpected(event)
        receive = partial(self._receive, deadline=self._deadlines.progress)
        return RemoteBody(take.length, start, self._wire, receive)

    def _unexpected(self, event: Event) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._server} says {event} out of turn")


class RemoteBody:
    """The body that a PULL brought; valid until the next command on its connection."""

    def __init__(
        self,
        length: int,
        start: memoryview,
        wire: Connection,
        receive: Callable[[memoryview], Awaitable[int]],
    ) -> None:
        self.length: int = length
        self._start = start
        self._wire = wire
        self._receive = receive

    async def peek(self, count: int) -> bytes:
        """The first ``count`` bytes, or all if there are fewer; they stay to be read."""
        while len(self._start) < count and (remaining := self._wire.body_remaining):
            more = memoryview(bytearray(min(count - len(self._start), remaining)))
            got = await self._receive(more)
            self._wire.received_body(got)
            self._start = memoryview(bytes(self._start) + bytes(more[:got]))
        return bytes(self._start[:count])

    async def readinto(self, buffer: memoryview) -> int:
        if self._start:
            await trio.lowlevel.checkpoint()
            count = min(len(buffer), len(self._start))
            buffer[:count] = self._start[:count]
            self._start = self._start[count:]
            return count
        remaining = self._wire.body_remaining
        if remaining == 0:
            await trio.lowlevel.checkpoint()
            return 0
        count = await self._receive(buffer[:remaining])
        self._wire.received_body(count)
        return count


def _chunked(piece: memoryview) -> list[bytes | memoryview]:
    """Cut into STRM chunks for a gathering write, so that nothing is copied."""
    parts: list[bytes | memoryview] = []
    for start in range(0, len(piece), MAX_STREAM_CHUNK):
        chunk = piece[start : start + MAX_STREAM_CHUNK]
        parts += (chunk_prefix(len(chunk)), chunk)
    return parts
