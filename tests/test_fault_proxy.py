"""The fault proxy itself: without a fault nobody notices it, with one what was told happens."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.bad_server import BadServer, bad_server, pack
from tests.fault_proxy import Fault, FaultProxy, FaultProxyProcess, Phase, fault_proxy
from tests.server.stand import (
    GREETING,
    HELLO,
    RawClient,
    check,
    digest_of,
    pull,
    push,
    size,
    size_answer,
    take,
)

CONTENT = Random(1).randbytes(300_000)
DIGEST = digest_of(CONTENT)
PACKED = pack(CONTENT)
ABSENT = digest_of(b"nobody has this")
HELD = 0.02  # real seconds that sockets get to say what they have to say

# Everything that a server says: the greeting, answers of each length, and bodies.
SAID = GREETING + b"NONE" + b"NONE" + size_answer(len(PACKED)) + take(DIGEST, len(PACKED)) + PACKED
ASKED = HELLO + check(ABSENT) + size(DIGEST) + pull(DIGEST)


@asynccontextmanager
async def meeting() -> AsyncIterator[tuple[BadServer, FaultProxy]]:
    async with bad_server() as server, fault_proxy(server.address) as proxy:
        server.put(CONTENT)
        yield server, proxy


@asynccontextmanager
async def client_of(proxy: FaultProxy) -> AsyncIterator[RawClient]:
    async with RawClient(await trio.open_tcp_stream(proxy.host, proxy.port)) as client:
        yield client


async def heard(proxy: FaultProxy, said: bytes = ASKED, count: int = len(SAID)) -> bytes:
    async with client_of(proxy) as client:
        return await client.ask(said, count)


async def test_without_a_fault_nobody_notices_it() -> None:
    async with meeting() as (server, proxy):
        async with client_of(proxy) as client:
            assert await client.ask(ASKED, len(SAID)) == SAID
            assert await client.ask(push(ABSENT, bytes(100_000))) == b"HAVE"
            assert await client.ask(check(ABSENT)) == b"HAVE"
            assert (proxy.open, proxy.stuck, server.open) == (1, 0, 1)
        await wait_all_tasks_blocked(HELD)
        assert (proxy.open, server.open) == (0, 0)
        assert (proxy.connections, server.connections) == (1, 1)


async def test_either_side_may_leave() -> None:
    async with meeting() as (server, proxy), client_of(proxy) as client:
        await client.ask(HELLO, 24)
        await server.hang_up()
        assert await client.hear_all() == b""
        await wait_all_tasks_blocked(HELD)
        assert proxy.open == 0


@pytest.mark.parametrize("step", [1, 3, 4, 53, 54, 1000])
def test_phases_are_known_however_the_bytes_come(step: int) -> None:
    from tests.fault_proxy import _Answers

    answers = _Answers()
    said = SAID + b"NONE" + take(DIGEST, 0) + b"HAVE"
    seen = []
    for at in range(0, len(said), step):
        seen += list(answers.split(said[at : at + step]))
    assert b"".join(part for _, part in seen) == said
    ends = itertools.accumulate(len(part) for _, part in seen)
    begins = {end - len(part): phase for (phase, part), end in zip(seen, ends, strict=True)}
    assert [(at, phase) for at, phase in begins.items() if phase is not None] == [
        (0, Phase.GREETING),
        (24, Phase.ANSWER),
        (28, Phase.ANSWER),
        (40, Phase.ANSWER),
        (94, Phase.BODY),
        (len(SAID), Phase.ANSWER),
        (len(SAID) + 4, Phase.ANSWER),
        (len(SAID) + 58, Phase.ANSWER),
    ]


# Of what is said, how much comes before a fault at byte 2 of the first such phase.
BEFORE = {Phase.GREETING: 2, Phase.ANSWER: 26, Phase.BODY: 96}


@pytest.mark.parametrize("phase", BEFORE)
async def test_a_byte_is_flipped_where_it_was_told(phase: Phase) -> None:
    async with meeting() as (_, proxy):
        proxy.fault(phase, Fault(spoil=2), times=1)
        at = BEFORE[phase]
        expected = SAID[:at] + bytes([SAID[at] ^ 0xFF]) + SAID[at + 1 :]
        assert await heard(proxy) == expected
        assert proxy.struck == {phase.value: 1}
        assert await heard(proxy) == SAID


async def test_every_so_many_bytes_one_is_flipped() -> None:
    async with meeting() as (_, proxy):
        proxy.fault(Phase.BODY, Fault(spoil=100, every=1000))
        spoilt = await heard(proxy)
        wrong = [at for at in range(len(SAID)) if spoilt[at] != SAID[at]]
        assert wrong == list(range(94 + 100, len(SAID), 1000))


@pytest.mark.parametrize("phase", BEFORE)
@pytest.mark.parametrize("then", ["close", "reset", "refuse"])
async def test_a_connection_ends_where_it_was_told(phase: Phase, then: Any) -> None:
    async with meeting() as (server, proxy):
        proxy.fault(phase, Fault(after=2, then=then))
        async with client_of(proxy) as client:
            await client.say(ASKED)
            got = await client.hear_all()
        if then == "close":
            assert got == SAID[: BEFORE[phase]]
        assert SAID[: BEFORE[phase]].startswith(got)  # a reset may overtake what was said before it
        await wait_all_tasks_blocked(HELD)
        assert (proxy.open, server.open) == (0, 0)
        if then == "refuse":
            await is_refused(proxy)


async def is_refused(proxy: FaultProxy) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(proxy.host, proxy.port)
    proxy.mend()
    assert await heard(proxy) == SAID


@pytest.mark.parametrize("phase", BEFORE)
async def test_what_stalls_goes_on_when_it_is_mended(
    phase: Phase, jumping_clock: MockClock
) -> None:
    async with meeting() as (_, proxy), client_of(proxy) as client:
        proxy.fault(phase, Fault(after=2, then="stall"))
        await client.say(ASKED)
        with trio.move_on_after(3600):
            await client.hear(BEFORE[phase])
            pytest.fail(f"more was heard: {await client.hear(1)!r}")
        assert (proxy.open, proxy.stuck) == (1, 1)
        proxy.mend()
        assert await client.hear(len(SAID) - BEFORE[phase]) == SAID[BEFORE[phase] :]
        assert proxy.stuck == 0


@pytest.mark.parametrize("then", ["black-hole", "vanish"])
@pytest.mark.parametrize("phase", BEFORE)
async def test_what_is_lost_is_lost_for_good(
    phase: Phase, then: Any, jumping_clock: MockClock
) -> None:
    async with meeting() as (server, proxy), client_of(proxy) as client:
        proxy.fault(phase, Fault(after=2, then=then))
        await client.say(ASKED)
        assert await client.hear(BEFORE[phase]) == SAID[: BEFORE[phase]]
        await client.say(bytes(1 << 20))  # is taken
        with trio.move_on_after(3600):
            pytest.fail(f"more was heard: {await client.hear(1)!r}")
        assert (proxy.open, proxy.stuck) == (1, 1)
        if then == "vanish":
            await is_not_answered(proxy)
        proxy.mend()
        assert await heard(proxy) == SAID
        assert proxy.stuck == 1
        proxy.hang_up()
        assert await client.hear_all() == b""
        await wait_all_tasks_blocked(HELD)
        assert (proxy.open, server.open) == (0, 0)


async def is_not_answered(proxy: FaultProxy) -> None:
    with trio.move_on_after(3600) as waiting:
        await trio.open_tcp_stream(proxy.host, proxy.port)
    assert waiting.cancelled_caught


Does = Callable[[FaultProxy], Any]
AT_CONNECT: dict[str, Does] = {
    "refuse": is_refused,
    "vanish": is_not_answered,
}


@pytest.mark.parametrize("then", AT_CONNECT)
async def test_a_port_refuses_or_is_silent(then: Any, jumping_clock: MockClock) -> None:
    async with meeting() as (_, proxy), client_of(proxy) as client:
        await client.ask(HELLO, 24)
        proxy.fault(Phase.CONNECT, Fault(then=then))
        await AT_CONNECT[then](proxy)
        proxy.mend()
        assert await heard(proxy) == SAID
        assert await client.ask(check(DIGEST)) == b"HAVE"  # this one was not concerned


@pytest.mark.parametrize("then", ["stall", "black-hole"])
async def test_a_client_of_a_silent_line_may_leave(then: Any) -> None:
    async with meeting() as (server, proxy):
        proxy.fault(Phase.CONNECT, Fault(then=then))
        async with client_of(proxy) as client:
            await client.say(HELLO)
            await wait_all_tasks_blocked(HELD)
            assert (proxy.open, proxy.stuck, server.connections) == (1, 1, 0)
        await wait_all_tasks_blocked(HELD)
        assert proxy.open == 0


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_connection_ends_before_a_word_is_said(then: Any) -> None:
    async with meeting() as (server, proxy):
        proxy.fault(Phase.CONNECT, Fault(then=then), times=1)
        async with client_of(proxy) as client:
            assert await client.hear_all() == b""
        assert server.connections == 0
        assert await heard(proxy) == SAID


async def test_a_server_that_is_not_there_is_a_reset() -> None:
    async with bad_server() as server:
        address = server.address
    async with fault_proxy(address) as proxy, client_of(proxy) as client:
        assert await client.hear_all() == b""
        await wait_all_tasks_blocked(HELD)
        assert proxy.open == 0


@pytest.mark.parametrize("phase", [Phase.CONNECT, *BEFORE])
async def test_what_is_delayed_comes_late_but_comes(phase: Phase, jumping_clock: MockClock) -> None:
    async with meeting() as (_, proxy):
        proxy.fault(phase, Fault(delay=100), times=1)
        began = trio.current_time()
        assert await heard(proxy) == SAID
        assert 100 <= trio.current_time() - began < 110


async def test_what_drips_comes_drop_by_drop(jumping_clock: MockClock) -> None:
    async with meeting() as (_, proxy):
        proxy.fault(Phase.BODY, Fault(drip=(100_000, 10)))
        began = trio.current_time()
        async with client_of(proxy) as client:
            assert await client.ask(ASKED, 94 + 1) == SAID[: 94 + 1]
            assert trio.current_time() - began < 10
            await client.hear(len(PACKED) - 1)
        # Pieces of 64 KiB or less, each a drop.
        assert trio.current_time() - began >= 10 * 4


async def test_an_upload_breaks_where_it_was_told() -> None:
    async with meeting() as (server, proxy):
        proxy.fault(Phase.REQUEST, Fault(after=100_000, then="reset"), times=1)
        async with client_of(proxy) as client:
            await client.say(HELLO + push(ABSENT, bytes(200_000)))
            await client.hear_all()
        await wait_all_tasks_blocked(HELD)
        assert ABSENT.raw not in server.blobs
        assert await heard(proxy, HELLO + push(ABSENT, bytes(200_000)) + check(ABSENT), 32)
        assert ABSENT.raw in server.blobs


@pytest.mark.process
def test_it_runs_as_a_process(tmp_path: Path) -> None:
    async def run() -> None:
        async with bad_server() as server:
            server.put(CONTENT)
            await trio.to_thread.run_sync(talk, server, trio.lowlevel.current_trio_token())

    def talk(server: BadServer, token: trio.lowlevel.TrioToken) -> None:
        def ask() -> bytes:
            return trio.from_thread.run(ask_at, proxy.address, trio_token=token)

        with FaultProxyProcess(server.address, host="127.0.0.2") as proxy:
            proxy.fault(Phase.BODY, Fault(spoil=0), times=1)
            assert ask() != SAID
            assert ask() == SAID
            proxy.fault(Phase.GREETING, Fault(after=5, then="close"))
            assert ask() == SAID[:5]
            proxy.mend()
            proxy.hang_up(reset=True)
            proxy.freeze()
            proxy.thaw()
            assert proxy.counts() == {
                "connections": 3,
                "open": 0,
                "stuck": 0,
                "struck": {"body": 1, "greeting": 1},
            }

    async def ask_at(address: str) -> bytes:
        host, _, port = address.rpartition(":")
        async with RawClient(await trio.open_tcp_stream(host, int(port))) as client:
            return await client.ask(ASKED, len(SAID))

    trio.run(run)
