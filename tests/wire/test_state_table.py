"""What may not be said is refused: by ``send`` as our bug, on receiving as the peer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cafsfs.errors import LocalProtocolError, RemoteProtocolError
from cafsfs.wire import (
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
    Role,
    Root,
    ServerProof,
    State,
    StaysEncrypted,
    Stream,
    Take,
    Version,
    WrongClock,
)
from cafsfs.wire.states import ANSWERS, FOLLOWS, START, TABLE, fits
from tests.wire.driving import (
    CLIENT,
    GREETING,
    ONE,
    SERVER,
    TWO,
    Heard,
    Joined,
    close,
    drain,
    feed,
    kept,
    say,
    shaken,
)

# One message of each kind; TAKE and PULL fit each other.
MESSAGES: dict[type, Message | EndOfBody | Aborted] = {
    type(message): message
    for message in (
        Greeting(1),
        Accepted(),
        BadRequest(),
        Hello(bytes(41)),
        ServerProof(),
        WrongClock(),
        StaysEncrypted(),
        GoesOnPlain(),
        FileError(),
        Have(),
        Absent(),
        PackedLength(5),
        Take(ONE, 5, 0),
        Version(1),
        Authenticate(7),
        ClientProof(8),
        Root(b"/r"),
        Check(ONE),
        Measure(ONE),
        Pull(ONE),
        Push(ONE, 5),
        Stream(ONE),
        EndOfBody(),
        Aborted(),
    )
}
COMMANDS: list[Command] = [Check(ONE), Measure(ONE), Pull(ONE), Push(ONE, 0), Stream(ONE)]


# --- how a half gets into a state, seen from the side ``role``


def _hello(role: Role, stop: State) -> Connection:
    """A connection at the beginning: ``stop`` is where one half of it is to be."""
    conn = Connection(role)
    steps: list[tuple[Role, Message]] = [
        (SERVER, Greeting(1)),
        (CLIENT, Version(1)),
        (SERVER, Accepted()),
    ]
    for speaker, message in steps[: {"VERSION": 1, "ROOT": 2, "VERDICT": 2}[stop.name]]:
        _pass(conn, speaker, message)
    return conn


def _pass(conn: Connection, speaker: Role, *messages: Message) -> None:
    for message in messages:
        if conn.role is speaker:
            conn.send(message)
        else:
            assert feed(conn, message.encode())[0] == message


# Version 002 step by step; before each, the states of client and server.
AUTHENTICATION: list[tuple[State, State, Role, Message]] = [
    (State.VERSION, State.SILENT, CLIENT, Authenticate(7)),
    (State.HELLO, State.SILENT, CLIENT, Hello(b"c" * 41)),
    (State.SILENT, State.HELLO, SERVER, Hello(b"s" * 41)),
    (State.PROOF, State.SILENT, CLIENT, ClientProof(8)),
    (State.SILENT, State.PROOF, SERVER, ServerProof()),
    (State.SEALED_ROOT, State.PROVEN, CLIENT, Root(b"/r")),
    (State.SILENT, State.ADMISSION, SERVER, StaysEncrypted()),
]


def _authenticating(role: Role, half: Role, state: State) -> Connection:
    """A connection of version 002, on the way to where ``half`` is in ``state``."""
    conn = Connection(role)
    _pass(conn, SERVER, Greeting(2))
    for client, server, speaker, message in AUTHENTICATION:
        assert conn.peer_state is (server if role is CLIENT else client)
        if state is (client if half is CLIENT else server) and state is not State.SILENT:
            return conn
        _pass(conn, speaker, message)
    raise AssertionError(f"{half} is never in {state}")


def _after(role: Role, *commands: Command) -> Connection:
    conn = shaken(role)
    _pass(conn, CLIENT, *commands)
    return conn


def _taking(role: Role) -> Connection:
    conn = _after(role, Pull(ONE))
    _pass(conn, SERVER, Take(ONE, 5, 0))
    return conn


def _refused(role: Role) -> Connection:
    conn = _after(role, Check(ONE))
    _pass(conn, SERVER, BadRequest())
    return conn


REACH: dict[tuple[Role, State], Callable[[Role], Connection]] = {
    (CLIENT, State.SILENT): Connection,
    (CLIENT, State.VERSION): lambda role: _hello(role, State.VERSION),
    (CLIENT, State.ROOT): lambda role: _hello(role, State.ROOT),
    (CLIENT, State.HELLO): lambda role: _authenticating(role, CLIENT, State.HELLO),
    (CLIENT, State.PROOF): lambda role: _authenticating(role, CLIENT, State.PROOF),
    (CLIENT, State.SEALED_ROOT): lambda role: _authenticating(role, CLIENT, State.SEALED_ROOT),
    (CLIENT, State.COMMAND): shaken,
    (CLIENT, State.BODY): lambda role: _after(role, Push(ONE, 5)),
    (CLIENT, State.CHUNKS): lambda role: _after(role, Stream(ONE)),
    (CLIENT, State.CLOSED): _refused,
    (SERVER, State.GREETING): Connection,
    (SERVER, State.SILENT): lambda role: _hello(role, State.VERSION),
    (SERVER, State.VERDICT): lambda role: _hello(role, State.VERDICT),
    (SERVER, State.HELLO): lambda role: _authenticating(role, SERVER, State.HELLO),
    (SERVER, State.PROOF): lambda role: _authenticating(role, SERVER, State.PROOF),
    (SERVER, State.PROVEN): lambda role: _authenticating(role, SERVER, State.PROVEN),
    (SERVER, State.ADMISSION): lambda role: _authenticating(role, SERVER, State.ADMISSION),
    (SERVER, State.ANSWER): shaken,
    (SERVER, State.BODY): _taking,
    (SERVER, State.CLOSED): _refused,
}


def test_the_table_is_complete() -> None:
    for half in Role:
        entries = [TABLE[half], FOLLOWS[half]]
        named = {START[half]} | {state for table in entries for state in table}
        named |= {to for table in entries for row in table.values() for to in row.values()}
        assert named == {state for role, state in REACH if role is half}
    assert ANSWERS.keys() == {type(command) for command in COMMANDS}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("half", "state"), REACH)
def test_every_state_is_reached(role: Role, half: Role, state: State) -> None:
    conn = REACH[half, state](role)
    assert (conn.state if half is role else conn.peer_state) is state


def _named(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    return value.name if isinstance(value, State | Role) else type(value).__name__


@pytest.mark.parametrize(
    ("half", "state", "kind"),
    [(*at, kind) for at in REACH for kind in MESSAGES if kind not in TABLE[at[0]].get(at[1], {})],
    ids=_named,
)
def test_sending_what_the_table_does_not_have(half: Role, state: State, kind: type) -> None:
    conn = REACH[half, state](half)
    before = repr(conn)
    with pytest.raises(LocalProtocolError) as caught:
        conn.send(MESSAGES[kind])
    assert str(caught.value) == f"{half.value} must not say {kind.__name__} in state {state.name}"
    assert repr(conn) == before


def _distinct(half: Role, state: State, kind: type) -> bool:
    """Whether no message allowed in ``state`` looks like one of ``kind``."""
    anything = {State.ROOT, State.SEALED_ROOT, State.BODY, State.CHUNKS, State.HELLO, State.PROOF}
    if state in anything:
        return False  # any bytes may come
    allowed = {MESSAGES[other].encode() for other in TABLE[half].get(state, {})}
    return MESSAGES[kind].encode() not in allowed


@pytest.mark.parametrize(
    ("half", "state", "kind"),
    [(*at, kind) for at in REACH for kind in MESSAGES if _distinct(*at, kind)],
    ids=_named,
)
def test_hearing_what_the_table_does_not_have(half: Role, state: State, kind: type) -> None:
    conn = REACH[half, state](half.peer)
    heard: list[Heard] = []
    with pytest.raises(RemoteProtocolError):  # what is only the beginning of a message goes on
        feed(conn, MESSAGES[kind].encode() + b"\xff" * 64, heard=heard)
    assert MESSAGES[kind] not in heard
    assert conn.peer_state is State.ERROR


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("event", [Data(memoryview(b"x")), PeerClosed()])
def test_what_is_no_message_is_not_sent(role: Role, event: Data | PeerClosed) -> None:
    states = [state for half, state in REACH if half is role]
    for conn in (REACH[role, state](role) for state in states):
        with pytest.raises(LocalProtocolError, match="must not say"):
            conn.send(event)  # type: ignore[arg-type]  # a type checker refuses it too


# --- answers

mismatches = pytest.mark.parametrize(
    ("command", "kind"),
    [
        (command, kind)
        for command in COMMANDS
        for kind in TABLE[SERVER][State.ANSWER]
        if kind not in ANSWERS[type(command)]
    ],
    ids=_named,
)


def _uploaded(role: Role, command: Command) -> Connection:
    conn = _after(role, command)
    if isinstance(command, Stream) and role is CLIENT:
        say(conn, EndOfBody())
    elif isinstance(command, Stream):
        feed(conn, bytes(2))
    return conn


@mismatches
def test_sending_an_answer_that_does_not_fit(command: Command, kind: type) -> None:
    conn = _uploaded(SERVER, command)
    before = repr(conn)
    with pytest.raises(LocalProtocolError) as caught:
        conn.send(MESSAGES[kind])
    assert str(caught.value) == f"{MESSAGES[kind]} is no answer to {command}"
    assert repr(conn) == before


@mismatches
def test_hearing_an_answer_that_does_not_fit(command: Command, kind: type) -> None:
    conn = _uploaded(CLIENT, command)
    with pytest.raises(RemoteProtocolError, match=f"{kind.__name__}.* is no answer to"):
        feed(conn, MESSAGES[kind].encode())


@pytest.mark.parametrize("kind", TABLE[SERVER][State.ANSWER], ids=_named)
def test_an_answer_without_a_command(kind: type) -> None:
    with pytest.raises(LocalProtocolError, match="answers no command"):
        shaken(SERVER).send(MESSAGES[kind])
    with pytest.raises(RemoteProtocolError, match="answers no command"):
        feed(shaken(CLIENT), MESSAGES[kind].encode())


def test_an_answer_without_a_command_is_refused_at_its_first_byte() -> None:
    with pytest.raises(RemoteProtocolError, match="b'H' answers no command"):
        feed(shaken(CLIENT), b"H")


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (Pull(ONE), Take(TWO, 5, 0)),
        (Pull(ONE), Take(ONE, 5, 1)),
        (Pull(ONE, 0, 2), Take(ONE, 5, 0)),
        (Pull(ONE, 16), Take(ONE, 17, 0)),
        (Pull(ONE, 16), Take(ONE, 15, 0)),
        (Pull(ONE, 16), Take(ONE, 0, 0)),
        (Pull(ONE, 16, 1), Take(ONE, 16, 0)),
    ],
)
def test_take_of_something_else(asked: Pull, taken: Take) -> None:
    assert not fits(taken, asked)
    with pytest.raises(LocalProtocolError, match="is no answer to"):
        _after(SERVER, asked).send(taken)
    with pytest.raises(RemoteProtocolError, match="is no answer to"):
        feed(_after(CLIENT, asked), taken.encode())


def test_answers_come_in_the_order_of_the_commands() -> None:
    both = Joined()
    both.to_server(Check(ONE), Measure(ONE), Pull(ONE), Pull(TWO))
    for wrong in (PackedLength(5), Take(ONE, 5, 0)):
        with pytest.raises(LocalProtocolError, match="no answer to Check"):
            both.server.send(wrong)
    both.to_client(Have())
    with pytest.raises(LocalProtocolError, match="no answer to Measure"):
        both.server.send(Have())
    both.to_client(PackedLength(5))
    with pytest.raises(LocalProtocolError, match="no answer to Pull"):
        both.server.send(Take(TWO, 5, 0))
    both.to_client(Take(ONE, 5, 0), b"12345", EndOfBody())
    with pytest.raises(RemoteProtocolError, match="no answer to Pull"):
        feed(both.client, Take(ONE, 5, 0).encode())


@pytest.mark.parametrize("answer", [Have(), FileError(), Absent()])
@pytest.mark.parametrize("body", [b"", b"1234", b"12345"], ids=len)
@pytest.mark.parametrize("upload", [Push(ONE, 5), Stream(ONE)])
def test_our_server_answers_an_upload_when_it_is_read(
    upload: Push | Stream, body: bytes, answer: Message
) -> None:
    conn = _after(SERVER, Check(TWO), upload)
    conn.send(Have())  # what was asked before it may be answered
    data = body if isinstance(upload, Push) else b"\x05\0" + body
    for piece in (data[:-1], data[-1:]):
        if piece:
            conn.receive_data(piece)
        with pytest.raises(LocalProtocolError, match="not read to its end"):
            conn.send(answer)
        while isinstance(conn.next_event(), Data):
            if conn.peer_state is State.BODY:
                with pytest.raises(LocalProtocolError, match="not read to its end"):
                    conn.send(answer)


# --- after an error


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("role", Role)
def test_after_an_error_nothing_more_is_heard(role: Role, step: int | None) -> None:
    conn = _after(role, Check(ONE))
    right = b"HAVE" if role is CLIENT else Check(ONE).encode()
    with pytest.raises(RemoteProtocolError, match=r"unknown (answer|command) b'XXXX'"):
        feed(conn, b"XXXX" + right, step)
    assert conn.peer_state is State.ERROR
    assert kept(conn) == 0
    assert not conn.at_rest
    with pytest.raises(RemoteProtocolError, match=f"{role.peer.value} has broken the protocol"):
        conn.next_event()
    for data in (right, b"", right):
        with pytest.raises(RemoteProtocolError, match="before"):
            feed(conn, data) if data else close(conn)
    assert conn.body_remaining == 0
    with pytest.raises(LocalProtocolError):
        conn.received_body(0)


def test_a_server_may_still_answer_what_came_before_the_error() -> None:
    conn = _after(SERVER, Check(ONE))
    with pytest.raises(RemoteProtocolError):
        feed(conn, b"XXXX")
    assert conn.send(Have()) == b"HAVE"


def test_an_error_lets_go_of_the_buffer() -> None:
    conn = shaken(CLIENT)
    buffer = bytearray(b"X" * 100)
    conn.receive_data(buffer)
    with pytest.raises(RemoteProtocolError):
        drain(conn)
    buffer.clear()  # BufferError while there is a view of it


def test_receiving_before_the_events_are_drained() -> None:
    for first in (b"CHCK", b""):
        conn = shaken(SERVER)
        conn.receive_data(first)
        with pytest.raises(LocalProtocolError, match="drain the events"):
            conn.receive_data(b"more")


# --- the handshake


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"X",
        b"BLOBPULL_SERVER_V001",
        b"BLOBPUSH_SERVER_V0x1",
        b"BLOBPUSH_SERVER_V-01",
        b"BLOBPUSH_SERVER_V 01",
    ],
)
def test_a_server_of_something_else(greeting: bytes, step: int | None) -> None:
    with pytest.raises(RemoteProtocolError, match=r"not a CAFS server: it (begins|greets) with b"):
        feed(Connection(CLIENT), greeting, step)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16", b"VERS0x1", b"VERS-01", b"VERX"])
def test_a_client_of_something_else(start: bytes, step: int | None) -> None:
    conn = Connection(SERVER)
    conn.send(Greeting(1))
    with pytest.raises(RemoteProtocolError, match=r"not a (CAFS client: it|version:)"):
        feed(conn, start, step)


def test_a_verdict_that_is_none() -> None:
    conn = _hello(CLIENT, State.ROOT)
    with pytest.raises(RemoteProtocolError, match="the version is answered with b'HAVE'"):
        feed(conn, b"HAVE")


def test_who_speaks_before_the_greeting() -> None:
    with pytest.raises(RemoteProtocolError, match="client spoke in state SILENT"):
        feed(Connection(SERVER), b"VERS001")
    conn = Connection(CLIENT)
    with pytest.raises(RemoteProtocolError, match="server spoke in state SILENT"):
        feed(conn, GREETING + b"NONE")


# --- fields out of bounds

TOO_LONG = (1 << 63).to_bytes(8, "little")
KEY = b"blake3" + ONE.raw


def test_another_type_of_hash() -> None:
    with pytest.raises(RemoteProtocolError, match="hash type b'sha256' is not b'blake3'"):
        feed(shaken(SERVER), b"CHCKsha256" + ONE.raw)
    with pytest.raises(RemoteProtocolError, match="hash type b'sha256' is not b'blake3'"):
        feed(_after(CLIENT, Pull(ONE)), b"TAKEsha256" + ONE.raw + bytes(12))


def test_lengths_that_no_file_has() -> None:
    with pytest.raises(RemoteProtocolError, match="a length of 9223372036854775808 bytes"):
        feed(shaken(SERVER), b"PUSH" + KEY + TOO_LONG)
    with pytest.raises(RemoteProtocolError, match="a length of 9223372036854775808 bytes"):
        feed(_after(CLIENT, Measure(ONE)), b"SIZE" + TOO_LONG)
    with pytest.raises(RemoteProtocolError, match="a length of 9223372036854775808 bytes"):
        feed(_after(CLIENT, Pull(ONE)), b"TAKE" + KEY + TOO_LONG + bytes(4))
    # but one may be asked for, and the answer is ERIO, as from a deployed server
    assert feed(shaken(SERVER), b"PULL" + KEY + TOO_LONG + bytes(4)) == [Pull(ONE, 1 << 63)]
