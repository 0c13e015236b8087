"""A client and a server engine joined: what one says is what the other hears."""

from __future__ import annotations

import pytest

from cafsfs.wire import (
    MAX_STREAM_CHUNK,
    Aborted,
    Absent,
    Accepted,
    BadRequest,
    Check,
    Command,
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
from cafsfs.wire.messages import MAX_LENGTH
from tests.wire.driving import CLIENT, ONE, SERVER, TWO, Joined, Word, close, drain, feed, say

steps = pytest.mark.parametrize("step", [None, 1, 3], ids=lambda s: f"{s or 'all'} bytes")

BLOB = bytes(range(256)) * 2
_END = EndOfBody()

EXCHANGES: dict[str, tuple[list[Word], list[Word]]] = {
    "check, there": ([Check(ONE)], [Have()]),
    "check, absent": ([Check(ONE)], [Absent()]),
    "check, failed": ([Check(ONE)], [FileError()]),
    "measure": ([Measure(ONE)], [PackedLength(512)]),
    "measure, 0": ([Measure(ONE)], [PackedLength(0)]),
    "measure, longest": ([Measure(ONE)], [PackedLength(MAX_LENGTH)]),
    "measure, absent": ([Measure(ONE)], [Absent()]),
    "pull": ([Pull(ONE)], [Take(ONE, 512, 0), BLOB, _END]),
    "pull, empty": ([Pull(ONE)], [Take(ONE, 0, 0), _END]),
    "pull, range": ([Pull(ONE, 16, 3)], [Take(ONE, 16, 3), BLOB[:16], _END]),
    "pull, from a chunk on": ([Pull(ONE, 0, 3)], [Take(ONE, 32, 3), BLOB[:32], _END]),
    "pull, absent": ([Pull(ONE)], [Absent()]),
    "pull, outside the blob": ([Pull(ONE, (1 << 64) - 1, (1 << 32) - 1)], [FileError()]),
    "push": ([Push(ONE, 512), BLOB, _END], [Have()]),
    "push, empty": ([Push(ONE, 0), _END], [Have()]),
    "push, failed": ([Push(ONE, 512), BLOB, _END], [FileError()]),
    "stream": ([Stream(ONE), BLOB, _END], [Have()]),
    "stream, empty": ([Stream(ONE), _END], [Have()]),
    "stream, failed": ([Stream(ONE), BLOB, _END], [FileError()]),
    "stream, aborted": ([Stream(ONE), BLOB, Aborted()], [FileError()]),
    "stream, aborted at once": ([Stream(ONE), Aborted()], [FileError()]),
}


@pytest.mark.parametrize("name", EXCHANGES)
@steps
def test_one_exchange(name: str, step: int | None) -> None:
    both = Joined(step)
    asked, answered = EXCHANGES[name]
    assert both.to_server(*asked, chunk=100) == asked
    assert both.client.outstanding == both.server.outstanding == 1
    assert not both.client.at_rest
    assert not both.server.at_rest
    assert both.to_client(*answered) == answered
    both.assert_in_step()
    assert both.client.at_rest


@steps
def test_one_after_the_other_on_one_connection(step: int | None) -> None:
    both = Joined(step)
    for asked, answered in EXCHANGES.values():
        assert both.to_server(*asked, chunk=100) == asked
        assert both.to_client(*answered) == answered
    both.assert_in_step()
    assert both.client.at_rest


@steps
def test_all_pipelined(step: int | None) -> None:
    both = Joined(step)
    asked = [word for words, _ in EXCHANGES.values() for word in words]
    answered = [word for _, words in EXCHANGES.values() for word in words]
    assert both.to_server(*asked, chunk=100) == asked
    assert both.client.outstanding == both.server.outstanding == len(EXCHANGES)
    assert both.to_client(*answered) == answered
    both.assert_in_step()
    assert both.client.at_rest


@pytest.mark.parametrize("upload", [Push(TWO, 4), Stream(TWO)])
def test_the_end_of_a_pulled_body_does_not_end_an_upload_beside_it(upload: Command) -> None:
    both = Joined()
    both.to_server(Pull(ONE), upload, b"up")
    uploading = both.client.state
    assert uploading in {State.BODY, State.CHUNKS}
    assert both.to_client(Take(ONE, 4, 0), b"down", _END) == [Take(ONE, 4, 0), b"down", _END]
    assert both.client.state is both.server.peer_state is uploading
    assert both.to_server(b"up", _END) == [b"up", _END]
    assert both.to_client(Have()) == [Have()]
    both.assert_in_step()
    assert both.client.at_rest


@pytest.mark.parametrize(
    ("upload", "end"), [(Push(TWO, 4), _END), (Stream(TWO), _END), (Stream(TWO), Aborted())]
)
def test_the_end_of_an_upload_does_not_end_a_pulled_body_beside_it(
    upload: Command, end: EndOfBody | Aborted
) -> None:
    both = Joined()
    both.to_server(Pull(ONE), upload, b"up")
    both.to_client(Take(ONE, 4, 0), b"do")
    assert both.to_server(b"up", end) == [b"up", end]
    assert (both.server.state, both.client.peer_state) == (State.BODY, State.BODY)
    assert both.server.body_to_send == both.client.body_remaining == 2
    assert both.to_client(b"wn", _END) == [b"wn", _END]
    assert both.to_client(FileError()) == [FileError()]
    both.assert_in_step()
    assert both.client.at_rest


def test_an_answer_counts_as_outstanding_until_its_body_is_complete() -> None:
    both = Joined()
    both.to_server(Pull(ONE), Check(TWO))
    both.to_client(Take(ONE, 4, 0), b"dow")
    assert both.client.outstanding == both.server.outstanding == 2
    both.to_client(b"n", _END)
    assert both.client.outstanding == both.server.outstanding == 1
    both.to_client(Have())
    assert both.client.outstanding == both.server.outstanding == 0


@steps
def test_handshake(step: int | None) -> None:
    client, server = Connection(CLIENT), Connection(SERVER)
    assert feed(client, say(server, Greeting(2)), step) == [Greeting(2)]
    assert feed(server, say(client, Version(1)), step) == [Version(1)]
    assert feed(client, say(server, Accepted()), step) == [Accepted()]
    assert (client.at_rest, server.at_rest) == (False, False)
    assert feed(server, say(client, Root(b"/data")), step) == [Root(b"/data")]
    assert client.at_rest
    assert server.at_rest


@pytest.mark.parametrize("root", [b"", b"/", b"/data", b"\xff" * 255], ids=lambda r: f"{len(r)}")
@steps
def test_root_and_commands_may_go_before_the_verdict(root: bytes, step: int | None) -> None:
    client, server = Connection(CLIENT), Connection(SERVER)
    feed(client, say(server, Greeting(1)))
    words: list[Word] = [Version(1), Root(root), Check(ONE), Stream(TWO), b"x", _END]
    assert feed(server, say(client, *words), step) == words
    answers: list[Word] = [Accepted(), Absent(), Have()]
    assert feed(client, say(server, *answers), step) == answers
    assert client.at_rest
    assert server.at_rest


@pytest.mark.parametrize(
    "words",
    [
        [],
        [Root(b"/r")],
        [Root(b"/r"), Check(ONE)],
        [Root(b"/r"), Push(ONE, 4), b"half"[:2]],
        [Root(b"/r"), Stream(ONE), b"half"],
    ],
    ids=lambda words: f"{len(words)} words",
)
def test_a_refused_version_ends_both_halves(words: list[Word]) -> None:
    client, server = Connection(CLIENT), Connection(SERVER)
    feed(client, say(server, Greeting(1)))
    feed(server, say(client, Version(1), *words))
    assert feed(client, say(server, BadRequest())) == [BadRequest()]
    for conn in (client, server):
        assert conn.state is conn.peer_state is State.CLOSED
        assert conn.body_to_send == conn.body_remaining == 0
        assert close(conn) == [PeerClosed()]


@pytest.mark.parametrize(
    "command", [Check(ONE), Measure(ONE), Pull(ONE), Push(ONE, 4), Stream(ONE)]
)
def test_a_refused_command_ends_both_halves(command: Command) -> None:
    both = Joined()
    both.to_server(Check(TWO), command)
    assert both.to_client(Have(), BadRequest()) == [Have(), BadRequest()]
    for conn in (both.client, both.server):
        assert conn.state is conn.peer_state is State.CLOSED
        assert not conn.at_rest
        assert close(conn) == [PeerClosed()]


def test_a_failure_may_come_before_the_upload_is_complete() -> None:
    # Our server never says it early (test_state_table); others may, and it is worth hearing.
    both = Joined()
    both.to_server(Push(ONE, 4), b"he")
    assert feed(both.client, b"ERIO") == [FileError()]
    assert not both.client.at_rest
    assert both.client.body_to_send == 2
    assert both.to_server(b"lf", _END) == [b"lf", _END]
    assert both.client.at_rest


def test_chunks_of_any_length() -> None:
    for chunk in (1, 2, 255, 256, MAX_STREAM_CHUNK):
        both = Joined()
        body = bytes(MAX_STREAM_CHUNK + 1) if chunk == MAX_STREAM_CHUNK else BLOB
        assert both.to_server(Stream(ONE), body, _END, chunk=chunk) == [Stream(ONE), body, _END]


def test_repr_tells_the_states() -> None:
    both = Joined()
    both.to_server(Pull(ONE), Stream(TWO))
    both.to_client(Take(ONE, 4, 0))
    assert repr(both.client) == "<Connection client client=CHUNKS server=BODY outstanding=2>"
    assert repr(both.server) == "<Connection server client=CHUNKS server=BODY outstanding=2>"


@pytest.mark.parametrize("role", Role)
def test_a_new_connection_is_not_at_rest(role: Role) -> None:
    conn = Connection(role)
    assert not conn.at_rest
    assert drain(conn) == []


def test_received_bytes_that_nobody_looked_at_are_no_rest() -> None:
    both = Joined()
    for data in (b"?", b""):
        conn = Joined().client
        conn.receive_data(data)
        assert not conn.at_rest
    feed(both.server, b"CH")
    assert not both.server.at_rest
