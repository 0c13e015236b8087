"""Connections to one server: their number, their order, and which of them are kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client.connection import ServerConnection
from cafsfs.client.pool import MAX_IDLE, Pool
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Deadlines, Server
from cafsfs.errors import (
    CafsError,
    ConnectionBroken,
    ConnectTimedOut,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from tests.bad_server import BadServer, Fault, Phase, bad_server, pack
from tests.client.test_pipeline import greeting
from tests.client.test_transport import silent_address
from tests.server.stand import digest_of, take

ABSENT = digest_of(b"absent")


def pool_of(server: BadServer, limit: int = 2, *, reserve: int = 0) -> Pool:
    there = Server("127.0.0.1", server.port)
    connect = partial(ServerConnection.open, there, b"/root", Deadlines())
    return Pool(connect, name=server.address, limit=limit, reserve=reserve)


async def test_connects_when_asked_and_not_before() -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        assert (repr(pool), server.connections) == ("<Pool idle=0 free=2>", 0)
        first = await pool.acquire()
        second = await pool.acquire()
        assert (repr(pool), server.connections) == ("<Pool idle=0 free=0>", 2)
        pool.release(first)
        pool.release(second)
        assert repr(pool) == "<Pool idle=2 free=2>"
        assert await pool.acquire() is second  # the last one used, so that the other grows old
        assert repr(pool) == "<Pool idle=1 free=1>"
        pool.release(second)
        pool.close()
        assert repr(pool) == "<Pool idle=0 free=2>"


async def test_who_waits_is_served_in_order() -> None:
    served: list[int] = []

    async def use(number: int) -> None:
        connection = await pool.acquire()
        served.append(number)
        await wait_all_tasks_blocked()
        pool.release(connection)

    async with bad_server() as server:
        pool = pool_of(server, limit=1)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
        assert served == [0, 1, 2, 3, 4]
        assert server.connections == 1
        pool.close()


async def test_a_connection_in_the_middle_of_something_is_closed() -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        content = bytes(8 << 20)
        server.put(content)
        connection = await pool.acquire()
        await connection.pull(digest_of(content))
        pool.release(connection)
        assert repr(pool) == "<Pool idle=0 free=2>"
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


async def test_what_was_replaced_is_forgotten() -> None:
    """Else it would look as if something moved, and each would be kept for good."""
    async with bad_server() as server:
        pool = pool_of(server)
        dead = await pool.acquire()
        fresh = await pool.replace(dead)
        assert pool._busy == {fresh}
        pool.release(fresh)
        assert not pool._busy
        pool.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_the_server_closed_is_not_given_out(reset: bool) -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        dead = [await pool.acquire(), await pool.acquire()]
        for each in dead:
            pool.release(each)
        await server.hang_up(reset=reset)
        alive = await pool.acquire()
        assert alive not in dead
        assert server.connections == 3
        assert await alive.check([ABSENT]) == {ABSENT}
        pool.release(alive)
        pool.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_what_the_server_ended_while_it_was_idle_is_told_once(reset: bool) -> None:
    async with bad_server() as server:
        pool = pool_of(server, limit=3)
        connections = [await pool.acquire() for _ in range(3)]
        for each in connections[:2]:
            pool.release(each)
        assert not pool.hung_up()
        await server.hang_up(reset=reset)
        assert pool.hung_up()
        assert repr(pool) == "<Pool idle=0 free=2>"
        assert not pool.hung_up()  # of the third, who uses it will tell
        pool.release(connections[2])
        pool.close()


async def test_a_connection_on_which_something_came_unasked_is_not_given_out() -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        server.fault(Phase.CHECK, Fault(instead=b"NONENONE"))
        connection = await pool.acquire()
        assert await connection.check([ABSENT]) == {ABSENT}
        pool.release(connection)
        assert repr(pool) == "<Pool idle=0 free=2>"


async def test_a_connection_that_was_idle_for_too_long_is_closed(mock_clock: MockClock) -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        old, new = await pool.acquire(), await pool.acquire()
        pool.release(old)
        mock_clock.jump(MAX_IDLE / 2)
        pool.release(new)
        mock_clock.jump(MAX_IDLE / 2 + 1)
        assert await pool.acquire() is new
        assert repr(pool) == "<Pool idle=0 free=1>"
        await wait_all_tasks_blocked(0.01)
        assert (server.connections, server.open) == (2, 1)
        pool.release(new)
        pool.close()


async def test_the_place_is_free_again_where_connecting_fails() -> None:
    async with bad_server() as server:
        pool = pool_of(server, limit=1)
        server.fault(Phase.VERDICT, Fault(instead=b"ERBD"), times=1)
        with pytest.raises(ServerRefused):
            await pool.acquire()
        connection = await pool.acquire()
        server.fault(Phase.GREETING, Fault(then="close"), times=1)
        with pytest.raises(ConnectionBroken):
            await pool.replace(connection)
        assert repr(pool) == "<Pool idle=0 free=1>"


async def test_the_place_is_free_again_after_a_cancellation() -> None:
    async with bad_server() as server:
        pool = pool_of(server, limit=1)
        server.fault(Phase.GREETING, Fault(then="stall"))
        with trio.move_on_after(0.02):  # while connecting
            await pool.acquire()
        server.mend()
        connection = await pool.acquire()
        with trio.move_on_after(0.02):  # while waiting for a place
            await pool.acquire()
        pool.release(connection)
        assert repr(pool) == "<Pool idle=1 free=1>"
        pool.close()


@pytest.mark.parametrize("idle", [True, False])
async def test_the_place_is_free_again_for_who_is_cancelled_as_he_gets_it(idle: bool) -> None:
    async with bad_server() as server:
        pool = pool_of(server, limit=1)
        if idle:
            pool.release(await pool.acquire())
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.acquire()
        assert scope.cancelled_caught
        assert repr(pool) == f"<Pool idle={idle:d} free=1>"
        pool.close()


async def test_a_closed_pool_keeps_nothing() -> None:
    async with bad_server() as server:
        pool = pool_of(server)
        busy = await pool.acquire()
        pool.close()
        assert await busy.check([ABSENT]) == {ABSENT}  # who is at it may finish
        pool.release(busy)
        pool.release(await pool.acquire())
        assert repr(pool) == "<Pool idle=0 free=2>"
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


async def test_who_has_waited_a_moment_gets_one_of_the_reserve(
    jumping_clock: MockClock,
) -> None:
    got: list[tuple[float, ServerConnection]] = []

    async def use(pool: Pool) -> None:
        connection = await pool.acquire()
        got.append((trio.current_time() - began, connection))

    async with bad_server() as server, trio.open_nursery() as nursery:
        pool = pool_of(server, limit=1, reserve=2)
        began = trio.current_time()
        for _ in range(4):
            nursery.start_soon(use, pool)
        await trio.sleep(5)
        assert [at >= 0.25 for at, _ in got] == [False, True, True]
        pool.release(got[0][1])  # the fourth waits for it
        await trio.sleep(1)
        assert got[3][1] is got[0][1]
        assert server.connections == 3
        for _, connection in got[1:]:
            pool.release(connection)
        # No more are kept than usual, and the reserve is whole again.
        assert repr(pool) == "<Pool idle=1 free=1>"
        await trio.sleep(1)
        assert server.open == 1
        pool.close()


async def test_who_is_let_in_and_cannot_connect_leaves_no_place_behind(
    jumping_clock: MockClock,
) -> None:
    async with bad_server() as server:
        pool = pool_of(server, limit=1, reserve=1)
        first = await pool.acquire()
        server.fault(Phase.GREETING, Fault(then="close"), times=1)
        with pytest.raises(ConnectionBroken):
            await pool.acquire()
        second = await pool.acquire()
        assert server.connections == 3
        pool.release(second)
        pool.release(first)
        assert repr(pool) == "<Pool idle=1 free=1>"
        pool.close()


# --- pressure


class Line:
    """A connection that is as sound as a test says."""

    def __init__(self) -> None:
        self.reusable = True
        self.moved_at = -float("inf")

    def close(self) -> None:
        self.reusable = False


class Lines:
    """Connects when it is told to; ``pending`` are those who wait for that, in order."""

    def __init__(self) -> None:
        self.pending: deque[tuple[trio.Event, list[CafsError]]] = deque()
        self.all: list[Line] = []
        self.tries = 0

    async def connect(self) -> ServerConnection:
        self.tries += 1
        told: tuple[trio.Event, list[CafsError]] = (trio.Event(), [])
        self.pending.append(told)
        try:
            await told[0].wait()
        finally:
            if told in self.pending:
                self.pending.remove(told)
        if told[1]:
            raise told[1][0]
        self.all.append(Line())
        return cast(ServerConnection, self.all[-1])

    def tell(self, error: CafsError | None = None, at: int = 0) -> None:
        told = self.pending[at]
        del self.pending[at]
        if error is not None:
            told[1].append(error)
        told[0].set()


class Crowd:
    """Many who acquire from one pool, and what became of each, in order of what happened."""

    def __init__(self, pool: Pool, nursery: trio.Nursery) -> None:
        self._pool = pool
        self._nursery = nursery
        self.scopes: dict[int, trio.CancelScope] = {}
        self.holding: dict[int, ServerConnection] = {}
        self.new: list[int] = []  # of those who hold one
        self.failed: dict[int, tuple[CafsError, float]] = {}

    def come(self, number: int) -> None:
        self.scopes[number] = trio.CancelScope()
        self._nursery.start_soon(self._acquire, number)

    async def _acquire(self, number: int) -> None:
        with self.scopes[number]:
            try:
                self.holding[number] = await self._pool.acquire()
                self.new.append(number)
            except CafsError as error:
                self.failed[number] = error, trio.current_time()
        del self.scopes[number]


def pool_over(lines: Lines, limit: int, reserve: int = 0) -> Pool:
    return Pool(lines.connect, name="server:1", limit=limit, reserve=reserve, patience=30)


NOBODY = Unreachable("cannot connect to server:1: Connection refused")
LATE = ConnectTimedOut("no connection to server:1 within 5 s")


async def test_those_who_wait_while_connecting_fails_fail_with_it(nursery: trio.Nursery) -> None:
    lines = Lines()
    pool = pool_over(lines, limit=2)
    crowd = Crowd(pool, nursery)
    for number in range(50):
        crowd.come(number)
    await wait_all_tasks_blocked()
    lines.tell(NOBODY)
    await wait_all_tasks_blocked()
    assert len(crowd.failed) == 49  # and one still connects
    assert {str(error) for error, _ in crowd.failed.values()} == {str(NOBODY)}
    assert len({id(error) for error, _ in crowd.failed.values()}) == 49
    assert lines.tries == 2
    lines.tell()
    await wait_all_tasks_blocked()
    assert (len(crowd.holding), repr(pool)) == (1, "<Pool idle=0 free=1>")


async def test_one_tries_where_the_last_connect_failed(nursery: trio.Nursery) -> None:
    lines = Lines()
    crowd = Crowd(pool_over(lines, limit=4), nursery)
    crowd.come(0)
    await wait_all_tasks_blocked()
    lines.tell(NOBODY)
    await wait_all_tasks_blocked()
    for number in range(1, 10):
        crowd.come(number)
    await wait_all_tasks_blocked()
    assert len(lines.pending) == 1
    lines.tell()
    await wait_all_tasks_blocked()
    assert len(lines.pending) == 3  # it is back: all places are filled


async def test_who_waits_for_one_at_work_is_not_refused_with_another(
    nursery: trio.Nursery,
) -> None:
    """A server that lets no further connection in, and goes on with those that it has."""
    lines = Lines()
    pool = pool_over(lines, limit=2)
    crowd = Crowd(pool, nursery)
    for number in range(6):
        crowd.come(number)
        await wait_all_tasks_blocked()
        if number < 2:
            lines.tell()
            await wait_all_tasks_blocked()
    lines.all[0].moved_at = trio.current_time()
    lines.all[1].reusable = False
    pool.release(crowd.holding.pop(1))
    await wait_all_tasks_blocked()
    lines.tell(NOBODY)
    await wait_all_tasks_blocked()
    assert set(crowd.failed) == {2}
    pool.release(crowd.holding.pop(0))
    await wait_all_tasks_blocked()
    assert crowd.holding[4] is cast(ServerConnection, lines.all[0])  # the third is connecting
    lines.tell(LATE)  # that has cost all patience
    await wait_all_tasks_blocked()
    assert set(crowd.failed) == {2, 3, 5}


async def test_a_queue_in_which_nothing_moves_is_given_up(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    lines = Lines()
    crowd = Crowd(pool_over(lines, limit=1), nursery)
    crowd.come(0)
    await wait_all_tasks_blocked()
    lines.tell()
    for number in range(1, 20):
        crowd.come(number)
    for _ in range(10):  # a long transfer that moves
        await trio.sleep(20)
        lines.all[0].moved_at = trio.current_time()
    assert crowd.failed == {}
    await trio.sleep(40)
    assert len(crowd.failed) == 19
    for error, at in crowd.failed.values():
        assert isinstance(error, TimedOut)
        assert str(error) == (
            "no connection to server:1 was free for 30 s, and nothing moved on any of 1"
        )
        assert at == pytest.approx(230)


async def test_a_server_that_reads_a_large_blob_from_disk_is_not_standing_still(
    jumping_clock: MockClock,
) -> None:
    """Its answer to PULL may take long; who waits for the place knows."""
    packed = pack(bytes(1000))
    digest = digest_of(bytes(1000))

    async def answer(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(b"SIZE" + len(packed).to_bytes(8, "little"))
            await trio.sleep(40)
            await stream.send_all(take(digest, len(packed)) + packed)

    deadlines = Deadlines(answer=10, progress=10, disk_rate=20.0)
    async with greeting(answer) as port:
        remote = RemoteStore(Server("127.0.0.1", port), "/root", connections=1, deadlines=deadlines)

        async def fetch() -> None:
            async with remote.fetch(digest) as body:
                assert await body.readinto(memoryview(bytearray(2000))) == len(packed)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch)
        assert trio.current_time() - began == pytest.approx(120, abs=1)
        remote.close()


async def test_a_black_hole_costs_a_crowd_one_deadline(jumping_clock: MockClock) -> None:
    async with silent_address() as (host, port):
        remote = RemoteStore(Server(host, port), "/root", connections=4, reserve=252)
        errors: list[Exception] = []

        async def fetch() -> None:
            try:
                async with remote.fetch(ABSENT):
                    pass
            except ConnectTimedOut as error:
                errors.append(error)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(fetch)
        assert len(errors) == 200
        assert trio.current_time() - began < 6
        remote.close()


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.SIZE])
async def test_a_frozen_server_costs_a_crowd_of_questions_one_wait(
    phase: Phase, jumping_clock: MockClock
) -> None:
    """One that greets nobody five seconds, one that answers nobody as long as a body may stall."""
    async with bad_server() as server, trio.open_nursery() as parking:
        server.fault(phase, Fault(then="stall"))
        there = Server("127.0.0.1", server.port)
        remote = RemoteStore(there, "/root", parking=parking, deadlines=Deadlines())
        errors: list[Exception] = []

        async def ask() -> None:
            try:
                await remote.inspect(ABSENT)
            except TimedOut as error:
                errors.append(error)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
        assert len(errors) == 200
        assert trio.current_time() - began < (6 if phase is Phase.GREETING else 36)
        remote.close()
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "leave", "connect", "fail", "release", "spoil", "move", "wait"]),
        st.integers(0, 9),
        st.booleans(),  # in one turn of the event loop with the next step
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, limit=st.integers(1, 3), reserve=st.integers(0, 2))
def test_whatever_happens_the_places_add_up(
    steps: list[tuple[str, int, bool]], limit: int, reserve: int
) -> None:
    """Nobody is forgotten, nobody overtakes, and there are never more than there may be."""

    async def play() -> None:
        lines = Lines()
        pool = pool_over(lines, limit, reserve)
        async with trio.open_nursery() as nursery:
            crowd = Crowd(pool, nursery)
            for number, (step, choice, at_once) in enumerate(steps):
                if step == "come":  # two who come in one turn come in any order
                    await wait_all_tasks_blocked()
                _take_step(step, choice, number, crowd=crowd, lines=lines, pool=pool)
                if not at_once:
                    await wait_all_tasks_blocked()
                    check(pool, crowd, lines)
            for scope in list(crowd.scopes.values()):
                scope.cancel()
            await wait_all_tasks_blocked()
            for connection in crowd.holding.values():
                pool.release(connection)
        assert pool._used == pool._beyond == pool._connecting == 0
        assert not pool._waiting
        assert not pool._busy
        pool.close()
        assert not any(line.reusable for line in lines.all)

    def check(pool: Pool, crowd: Crowd, lines: Lines) -> None:
        connecting, waiting = len(lines.pending), len(pool._waiting)
        assert connecting == pool._connecting
        assert pool._used == connecting + len(crowd.holding) <= limit + pool._beyond
        assert pool._beyond <= reserve
        assert len(crowd.scopes) == connecting + waiting
        assert len(set(map(id, crowd.holding.values()))) == len(crowd.holding)
        # Who still waits came after whoever was let in.
        queue = sorted(crowd.scopes)[connecting:]
        assert not queue or not crowd.new or max(crowd.new) < min(queue)
        crowd.new.clear()
        # He waits for something: for a place, or for one who connects in vain so far.
        assert not waiting or pool._used >= limit or (pool._failing and connecting)

    trio.run(play, clock=MockClock())


def _take_step(
    step: str, choice: int, number: int, *, crowd: Crowd, lines: Lines, pool: Pool
) -> None:
    def one_of(some: Callable[[], object]) -> int:
        keys = sorted(cast(dict[int, object], some()))
        return keys[choice % len(keys)]

    clock = cast(MockClock, trio.lowlevel.current_clock())
    match step:
        case "come":
            crowd.come(number)
        case "leave" if crowd.scopes:
            crowd.scopes[one_of(lambda: crowd.scopes)].cancel()
        case "connect" if lines.pending:
            lines.tell(at=choice % len(lines.pending))
        case "fail" if lines.pending:
            lines.tell((NOBODY, LATE)[choice % 2], at=choice % len(lines.pending))
        case "release" | "spoil" if crowd.holding:
            connection = crowd.holding.pop(one_of(lambda: crowd.holding))
            cast(Line, connection).reusable &= step == "release"
            pool.release(connection)
        case "move" if crowd.holding:
            connection = crowd.holding[one_of(lambda: crowd.holding)]
            connection.moved_at = trio.current_time()
        case "wait":
            clock.jump(choice * 5 + 0.1)
