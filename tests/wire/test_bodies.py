"""Bodies without copies: views of what was read, and reading or writing past the engine."""

from __future__ import annotations

import pytest

from cafsfs.errors import LocalProtocolError, RemoteProtocolError
from cafsfs.wire import (
    NEED_DATA,
    Check,
    Connection,
    Data,
    EndOfBody,
    Have,
    Measure,
    PackedLength,
    Pull,
    Push,
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
    close,
    drain,
    feed,
    kept,
    shaken,
)

BODY = bytes(range(100))
TAKE = Take(ONE, len(BODY), 0)


def pulling(*more: Check | Measure | Pull) -> Connection:
    conn = shaken(CLIENT)
    for command in (Pull(ONE), *more):
        conn.send(command)
    return conn


def receiving(conn: Connection, data: bytearray) -> list[memoryview]:
    """The pieces of body in ``data``, as views."""
    conn.receive_data(data)
    views = []
    while (event := conn.next_event()) is not NEED_DATA:
        if isinstance(event, Data):
            views.append(event.data)
    return views


# --- views


def test_data_are_views_of_what_was_received() -> None:
    buffer = bytearray(TAKE.encode() + BODY)
    (view,) = receiving(pulling(), buffer)
    assert view.obj is buffer
    buffer[-1] = 0xFF
    assert view[-1] == 0xFF


def test_data_are_views_also_where_the_message_before_them_came_in_two_reads() -> None:
    conn = pulling()
    whole = TAKE.encode() + BODY
    assert receiving(conn, bytearray(whole[:30])) == []
    buffer = bytearray(whole[30:])
    (view,) = receiving(conn, buffer)
    assert view.obj is buffer
    assert view == BODY


def test_data_of_chunks_are_views() -> None:
    conn = shaken(SERVER)
    feed(conn, Stream(ONE).encode() + b"\x05")  # half a prefix is left over
    buffer = bytearray(b"\0" + BODY[:5] + chunk_prefix(95) + BODY[5:])
    first, second = receiving(conn, buffer)
    assert first.obj is second.obj is buffer
    assert bytes(first) + bytes(second) == BODY


def test_nothing_of_a_body_is_kept() -> None:
    conn = pulling()
    buffer = bytearray(TAKE.encode() + BODY[:50])
    views = receiving(conn, buffer)
    assert kept(conn) == 0
    for view in views:
        view.release()
    buffer.clear()  # BufferError while there is a view of it


# --- received past the engine


def test_body_read_past_the_engine() -> None:
    conn = pulling(Check(TWO))
    assert conn.body_remaining == 0
    assert feed(conn, TAKE.encode()) == [TAKE]
    assert conn.body_remaining == 100
    assert conn.received_body(99) is False
    assert conn.body_remaining == 1
    assert conn.next_event() is NEED_DATA
    assert conn.received_body(1) is True
    assert conn.body_remaining == 0
    assert conn.peer_state is State.ANSWER
    assert drain(conn) == []  # EndOfBody was the True
    assert feed(conn, b"HAVE") == [Have()]
    assert conn.at_rest


def test_what_came_with_the_announcement_comes_first() -> None:
    conn = pulling()
    conn.receive_data(TAKE.encode() + BODY[:40])
    assert conn.next_event() == TAKE
    assert conn.body_remaining == 0
    with pytest.raises(LocalProtocolError, match="drain the events before reading past them"):
        conn.received_body(1)
    assert conn.next_event() == Data(memoryview(BODY[:40]))
    assert conn.body_remaining == 60
    assert conn.received_body(60) is True
    assert conn.at_rest


def test_an_announcement_in_two_reads_with_some_body() -> None:
    conn = pulling()
    whole = TAKE.encode() + BODY
    assert feed(conn, whole[:53]) == []
    assert feed(conn, whole[53:60]) == [TAKE, BODY[:6]]
    assert conn.body_remaining == 94
    assert conn.received_body(94) is True
    assert conn.at_rest


def test_the_next_answer_in_the_same_read_as_the_end_of_the_body() -> None:
    # A reader that hands the last piece over as well, because it did not stop at body_remaining.
    conn = pulling(Measure(TWO))
    feed(conn, TAKE.encode())
    assert conn.received_body(90) is False
    end = BODY[90:] + b"SIZE\x07"
    assert feed(conn, end) == [BODY[90:], EndOfBody()]
    assert conn.body_remaining == 0
    assert feed(conn, bytes(7)) == [PackedLength(7)]
    assert conn.at_rest


def test_the_next_body_begins_in_the_same_read() -> None:
    conn = pulling(Pull(TWO))
    feed(conn, TAKE.encode())
    conn.received_body(99)
    following = Take(TWO, 100, 0)
    data = BODY[99:] + following.encode() + BODY[:10]
    assert feed(conn, data) == [BODY[99:], EndOfBody(), following, BODY[:10]]
    assert conn.received_body(90) is True
    assert conn.at_rest


def test_an_upload_read_past_the_engine() -> None:
    conn = shaken(SERVER)
    assert feed(conn, Push(ONE, 100).encode() + BODY[:1]) == [Push(ONE, 100), BODY[:1]]
    assert conn.received_body(98) is False
    assert conn.received_body(1) is True
    conn.send(Have())
    assert conn.at_rest


def test_a_complete_body_that_was_heard_still_needs_its_end_heard() -> None:
    conn = pulling()
    conn.receive_data(TAKE.encode() + BODY)
    assert conn.next_event() == TAKE
    assert isinstance(conn.next_event(), Data)
    assert conn.body_remaining == 0
    assert not conn.at_rest
    assert conn.next_event() == EndOfBody()
    assert conn.at_rest


def test_an_empty_body_ends_by_an_event_or_by_being_counted() -> None:
    for counted in (False, True):
        conn = pulling()
        conn.receive_data(Take(ONE, 0, 0).encode())
        assert conn.next_event() == Take(ONE, 0, 0)
        assert conn.body_remaining == 0
        assert conn.received_body(0) if counted else conn.next_event() == EndOfBody()
        assert conn.next_event() is NEED_DATA
        assert conn.at_rest


@pytest.mark.parametrize("count", [-1, 101, 1 << 64])
def test_more_than_was_announced_is_not_received(count: int) -> None:
    conn = pulling()
    feed(conn, TAKE.encode())
    with pytest.raises(LocalProtocolError, match=f"{count} bytes of body, but 100 are to come"):
        conn.received_body(count)
    assert conn.body_remaining == 100


@pytest.mark.parametrize("count", [0, 1])
def test_no_body_is_being_received(count: int) -> None:
    streaming = shaken(SERVER)
    feed(streaming, Stream(ONE).encode())
    for conn in (Connection(CLIENT), pulling(), shaken(SERVER), streaming):
        assert conn.body_remaining == 0
        with pytest.raises(LocalProtocolError, match="no announced body is being received"):
            conn.received_body(count)


def test_a_connection_that_ends_after_bytes_were_read_past_the_engine() -> None:
    conn = pulling()
    feed(conn, TAKE.encode())
    conn.received_body(99)
    with pytest.raises(RemoteProtocolError, match="server closed in state BODY"):
        close(conn)


# --- sent past the engine


def test_body_written_past_the_engine() -> None:
    conn = shaken(CLIENT)
    assert conn.send(Push(ONE, 100)) == b"PUSHblake3" + ONE.raw + (100).to_bytes(8, "little")
    assert conn.body_to_send == 100
    conn.sent_body(60)
    conn.sent_body(0)
    assert conn.body_to_send == 40
    with pytest.raises(LocalProtocolError, match="must not say Check in state BODY"):
        conn.send(Check(TWO))
    conn.sent_body(40)
    assert conn.body_to_send == 0
    assert conn.send(Check(TWO)) == b"CHCKblake3" + TWO.raw
    assert conn.outstanding == 2


def test_answer_written_past_the_engine() -> None:
    conn = shaken(SERVER)
    feed(conn, Pull(ONE).encode() + Check(TWO).encode())
    conn.send(TAKE)
    conn.sent_body(99)
    with pytest.raises(LocalProtocolError, match="must not say Have in state BODY"):
        conn.send(Have())
    conn.sent_body(1)
    conn.send(Have())
    assert conn.at_rest


@pytest.mark.parametrize("count", [-1, 101])
def test_more_than_was_announced_is_not_sent(count: int) -> None:
    conn = shaken(CLIENT)
    conn.send(Push(ONE, 100))
    with pytest.raises(LocalProtocolError, match=f"{count} bytes of body, but 100 are to send"):
        conn.sent_body(count)
    assert conn.body_to_send == 100


@pytest.mark.parametrize("count", [0, 1])
def test_no_body_is_being_sent(count: int) -> None:
    streaming, done = shaken(CLIENT), shaken(CLIENT)
    streaming.send(Stream(ONE))
    done.send(Push(ONE, 0))
    for conn in (Connection(SERVER), shaken(CLIENT), streaming, done):
        assert conn.body_to_send == 0
        with pytest.raises(LocalProtocolError, match="no announced body is being sent"):
            conn.sent_body(count)


def test_an_announced_body_ends_by_its_length() -> None:
    conn = shaken(CLIENT)
    conn.send(Push(ONE, 100))
    with pytest.raises(LocalProtocolError, match="an announced body ends by its length"):
        conn.send(EndOfBody())
    assert conn.body_to_send == 100


def test_a_refusal_in_the_middle_of_an_upload_leaves_nothing_to_send() -> None:
    conn = shaken(CLIENT)
    conn.send(Push(ONE, 100))
    feed(conn, b"ERBD")
    assert conn.body_to_send == 0
    with pytest.raises(LocalProtocolError, match="no announced body is being sent"):
        conn.sent_body(1)


def test_bodies_before_the_verdict() -> None:
    conn = Connection(CLIENT)
    feed(conn, GREETING)
    for word in (Version(1), Root(b""), Push(ONE, 3)):
        conn.send(word)
    conn.sent_body(3)
    assert feed(conn, b"NONEHAVE")[1:] == [Have()]
    assert conn.at_rest


# --- taken whole


def test_a_body_that_came_with_its_announcement_is_taken_whole() -> None:
    conn = pulling(Pull(TWO), Check(ONE))
    second = Take(TWO, 0, 0)
    buffer = bytearray(TAKE.encode() + BODY + second.encode() + b"HAVE")
    conn.receive_data(buffer)
    assert conn.next_event() == TAKE
    assert conn.unread == len(BODY) + len(second.encode()) + 4
    view = conn.take_body()
    assert view is not None
    assert view == BODY
    assert view.obj is buffer
    assert conn.unread == len(second.encode()) + 4
    assert conn.next_event() == second
    empty = conn.take_body()
    assert empty is not None
    assert len(empty) == 0
    assert drain(conn) == [Have()]
    assert conn.at_rest


def test_a_body_that_is_not_all_there_is_left_to_the_events() -> None:
    conn = pulling()
    conn.receive_data(TAKE.encode() + BODY[:99])
    assert conn.next_event() == TAKE
    assert conn.take_body() is None
    assert drain(conn) == [BODY[:99]]
    assert conn.take_body() is None
    assert feed(conn, BODY[99:]) == [BODY[99:], EndOfBody()]
    assert conn.take_body() is None  # nothing is announced
