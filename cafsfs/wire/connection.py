"""One CAFS connection without I/O: bytes in, events out; the same engine for client and server.

In the manner of h11. The owner of the socket does four things:

- ``send(message)`` returns the bytes to write;
- ``receive_data(data)`` takes what was read (``b""`` at the end), then ``next_event()`` is called
  until it returns NEED_DATA. Data events are views into what was given, without a copy; so drain
  the events before the buffer is used again. After PeerClosed comes NEED_DATA, after a
  RemoteProtocolError only RemoteProtocolError;
- a body that is to be sent is only counted: ``sent_body(n)`` after n bytes of it were written,
  by whatever means (writev, sendfile);
- a body that is being received may be read from the socket straight into its destination:
  at most ``body_remaining`` bytes, then ``received_body(n)``.

The bytes may have been decrypted on the way; this layer does not care. Memory is bounded: what is
kept between two calls is one incomplete control message, fewer than 256 bytes, and the commands
that are ``outstanding``: a server that is flooded with them bounds these by not reading on.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Literal

from cafsfs.errors import LocalProtocolError, RemoteProtocolError
from cafsfs.wire.messages import (
    ABORT_OF_CHUNKS,
    CHUNK_PREFIX_LENGTH,
    END_OF_CHUNKS,
    GREETING_LENGTH,
    GREETING_PREFIX,
    HELLO_LENGTH,
    KEY_LENGTH,
    MAX_LENGTH,
    ONES,
    TAG_LENGTH,
    Aborted,
    Absent,
    Accepted,
    Answer,
    Authenticate,
    BadRequest,
    Check,
    ClientProof,
    Command,
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
    PackedLength,
    PeerClosed,
    Pull,
    Push,
    Root,
    ServerProof,
    StaysEncrypted,
    Stream,
    Take,
    Version,
    WrongClock,
    decode_key,
)
from cafsfs.wire.states import FOLLOWS, MAY_CLOSE, START, TABLE, Role, State, fits


class NeedData(enum.Enum):
    """The type of NEED_DATA."""

    NEED_DATA = "NEED_DATA"


NEED_DATA: Final = NeedData.NEED_DATA

_KEYED: dict[bytes, type[Check | Measure | Stream]] = {
    b"CHCK": Check,
    b"SIZE": Measure,
    b"STRM": Stream,
}
_COMMAND_LENGTHS = {  # bytes, tag included
    b"CHCK": TAG_LENGTH + KEY_LENGTH,
    b"SIZE": TAG_LENGTH + KEY_LENGTH,
    b"PULL": TAG_LENGTH + KEY_LENGTH + 12,
    b"PUSH": TAG_LENGTH + KEY_LENGTH + 8,
    b"STRM": TAG_LENGTH + KEY_LENGTH,
}
_SIZE_LENGTH = TAG_LENGTH + 8
_TAKE_LENGTH = TAG_LENGTH + KEY_LENGTH + 12
_VERSION_LENGTH = TAG_LENGTH + 3
_PAGE_LENGTH = 8
_CLOCK_LENGTH = 8


class Connection:
    """The state of one connection, seen from one side."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self._states = dict(START)
        self._outstanding: deque[Command] = deque()
        self._body_left = {Role.CLIENT: 0, Role.SERVER: 0}
        self._chunk_left = 0  # of the STRM chunk that is being received
        self._left = b""  # an incomplete control message; so always empty inside a body
        self._view = memoryview(b"")  # received, not yet looked at
        self._eof = False  # the peer has closed its side, and next_event has not said so yet

    def __repr__(self) -> str:
        return (
            f"<Connection {self.role.value} client={self._states[Role.CLIENT].name}"
            f" server={self._states[Role.SERVER].name} outstanding={self.outstanding}>"
        )

    @property
    def state(self) -> State:
        """What this side may say next."""
        return self._states[self.role]

    @property
    def peer_state(self) -> State:
        """What the other side may say next."""
        return self._states[self.role.peer]

    @property
    def outstanding(self) -> int:
        """Commands whose answer is not yet complete, the body of a Take included."""
        return len(self._outstanding) + (self._states[Role.SERVER] is State.BODY)

    @property
    def at_rest(self) -> bool:
        """True between commands: no answer due, no body under way, nothing unexpected received."""
        ready = {Role.CLIENT: State.COMMAND, Role.SERVER: State.ANSWER}
        return (
            self._states == ready
            and not self._outstanding
            and not self._left
            and not self._view
            and not self._eof
        )

    @property
    def unread(self) -> int:
        """Bytes of what was received last that are not yet looked at."""
        return len(self._view)

    @property
    def body_remaining(self) -> int:
        """Bytes of the peer's announced body that are still to come.

        0 while received bytes still wait in ``next_event``: those come first.
        """
        if self._view or self.peer_state is not State.BODY:
            return 0
        return self._body_left[self.role.peer]

    # --- sending

    def send(self, message: Message | EndOfBody | Aborted) -> bytes:
        """The bytes that say ``message``.

        Raises LocalProtocolError where it may not be said; the connection is then as it was.
        EndOfBody and Aborted end a STRM; the chunks before them are written by ``chunk_prefix``.
        """
        if self.state is State.BODY and isinstance(message, EndOfBody):
            raise LocalProtocolError("an announced body ends by its length")
        if self.role is Role.SERVER and not isinstance(message, BadRequest):
            self._check_upload_received()
        try:
            self._move(self.role, message)
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from None
        return message.encode()

    def sent_body(self, count: int) -> None:
        """Note that ``count`` bytes of our announced body were written."""
        if self.state is not State.BODY:
            raise LocalProtocolError("no announced body is being sent")
        if not 0 <= count <= self.body_to_send:
            raise LocalProtocolError(f"{count} bytes of body, but {self.body_to_send} are to send")
        self._count_body(self.role, count)

    @property
    def body_to_send(self) -> int:
        """Bytes of our announced body that are still to be written."""
        return self._body_left[self.role] if self.state is State.BODY else 0

    # --- receiving

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take what was read; ``b""`` says that the peer has closed its side."""
        if self._view or self._eof:
            raise LocalProtocolError("drain the events before receiving more")
        self._view = memoryview(data)
        self._eof = not self._view

    def received_body(self, count: int) -> bool:
        """Note that ``count`` bytes of the peer's body were read past this object.

        Returns True when the body is complete with them (EndOfBody is then not an event).
        """
        if self._view:
            raise LocalProtocolError("drain the events before reading past them")
        if self.peer_state is not State.BODY:
            raise LocalProtocolError("no announced body is being received")
        if not 0 <= count <= self.body_remaining:
            raise LocalProtocolError(
                f"{count} bytes of body, but {self.body_remaining} are to come"
            )
        return self._count_body(self.role.peer, count)

    def take_body(self) -> memoryview | None:
        """The announced body that begins here, if all of it was received with what announced it.

        In one piece, and done with: no Data and no EndOfBody follow. Else None, and nothing moves.
        """
        peer = self.role.peer
        if self._states[peer] is not State.BODY or len(self._view) < self._body_left[peer]:
            return None
        piece = self._take_view(self._body_left[peer])
        self._count_body(peer, len(piece))
        return piece

    def next_event(self) -> Event | Literal[NeedData.NEED_DATA]:
        """The next thing that the peer said; raises RemoteProtocolError where it must not."""
        try:
            event = self._parse()
            if event is NEED_DATA:
                self._left += bytes(self._view)
                self._view = memoryview(b"")
                if self._eof:
                    return self._closed()
        except RemoteProtocolError:
            self._states[self.role.peer] = State.ERROR
            self._left = b""
            self._view = memoryview(b"")
            self._eof = False
            raise
        return event

    def _closed(self) -> PeerClosed | BadRequest:
        peer, state = self.role.peer, self.peer_state
        if state is State.HELLO and peer is Role.SERVER and self._left == _REFUSED:
            # Else it would be the beginning of a hello, which may be any bytes.
            self._left = b""
            self._move(peer, BadRequest())
            return BadRequest()
        if self._left:
            raise RemoteProtocolError(f"{peer.value} closed in the middle of a message")
        if state not in MAY_CLOSE:
            raise RemoteProtocolError(f"{peer.value} closed in state {state.name}")
        if state is State.ANSWER and self._outstanding:
            raise RemoteProtocolError(f"server closed with {len(self._outstanding)} answers due")
        self._states[peer] = State.CLOSED
        self._eof = False
        return PeerClosed()

    def _parse(self) -> Event | Literal[NeedData.NEED_DATA]:
        state = self.peer_state
        if state is State.BODY:
            return self._parse_body()
        if state is State.CHUNKS:
            return self._parse_chunk()
        if state is State.ERROR:
            raise RemoteProtocolError(f"{self.role.peer.value} has broken the protocol before")
        if not self._left and not self._view:
            return NEED_DATA
        if state in {State.SILENT, State.CLOSED}:
            raise RemoteProtocolError(f"{self.role.peer.value} spoke in state {state.name}")
        message = _PARSERS[state](self)
        if message is None:
            return NEED_DATA
        self._move(self.role.peer, message)
        return message

    def _parse_body(self) -> Event | Literal[NeedData.NEED_DATA]:
        peer = self.role.peer
        if self._body_left[peer] == 0:
            self._move(peer, EndOfBody())
            return EndOfBody()
        piece = self._take_view(self._body_left[peer])
        if not piece:
            return NEED_DATA
        self._body_left[peer] -= len(piece)
        return Data(piece)

    def _parse_chunk(self) -> Event | Literal[NeedData.NEED_DATA]:
        if self._chunk_left == 0:
            prefix = self._take(CHUNK_PREFIX_LENGTH)
            if prefix is None:
                return NEED_DATA
            if prefix == END_OF_CHUNKS:
                self._move(self.role.peer, EndOfBody())
                return EndOfBody()
            if prefix == ABORT_OF_CHUNKS:
                self._move(self.role.peer, Aborted())
                return Aborted()
            self._chunk_left = int.from_bytes(prefix, "little")
        piece = self._take_view(self._chunk_left)
        if not piece:
            return NEED_DATA
        self._chunk_left -= len(piece)
        return Data(piece)

    # --- the two halves

    def _move(self, speaker: Role, message: Event) -> None:
        """Let both halves follow what ``speaker`` says; RemoteProtocolError where it may not."""
        kind, listener = type(message), speaker.peer
        state = self._states[speaker]
        row = TABLE[speaker].get(state, {})
        if kind not in row:
            raise RemoteProtocolError(
                f"{speaker.value} must not say {kind.__name__} in state {state.name}"
            )
        if state is State.ANSWER:
            self._match_answer(message)
        self._states[speaker] = row[kind]
        heard = FOLLOWS[listener].get(self._states[listener], {})
        self._states[listener] = heard.get(kind, self._states[listener])
        if isinstance(message, Command):
            self._outstanding.append(message)
        if isinstance(message, Push | Take):
            self._body_left[speaker] = message.length
            if speaker is self.role:
                self._count_body(speaker, 0)

    def _match_answer(self, answer: Event) -> None:
        if not self._outstanding:
            raise RemoteProtocolError(f"{answer} answers no command")
        command = self._outstanding[0]
        if not fits(answer, command):
            raise RemoteProtocolError(f"{answer} is no answer to {command}")
        self._outstanding.popleft()

    def _check_upload_received(self) -> None:
        """A server answers an upload when it has read it to its end, not before.

        What is being uploaded is the last command; with one outstanding it is also the next to
        be answered. What a client hears is not held to this: an early ERIO is worth hearing, and
        whoever goes on with the upload stays in step.
        """
        uploading = self.peer_state in {State.BODY, State.CHUNKS}
        if uploading and len(self._outstanding) == 1:
            raise LocalProtocolError("the upload is not read to its end")

    def _count_body(self, speaker: Role, count: int) -> bool:
        self._body_left[speaker] -= count
        if self._body_left[speaker] == 0:
            self._move(speaker, EndOfBody())
            return True
        return False

    # --- reading from what was received

    def _take(self, count: int) -> bytes | None:
        """Remove and return ``count`` bytes, or None if they have not come yet."""
        data = self._peek(count)
        if data is not None:
            self._skip(count)
        return data

    def _peek(self, count: int) -> bytes | None:
        if len(self._left) + len(self._view) < count:
            return None
        if not self._left:  # nearly always
            return bytes(self._view[:count])
        return self._left[:count] + bytes(self._view[: max(0, count - len(self._left))])

    def _skip(self, count: int) -> None:
        from_left = min(count, len(self._left))
        self._left = self._left[from_left:]
        self._view = self._view[count - from_left :]

    def _take_view(self, count: int) -> memoryview:
        """Remove up to ``count`` bytes without a copy; empty if nothing is there."""
        piece = self._view[:count]
        self._view = self._view[count:]
        return piece

    # --- one parser a state; each returns None while the message is incomplete

    def _parse_greeting(self) -> Greeting | None:
        data = self._take(GREETING_LENGTH)
        if data is None:
            self._check_prefix(GREETING_PREFIX, "not a CAFS server")
            return None
        version = data[len(GREETING_PREFIX) :]
        if not data.startswith(GREETING_PREFIX) or not _is_number(version):
            raise RemoteProtocolError(f"not a CAFS server: it greets with {data!r}")
        return Greeting(int(version))

    def _check_prefix(self, expected: bytes, complaint: str) -> None:
        """Fail on the first wrong byte rather than wait for more of them."""
        start = self._left + bytes(self._view[: len(expected)])
        if not expected.startswith(start[: len(expected)]):
            raise RemoteProtocolError(f"{complaint}: it begins with {start!r}")

    def _parse_version(self) -> Version | Authenticate | None:
        data = self._peek(_VERSION_LENGTH)
        if data is None:
            self._check_prefix(b"VERS", "not a CAFS client")
            return None
        number = data[TAG_LENGTH:]
        if not data.startswith(b"VERS") or not _is_number(number):
            raise RemoteProtocolError(f"not a version: {data!r}")
        if number == b"002":
            data = self._take(_VERSION_LENGTH + _PAGE_LENGTH)
            return None if data is None else Authenticate(_number(data[_VERSION_LENGTH:]))
        self._skip(_VERSION_LENGTH)
        return Version(int(number))

    def _parse_verdict(self) -> Accepted | BadRequest | None:
        tag = self._take(TAG_LENGTH)
        if tag is None:
            return None
        if tag == b"NONE":
            return Accepted()
        if tag == b"ERBD":
            return BadRequest()
        raise RemoteProtocolError(f"the version is answered with {tag!r}")

    def _parse_hello(self) -> Hello | None:
        data = self._take(HELLO_LENGTH)
        return None if data is None else Hello(data)

    def _parse_proof(self) -> ClientProof | ServerProof | None:
        """Any bytes, from a peer who does not know the secret: whoever hears them looks."""
        if self.role is Role.CLIENT:
            padding = self._take(len(ONES))
            return None if padding is None else ServerProof(padding)
        data = self._take(_CLOCK_LENGTH + len(ONES))
        if data is None:
            return None
        return ClientProof(_number(data[:_CLOCK_LENGTH]), data[_CLOCK_LENGTH:])

    def _parse_admission(self) -> StaysEncrypted | GoesOnPlain | WrongClock | None:
        tag = self._take(TAG_LENGTH)
        if tag is None or tag in _ADMISSIONS:
            return None if tag is None else _ADMISSIONS[tag]
        raise RemoteProtocolError(f"the authentication is answered with {tag!r}")

    def _parse_root(self) -> Root | None:
        length = self._left[0] if self._left else self._view[0]
        data = self._take(1 + length)
        return None if data is None else Root(data[1:])

    def _parse_command(self) -> Command | None:
        tag = self._peek(TAG_LENGTH)
        if tag is None:
            return None
        if tag not in _COMMAND_LENGTHS:
            raise RemoteProtocolError(f"unknown command {tag!r}")
        data = self._take(_COMMAND_LENGTHS[tag])
        if data is None:
            return None
        digest = decode_key(data[TAG_LENGTH : TAG_LENGTH + KEY_LENGTH])
        rest = data[TAG_LENGTH + KEY_LENGTH :]
        if tag == b"PULL":
            return Pull(digest, _number(rest[:8]), _number(rest[8:]))
        if tag == b"PUSH":
            return Push(digest, _length(rest))
        return _KEYED[tag](digest)

    def _parse_answer(self) -> Answer | None:
        if not self._outstanding:  # at the first byte: a fourth might never come
            raise RemoteProtocolError(f"{bytes(self._view[:TAG_LENGTH])!r} answers no command")
        tag = self._peek(TAG_LENGTH)
        if tag is None:
            return None
        if tag in _SHORT_ANSWERS:
            self._skip(TAG_LENGTH)
            return _SHORT_ANSWERS[tag]
        if tag == b"SIZE":
            data = self._take(_SIZE_LENGTH)
            return None if data is None else PackedLength(_length(data[TAG_LENGTH:]))
        if tag == b"TAKE":
            return self._parse_take()
        raise RemoteProtocolError(f"unknown answer {tag!r}")

    def _parse_take(self) -> Take | None:
        data = self._take(_TAKE_LENGTH)
        if data is None:
            return None
        digest = decode_key(data[TAG_LENGTH : TAG_LENGTH + KEY_LENGTH])
        rest = data[TAG_LENGTH + KEY_LENGTH :]
        return Take(digest, _length(rest[:8]), _number(rest[8:]))


_SHORT_ANSWERS: dict[bytes, Have | Absent | FileError | BadRequest] = {
    b"HAVE": Have(),
    b"NONE": Absent(),
    b"ERIO": FileError(),
    b"ERBD": BadRequest(),
}

_ADMISSIONS: dict[bytes, StaysEncrypted | GoesOnPlain | WrongClock] = {
    b"HAVE": StaysEncrypted(),
    b"NONE": GoesOnPlain(),
    b"ERIO": WrongClock(),
}
_REFUSED = BadRequest().encode()

_PARSERS = {
    State.GREETING: Connection._parse_greeting,
    State.VERSION: Connection._parse_version,
    State.VERDICT: Connection._parse_verdict,
    State.ROOT: Connection._parse_root,
    State.HELLO: Connection._parse_hello,
    State.PROOF: Connection._parse_proof,
    State.PROVEN: Connection._parse_admission,
    State.SEALED_ROOT: Connection._parse_root,
    State.ADMISSION: Connection._parse_admission,
    State.COMMAND: Connection._parse_command,
    State.ANSWER: Connection._parse_answer,
}


def _is_number(text: bytes) -> bool:
    return len(text) == 3 and text.isdigit()


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _length(data: bytes) -> int:
    length = _number(data)
    if length > MAX_LENGTH:
        raise RemoteProtocolError(f"a length of {length} bytes, which no file has")
    return length
