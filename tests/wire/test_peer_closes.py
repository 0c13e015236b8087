"""The end of the connection at every byte: allowed before and between commands, else an error."""

from __future__ import annotations

import pytest

from cafsfs.errors import RemoteProtocolError
from cafsfs.wire import (
    NEED_DATA,
    Aborted,
    Absent,
    Accepted,
    BadRequest,
    Check,
    Connection,
    EndOfBody,
    FileError,
    Greeting,
    Have,
    Measure,
    PackedLength,
    PeerClosed,
    Pull,
    Push,
    Role,
    Root,
    State,
    Stream,
    Take,
    Version,
)
from tests.wire.driving import (
    CLIENT,
    GREETING,
    ONE,
    SERVER,
    TWO,
    Word,
    close,
    drain,
    feed,
    say,
    shaken,
)

# Each conversation is in parts: between two of them the one who says it may close.
COMMANDS: list[list[Word]] = [
    [Version(1), Root(b"/r")],
    [Check(ONE)],
    [Measure(ONE)],
    [Push(ONE, 5), b"12345", EndOfBody()],
    [Push(ONE, 0), EndOfBody()],
    [Stream(ONE), b"123456", EndOfBody()],
    [Stream(ONE), EndOfBody()],
    [Stream(ONE), b"123456", Aborted()],
    [Pull(TWO)],
]
ANSWERS: list[list[Word]] = [
    [Have()],
    [PackedLength(7)],
    [Have()],
    [FileError()],
    [Have()],
    [Have()],
    [FileError()],
    [Take(TWO, 5, 0), b"12345", EndOfBody()],
]


def ends(conn: Connection) -> bool:
    """Close: True if the peer might, False if it was an error; nothing else is to come of it."""
    message = ""
    try:
        assert close(conn) == [PeerClosed()]
    except RemoteProtocolError as error:
        message = str(error)
    if not message:
        assert conn.peer_state is State.CLOSED
        return True
    assert message.startswith(f"{conn.role.peer.value} closed")
    assert conn.peer_state is State.ERROR
    return False


def test_a_client_may_close_between_commands_whether_or_not_they_are_answered() -> None:
    client = Connection(CLIENT)
    feed(client, GREETING)
    parts = [say(client, *words, chunk=4) for words in COMMANDS]
    whole = b"".join(parts)
    allowed = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
    for length in range(len(whole) + 1):
        conn = Connection(SERVER)
        conn.send(Greeting(1))
        feed(conn, whole[:length])
        assert ends(conn) is (length in allowed), length


def test_a_server_may_close_when_nothing_is_asked() -> None:
    server = Connection(SERVER)
    server.send(Greeting(1))
    client = Connection(CLIENT)
    feed(client, GREETING)
    asked = [say(client, *words) for words in COMMANDS]
    feed(server, b"".join(asked))
    whole = say(server, Accepted(), *(word for words in ANSWERS for word in words))
    for length in range(len(whole) + 1):
        conn = Connection(CLIENT)
        feed(conn, GREETING)
        for words in COMMANDS:
            say(conn, *words)
        feed(conn, whole[:length])
        assert ends(conn) is (length == len(whole)), length


def test_a_server_may_close_between_an_answer_and_the_next_command() -> None:
    conn = shaken(CLIENT)
    for words, answer in zip(COMMANDS[1:], ANSWERS, strict=True):
        say(conn, *words)
        feed(conn, say_as_server(words, answer))
        assert conn.at_rest
    assert ends(conn)


def say_as_server(asked: list[Word], answer: list[Word]) -> bytes:
    server, client = shaken(SERVER), shaken(CLIENT)
    feed(server, say(client, *asked))
    return say(server, *answer)


@pytest.mark.parametrize("length", [0, 1, 19, 20])
def test_a_server_that_closes_before_it_was_spoken_to(length: int) -> None:
    conn = Connection(CLIENT)
    feed(conn, GREETING[:length])
    assert not ends(conn)


def test_a_server_that_closes_instead_of_a_verdict() -> None:
    conn = Connection(CLIENT)
    feed(conn, GREETING)
    conn.send(Version(1))
    assert not ends(conn)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([Check(ONE)], "server closed with 1 answers due"),
        ([Check(ONE), Pull(ONE)], "server closed with 2 answers due"),
    ],
)
def test_a_server_that_owes_answers(commands: list[Word], message: str) -> None:
    conn = shaken(CLIENT)
    say(conn, *commands)
    with pytest.raises(RemoteProtocolError, match=message):
        close(conn)


@pytest.mark.parametrize("role", Role)
def test_in_the_middle_of_a_message(role: Role) -> None:
    conn = shaken(role)
    if role is CLIENT:
        conn.send(Check(ONE))
    feed(conn, b"HA" if role is CLIENT else b"CH")
    with pytest.raises(RemoteProtocolError, match=f"{role.peer.value} closed in the middle of a"):
        close(conn)


def test_a_server_may_still_answer_who_has_closed_its_side() -> None:
    conn = shaken(SERVER)
    feed(conn, Check(ONE).encode() + Pull(TWO).encode())
    assert ends(conn)
    assert conn.outstanding == 2
    assert conn.send(Absent()) == b"NONE"
    assert say(conn, Take(TWO, 2, 0), b"xx", EndOfBody()).endswith(b"xx")
    assert conn.outstanding == 0
    assert not conn.at_rest


@pytest.mark.parametrize("role", Role)
def test_it_is_told_once(role: Role) -> None:
    conn = shaken(role)
    conn.receive_data(b"")
    assert not conn.at_rest
    assert conn.next_event() == PeerClosed()
    assert conn.next_event() is NEED_DATA
    assert not conn.at_rest
    with pytest.raises(RemoteProtocolError, match=f"{role.peer.value} spoke in state CLOSED"):
        feed(conn, b"HAVE")


def test_after_erbd_the_server_closes() -> None:
    conn = Connection(CLIENT)
    feed(conn, GREETING)
    conn.send(Version(3))
    conn.receive_data(b"ERBD")
    assert drain(conn) == [BadRequest()]
    assert ends(conn)


def test_after_erbd_the_server_says_nothing_more() -> None:
    conn = Connection(CLIENT)
    feed(conn, GREETING)
    conn.send(Version(3))
    with pytest.raises(RemoteProtocolError, match="server spoke in state CLOSED"):
        feed(conn, b"ERBDHAVE")
