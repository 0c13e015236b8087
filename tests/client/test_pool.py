"""Connections to one server: their number, their order, and which of them are kept."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client.connection import ServerConnection
from cafsfs.client.pool import MAX_IDLE, Pool
from cafsfs.client.servers import Deadlines, Server
from cafsfs.errors import ConnectionBroken, ServerRefused
from tests.bad_server import BadServer, Fault, Phase, bad_server
from tests.server.stand import digest_of

ABSENT = digest_of(b"absent")


def pool_of(server: BadServer, limit: int = 2, *, reserve: int = 0) -> Pool:
    there = Server("127.0.0.1", server.port)
    connect = partial(ServerConnection.open, there, b"/root", Deadlines())
    return Pool(connect, limit=limit, reserve=reserve)


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
