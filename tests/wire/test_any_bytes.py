"""Whatever comes, in whatever slices: events or RemoteProtocolError, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cafsfs.digest import Digest
from cafsfs.errors import RemoteProtocolError
from cafsfs.wire import (
    Aborted,
    Absent,
    Authenticate,
    Check,
    Command,
    Connection,
    EndOfBody,
    FileError,
    Greeting,
    Have,
    Hello,
    Measure,
    PackedLength,
    Pull,
    Push,
    Role,
    Root,
    State,
    Stream,
    Take,
    Version,
    chunk_prefix,
)
from tests.wire.driving import (
    CLIENT,
    GREETING,
    ONE,
    SERVER,
    TWO,
    Heard,
    Word,
    close,
    drain,
    feed,
    kept,
    say,
    shaken,
)

KEEPS_AT_MOST = 300  # bytes; a root is the longest message, 256
KEY = b"blake3" + ONE.raw

slices = st.lists(st.integers(1, 60), min_size=1, max_size=30)
lengths = st.one_of(st.integers(0, 40), st.sampled_from([1 << 62, 1 << 63, (1 << 64) - 1]))
fragments = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            GREETING,
            GREETING[:-1],
            b"VERS001",
            b"VERS002",
            b"VERS002" + bytes(8),
            b"\x02/r",
            b"\xff",
            b"blake3",
        ]
    ),
    st.sampled_from([b"VERS002" + bytes(8), bytes(41), b"\xff" * 8]),
    st.sampled_from([b"NONE", b"HAVE", b"ERIO", b"ERBD", b"SIZE", b"TAKE", b"\0\0", b"\xff\xff"]),
    st.sampled_from([b"CHCK" + KEY, b"SIZE" + KEY, b"STRM" + KEY, b"SIZE" + bytes(8)]),
    st.builds(lambda n: b"PUSH" + KEY + n.to_bytes(8, "little"), lengths),
    st.builds(lambda n: b"PULL" + KEY + n.to_bytes(8, "little") + bytes(4), lengths),
    st.builds(lambda n: b"TAKE" + KEY + n.to_bytes(8, "little") + bytes(4), lengths),
    st.builds(lambda n: n.to_bytes(2, "little"), st.integers(0, 65535)),
)
inputs = st.lists(fragments, max_size=20).map(b"".join)


def cut(data: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """``data`` in slices of ``lengths``, over and over."""
    position, i = 0, 0
    while position < len(data):
        length = lengths[i % len(lengths)]
        yield data[position : position + length]
        position, i = position + length, i + 1


def busy(role: Role) -> Connection:
    """After the handshake, with one command of each kind outstanding."""
    conn = shaken(role)
    words: list[Word] = [Pull(ONE), Check(ONE), Measure(ONE), Pull(ONE, 5), Push(ONE, 2), b"up"]
    words += [EndOfBody(), Stream(ONE), b"up", EndOfBody(), Pull(ONE)]
    if role is CLIENT:
        say(conn, *words)
    else:
        feed(conn, say(shaken(CLIENT), *words))
    return conn


def greeted(role: Role) -> Connection:
    """In the middle of the handshake."""
    conn = Connection(role)
    if role is CLIENT:
        feed(conn, GREETING)
        conn.send(Version(1))
    else:
        conn.send(Greeting(1))
    return conn


def authenticating(role: Role) -> Connection:
    """In the middle of the handshake of version 002."""
    conn = Connection(role)
    if role is CLIENT:
        feed(conn, Greeting(2).encode())
        say(conn, Authenticate(7), Hello(bytes(41)))
    else:
        conn.send(Greeting(2))
        feed(conn, Authenticate(7).encode() + bytes(41))
        conn.send(Hello(bytes(41)))
    return conn


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(Role),
    st.sampled_from([Connection, greeted, authenticating, shaken, busy]),
    inputs,
    slices,
)
def test_any_bytes(
    role: Role, begin: Callable[[Role], Connection], data: bytes, lengths: list[int]
) -> None:
    conn = begin(role)
    message = ""
    try:
        for piece in cut(data, lengths):
            conn.receive_data(piece)
            drain(conn)
            assert kept(conn) <= KEEPS_AT_MOST
        close(conn)
    except RemoteProtocolError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 300
    assert kept(conn) <= KEEPS_AT_MOST
    assert conn.peer_state in {State.CLOSED, State.ERROR}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(Role),
    st.sampled_from([Connection, greeted, authenticating, shaken, busy]),
    inputs,
    slices,
)
def test_slicing_changes_nothing(
    role: Role, begin: Callable[[Role], Connection], data: bytes, lengths: list[int]
) -> None:
    outcomes = []
    for pieces in ([data] if data else [], cut(data, lengths)):
        conn = begin(role)
        heard: list[Heard] = []
        failed = False
        try:
            for piece in pieces:
                conn.receive_data(piece)
                drain(conn, heard)
        except RemoteProtocolError:
            failed = True
        outcomes.append((heard, failed, repr(conn), conn.at_rest))
    assert outcomes[0] == outcomes[1]


# --- any valid conversation

digests = st.one_of(st.sampled_from([ONE, TWO]), st.binary(min_size=32, max_size=32).map(Digest))
bodies = st.binary(max_size=200)
asked = st.one_of(
    st.builds(Check, digests),
    st.builds(Measure, digests),
    st.builds(Pull, digests, st.integers(0, 50), st.integers(0, (1 << 32) - 1)),
    st.builds(Push, digests, st.integers(0, 200)),
    st.builds(Stream, digests),
)

Exchange = tuple[list[Word], list[Word]]


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    """A command with its body, and an answer that fits it, with its body."""
    command = draw(asked)
    words: list[Word] = [command]
    if isinstance(command, Push):
        words += [bytes(command.length)] if command.length else []
        words.append(EndOfBody())
    if isinstance(command, Stream):
        body = draw(bodies)
        words += [body] if body else []
        words.append(Aborted() if draw(st.booleans()) else EndOfBody())
    return words, draw(answers_to(command))


def answers_to(command: Command) -> st.SearchStrategy[list[Word]]:
    def taken(body: bytes) -> list[Word]:
        assert isinstance(command, Pull)
        body = bytes(command.length) or body  # a range is announced as it was asked for
        take = Take(command.digest, len(body), command.chunk)
        return [take, body, EndOfBody()] if body else [take, EndOfBody()]

    def single(*words: Word) -> st.SearchStrategy[list[Word]]:
        return st.sampled_from([[word] for word in words])

    if isinstance(command, Pull):
        return st.one_of(st.builds(taken, bodies), single(Absent(), FileError()))
    if isinstance(command, Measure):
        return single(PackedLength(0), PackedLength((1 << 63) - 1), Absent(), FileError())
    if isinstance(command, Check):
        return single(Have(), Absent(), FileError())
    return single(Have(), FileError())


@settings(max_examples=100, deadline=None)
@given(st.lists(exchanges(), max_size=12), slices, slices, st.integers(1, 300))
def test_any_conversation_pipelined_in_any_slices(
    talk: list[Exchange], up: list[int], down: list[int], chunk: int
) -> None:
    client, server = shaken(CLIENT), shaken(SERVER)
    for speaker, listener, which, lengths in ((client, server, 0, up), (server, client, 1, down)):
        words = [word for exchange in talk for word in exchange[which]]
        heard: list[Heard] = []
        for piece in cut(say(speaker, *words, chunk=chunk), lengths):
            feed(listener, piece, heard=heard)
            assert kept(listener) <= KEEPS_AT_MOST
        assert heard == words
    assert client.at_rest
    assert server.at_rest


class Talker:
    """One side of an interleaved conversation: says its parts bit by bit, hears the other's."""

    def __init__(self, role: Role, parts: list[list[Word]]) -> None:
        self.conn = shaken(role)
        self.heard: list[Heard] = []
        self.wire = bytearray()  # said, not yet heard
        self._parts = deque(deque(part) for part in parts)
        self._begun = 0

    def say_some(self, length: int, asked: int) -> None:
        """The next word, or ``length`` bytes of it if it is a body; at most ``asked`` parts."""
        if not self._parts or self._begun == asked:
            return
        part = self._parts[0]
        word = part.popleft()
        if isinstance(word, bytes):
            if self.conn.state is State.CHUNKS:
                self.wire += chunk_prefix(len(word[:length]))
            else:
                self.conn.sent_body(len(word[:length]))
            self.wire += word[:length]
            if word[length:]:
                part.appendleft(word[length:])
        else:
            self.wire += say(self.conn, word)
        if not part:
            self._parts.popleft()
            self._begun += 1

    def hear(self, other: Talker, length: int) -> None:
        piece = bytes(other.wire[:length])
        del other.wire[:length]
        feed(self.conn, piece, heard=self.heard)

    def commands_heard(self) -> int:
        """Commands that came entirely, uploads with their end."""
        ends = (Check, Measure, Pull, EndOfBody, Aborted)
        return sum(isinstance(event, ends) for event in self.heard)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(exchanges(), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 80)), max_size=80),
)
def test_both_sides_at_once(talk: list[Exchange], moves: list[tuple[int, int]]) -> None:
    client = Talker(CLIENT, [asked for asked, _ in talk])
    server = Talker(SERVER, [answered for _, answered in talk])
    to_the_end = [(move, 1000) for move in (0, 1, 2, 3)] * 4 * len(talk)
    for move, length in moves + to_the_end:
        if move == 0:
            client.say_some(length, asked=len(talk))
        elif move == 1:
            server.hear(client, length)
        elif move == 2:
            server.say_some(length, asked=server.commands_heard())
        else:
            client.hear(server, length)
        if not client.wire and not server.wire:
            assert client.conn.state is server.conn.peer_state
            assert server.conn.state is client.conn.peer_state
            assert client.conn.outstanding == server.conn.outstanding
    assert server.heard == [word for asked, _ in talk for word in asked]
    assert client.heard == [word for _, answered in talk for word in answered]
    assert client.conn.at_rest
    assert server.conn.at_rest


@given(st.binary(max_size=255), slices)
def test_any_root(name: bytes, lengths: list[int]) -> None:
    conn = greeted(SERVER)
    heard: list[Heard] = []
    for piece in cut(b"VERS001" + Root(name).encode() + Check(ONE).encode(), lengths):
        feed(conn, piece, heard=heard)
    assert heard == [Version(1), Root(name), Check(ONE)]
