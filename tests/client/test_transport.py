"""A connection on which every wait has a deadline and every failure is one of ours."""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.errors import ConnectionBroken, TimedOut, Unreachable
from cafsfs.resolver import Address, Resolver
from cafsfs.transport import Pace, Transport
from cafsfs.wire import Ciphers, Keystream, Role
from cafsfs.wire.handshake import derive

SOON = 0.05  # seconds
LATE = 30.0


@asynccontextmanager
async def joined(**options: Any) -> AsyncIterator[tuple[Transport, trio.SocketStream]]:
    """A Transport, and the other end of its connection."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        transport = await Transport.connect("127.0.0.1", port, **options)
        async with await listener.accept() as other:
            try:
                yield transport, other
            finally:
                transport.close()


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def recv(transport: Transport, count: int = 100, deadline: float = LATE) -> bytes:
    buffer = memoryview(bytearray(count))
    return bytes(buffer[: await transport.recv_into(buffer, deadline=deadline)])


# --- connecting


def names(*addresses: tuple[str, int]) -> Resolver:
    """A host with the addresses given."""

    async def query(*_: object) -> list[Address]:
        await trio.lowlevel.checkpoint()
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
            for address in addresses
        ]

    return Resolver("host", 1, query=query)


@asynccontextmanager
async def silent_address() -> AsyncIterator[tuple[str, int]]:
    """An address that does not answer: its queue of connections is full, so SYNs are dropped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address: tuple[str, int] = listener.getsockname()
        with socket.create_connection(address):
            yield address


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_nobody_there() -> None:
    port = unused_port()
    with pytest.raises(Unreachable) as caught:
        await Transport.connect("127.0.0.1", port)
    assert str(caught.value) == f"cannot connect to 127.0.0.1:{port}: Connection refused"
    assert caught.value.hint


async def test_nobody_there_over_ipv6() -> None:
    with pytest.raises(Unreachable, match=r"cannot connect to \[::1\]:\d+: "):
        await Transport.connect("::1", unused_port())


@pytest.mark.parametrize("host", ["", "\0", "a" * 70, "a..b", "\ud800"])
async def test_a_name_that_is_none(host: str) -> None:
    with pytest.raises(Unreachable, match=r"cannot (resolve|connect)"):
        await Transport.connect(host, unused_port())


async def test_a_name_without_addresses() -> None:
    host = names()
    with pytest.raises(Unreachable, match="it has no address"):
        await Transport.connect("host", 1, resolver=host)


async def test_the_next_address_is_tried_where_one_refuses() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        sound = listener.socket.getsockname()
        host = names(("127.0.0.1", unused_port()), sound)
        (await Transport.connect("host", 1, resolver=host)).close()


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, silent_address() as silent:
        sound = listener.socket.getsockname()
        host = names(silent, silent, sound)
        with trio.fail_after(5):
            (await Transport.connect("host", 1, resolver=host)).close()


async def test_cancelled_while_connecting() -> None:
    async with silent_address() as silent:
        host = names(silent, silent)
        with trio.move_on_after(SOON) as scope:
            await Transport.connect("host", 1, resolver=host)
        assert scope.cancelled_caught


async def test_receive_buffer_is_small_from_the_beginning() -> None:
    async with joined(receive_buffer=4096) as (transport, other):
        # Linux doubles what is asked for.
        assert transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 8192
        with trio.move_on_after(SOON):
            await other.send_all(bytes(32 << 20))
        assert (await recv(transport, 1 << 20)).count(0) < 64 << 10


async def test_a_small_receive_buffer_grows_when_it_is_read() -> None:
    """Set alone it would be locked, and the window be below 64 KiB for ever (before Linux 5.13)."""
    async with joined(receive_buffer=4096, must_grow=True) as (transport, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.send_all, bytes(32 << 20))
            received = 0
            buffer = memoryview(bytearray(2 << 20))
            while received < 32 << 20:
                received += await transport.recv_into(buffer, deadline=5)
        assert transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 256 << 10


async def test_where_it_cannot_grow_it_is_not_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cafsfs.transport._SO_BUF_LOCK", 9999)  # a kernel that knows it not
    for must_grow in (False, True):
        async with joined(receive_buffer=4096, must_grow=must_grow) as (transport, _):
            size = transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert (size > 64 << 10) is must_grow


# --- receiving


async def test_receives_what_is_there() -> None:
    async with joined() as (transport, other):
        await other.send_all(b"hello")
        assert await recv(transport) == b"hello"
        await other.send_eof()
        assert await recv(transport) == b""
        assert transport.received == 5


async def test_silence_is_timed_out(autojump_clock: MockClock) -> None:
    async with joined() as (transport, _):
        began = trio.current_time()
        with pytest.raises(TimedOut, match=r"127\.0\.0\.1:\d+ sent nothing for 30 s"):
            await recv(transport, deadline=30)
        assert trio.current_time() - began == pytest.approx(30)


async def test_reset_while_receiving() -> None:
    async with joined() as (transport, other):
        reset(other)
        with pytest.raises(ConnectionBroken, match="broke: Connection reset by peer"):
            await recv(transport)


async def test_closed_here_while_receiving() -> None:
    async with joined() as (transport, _), trio.open_nursery() as nursery:
        nursery.start_soon(_close_when_blocked, transport)
        with pytest.raises(ConnectionBroken, match="closed here"):
            await recv(transport)


async def _close_when_blocked(transport: Transport) -> None:
    await wait_all_tasks_blocked()
    transport.close()


# --- sending


async def test_sends_all_parts_in_order() -> None:
    body = bytes(range(256)) * 8192
    async with joined() as (transport, other), trio.open_nursery() as nursery:

        async def send() -> None:
            parts: list[bytes | memoryview] = [b"head", b"", memoryview(body), b"tail"]
            await transport.send(parts, deadline=LATE)
            transport.close()

        nursery.start_soon(send)
        heard = b"".join([piece async for piece in other])
        assert heard == b"head" + body + b"tail"
        assert transport.sent == len(heard)


async def test_a_peer_that_takes_nothing_is_timed_out(autojump_clock: MockClock) -> None:
    async with joined() as (transport, _):
        with pytest.raises(TimedOut, match="took nothing for 30 s"):
            await transport.send([bytes(64 << 20)], deadline=30)


async def test_reset_while_sending() -> None:
    async with joined() as (transport, other), trio.open_nursery() as nursery:

        async def leave() -> None:
            await wait_all_tasks_blocked()
            reset(other)

        nursery.start_soon(leave)
        with pytest.raises(ConnectionBroken):
            await transport.send([bytes(64 << 20)], deadline=LATE)


async def test_sends_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 << 12)
    (tmp_path / "file").write_bytes(content)
    limiter = trio.CapacityLimiter(1)
    async with joined() as (transport, other), trio.open_nursery() as nursery:

        async def send() -> None:
            with (tmp_path / "file").open("rb") as file:
                offset = 5
                while count := await transport.send_file(
                    file.fileno(), offset, 1 << 20, deadline=LATE, limiter=limiter
                ):
                    offset += count
            transport.close()

        nursery.start_soon(send)
        assert b"".join([piece async for piece in other]) == content[5:]
        assert transport.sent == len(content) - 5


async def test_a_file_on_a_slow_disk_gives_its_thread_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer would take more at once; but so would a thousand others."""
    now = 0.0
    sendfile = os.sendfile

    def slow(sock: int, descriptor: int, offset: int, count: int) -> int:
        nonlocal now
        now += 0.004
        return sendfile(sock, descriptor, offset, min(count, 1000))

    monkeypatch.setattr(os, "sendfile", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    limiter = trio.CapacityLimiter(1)
    async with joined() as (transport, _):
        with (tmp_path / "file").open("rb") as file:
            sent = await transport.send_file(
                file.fileno(), 0, 1 << 20, deadline=LATE, limiter=limiter
            )
    assert sent == 2000


async def test_a_peer_that_takes_nothing_of_a_file_is_timed_out(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    limiter = trio.CapacityLimiter(1)
    async with joined() as (transport, _):
        with (tmp_path / "file").open("wb+") as file:
            file.truncate(64 << 20)

            async def send() -> None:
                while True:
                    await transport.send_file(
                        file.fileno(), 0, 1 << 20, deadline=30, limiter=limiter
                    )

            began = trio.current_time()
            with pytest.raises(TimedOut, match="took nothing for 30 s"):
                await send()
            assert trio.current_time() - began == pytest.approx(30, abs=1)


# --- what one byte now and then is worth


class Drip:
    """A socket to which, or from which, so many bytes go every so many seconds."""

    def __init__(self, step: int, pause: float) -> None:
        self._step = step
        self._pause = pause

    def setsockopt(self, *_: object) -> None:
        pass

    async def recv_into(self, buffer: memoryview) -> int:
        await trio.sleep(self._pause)
        return min(self._step, len(buffer))

    async def sendmsg(self, parts: Sequence[memoryview]) -> int:
        await trio.sleep(self._pause)
        return min(self._step, sum(map(len, parts)))


def dripping(step: int, pause: float) -> Transport:
    return Transport(cast(trio.socket.SocketType, Drip(step, pause)), "peer")


async def receive_all(transport: Transport, count: int, pace: Pace) -> None:
    while count:
        count -= await transport.recv_into(memoryview(bytearray(count)), deadline=pace)


async def send_all(transport: Transport, count: int, pace: Pace) -> None:
    await transport.send([bytes(count)], deadline=pace)


both_ways = pytest.mark.parametrize(
    ("move", "deed"), [(receive_all, "sent"), (send_all, "took")], ids=["receive", "send"]
)
Move = Callable[[Transport, int, Pace], Awaitable[None]]


@both_ways
async def test_a_drip_has_one_window(move: Move, deed: str, autojump_clock: MockClock) -> None:
    with pytest.raises(TimedOut, match=f"peer {deed} only 1 bytes in 30 s"):
        await move(dripping(1, 29), 1 << 20, Pace(30, 1024))
    assert trio.current_time() == pytest.approx(30)


@both_ways
async def test_nothing_at_all_has_one_window(
    move: Move, deed: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(TimedOut, match=f"peer {deed} nothing for 30 s"):
        await move(dripping(1, math.inf), 1, Pace(30, 1024))
    assert trio.current_time() == pytest.approx(30)


@both_ways
@pytest.mark.parametrize(("step", "pause"), [(2048, 1), (30 << 10, 29), (200, 0.1)])
async def test_a_slow_line_goes_on(
    move: Move, deed: str, step: int, pause: float, autojump_clock: MockClock
) -> None:
    await move(dripping(step, pause), 1 << 20, Pace(30, 1024))
    assert trio.current_time() > 500


@both_ways
@pytest.mark.parametrize("count", [1, 25, 30 << 10])
async def test_the_last_bytes_need_not_come_faster(
    move: Move, deed: str, count: int, autojump_clock: MockClock
) -> None:
    """However few they are, they have a window; a full one behind what came before."""
    pace = Pace(30, 1024)
    await move(dripping(30 << 10, 29), 30 << 10, pace)
    await move(dripping(-(-count // 25), 29 / 25), count, pace)


async def test_what_we_take_between_two_pieces_is_not_the_peers_fault(
    autojump_clock: MockClock,
) -> None:
    pace = Pace(30, 1024)
    for _ in range(20):
        await receive_all(dripping(100, 1), 100, pace)
        await trio.sleep(1000)  # a sick disk


async def test_a_stall_may_be_told_sooner(autojump_clock: MockClock) -> None:
    pace = Pace(30, 1024)
    pace.stall = 10
    transport = dripping(1, 9)
    for _ in range(2):
        await receive_all(transport, 1, pace)
    with pytest.raises(TimedOut, match="nothing for 10 s"):
        await receive_all(dripping(1, 100), 1, pace)
    assert trio.current_time() == pytest.approx(28)
    assert pace.stalled
    pace.stall = math.inf
    with pytest.raises(TimedOut, match="only 2 bytes in 30 s"):
        await receive_all(dripping(1, 100), 1, pace)
    assert trio.current_time() == pytest.approx(30)


async def test_a_wait_that_was_cancelled_counts(autojump_clock: MockClock) -> None:
    """Else who looks in between at something else would wait for ever."""
    pace = Pace(30, 1024)
    transport = dripping(1, math.inf)
    for _ in range(29):
        with trio.move_on_after(1):
            await receive_all(transport, 1, pace)
    with pytest.raises(TimedOut, match="nothing for 30 s"):
        await receive_all(transport, 1, pace)
    assert trio.current_time() == pytest.approx(30)


# --- encrypted


def ciphers(role: Role) -> Ciphers:
    return derive(role, bytes(range(48)), bytes(range(32)))


CONTENT = bytes(i * 31 % 251 for i in range(3 << 20))


class Taking:
    """A socket that takes ``steps`` bytes at a time, and then fails; or keeps us waiting."""

    def __init__(self, *steps: int, fails: bool = True) -> None:
        self._steps = list(steps)
        self._fails = fails
        self.taken = bytearray()

    def setsockopt(self, *_: object) -> None:
        pass

    async def sendmsg(self, parts: Sequence[memoryview]) -> int:
        await trio.lowlevel.checkpoint()
        if not self._steps and self._fails:
            raise BrokenPipeError
        if not self._steps:
            await trio.sleep_forever()
        data = b"".join(parts)[: self._steps.pop(0)]
        self.taken += data
        return len(data)


async def test_what_is_sent_is_encrypted_once_and_in_order() -> None:
    async with joined() as (transport, other), trio.open_nursery() as nursery:
        transport.use(ciphers(Role.CLIENT))

        async def send() -> None:
            parts: list[bytes | memoryview] = [b"head", b"", memoryview(CONTENT), b"tail"]
            await transport.send(parts, deadline=LATE)
            await transport.send([b"more"], deadline=LATE)
            transport.use(None)
            await transport.send([b"plain"], deadline=LATE)
            transport.close()

        nursery.start_soon(send)
        heard = b"".join([bytes(piece) async for piece in other])
    plain = b"head" + CONTENT + b"tailmore"
    assert heard == ciphers(Role.CLIENT).sending.convert(plain) + b"plain"
    assert CONTENT[:4] == bytes(i * 31 % 251 for i in range(4))  # not encrypted in place
    assert transport.sent == len(heard)


async def test_what_comes_is_decrypted_in_any_pieces() -> None:
    sealed = ciphers(Role.SERVER).sending.convert(CONTENT)
    async with joined() as (transport, other), trio.open_nursery() as nursery:
        transport.use(ciphers(Role.CLIENT))
        nursery.start_soon(other.send_all, sealed)
        heard = bytearray()
        sizes = cycle([1, 15, 16, 17, 1000, 70_000])
        while len(heard) < len(CONTENT):
            buffer = memoryview(bytearray(next(sizes)))
            count = await transport.recv_into(buffer, deadline=LATE)
            heard += buffer[:count]
        assert heard == CONTENT


@given(st.lists(st.integers(1, 700_000), max_size=8), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_what_fails_has_used_up_what_travelled(steps: list[int], offset: int) -> None:
    """However little the kernel takes before it fails: the next byte is encrypted as the next."""
    sock = Taking(*steps)
    transport = Transport(cast(trio.socket.SocketType, sock), "peer")
    stream = ciphers(Role.CLIENT)
    transport.use(stream)
    parts: list[bytes | memoryview] = [CONTENT[:offset], memoryview(CONTENT)[offset:]]

    async def send() -> None:
        with pytest.raises(ConnectionBroken):
            await transport.send(parts, deadline=LATE)

    if sum(steps) < len(CONTENT):
        trio.run(send)
    assert stream.sending.position == len(sock.taken) == transport.sent
    assert bytes(sock.taken) == ciphers(Role.CLIENT).sending.convert(CONTENT[: len(sock.taken)])
    assert stream.sending.convert(b"next") == _at(len(sock.taken)).convert(b"next")


def _at(position: int) -> Keystream:
    stream = ciphers(Role.CLIENT).sending
    stream.convert(bytes(position))
    return stream


@pytest.mark.parametrize("taken", [(), (1,), (300_000, 7)])
async def test_what_is_cancelled_has_used_up_what_travelled(
    taken: tuple[int, ...], autojump_clock: MockClock
) -> None:
    sock = Taking(*taken, fails=False)
    transport = Transport(cast(trio.socket.SocketType, sock), "peer")
    stream = ciphers(Role.CLIENT)
    transport.use(stream)
    with trio.move_on_after(1) as scope:
        await transport.send([CONTENT], deadline=LATE)
    assert scope.cancelled_caught
    # Of what was encrypted at once the kernel took a part; the rest is taken back.
    assert stream.sending.position == len(sock.taken)


async def test_a_receive_that_is_cancelled_uses_up_nothing(autojump_clock: MockClock) -> None:
    async with joined() as (transport, other):
        stream = ciphers(Role.CLIENT)
        transport.use(stream)
        with pytest.raises(TimedOut):
            await recv(transport, deadline=1)
        assert stream.receiving.position == 0
        await other.send_all(ciphers(Role.SERVER).sending.convert(b"late"))
        assert await recv(transport) == b"late"


async def test_sends_a_file_encrypted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    limiter = trio.CapacityLimiter(1)
    async with joined() as (transport, other), trio.open_nursery() as nursery:
        stream = ciphers(Role.CLIENT)
        transport.use(stream)

        async def send() -> None:
            await transport.send([b"head"], deadline=LATE)
            with (tmp_path / "file").open("rb") as file:
                offset = 5
                while count := await transport.send_file(
                    file.fileno(), offset, 1 << 20, deadline=LATE, limiter=limiter
                ):
                    offset += count
            await transport.send([b"tail"], deadline=LATE)
            transport.close()

        nursery.start_soon(send)
        plain = ciphers(Role.SERVER).receiving
        heard = bytearray()
        async for piece in other:  # slowly: the socket fills up in the middle of pieces
            heard += plain.convert(bytes(piece))
            await trio.sleep(0.0001)
        assert bytes(heard) == b"head" + CONTENT[5:] + b"tail"
        assert transport.sent == len(heard) == stream.sending.position


@pytest.mark.parametrize("limit", [0, 1, 999, 70_000])
async def test_a_file_for_a_full_socket_leaves_nothing_behind(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes ``limit`` bytes of a piece, then nothing; then all."""
    calls: list[int] = []
    write = os.write

    def full(sock: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 1 and limit:
            return write(sock, data[:limit])
        if len(calls) == 2 - (not limit):
            raise BlockingIOError
        return write(sock, data)

    (tmp_path / "file").write_bytes(CONTENT[:100_000])
    limiter = trio.CapacityLimiter(1)
    async with joined() as (transport, other):
        stream = ciphers(Role.CLIENT)
        transport.use(stream)
        with (tmp_path / "file").open("rb") as file, monkeypatch.context() as patched:
            patched.setattr("cafsfs.transport.os.write", full)
            sent = 0
            while sent < 100_000:
                sent += await transport.send_file(
                    file.fileno(), sent, 100_000 - sent, deadline=LATE, limiter=limiter
                )
                assert stream.sending.position == sent
        transport.close()
        heard = b"".join([bytes(piece) async for piece in other])
    assert ciphers(Role.SERVER).receiving.convert(heard) == CONTENT[:100_000]
    assert len(calls) == 2 + bool(limit)


# --- between two commands


async def test_seems_alive() -> None:
    async with joined() as (transport, other):
        assert transport.seems_alive()
        await other.send_all(b"unasked")
        await wait_all_tasks_blocked(0.01)
        assert not transport.seems_alive()
        await recv(transport)
        assert transport.seems_alive()
        await other.send_eof()
        await wait_all_tasks_blocked(0.01)
        assert not transport.seems_alive()


async def test_does_not_seem_alive_after_a_reset() -> None:
    async with joined() as (transport, other):
        reset(other)
        await wait_all_tasks_blocked(0.01)
        assert not transport.seems_alive()
