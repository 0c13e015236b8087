"""One client's connection: commands in, answers out, in order, under limits."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    RangeError,
    RemoteProtocolError,
    StoreError,
    TimedOut,
    Unavailable,
)
from cafsfs.packing import HEADER_LENGTH, Header
from cafsfs.secret import Secret
from cafsfs.server.gate import Gate
from cafsfs.server.limits import Limits, Workers
from cafsfs.server.lots import LOT, Question, Reply, reply_to
from cafsfs.store.contracts import PackedBody, PackedStore
from cafsfs.store.local_root import FileBody, LocalRoot
from cafsfs.store.pump import PIECE
from cafsfs.transport import Pace, Transport
from cafsfs.wire import (
    CHUNK_STEP,
    NEED_DATA,
    Aborted,
    Absent,
    Accepted,
    Authenticate,
    BadRequest,
    Check,
    ClientProof,
    Command,
    Connection,
    Data,
    EndOfBody,
    Event,
    FileError,
    GoesOnPlain,
    Greeting,
    Have,
    Hello,
    Measure,
    Message,
    NeedData,
    PackedLength,
    PeerClosed,
    Pull,
    Push,
    Role,
    Root,
    ServerProof,
    StaysEncrypted,
    Stream,
    Take,
    Version,
    WrongClock,
)
from cafsfs.wire.handshake import is_current, is_proof, is_punctual, page_at

T = TypeVar("T")

_COMMAND_BUFFER = 16 << 10  # bytes received at once: 300 commands, and little for an idle client
_UPLOAD_BUFFER = 1 << 20  # for a large STRM: a quarter less work than with 256 KiB
_LARGE = 64 << 10  # bytes; making a buffer of 1 MiB takes longer than storing what is smaller
_PLAIN, _AUTHENTICATED = 1, 2  # versions
_REASONS = 3  # kept for the log: who sends a million bad commands gets no line of a million
PENALTY = 2.0  # seconds before we close on who is refused, as deployed servers do


@dataclass(slots=True)
class Tally:
    """What one connection did, for its log line."""

    root: str = ""
    version: str = "-"
    commands: int = 0
    refusals: int = 0
    refused: list[str] = field(default_factory=list)  # the first few

    def refuse(self, reason: str) -> None:
        """Note a command that was answered with an error."""
        self.refusals += 1
        if len(self.refused) < _REASONS:
            self.refused.append(reason)


class Session:
    """Serves one connected socket until the client leaves or breaks a rule.

    ``open_root`` maps the bytes of a root to its store, or to None: an unknown root is not
    refused, everything is absent below it (protocol page, section 2). ``host`` is the client's
    address, by which ``gate`` decides.
    """

    def __init__(
        self,
        transport: Transport,
        open_root: Callable[[bytes], Awaitable[PackedStore | None]],
        limits: Limits,
        workers: Workers,
        *,
        gate: Gate,
        host: str,
    ) -> None:
        self._gate = gate
        self._host = host
        self._transport = transport
        self._open_root = open_root
        self._limits = limits
        self._workers = workers
        self._wire = Connection(Role.SERVER)
        self._ahead: Event | RemoteProtocolError | None = None  # came behind a lot of questions
        self._buffer = memoryview(bytearray(_COMMAND_BUFFER))
        self._filled = False  # by what came last, so that more waits
        self._store: PackedStore | None = None
        self.tally = Tally()
        self.busy = False  # in the middle of a command
        self.leaving = False  # set from outside: no command after this one

    async def run(self) -> None:
        """Serve; raises CafsError with the reason why it ended early."""
        root = await self._greet()
        if root is not None:
            # As repr shows it: a client must not write lines of its own into the log.
            self.tally.root = repr(root.name.decode(errors="backslashreplace"))[1:-1]
            self._store = await self._open_root(root.name)
            await self._serve_commands()

    # --- who it is, and what root is meant

    async def _greet(self) -> Root | None:
        """The root that the client means; None if it leaves, or has been told that it must."""
        await self._send(Greeting(_PLAIN if self._gate.secret is None else _AUTHENTICATED))
        event = await self._next()
        match event:
            case PeerClosed():
                return None
            case Authenticate(page):
                return await self._authenticate(page)
            case Version(version):
                if version != _PLAIN or self._gate.demands_authentication(self._host):
                    await self._send(BadRequest())
                    raise RemoteProtocolError(f"client asks for version {version:03d}")
                await self._send(Accepted())
                self.tally.version = "001"
                return await self._expect(Root)
            case _:
                raise AssertionError(f"{event} is no version")

    async def _authenticate(self, page: int) -> Root | None:
        """All of it within ``stall``; who is refused is told nothing, and that late."""
        if self._gate.secret is None:  # deployed servers say nothing either
            raise RemoteProtocolError("client asks for authentication, there is no secret")
        limit = self._limits.stall
        try:
            with trio.fail_after(limit):
                return await self._shake_hands(self._gate.secret, page)
        except trio.TooSlowError:
            raise TimedOut(f"client did not authenticate within {limit:g} s") from None
        except AuthenticationFailed:
            await trio.sleep(PENALTY)
            raise

    async def _shake_hands(self, secret: Secret, page: int) -> Root | None:
        gate = self._gate
        if not is_current(page, gate.now()):
            raise AuthenticationFailed(f"the client's page is {page}, ours {page_at(gate.now())}")
        handshake = gate.begin(secret, page)
        hello = await self._expect(Hello)
        # Also to whom we cannot understand: by this one he sees that the secret is wrong.
        await self._send(handshake.hello())
        ciphers = handshake.agree(hello)
        self._check_nothing_more(hello)
        self._transport.use(ciphers)
        proof = await self._expect(ClientProof)
        if not is_proof(proof):
            raise AuthenticationFailed("the client has another secret")
        await self._send(ServerProof())
        if not is_punctual(proof, gate.now()):
            await self._send(WrongClock())
            self.tally.refuse(f"the client's clock is {proof.seconds - int(gate.now()):+d} s off")
            return None
        root = await self._expect(Root)
        if gate.keeps_encryption(self._host):
            await self._send(StaysEncrypted())
            self.tally.version = "002-encrypted"
        else:
            self._check_nothing_more(root)  # it could not be told whether that is encrypted
            await self._send(GoesOnPlain())
            self._transport.use(None)
            self.tally.version = "002"
        return root

    async def _expect(self, kind: type[T]) -> T:
        """The next event: with the table of states it can be of no other kind."""
        event = await self._next()
        assert isinstance(event, kind)
        return event

    def _check_nothing_more(self, heard: Event) -> None:
        if self._wire.unread:
            raise RemoteProtocolError(f"client goes on behind {type(heard).__name__} too early")

    # --- commands

    async def _serve_commands(self) -> None:
        while not self.leaving:
            try:
                event = await self._next_command()
            except RemoteProtocolError:
                await trio.sleep(PENALTY)
                raise
            if isinstance(event, PeerClosed):
                return
            self.busy = True
            if isinstance(event, Question) and isinstance(self._store, LocalRoot):
                await self._serve_lot(self._lot_from(event), self._store)
            else:
                self.tally.commands += 1
                await self._serve(event)
            self.busy = False

    async def _next_command(self) -> Event:
        event, self._ahead = self._ahead, None
        if isinstance(event, RemoteProtocolError):
            raise event
        return event or await self._next()

    async def _serve(self, command: Event) -> None:
        match command:
            case Check(digest):
                await self._send(await self._answer(command, self._check(digest)))
            case Measure(digest):
                await self._send(await self._answer(command, self._measure(digest)))
            case Pull():
                await self._serve_pull(command)
            case Push(digest) | Stream(digest):
                await self._serve_upload(command, digest)
            case _:
                raise AssertionError(f"{command} is no command")

    async def _answer(self, command: Command, work: Awaitable[Message]) -> Message:
        """The answer, or the one that tells of its failure; the failure is logged."""
        try:
            return await work
        except BlobNotFound:
            return Absent()
        except (Unavailable, RemoteProtocolError):  # the client's: nobody will read an answer
            raise
        except CafsError as error:
            self.tally.refuse(f"{type(command).__name__}: {error}")
            return FileError()

    async def _check(self, digest: Digest) -> Message:
        if self._store is None or await self._store.find_absent([digest]):
            return Absent()
        return Have()

    async def _measure(self, digest: Digest) -> Message:
        if self._store is None:
            return Absent()
        stat = await self._store.inspect(digest)
        if stat is None:
            raise StoreError(f"{self._store.name} cannot tell the length of {digest}")
        return PackedLength(stat.length)

    # --- questions that came together, about files

    def _lot_from(self, first: Question) -> list[Question]:
        """``first`` and the questions that came with it; what came behind them is kept ahead."""
        lot = [first]
        while len(lot) < LOT:
            try:
                event = self._wire.next_event()
            except RemoteProtocolError as error:  # its turn comes after the answers
                self._ahead = error
                break
            if event is NEED_DATA:
                break
            if not isinstance(event, Question):
                self._ahead = event
                break
            lot.append(event)
        return lot

    async def _serve_lot(self, lot: Sequence[Question], store: LocalRoot) -> None:
        while lot and not self.leaving:
            replies = await reply_to(lot, store, self._workers.questions)
            await self._send_replies(lot, replies)
            lot = lot[len(replies) :]

    async def _send_replies(self, lot: Sequence[Question], replies: Sequence[Reply]) -> None:
        """All in one write; behind it the rest of the last body, if that is not whole."""
        pace = self._limits.pace()
        last = replies[-1].body
        try:
            parts: list[bytes | memoryview] = []
            for question, reply in zip(lot, replies, strict=False):
                self.tally.commands += 1
                if reply.reason is not None:
                    self.tally.refuse(f"{type(question).__name__}: {reply.reason}")
                parts.append(self._wire.send(reply.answer))
                if reply.body is not None and reply.body.head:
                    parts.append(reply.body.head)
                    self._wire.sent_body(len(reply.body.head))
            await self._write(parts, pace)
            if last is not None and not last.whole:
                await self._send_file(last, len(last.head), pace)
        finally:
            if last is not None and not last.whole:
                os.close(last.descriptor)

    async def _send_file(self, body: FileBody, done: int, pace: Pace) -> None:
        while self._wire.body_to_send:
            count = await self._transport.send_file(
                body.descriptor,
                body.offset + done,
                self._wire.body_to_send,
                deadline=pace,
                limiter=self._workers.sending,
            )
            if count == 0:
                raise CorruptBlob("a stored blob became shorter while it was being sent")
            done += count
            self._wire.sent_body(count)

    # --- downloads from any other store

    async def _serve_pull(self, pull: Pull) -> None:
        if self._store is None:
            await self._send(Absent())
            return
        started = False
        try:
            fetch = self._store.fetch(
                pull.digest, offset=pull.chunk * CHUNK_STEP, length=pull.length or None
            )
            async with fetch as body:
                if body.length is None:
                    raise RangeError("a body without a length cannot be announced")
                announced = self._wire.send(Take(pull.digest, body.length, pull.chunk))
                started = True
                await self._send_body(announced, body)
        except CafsError as error:
            if started:  # too late to say so: the client sees the body break off
                raise
            answer = Absent() if isinstance(error, BlobNotFound) else FileError()
            if isinstance(answer, FileError):
                self.tally.refuse(f"Pull: {error}")
            await self._send(answer)

    async def _send_body(self, announced: bytes, body: PackedBody) -> None:
        pace = self._limits.pace()
        await self._write([announced])
        piece = memoryview(bytearray(PIECE))
        while self._wire.body_to_send:
            count = await body.readinto(piece[: self._wire.body_to_send])
            if count == 0:
                raise CorruptBlob("a stored blob ended early")
            await self._write([piece[:count]], pace)
            self._wire.sent_body(count)

    # --- uploads

    async def _serve_upload(self, command: Push | Stream, digest: Digest) -> None:
        length = command.length if isinstance(command, Push) else None
        body = _Upload(self, length, self._limits)
        answer = await self._answer(command, self._store_upload(digest, body))
        await body.drain()
        if len(self._buffer) > _COMMAND_BUFFER:
            self._buffer = memoryview(bytearray(_COMMAND_BUFFER))
        await self._send(answer)

    async def _store_upload(self, digest: Digest, body: _Upload) -> Message:
        if self._store is None:
            return FileError()
        if await self._store.find_absent([digest]):
            await self._store.deposit(digest, lambda: body)
        return Have()

    async def read_upload(
        self, buffer: memoryview, pace: Pace, *, large: bool
    ) -> int | Data | EndOfBody | Aborted:
        """The next piece of an upload: an event, or a count of bytes read into ``buffer``.

        ``large``: so much has come that a buffer for more of it at once is worth making.
        """
        remaining = self._wire.body_remaining
        if remaining == 0:
            if large and self._filled and len(self._buffer) < _UPLOAD_BUFFER:
                self._buffer = memoryview(bytearray(_UPLOAD_BUFFER))
            event = await self._next(pace)
            if not isinstance(event, Data | EndOfBody | Aborted):
                raise AssertionError(f"{event} is no part of an upload")
            return event
        count = await self._receive(buffer[:remaining], pace)
        if count == 0:
            raise ConnectionBroken("client went away in the middle of an upload")
        self._wire.received_body(count)
        return count

    # --- bytes in and out

    async def _next(self, pace: Pace | None = None) -> Event:
        """The next event; raises TimedOut for a client that is silent, or that trickles.

        Between commands it may be silent for ``idle``, within an upload as ``pace`` allows. From
        its first byte on a message has ``stall`` to be complete: one byte now and then holds no
        connection.
        """
        event = self._wire.next_event()
        if event is not NEED_DATA:
            return event
        limits = self._limits
        event = await self._hear(pace or (limits.idle if self._wire.at_rest else limits.stall))
        try:
            with trio.fail_after(limits.stall):
                while event is NEED_DATA:
                    event = await self._hear(pace or limits.stall)
        except trio.TooSlowError:
            raise TimedOut(f"client did not end a message within {limits.stall:g} s") from None
        return event

    async def _hear(self, deadline: float | Pace) -> Event | Literal[NeedData.NEED_DATA]:
        count = await self._receive(self._buffer, deadline)
        self._filled = count == len(self._buffer)
        self._wire.receive_data(self._buffer[:count])
        return self._wire.next_event()

    async def _receive(self, buffer: memoryview, deadline: float | Pace) -> int:
        return await self._transport.recv_into(buffer, deadline=deadline)

    async def _send(self, message: Message) -> None:
        await self._write([self._wire.send(message)])

    async def _write(self, parts: Sequence[bytes | memoryview], pace: Pace | None = None) -> None:
        await self._transport.send(parts, deadline=pace or self._limits.pace())


class _Upload:
    """What a client uploads, as a packed body; read once, to its end or until it is refused."""

    def __init__(self, session: Session, length: int | None, limits: Limits) -> None:
        self._session = session
        self._pace = limits.pace()
        self._limits = limits
        self._head = b""  # the packed blob's header, as far as it was read
        self._taken = 0
        self._piece = memoryview(b"")  # received, not yet read
        self._ended = False
        self.length = length

    async def readinto(self, buffer: memoryview) -> int:
        count = await self._read(buffer)
        if len(self._head) < HEADER_LENGTH:
            self._look_at_header(buffer[:count])
        return count

    def _look_at_header(self, piece: memoryview) -> None:
        """Refuse a blob that announces too much content before any of it is unpacked."""
        self._head += piece[: HEADER_LENGTH - len(self._head)]
        if len(self._head) == HEADER_LENGTH:
            announced = Header.parse(self._head).content_length or 0
            if announced > self._limits.content:
                raise CorruptBlob(
                    f"announces {announced} bytes of content, the limit is {self._limits.content}"
                )

    async def _read(self, buffer: memoryview) -> int:
        limit = self._limits.blob
        while not self._piece:
            if self._ended:
                return 0
            if self._taken > limit or (self.length or 0) > limit:
                # Not even worth reading to its end: ``drain`` raises it again, and that closes.
                raise CorruptBlob(f"an upload is over the limit of {limit} bytes")
            got = await self._session.read_upload(buffer, self._pace, large=self._taken >= _LARGE)
            if isinstance(got, int):
                self._count(got)
                self._ended = self._taken == self.length
                return got
            if isinstance(got, Data):
                self._count(len(got.data))
                self._piece = got.data
            else:
                self._ended = True
            if isinstance(got, Aborted):
                raise CorruptBlob("the client gave an upload up")
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    async def drain(self) -> None:
        """Read what is left, so that the connection stays in step; raises if it is too much."""
        self._piece = memoryview(b"")
        if self._ended:
            return
        buffer = memoryview(bytearray(_LARGE))
        try:
            while await self._read(buffer):
                pass
        except CorruptBlob:
            if not self._ended:
                raise
            # Else the client gave it up; whatever its answer is, the connection is in step.

    def _count(self, count: int) -> None:
        self._taken += count
