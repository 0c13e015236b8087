"""Bodies whose connection breaks in the middle, and that go on where the same bytes are had."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Server
from cafsfs.errors import ConnectionBroken, ConnectTimedOut, TimedOut, Unreachable
from cafsfs.store.contracts import PackedBody
from cafsfs.store.memory import MemorySink
from cafsfs.store.unpacking import UnpackingStore
from tests.bad_server import MIB, BadServer, Fault, Phase, bad_server, pack
from tests.server.stand import digest_of, serving

CONTENT = Random(1).randbytes(8 * MIB)
DIGEST = digest_of(CONTENT)
PACKED = pack(CONTENT)


async def read(body: PackedBody, count: int) -> bytes:
    packed = bytearray(count)
    view = memoryview(packed)
    while view and (got := await body.readinto(view)):
        view = view[got:]
    return bytes(packed[: count - len(view)])


BREAKS = [
    pytest.param(at, then, id=f"{at}-{then}")
    for at in (MIB, MIB + 1, 3 * MIB - 1, 5 * MIB + 12345, len(PACKED) - 1)
    for then in ("close", "reset")
]


def breaks(at: int, then: Any = "close") -> Fault:
    return Fault(after=at, then=then)


@asynccontextmanager
async def meeting(ranges: str = "sound", **options: Any) -> AsyncIterator[tuple[BadServer, Any]]:
    async with bad_server(ranges=ranges) as server:
        remote = RemoteStore(Server("127.0.0.1", server.port), "/root", **options)
        server.put(CONTENT)
        try:
            yield server, remote
        finally:
            remote.close()


async def fetched(remote: RemoteStore) -> bytes:
    async with remote.fetch(DIGEST) as body:
        assert body.length == len(PACKED)
        return await read(body, len(PACKED) + 1)


@pytest.mark.parametrize(("at", "then"), BREAKS)
async def test_a_body_goes_on_where_it_broke(at: int, then: str) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(at, then), times=1)
        assert await fetched(remote) == PACKED
        if then == "close" and at > MIB:  # a reset throws away what was not read yet
            assert server.pulls == 1
        await wait_all_tasks_blocked(0.01)
        assert server.open == 1  # and is kept: it is as good as any


async def test_only_what_is_missing_is_sent_again() -> None:
    async with meeting() as (server, remote):
        server.fault(Phase.BODY, breaks(6 * MIB + 1), times=1)
        await fetched(remote)
        await server.hang_up()
        assert sum(server.travelled) < len(PACKED) + MIB + (64 << 10)


async def test_the_server_is_tested_then_where_it_was_not_before() -> None:
    async with meeting() as (server, remote):
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        assert await fetched(remote) == PACKED
        assert (server.pulls, server.ranged) == (1, 2 + 2)


async def test_a_deployed_server_is_not_asked_to_go_on() -> None:
    async with meeting("broken") as (server, remote):
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        with pytest.raises(ConnectionBroken):
            await fetched(remote)
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0
        for _ in range(2):
            server.fault(Phase.BODY, breaks(5 * MIB), times=1)
            with pytest.raises(ConnectionBroken):
                await fetched(remote)
        assert (server.pulls, server.ranged) == (3, 1)
        assert await fetched(remote) == PACKED


async def test_below_a_mebibyte_it_begins_anew() -> None:
    async with meeting() as (server, remote):
        server.fault(Phase.BODY, breaks(MIB - 1), times=1)
        with pytest.raises(ConnectionBroken):
            await fetched(remote)
        assert (server.pulls, server.ranged) == (1, 0)


REPLACEMENTS = {
    "another length": pack(CONTENT, "zstd", level=1),
    "another header": pack(CONTENT, flags=1),
    "nothing": None,
    "shorter than what was read": pack(bytes(100)),
}


@pytest.mark.parametrize("packed", REPLACEMENTS.values(), ids=list(REPLACEMENTS))
async def test_a_blob_that_was_replaced_is_not_spliced(packed: bytes | None) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB + 1), times=1)
        async with remote.fetch(DIGEST) as body:
            if packed is None:
                del server.blobs[DIGEST.raw]
            else:
                server.have(DIGEST.hex, packed)
            assert await read(body, 5 * MIB + 1) == PACKED[: 5 * MIB + 1]
            with pytest.raises(ConnectionBroken):  # what RetryingStore begins anew
                await read(body, 1)
        await wait_all_tasks_blocked(0.01)
        assert server.open <= 1


async def test_other_bytes_than_before_are_not_gone_on_with(
    expect_log: Callable[[str], None],
) -> None:
    """The length and the header are the same: only a broken server does that."""
    expect_log("WARNING cafsfs.client.ranges: a body .* has other bytes there; asking .* no more")
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB + 1), times=1)
        server.fault(Phase.BODY, Fault(spoil=0), skip=1, times=1)
        with pytest.raises(ConnectionBroken):
            await fetched(remote)
        ranged = server.ranged
        server.fault(Phase.BODY, breaks(5 * MIB + 1), times=1)
        with pytest.raises(ConnectionBroken):
            await fetched(remote)
        assert server.ranged == ranged


async def test_a_server_that_falls_out_of_step_is_not_gone_on_with(
    expect_log: Callable[[str], None],
) -> None:
    expect_log("WARNING cafsfs.client.ranges: .* for no more ranges")
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.ranges = "broken"
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        with pytest.raises(ConnectionBroken):
            await fetched(remote)


async def test_the_hash_decides_whatever_way_the_bytes_came() -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(3 * MIB), times=1)
        server.fault(Phase.BODY, breaks(3 * MIB), skip=1, times=1)
        sink = MemorySink()
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(1))
        assert (await store.pull(DIGEST, sink)).size == len(CONTENT)
        assert bytes(sink.content) == CONTENT
        assert server.pulls == 1


class CutLine:
    """A line to a server; its first ``cuts`` connections end after so many bytes of answers."""

    def __init__(self, port: int, *, cuts: int, after: int) -> None:
        self._port = port
        self._cuts = cuts
        self._after = after
        self.brought = 0

    async def join(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._say, client, server)
            with suppress(trio.BrokenResourceError):
                await self._answer(server, client)
            nursery.cancel_scope.cancel()

    async def _say(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in client:
                await server.send_all(data)

    async def _answer(self, server: trio.SocketStream, client: trio.SocketStream) -> None:
        passed = 0
        async for data in server:
            passed += len(data)
            if self._cuts and passed > self._after:
                self._cuts -= 1
                return
            await client.send_all(data)
            self.brought += len(data)


async def test_a_pull_from_our_server_over_a_line_that_is_cut(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path) as stand:
        digest = stand.keep_content(CONTENT)
        line = CutLine(stand.port, cuts=2, after=3 * MIB)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, line.join, [listener])
        remote = RemoteStore(Server("127.0.0.1", listener.socket.getsockname()[1]), "/root")
        sink = MemorySink()
        await UnpackingStore(remote, limiter=trio.CapacityLimiter(1)).pull(digest, sink)
        assert bytes(sink.content) == CONTENT
        assert line.brought < len(PACKED) + 2 * (MIB + (64 << 10))
        remote.close()


# --- how often


async def test_it_goes_on_as_long_as_it_moves(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(2 * MIB), times=1)
        for number in range(1, 6):  # between two bodies that break comes a header
            server.fault(Phase.BODY, breaks(2 * MIB), skip=number, times=1)
        assert await fetched(remote) == PACKED
        assert server.pulls == 1


async def test_it_is_given_up_when_it_does_not_move(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(2 * MIB + 1), times=1)
        server.fault(Phase.BODY, breaks(10))
        with pytest.raises(ConnectionBroken):
            await fetched(remote)
        await wait_all_tasks_blocked(0.01)
        assert server.ranged == 3 + 3  # three attempts, each ended at the header
        assert server.open == 0


async def test_a_server_that_is_restarted_meanwhile(jumping_clock: MockClock) -> None:
    """At first it hangs up on whoever connects."""
    async with meeting(connections=1) as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        server.fault(Phase.GREETING, Fault(then="reset"), times=1)
        assert await fetched(remote) == PACKED
        assert await fetched(remote) == PACKED  # the only place of the pool is free again


async def test_a_server_that_is_gone(jumping_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = BadServer(ranges="sound")
        await nursery.start(server.serve)
        remote = RemoteStore(Server("127.0.0.1", server.port), "/root", connections=1)
        server.put(CONTENT)
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        with trio.CancelScope(shield=True):
            async with remote.fetch(DIGEST) as body:
                assert await read(body, 4 * MIB) == PACKED[: 4 * MIB]
                nursery.cancel_scope.cancel()
                with pytest.raises(Unreachable):
                    await read(body, len(PACKED))
            with pytest.raises(Unreachable):  # the only place of the pool is free again
                await fetched(remote)
        remote.close()


async def test_a_server_that_freezes_has_its_deadline(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        server.fault(Phase.BODY, Fault(then="stall"), skip=1)
        began = trio.current_time()
        with pytest.raises(TimedOut, match="nothing for 10 s"):  # before it said where it goes on
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(10, abs=1)


# --- stalls


async def test_a_body_that_stalls_goes_on_over_a_fresh_connection(jumping_clock: MockClock) -> None:
    async with meeting(connections=1) as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB, "stall"), times=1)
        began = trio.current_time()
        assert await fetched(remote) == PACKED
        assert trio.current_time() - began == pytest.approx(10, abs=1)
        assert server.pulls == 1
        await wait_all_tasks_blocked(0.01)
        assert server.open == 1


async def test_each_mebibyte_may_stall_once(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(2 * MIB, "stall"), times=1)
        for number in range(1, 5):  # between two bodies that stall comes a header
            server.fault(Phase.BODY, breaks(2 * MIB, "stall"), skip=number, times=1)
        assert await fetched(remote) == PACKED
        assert server.pulls == 1


async def test_who_stalls_twice_has_the_usual_time_in_all(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB + 1, "stall"), times=1)
        server.fault(Phase.BODY, breaks(MIB // 2, "stall"), skip=1)
        began = trio.current_time()
        with pytest.raises(TimedOut, match="nothing for"):
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        assert server.ranged == 1 + 2 + 2
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


async def test_a_stall_and_no_further_answer_have_the_usual_time_in_all(
    jumping_clock: MockClock,
) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB, "stall"), times=1)
        server.fault(Phase.PULL, Fault(then="stall"), skip=2)
        began = trio.current_time()
        with pytest.raises(TimedOut, match="nothing for 10 s"):
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


@pytest.mark.parametrize(("ranges", "at"), [("broken", 5 * MIB), ("sound", MIB - 1)])
async def test_a_stall_that_cannot_be_gone_round_has_all_its_time(
    ranges: str, at: int, jumping_clock: MockClock
) -> None:
    async with meeting(ranges) as (server, remote):
        await remote.inspect(DIGEST)
        await wait_all_tasks_blocked(0.01)
        pulls = server.pulls
        server.fault(Phase.BODY, breaks(at, "stall"), times=1)
        began = trio.current_time()
        with pytest.raises(TimedOut, match=r"(nothing for|bytes in) 30 s"):
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(30, abs=1)
        assert server.pulls == pulls + 1


async def test_a_stall_that_ends_in_time_is_forgotten(jumping_clock: MockClock) -> None:
    async with meeting("broken") as (server, remote):
        server.fault(Phase.BODY, Fault(drip=(4 * MIB, 25)), times=1)
        assert await fetched(remote) == PACKED
        assert server.connections == 1


async def test_a_stall_of_a_server_that_greets_nobody_any_more(jumping_clock: MockClock) -> None:
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB, "stall"), times=1)
        server.fault(Phase.GREETING, Fault(then="stall"))
        began = trio.current_time()
        with pytest.raises(ConnectTimedOut):
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(15, abs=1)


async def test_a_server_that_greets_nobody_any_more_is_tried_once(
    jumping_clock: MockClock,
) -> None:
    """Its deadline is longer than all pauses: another server may have its turn."""
    async with meeting() as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        server.fault(Phase.GREETING, Fault(then="stall"))
        began = trio.current_time()
        with pytest.raises(ConnectTimedOut):
            await fetched(remote)
        assert trio.current_time() - began == pytest.approx(5, abs=1)


@pytest.mark.parametrize(
    ("phase", "skip"),
    [(Phase.GREETING, 0), (Phase.SIZE, 1), (Phase.PULL, 1), (Phase.BODY, 0), (Phase.BODY, 1)],
)
async def test_cancelled_while_going_on(phase: Phase, skip: int) -> None:
    async with meeting(connections=1) as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        server.fault(phase, Fault(then="stall"), skip=skip, times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetched, remote)
            await wait_all_tasks_blocked(0.02)
            assert nursery.child_tasks
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0
        assert await fetched(remote) == PACKED
        assert server.open == 1


@pytest.mark.parametrize(
    ("phase", "skip"),
    [(Phase.GREETING, 0), (Phase.SIZE, 1), (Phase.PULL, 1), (Phase.BODY, 0), (Phase.BODY, 1)],
)
async def test_a_read_that_was_cancelled_while_going_on_has_read_nothing(
    phase: Phase, skip: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A pump that waits for a while gives its buffer back, and reads into another."""
    caplog.set_level(logging.INFO, "cafsfs.client.resuming")
    async with meeting(connections=1) as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.BODY, breaks(5 * MIB), times=1)
        server.fault(phase, Fault(then="stall"), skip=skip, times=1)
        async with remote.fetch(DIGEST) as body:
            packed = await read(body, 5 * MIB)
            with trio.move_on_after(0.05) as scope:
                await body.readinto(memoryview(bytearray(MIB)))
            assert scope.cancelled_caught
            assert packed + await read(body, len(PACKED)) == PACKED
    if (phase, skip) != (Phase.BODY, 1):  # there the second connection broke, too
        [line] = [each.getMessage() for each in caplog.records]
        assert "closed the connection; going on from byte" in line
