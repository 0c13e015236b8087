"""Drive connections in tests: say words, feed bytes, hear events.

A conversation is written as words, the same for who says and who hears them: messages, and
``bytes`` for a body, which EndOfBody ends whether or not the wire has a mark for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from cafsfs.digest import Digest
from cafsfs.wire import (
    MAX_STREAM_CHUNK,
    NEED_DATA,
    Aborted,
    Accepted,
    Connection,
    Data,
    EndOfBody,
    Event,
    Greeting,
    Message,
    Role,
    Root,
    State,
    Version,
    chunk_prefix,
)

CLIENT, SERVER = Role.CLIENT, Role.SERVER

ONE = Digest(bytes(range(32)))
TWO = Digest(bytes(range(32, 64)))

GREETING = b"BLOBPUSH_SERVER_V001"

Word = Message | EndOfBody | Aborted | bytes
Heard = Event | bytes


def sliced(data: bytes, step: int | None) -> Iterator[bytes]:
    """``data`` in pieces of ``step`` bytes; None: in one piece. No empty piece: that is the end."""
    step = step or max(1, len(data))
    for start in range(0, len(data), step):
        yield data[start : start + step]


def drain(conn: Connection, heard: list[Heard] | None = None) -> list[Heard]:
    """Add all events to ``heard``, up to NEED_DATA; pieces of a body become one ``bytes``."""
    heard = [] if heard is None else heard
    while (event := conn.next_event()) is not NEED_DATA:
        if not isinstance(event, Data):
            heard.append(event)
            continue
        piece = bytes(event.data)
        assert piece, "an empty Data event"
        if heard and isinstance(heard[-1], bytes):
            heard[-1] += piece
        else:
            heard.append(piece)
    return heard


def feed(
    conn: Connection, data: bytes, step: int | None = None, heard: list[Heard] | None = None
) -> list[Heard]:
    """Feed ``data`` in pieces of ``step`` bytes; ``heard`` has what came before an error."""
    heard = [] if heard is None else heard
    for piece in sliced(data, step):
        conn.receive_data(piece)
        drain(conn, heard)
    return heard


def say(conn: Connection, *words: Word, chunk: int = MAX_STREAM_CHUNK) -> bytes:
    """What ``words`` are on the wire; a STRM goes in chunks of ``chunk`` bytes."""
    written = bytearray()
    for word in words:
        if isinstance(word, bytes) and conn.state is State.CHUNKS:
            for piece in sliced(word, chunk):
                written += chunk_prefix(len(piece)) + piece
        elif isinstance(word, bytes):
            conn.sent_body(len(word))
            written += word
        elif isinstance(word, EndOfBody) and conn.state is not State.CHUNKS:
            assert conn.body_to_send == 0, "the body is shorter than announced"
        else:
            written += conn.send(word)
    return bytes(written)


def close(conn: Connection) -> list[Heard]:
    """What ``conn`` makes of the peer's end."""
    conn.receive_data(b"")
    return drain(conn)


def shaken(role: Role) -> Connection:
    """A connection after its handshake: the client may command."""
    conn = Connection(role)
    if role is CLIENT:
        feed(conn, GREETING)
        say(conn, Version(1), Root(b"/r"))
        feed(conn, b"NONE")
    else:
        say(conn, Greeting(1))
        feed(conn, b"VERS001")
        say(conn, Accepted())
        feed(conn, b"\x02/r")
    assert conn.at_rest
    return conn


def kept(conn: Connection) -> int:
    """Bytes of what was received that ``conn`` holds on to."""
    return sum(
        memoryview(value).nbytes
        for value in vars(conn).values()
        if isinstance(value, bytes | bytearray | memoryview)
    )


class Joined:
    """A client and a server back to back, their handshake done."""

    def __init__(self, step: int | None = None) -> None:
        self.client = shaken(CLIENT)
        self.server = shaken(SERVER)
        self._step = step

    def to_server(self, *words: Word, chunk: int = MAX_STREAM_CHUNK) -> list[Heard]:
        """What the server hears when the client says ``words``."""
        return feed(self.server, say(self.client, *words, chunk=chunk), self._step)

    def to_client(self, *words: Word) -> list[Heard]:
        """What the client hears when the server says ``words``."""
        return feed(self.client, say(self.server, *words), self._step)

    def assert_in_step(self) -> None:
        assert self.client.state is self.server.peer_state
        assert self.server.state is self.client.peer_state
        assert self.client.outstanding == self.server.outstanding
        assert self.client.at_rest == self.server.at_rest
