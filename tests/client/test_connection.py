"""One conversation with one server: what it learns, and what it does not put up with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from cafsfs.client.connection import ServerConnection
from cafsfs.client.servers import Deadlines, Server
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    ConnectTimedOut,
    CorruptBlob,
    LocalProtocolError,
    RemoteProtocolError,
    ServerRefused,
    StoreError,
    TimedOut,
)
from cafsfs.packing import Compression
from cafsfs.store.contracts import PackedStat
from cafsfs.store.memory import MemoryBody
from tests.bad_server import BadServer, Fault, Phase, bad_server, pack
from tests.server.stand import digest_of

CONTENT = b"The quick brown fox jumps over the lazy dog.\n" * 100
DIGEST = digest_of(CONTENT)
PACKED = pack(CONTENT)
ABSENT = digest_of(b"absent")

# So long that only a clock that jumps reaches their ends.
PATIENT = Deadlines(connect=30, answer=30, progress=30)

STALL = Fault(then="stall")
RESET = Fault(then="reset")
CLOSE = Fault(then="close")


@asynccontextmanager
async def opened(
    server: BadServer, deadlines: Deadlines = PATIENT
) -> AsyncIterator[ServerConnection]:
    there = Server("127.0.0.1", server.port)
    connection = await ServerConnection.open(there, b"/root", deadlines)
    try:
        yield connection
    finally:
        connection.close()


async def pulled(connection: ServerConnection) -> bytes:
    body = await connection.pull(DIGEST)
    packed = b""
    buffer = memoryview(bytearray(1000))
    while count := await body.readinto(buffer):
        packed += buffer[:count]
    return packed


# --- what it is for


async def test_all_commands_on_one_connection() -> None:
    async with bad_server() as server, opened(server) as connection:
        await connection.upload(DIGEST, MemoryBody(PACKED))
        assert server.blobs == {DIGEST.raw: PACKED}
        assert await connection.check([ABSENT, DIGEST, ABSENT]) == {ABSENT}
        assert await connection.measure(DIGEST) == len(PACKED)
        with pytest.raises(BlobNotFound):
            await connection.measure(ABSENT)
        assert await pulled(connection) == PACKED
        with pytest.raises(BlobNotFound):
            await connection.pull(ABSENT)
        assert await connection.check([]) == set()
        assert connection.reusable
        assert server.connections == 1
        assert "127.0.0.1" in repr(connection)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("length", [0, 1, 16, 65534, 65535, 200_000, 3 << 20])
async def test_bodies_of_all_lengths(length: int, *, known: bool) -> None:
    """Pushed where the length is known before the end, else streamed."""
    packed = pack(bytes(length))
    body = MemoryBody(packed)
    if not known:
        body.length = None
    async with bad_server() as server, opened(server) as connection:
        await connection.upload(DIGEST, body)
        assert server.blobs[DIGEST.raw] == packed
        assert server.commands["PUSH" if known else "STRM"] == 1
        assert await pulled(connection) == packed
        assert connection.reusable


async def test_an_empty_file_on_a_server_is_an_empty_body() -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, b"")
        assert await pulled(connection) == b""
        assert connection.reusable


async def test_pull_asks_for_the_size_first_and_in_the_same_breath() -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        await pulled(connection)
        assert server.commands == {"SIZE": 1, "PULL": 1}


async def test_peek_tells_the_length_of_the_blob_whose_header_it_read() -> None:
    """The server recompresses between SIZE and PULL: the two lengths are of two blobs."""
    packed = pack(CONTENT, "zstd")
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.recompress_after_size(DIGEST.hex, packed)
        measured = await connection.measure(DIGEST)
        stat, body = await connection.peek(DIGEST, measured)
        assert body.length == stat.length
        assert measured == len(PACKED)
        assert isinstance(stat, PackedStat)
        assert stat.length == len(packed)
        assert stat.header is not None
        assert stat.header.compression is Compression.ZSTD


async def test_peek_at_what_has_no_header() -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED[:15])
        with pytest.raises(CorruptBlob):
            await connection.peek(DIGEST, 15)


async def test_a_root_of_256_bytes_cannot_be_named() -> None:
    async with bad_server() as server:
        there = Server("127.0.0.1", server.port)
        with pytest.raises(LocalProtocolError, match="at most 255 bytes"):
            await ServerConnection.open(there, b"r" * 256, PATIENT)


# --- the greeting

GREETINGS: dict[str, tuple[Phase, Fault, type[CafsError]]] = {
    "closed at once": (Phase.GREETING, CLOSE, ConnectionBroken),
    "reset at once": (Phase.GREETING, RESET, ConnectionBroken),
    "closed within the greeting": (
        Phase.GREETING,
        Fault(after=7, then="close"),
        ConnectionBroken,
    ),
    "another protocol": (Phase.GREETING, Fault(instead=b"SSH-2.0-x\r\n"), RemoteProtocolError),
    "one wrong byte": (Phase.GREETING, Fault(spoil=3, after=4, then="stall"), RemoteProtocolError),
    "a version that is no number": (Phase.GREETING, Fault(spoil=19), RemoteProtocolError),
    "refused": (Phase.VERDICT, Fault(instead=b"ERBD"), ServerRefused),
    "a verdict that is none": (Phase.VERDICT, Fault(instead=b"HAVE"), RemoteProtocolError),
    "closed instead of a verdict": (Phase.VERDICT, CLOSE, ConnectionBroken),
    "reset instead of a verdict": (Phase.VERDICT, RESET, ConnectionBroken),
}


@pytest.mark.parametrize(("phase", "fault", "error"), GREETINGS.values(), ids=list(GREETINGS))
async def test_bad_greeting(phase: Phase, fault: Fault, error: type[CafsError]) -> None:
    async with bad_server() as server:
        server.fault(phase, fault)
        with pytest.raises(error) as caught:
            await ServerConnection.open(Server("127.0.0.1", server.port), b"/root", PATIENT)
        assert type(caught.value) is error
        assert server.address in str(caught.value)


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.VERDICT])
@pytest.mark.parametrize("fault", [STALL, Fault(drip=(1, 2))], ids=["stall", "drip"])
async def test_greeting_has_one_deadline_in_all(
    phase: Phase, fault: Fault, jumping_clock: MockClock
) -> None:
    async with bad_server() as server:
        server.fault(phase, fault)
        began = trio.current_time()
        with pytest.raises(ConnectTimedOut, match=r"no greeting from .* within 5 s"):
            await ServerConnection.open(Server("127.0.0.1", server.port), b"/root", Deadlines())
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)


async def test_a_server_that_demands_authentication_is_told_apart() -> None:
    async with bad_server() as server:
        server.fault(Phase.GREETING, Fault(instead=b"BLOBPUSH_SERVER_V002"))
        server.fault(Phase.VERDICT, Fault(instead=b"ERBD"), times=1)
        with pytest.raises(AuthenticationFailed, match="we have no secret") as caught:
            await ServerConnection.open(Server("127.0.0.1", server.port), b"/root", PATIENT)
        assert "--secret-file" in (caught.value.hint or "")
        async with opened(server) as connection:  # an optional secret is none of our concern
            assert await connection.check([ABSENT]) == {ABSENT}


# --- the answers

CHECKS: dict[str, tuple[Fault, type[CafsError]]] = {
    "stall": (STALL, TimedOut),
    "stall within": (Fault(after=3, then="stall"), TimedOut),
    "drip": (Fault(drip=(1, 29)), TimedOut),
    "reset": (RESET, ConnectionBroken),
    "close": (CLOSE, ConnectionBroken),
    "close within": (Fault(after=3, then="close"), ConnectionBroken),
    "garbage": (Fault(instead=b"\0\1\2\3\4\5\6\7"), RemoteProtocolError),
    "answer to another command": (Fault(instead=b"SIZE" + bytes(8)), RemoteProtocolError),
    "ERIO": (Fault(instead=b"ERIO"), ServerRefused),
    "ERBD": (Fault(instead=b"ERBD"), RemoteProtocolError),
}
SIZES = CHECKS | {
    "drip": (Fault(drip=(1, 9)), TimedOut),
    "answer to another command": (Fault(instead=b"HAVE"), RemoteProtocolError),
    "a length that no file has": (Fault(instead=b"SIZE" + b"\xff" * 8), RemoteProtocolError),
}
PULLS = CHECKS | {
    "drip": (Fault(drip=(9, 9)), TimedOut),
    "answer to another command": (Fault(instead=b"HAVE"), RemoteProtocolError),
    "another blob": (Fault(spoil=20), RemoteProtocolError),
    "another range": (Fault(spoil=53), RemoteProtocolError),
    "another hash type": (Fault(spoil=4), RemoteProtocolError),
}


@pytest.mark.parametrize(("fault", "error"), CHECKS.values(), ids=list(CHECKS))
async def test_bad_answer_to_check(
    fault: Fault, error: type[CafsError], jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.fault(Phase.CHECK, fault)
        with pytest.raises(error) as caught:
            await connection.check([DIGEST])
        assert type(caught.value) is error
        assert connection.reusable is (error is ServerRefused)


@pytest.mark.parametrize(("fault", "error"), SIZES.values(), ids=list(SIZES))
async def test_bad_answer_to_size(
    fault: Fault, error: type[CafsError], jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(Phase.SIZE, fault)
        with pytest.raises(error) as caught:
            await connection.measure(DIGEST)
        assert type(caught.value) is error
        assert connection.reusable is (error is ServerRefused)


@pytest.mark.parametrize(("fault", "error"), PULLS.values(), ids=list(PULLS))
async def test_bad_answer_to_pull(
    fault: Fault, error: type[CafsError], jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(Phase.PULL, fault)
        with pytest.raises(error) as caught:
            await connection.pull(DIGEST)
        assert type(caught.value) is error
        assert connection.reusable is (error is ServerRefused)


async def test_a_size_that_is_refused_does_not_stand_in_the_way_of_a_pull() -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(Phase.SIZE, Fault(instead=b"ERIO"))
        assert await pulled(connection) == PACKED


@pytest.mark.parametrize("said", [b"ERBD", b"ERBDNONE"])
async def test_a_server_that_calls_size_unknown_is_not_waited_for(said: bytes) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.fault(Phase.SIZE, Fault(instead=said, after=9, then="stall"))
        server.have(DIGEST.hex, PACKED)
        with pytest.raises(RemoteProtocolError), trio.fail_after(5):
            await connection.pull(DIGEST)


# --- bodies

BODIES: dict[str, tuple[Phase, Fault, type[CafsError]]] = {
    "stall": (Phase.BODY, Fault(after=100, then="stall"), TimedOut),
    "reset": (Phase.BODY, Fault(after=100, then="reset"), ConnectionBroken),
    "close": (Phase.BODY, Fault(after=100, then="close"), ConnectionBroken),
    "drip": (Phase.BODY, Fault(drip=(100, 29)), TimedOut),
    "announces more": (Phase.PULL, Fault(lie=1), TimedOut),
}


@pytest.mark.parametrize(("phase", "fault", "error"), BODIES.values(), ids=list(BODIES))
async def test_bad_body(
    phase: Phase, fault: Fault, error: type[CafsError], jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(phase, fault)
        with pytest.raises(error) as caught:
            await pulled(connection)
        assert type(caught.value) is error
        assert not connection.reusable


async def test_a_body_that_is_longer_than_announced_spoils_the_connection() -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(Phase.PULL, Fault(lie=-1))
        assert await pulled(connection) == PACKED[:-1]
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not connection.reusable


# --- uploads


class BrokenBody:
    """A body that breaks after ``good`` bytes."""

    length: int | None = None

    def __init__(self, good: int, error: CafsError) -> None:
        self._good = good
        self._error = error

    async def readinto(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        if not self._good:
            raise self._error
        count = min(self._good, len(buffer))
        self._good -= count
        return count


@pytest.mark.parametrize("good", [0, 10, 3 << 20])
async def test_a_body_that_breaks_while_it_is_pushed_is_never_complete(good: int) -> None:
    """There is no word to take it back: the connection is given up, and the server has no end."""
    body = BrokenBody(good, CorruptBlob("it changed"))
    body.length = good + 10
    async with bad_server() as server, opened(server) as connection:
        with pytest.raises(CorruptBlob, match="it changed"):
            await connection.upload(DIGEST, body)
        assert not connection.reusable
        connection.close()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.blobs == {}


@pytest.mark.parametrize("good", [0, 10, 3 << 20])
async def test_a_body_that_breaks_is_aborted_and_the_connection_stays_in_step(good: int) -> None:
    async with bad_server() as server, opened(server) as connection:
        with pytest.raises(CorruptBlob, match="it changed"):
            await connection.upload(DIGEST, BrokenBody(good, CorruptBlob("it changed")))
        assert server.blobs == {}
        # If a chunk was cut off by it, the connection is given up instead.
        if connection.reusable:
            assert await connection.check([DIGEST]) == {DIGEST}


class BodyThatBreaksBesideABlockedWrite:
    """Goes on until the peer's buffers are full and a chunk is half sent, then breaks."""

    length = None

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._given = 0

    async def readinto(self, buffer: memoryview) -> int:
        await trio.testing.wait_all_tasks_blocked(0.01)
        if self._connection._transport.sent < self._given:
            raise StoreError("sick disk")
        self._given += len(buffer)
        return len(buffer)


async def test_a_body_that_breaks_while_a_chunk_is_being_sent_is_not_waited_for() -> None:
    """An abort in the middle of a chunk would be taken for bytes of it."""
    async with bad_server() as server, opened(server) as connection:
        server.fault(Phase.UPLOAD, STALL)
        with pytest.raises(StoreError, match="sick"), trio.fail_after(5):
            await connection.upload(DIGEST, BodyThatBreaksBesideABlockedWrite(connection))
        assert not connection.reusable


async def test_the_error_of_a_body_is_told_though_the_abort_fails_too(
    jumping_clock: MockClock,
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.fault(Phase.STORED, STALL)
        with pytest.raises(StoreError, match="sick disk"):
            await connection.upload(DIGEST, BrokenBody(10, StoreError("sick disk")))
        assert not connection.reusable


UPLOADS: dict[str, tuple[Phase, Fault, type[CafsError]]] = {
    "is not taken": (Phase.UPLOAD, STALL, TimedOut),
    "is reset": (Phase.UPLOAD, Fault(after=100_000, then="reset"), ConnectionBroken),
    "is closed": (Phase.UPLOAD, Fault(after=100_000, then="close"), ConnectionBroken),
    "gets no answer": (Phase.STORED, STALL, TimedOut),
    "gets a reset for an answer": (Phase.STORED, RESET, ConnectionBroken),
    "is refused": (Phase.STORED, Fault(instead=b"ERIO"), ServerRefused),
    "is refused early": (Phase.UPLOAD, Fault(instead=b"ERIO"), ServerRefused),
    "gets garbage": (Phase.STORED, Fault(instead=b"garbage"), RemoteProtocolError),
    "gets another answer": (Phase.STORED, Fault(instead=b"NONE"), RemoteProtocolError),
}


@pytest.mark.parametrize(("phase", "fault", "error"), UPLOADS.values(), ids=list(UPLOADS))
async def test_upload_that(
    phase: Phase, fault: Fault, error: type[CafsError], jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.fault(phase, fault)
        with pytest.raises(error) as caught:
            await connection.upload(DIGEST, MemoryBody(bytes(64 << 20)))
        assert type(caught.value) is error
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert connection.reusable is (fault.instead == b"ERIO" and phase is Phase.STORED)


# --- deadlines


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [(Phase.CHECK, 5), (Phase.SIZE, 5), (Phase.PULL, 30 + 50), (Phase.BODY, 12)],
)
async def test_deadlines_are_as_promised(
    phase: Phase, seconds: float, jumping_clock: MockClock
) -> None:
    async with bad_server() as server, opened(server, Deadlines(progress=12)) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(Phase.SIZE, Fault(lie=1_000_000_000 - len(PACKED)), times=1)
        server.fault(phase, STALL)
        if phase is Phase.SIZE:
            await connection.measure(DIGEST)
        began = trio.current_time()
        with pytest.raises(TimedOut):
            await (connection.check([DIGEST]) if phase is Phase.CHECK else pulled(connection))
        assert trio.current_time() - began == pytest.approx(seconds, abs=1)


async def test_answers_to_many_questions_have_their_deadlines_together(
    jumping_clock: MockClock,
) -> None:
    """Else a thousand of them could take more than an hour."""
    absent = [digest_of(b"%d" % number) for number in range(60)]
    async with bad_server() as server, opened(server) as connection:
        server.fault(Phase.CHECK, Fault(drip=(4, 0.2)))
        began = trio.current_time()
        assert await connection.check(absent) == set(absent)
        assert trio.current_time() - began == pytest.approx(12, abs=1)
        server.mend()
        server.fault(Phase.CHECK, Fault(drip=(4, 1)))
        began = trio.current_time()
        with pytest.raises(TimedOut, match="gave no answer within 5 s"):
            await connection.check(absent)
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("fault", [STALL, Fault(drip=(1, 1))], ids=["stall", "drip"])
@pytest.mark.parametrize("phase", [Phase.PULL, Phase.BODY, Phase.SIZE])
async def test_a_glimpse_is_a_question(
    phase: Phase, fault: Fault, jumping_clock: MockClock
) -> None:
    async with bad_server(ranges="sound") as server, opened(server) as connection:
        server.have(DIGEST.hex, PACKED)
        server.fault(phase, fault)
        began = trio.current_time()
        with pytest.raises(TimedOut, match="gave no answer within 5 s"):
            await connection.glimpse(DIGEST)
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)


async def test_a_slow_line_is_slow_and_not_dead(jumping_clock: MockClock) -> None:
    """Progress has a deadline, a whole body has none."""
    packed = pack(bytes(100_000))
    async with bad_server() as server, opened(server, Deadlines(progress=12)) as connection:
        server.have(DIGEST.hex, packed)
        server.fault(Phase.BODY, Fault(drip=(20_000, 10)))
        assert await pulled(connection) == packed
        assert trio.current_time() >= 50


@pytest.mark.parametrize("step", [1, 1000])
async def test_a_body_that_drips_has_one_deadline(step: int, jumping_clock: MockClock) -> None:
    async with bad_server() as server, opened(server) as connection:
        server.have(DIGEST.hex, pack(bytes(100_000)))
        server.fault(Phase.BODY, Fault(drip=(step, 9)))
        began = trio.current_time()
        with pytest.raises(TimedOut, match=r"sent only \d+ bytes in 30 s"):
            await pulled(connection)
        assert trio.current_time() - began == pytest.approx(30, abs=1)
