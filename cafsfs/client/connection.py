"""One conversation with one server: handshake, then commands, one at a time.

A connection on which anything unexpected happened (an error, a cancellation in the middle) is no
longer ``reusable``: the state machine in ``wire/`` is then not at rest, and the pool closes it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Literal, NamedTuple

import trio

from cafsfs.client.authentication import Line, authenticate
from cafsfs.client.credentials import NO_CREDENTIALS, Credentials
from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    ConnectTimedOut,
    RangeError,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unavailable,
)
from cafsfs.packing import HEADER_LENGTH, Compression, Header
from cafsfs.resolver import Resolver
from cafsfs.store.contracts import PackedBody, PackedStat
from cafsfs.store.pump import pump
from cafsfs.transport import Pace, Transport
from cafsfs.wire import (
    CHUNK_STEP,
    MAX_CHUNK,
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
    Push,
    Role,
    Root,
    Stream,
    Take,
    Version,
    chunk_prefix,
)

_CONTROL_BUFFER = 64 << 10  # bytes; TAKE and a small blob come in one read
# Answers to questions that share the deadline of one: who gives one just before each deadline keeps
# a thousand questions waiting for minutes, not for an hour and more. Four a second come over a line
# of 200 bytes a second, or from a disk that takes a quarter of a second for each.
ANSWERS_TOGETHER = 20
_SKIPPED = 256 << 10  # bytes at once of a body that are thrown away


class _Awaited(NamedTuple):
    """What did not come in time, and what to do about it."""

    what: str
    hint: str = "is it a CAFS server, and can it be reached from here?"


_CONNECTION = _Awaited("connection to")
_GREETING = _Awaited("greeting from")
_PROOF = _Awaited(
    "end of the authentication by",
    "is it frozen? a server that dislikes our clock takes 2 s to show it: compare the clocks, or "
    "wait longer with --connect-timeout",
)


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
        self._waits_for = _GREETING
        self.uses = 0  # commands so far; 0 on a fresh connection
        self._version = 1
        self.round_trips = 3  # that it took to be ready: connecting, the greeting, the verdict
        # When an answer or a body last moved, on Trio's clock; in the future where the server has
        # reason to be silent until then. The greeting moves nothing: a frozen server may greet.
        self.moved_at = -math.inf

    @classmethod
    async def open(
        cls,
        server: Server,
        root: bytes,
        deadlines: Deadlines,
        *,
        credentials: Credentials = NO_CREDENTIALS,
        resolver: Resolver | None = None,
        receive_buffer: int | None = None,
        must_grow: bool = False,
    ) -> ServerConnection:
        """Connect, greet, authenticate, name the root; see Transport.connect for the rest.

        Raises Unreachable (ConnectTimedOut for a late greeting too), ConnectionBroken,
        AuthenticationFailed, RemoteProtocolError, ServerRefused, and LocalProtocolError for a root
        over 255 bytes.
        """
        connection: ServerConnection | None = None
        try:
            with trio.fail_after(deadlines.connect):
                transport = await Transport.connect(
                    server.host,
                    server.port,
                    resolver=resolver,
                    receive_buffer=receive_buffer,
                    must_grow=must_grow,
                )
                connection = cls(transport, server, deadlines)
                await connection._greet(root, credentials)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, trio.TooSlowError):
                waited_for = _CONNECTION if connection is None else connection._waits_for
                raise ConnectTimedOut(
                    f"no {waited_for.what} {server} within {deadlines.connect:g} s",
                    hint=waited_for.hint,
                ) from None
            raise
        return connection

    def __repr__(self) -> str:
        return f"<ServerConnection {self._server} uses={self.uses} {self._wire!r}>"

    @property
    def reusable(self) -> bool:
        """True if the next command may be sent on it."""
        return not self._closed and self._wire.at_rest and self._transport.seems_alive()

    @property
    def protocol(self) -> str:
        """The version that is spoken: ``001``, ``002``, or ``002-encrypted``."""
        encrypted = "-encrypted" if self._transport.is_encrypted else ""
        return f"{self._version:03d}{encrypted}"

    def close(self) -> None:
        """Close at once."""
        self._closed = True
        self._transport.close()

    async def _greet(self, root: bytes, credentials: Credentials) -> None:
        """In version 002 if we have a secret and the server offers that.

        It is never followed by another try with 001: whoever can make the one fail would have us
        do without authentication.
        """
        deadline = self._deadlines.connect
        greeting = await self._next(deadline)
        if not isinstance(greeting, Greeting):
            raise self._unexpected(greeting)
        offered = greeting.version > 1
        if credentials.secret is not None and offered:
            self._waits_for = _PROOF
            self.round_trips += 2
            hear = partial(self._next, deadline)
            line = Line(
                server=self._server,
                transport=self._transport,
                wire=self._wire,
                say=self._send,
                hear=hear,
            )
            await authenticate(line, credentials.secret, root)
            self._version = 2
        elif credentials.required:
            raise AuthenticationFailed(
                f"{self._server} offers no authentication",
                hint="it has no secret, or something between us changes what it says; "
                "`--auth auto` does without",
            )
        else:
            await self._greet_plainly(root, offered=offered)

    async def _greet_plainly(self, root: bytes, *, offered: bool) -> None:
        # The root may go before the verdict is read: that saves a round trip.
        await self._send(Version(1), Root(root))
        verdict = await self._next(self._deadlines.connect)
        if isinstance(verdict, BadRequest):
            if offered:
                raise AuthenticationFailed(
                    f"{self._server} demands authentication, and we have no secret",
                    hint="name the file that holds it: --secret-file FILE",
                )
            raise ServerRefused(f"{self._server} refuses protocol version 001")
        if not isinstance(verdict, Accepted):
            raise self._unexpected(verdict)

    # --- commands

    async def check(self, digests: Sequence[Digest]) -> set[Digest]:
        """Which of ``digests`` are absent. All are asked before the first answer is read.

        The caller bounds their number: answers of four bytes that nobody reads would fill the
        buffers of both sides after some tens of thousands. Each ANSWERS_TOGETHER answers have the
        deadline of a question.
        """
        await self._command(*(Check(digest) for digest in digests))
        absent: set[Digest] = set()
        for start in range(0, len(digests), ANSWERS_TOGETHER):
            some = digests[start : start + ANSWERS_TOGETHER]
            with self._within(self._deadlines.question):
                absent |= await self._absent_of(some)
        return absent

    async def _absent_of(self, digests: Sequence[Digest]) -> set[Digest]:
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
        and tells how long the answer to PULL may take. A frozen server is known by it within the
        deadline of a question.
        """
        await self._command(Measure(digest), Pull(digest))
        length = await self._length()
        take = self._taken(digest, await self._answer_to_pull(length or 0))
        return self._body(take)

    async def pull_range(self, digest: Digest, offset: int, length: int | None) -> RemoteBody:
        """Ask for ``length`` bytes (None: to the end) from ``offset`` on, of a sound server.

        Not for none: a ``length`` of 0 asks for everything on the wire. Bytes before ``offset``
        are read and thrown away: PULL addresses steps of 1 MiB. Raises RangeError.
        """
        chunk, before = divmod(offset, CHUNK_STEP)
        if chunk > MAX_CHUNK:
            raise RangeError(f"no blob has {offset} bytes")
        asked = 0 if length is None else before + length
        await self._command(Measure(digest), Pull(digest, asked, chunk))
        whole = await self._length()
        answer = await self._answer(self._deadlines.for_pull(whole or 0), may_refuse=True)
        end = offset + (length or 0)
        if whole is not None and end > whole:
            raise RangeError(f"{end} is past the end of {digest}, which has {whole} bytes packed")
        if isinstance(answer, FileError):
            raise ServerRefused(f"{self._server} answers ERIO")
        body = self._body(self._taken(digest, answer))
        await body.skip(before)
        return body

    async def pull_rest(
        self, digest: Digest, packed_length: int, head: bytes, chunk: int
    ) -> RemoteBody | None:
        """Ask a sound server for the packed blob from ``chunk`` × 1 MiB on, to go on with it.

        None where it has not ``packed_length`` bytes any more, or does not begin with ``head``.
        """
        await self._command(Measure(digest), _header_of(digest), Pull(digest, chunk=chunk))
        deadline = self._deadlines.for_pull(packed_length)
        same = await self._length() == packed_length
        first = await self._answer(deadline, may_refuse=True)
        if not (same and isinstance(first, Take) and await self._bytes(first) == head):
            return None
        rest = await self._answer(deadline, may_refuse=True)
        if not (isinstance(rest, Take) and rest.length == packed_length - chunk * CHUNK_STEP):
            return None
        return self._body(rest)

    async def glimpse(self, digest: Digest) -> PackedStat | None:
        """Length and header from a sound server, in one round trip and without a body.

        None where the blob was replaced between the two, so that they do not belong together.
        Raises BlobNotFound, and CorruptBlob for what has no sound header. SIZE goes last: from a
        server that sends more than the range, something else comes there (RemoteProtocolError).
        """
        await self._command(_header_of(digest), Measure(digest))
        # All a sound server does for it is to read a page: it has the deadline of a question.
        with self._within(self._deadlines.question):
            answer = await self._answer(self._deadlines.question, may_refuse=True)
            head = await self._bytes(answer) if isinstance(answer, Take) else b""
            length = await self._length()
        if length is None or isinstance(answer, Absent):
            raise BlobNotFound(digest)
        if isinstance(answer, FileError) and length >= HEADER_LENGTH:
            raise ServerRefused(f"{self._server} answers ERIO")
        header = Header.parse(head)
        stated = header.content_length or 0
        if header.compression is Compression.NONE and stated != length - HEADER_LENGTH:
            # The length is all that tells the content's, or one of the two is of another blob.
            return PackedStat(length, header) if await self.measure(digest) == length else None
        return PackedStat(length, header)

    async def has_sound_ranges(self, digest: Digest, packed_length: int) -> bool:
        """See whether exactly the bytes of two small ranges come, on a connection for this only.

        A deployed server goes on with the rest of the blob after the first, where the second is
        announced by a sound one: with the blob's own hash, which no content can foresee. Where the
        blob is long enough the second begins at 1 MiB, and the same bytes there are wrong ones.
        Raises also what ``glimpse`` raises, and RemoteProtocolError: then it has none.
        """
        chunk = 1 if packed_length >= CHUNK_STEP + HEADER_LENGTH else 0
        ranges = (_header_of(digest), Pull(digest, HEADER_LENGTH, chunk))
        await self._command(*ranges, Measure(digest))
        deadline = self._deadlines.for_pull(packed_length)
        head = await self._bytes(self._taken(digest, await self._answer(deadline)))
        Header.parse(head)
        answer = await self._answer(deadline)
        if not isinstance(answer, Take):
            return False
        further = await self._bytes(answer)
        in_step = isinstance(await self._answer(self._deadlines.question), PackedLength)
        return in_step and (further == head) is (chunk == 0)

    async def peek(self, digest: Digest, packed_length: int) -> tuple[PackedStat, RemoteBody]:
        """Ask for the whole packed blob and look at its header; the body can be read, or given up.

        ``packed_length`` (bytes, from ``measure``) sets the deadline only: the length returned is
        that of the blob whose header is returned, for a server may have recompressed it between.
        """
        await self._command(Pull(digest))
        body = self._body(self._taken(digest, await self._answer_to_pull(packed_length)))
        header = Header.parse(await body.peek(HEADER_LENGTH))
        return PackedStat(body.length, header), body

    async def upload(self, digest: Digest, body: PackedBody) -> None:
        """Upload ``body``; raises ServerRefused if the server does not store it.

        With PUSH where its length is known: a body that is not cut into chunks costs both sides a
        quarter less. Else with STRM.
        """
        sent = await (self._push(digest, body) if body.length else self._stream(digest, body))
        answer = await self._answer(self._deadlines.for_pull(sent))
        if not isinstance(answer, Have):
            raise self._unexpected(answer)

    async def _push(self, digest: Digest, body: PackedBody) -> int:
        """Where ``body`` fails the connection is of no more use: the server has not got its end."""
        length = body.length or 0
        await self._command(Push(digest, length))
        pace = self._deadlines.pace()

        async def send(piece: memoryview) -> None:
            await self._write([piece], pace)
            self.moved_at = trio.current_time()
            self._wire.sent_body(len(piece))

        await pump(body.readinto, send, length=length)
        return length

    async def _stream(self, digest: Digest, body: PackedBody) -> int:
        """Where ``body`` fails, the stream is aborted and the connection stays in step.

        Unless a chunk was cut off in the middle.
        """
        await self._command(Stream(digest))
        pace = self._deadlines.pace()
        sent = 0
        in_step = True

        async def send(piece: memoryview) -> None:
            nonlocal sent, in_step
            in_step = False  # until all of it is written: reading ahead may fail and cancel us
            await self._write(_chunked(piece), pace)
            self.moved_at = trio.current_time()
            sent += len(piece)
            in_step = True

        try:
            await pump(body.readinto, send)
        except Unavailable:
            raise
        except CafsError:
            if in_step:
                with suppress(CafsError):  # what ``body`` raised tells more
                    await self._send(Aborted())
                    await self._answer(self._deadlines.answer, may_refuse=True)
            raise
        await self._send(EndOfBody())
        return sent

    # --- many commands ahead of their answers, see pipeline.py

    async def ask(self, commands: Sequence[Message]) -> None:
        """Send commands, in one segment; the caller bounds what is sent ahead of its answers."""
        await self._command(*commands)

    async def receive(self, buffer: memoryview, deadline: float | Pace) -> int:
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

    def take_body(self) -> memoryview | None:
        """The body that the Take just returned announces, if all of it was received; else None."""
        return self._wire.take_body()

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

    async def _write(self, parts: Sequence[bytes | memoryview], pace: Pace | None = None) -> None:
        with self._noting_answer():
            await self._transport.send(parts, deadline=pace or self._deadlines.pace())

    async def _answer(self, deadline: float, *, may_refuse: bool = False) -> Event:
        event = await self._next(deadline)
        if isinstance(event, FileError) and not may_refuse:
            raise ServerRefused(f"{self._server} answers ERIO")
        return event

    async def _answer_to_pull(self, packed_length: int) -> Event:
        deadline = self._deadlines.for_pull(packed_length)
        self.moved_at = trio.current_time() + deadline - self._deadlines.answer
        answer = await self._answer(deadline)
        self.moved_at = trio.current_time()
        return answer

    async def _length(self) -> int | None:
        """The answer to a SIZE that goes before a PULL; None where it tells no length."""
        measured = await self._answer(self._deadlines.question, may_refuse=True)
        if isinstance(measured, BadRequest):  # it closes now: no answer to PULL will come
            raise self._unexpected(measured)
        return measured.length if isinstance(measured, PackedLength) else None

    def _taken(self, digest: Digest, answer: Event) -> Take:
        if isinstance(answer, Absent):
            raise BlobNotFound(digest)
        if not isinstance(answer, Take):
            raise self._unexpected(answer)
        return answer

    async def _bytes(self, take: Take) -> bytes:
        """A small body, all of it."""
        return await self._body(take).skip(take.length, look_at=take.length)

    async def _next(self, deadline: float) -> Event:
        """The next event; all of it comes within ``deadline`` seconds, or TimedOut is raised."""
        event = self._next_event()
        if event is not NEED_DATA:
            return event
        with self._within(deadline):
            while event is NEED_DATA:
                count = await self._receive(self._control, deadline)
                self._wire.receive_data(self._control[:count])
                event = self._next_event()
        return event

    @contextmanager
    def _within(self, deadline: float) -> Iterator[None]:
        try:
            with trio.fail_after(deadline):
                yield
        except trio.TooSlowError:
            raise TimedOut(f"{self._server} gave no answer within {deadline:g} s") from None

    def _next_event(self) -> Event | Literal[NeedData.NEED_DATA]:
        try:
            return self._wire.next_event()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self._server}: {error}") from error

    async def _receive(self, buffer: memoryview, deadline: float | Pace) -> int:
        with self._noting_answer():
            count = await self._transport.recv_into(buffer, deadline=deadline)
            if count == 0:
                raise ConnectionBroken(f"{self._server} closed the connection")
        if self.uses:
            self.moved_at = max(self.moved_at, trio.current_time())
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
        return RemoteBody(
            take.length, start, self._wire, receive=self._receive, pace=self._deadlines.pace()
        )

    def _unexpected(self, event: Event) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._server} says {event} out of turn")


class RemoteBody:
    """The body that a PULL brought; valid until the next command on its connection.

    ``pace`` is what it must keep to. After TimedOut for a stall alone it can be read on.
    """

    def __init__(
        self,
        length: int,
        start: memoryview,
        wire: Connection,
        *,
        receive: Callable[[memoryview, Pace], Awaitable[int]],
        pace: Pace,
    ) -> None:
        self.length: int = length
        self.pace = pace
        self._start = start
        self._wire = wire
        self._receive = receive

    async def peek(self, count: int) -> bytes:
        """The first ``count`` bytes, or all if there are fewer; they stay to be read."""
        while len(self._start) < count and (remaining := self._wire.body_remaining):
            more = memoryview(bytearray(min(count - len(self._start), remaining)))
            got = await self._receive(more, self.pace)
            self._wire.received_body(got)
            self._start = memoryview(bytes(self._start) + bytes(more[:got]))
        return bytes(self._start[:count])

    async def skip(self, count: int, *, look_at: int = 0) -> bytes:
        """Read ``count`` bytes that nobody wants; returns the first ``look_at`` of them.

        ``length`` is then what is left. Raises RemoteProtocolError if there are not so many.
        """
        seen = b""
        buffer = memoryview(bytearray(min(count, _SKIPPED)))
        left = count
        while left:
            got = await self.readinto(buffer[:left])
            if got == 0:
                raise RemoteProtocolError("a body is shorter than what was to be skipped of it")
            seen += buffer[: min(got, look_at - len(seen))]
            left -= got
        self.length -= count
        return seen

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
        count = await self._receive(buffer[:remaining], self.pace)
        self._wire.received_body(count)
        return count


def _header_of(digest: Digest) -> Pull:
    """Asks a sound server for the header alone; a deployed one sends the whole blob instead."""
    return Pull(digest, HEADER_LENGTH)


def _chunked(piece: memoryview) -> list[bytes | memoryview]:
    """Cut into STRM chunks for a gathering write, so that nothing is copied."""
    parts: list[bytes | memoryview] = []
    for start in range(0, len(piece), MAX_STREAM_CHUNK):
        chunk = piece[start : start + MAX_STREAM_CHUNK]
        parts += (chunk_prefix(len(chunk)), chunk)
    return parts
