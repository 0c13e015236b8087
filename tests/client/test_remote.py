"""The store behind one server: probes, lanes, and connections that turn out dead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client.remote import SMALL, RemoteStore
from cafsfs.client.servers import Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    ConnectionBroken,
    CorruptBlob,
    Crowded,
    RangeError,
    ServerRefused,
    TimedOut,
    UsageError,
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
LARGE = Random(1).randbytes(8 << 20)

STALL = Fault(then="stall")
RESET = Fault(then="reset")
CLOSE = Fault(then="close")


@asynccontextmanager
async def remote_of(server: BadServer, **options: Any) -> AsyncIterator[RemoteStore]:
    remote = RemoteStore(Server("127.0.0.1", server.port), "/root", **options)
    try:
        yield remote
    finally:
        remote.close()


async def fetched(remote: RemoteStore, digest: Digest = DIGEST) -> bytes:
    packed = b""
    buffer = memoryview(bytearray(1 << 16))
    async with remote.fetch(digest) as body:
        while count := await body.readinto(buffer):
            packed += buffer[:count]
        assert len(packed) == body.length
    return packed


async def judged(remote: RemoteStore, server: BadServer) -> None:
    """Let the server be tested for sound ranges, which happens once, and forget what that cost."""
    server.put(CONTENT)
    with suppress(RangeError):
        async with remote.fetch(DIGEST, offset=16):
            pass
    await wait_all_tasks_blocked(0.01)
    server.connections = server.open
    server.commands.clear()
    server.ranged = 0
    server.travelled.clear()


# --- questions


async def test_thousands_of_checks_are_one_connection_and_a_few_round_trips() -> None:
    digests = [digest_of(b"%d" % number) for number in range(2500)]
    async with bad_server() as server, remote_of(server) as remote:
        for number in range(0, 2500, 2):
            server.put(b"%d" % number)
        assert await remote.find_absent(digests) == set(digests[1::2])
        assert (server.connections, server.commands) == (1, {"CHCK": 2500})


async def test_nothing_to_check_needs_no_server() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        assert await remote.find_absent([]) == set()
        assert server.connections == 0


async def test_a_small_blob_is_not_probed() -> None:
    content = bytes(SMALL - 16)
    async with bad_server() as server, remote_of(server) as remote:
        server.put(content)
        assert await remote.inspect(digest_of(content)) == PackedStat(SMALL, None)
        assert (server.connections, server.commands) == (1, {"SIZE": 1})


async def test_size_of_an_absent_blob_is_four_bytes_and_the_connection_is_kept() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        for _ in range(3):
            with pytest.raises(BlobNotFound), trio.fail_after(5):
                await remote.inspect(ABSENT)
        assert (server.connections, server.open) == (1, 1)


@pytest.mark.parametrize("how", ["none", "zstd", "zlib", "none-asyncio", "zstd-asyncio"])
async def test_a_probe_of_a_large_blob_costs_a_few_kilobytes(how: str) -> None:
    packed = pack(LARGE, how)
    async with bad_server() as server, remote_of(server) as remote:
        await judged(remote, server)
        server.have(DIGEST.hex, packed)
        stat = await remote.inspect(DIGEST)
        await wait_all_tasks_blocked(0.01)
        assert stat.length == len(packed)
        assert stat.header is not None
        assert stat.header.compression is Compression[how.partition("-")[0].upper()]
        assert stat.header.content_length == (None if "asyncio" in how else len(LARGE))
        # The connection for questions is open still; the probe was closed.
        assert (server.connections, server.open) == (2, 1)
        [travelled] = server.travelled
        assert travelled < 16 << 10


async def test_a_blob_that_is_recompressed_between_size_and_probe_has_one_length() -> None:
    packed = pack(LARGE, "zstd", flags=1, level=1)
    async with bad_server() as server, remote_of(server) as remote:
        server.put(LARGE)
        server.recompress_after_size(digest_of(LARGE).hex, packed)
        stat = await remote.inspect(digest_of(LARGE))
        assert stat.length == len(packed)
        assert stat.header is not None
        assert stat.header.recompressed


async def test_a_blob_that_goes_between_size_and_probe_is_absent() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        server.put(LARGE)
        server.fault(Phase.PULL, Fault(instead=b"NONE"))
        with pytest.raises(BlobNotFound):
            await remote.inspect(digest_of(LARGE))


async def test_two_probes_at_once_are_enough() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        server.put(LARGE)
        server.fault(Phase.PULL, STALL)
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(remote.inspect, digest_of(LARGE))
            await wait_all_tasks_blocked(0.02)
            assert server.commands["PULL"] == 2
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked(0.01)
        server.mend()
        assert (await remote.inspect(digest_of(LARGE))).length == len(LARGE) + 16


async def test_a_probe_that_gets_no_turn_says_nothing_of_the_server(
    jumping_clock: MockClock,
) -> None:
    async with bad_server() as server, remote_of(server) as remote:
        await judged(remote, server)
        server.put(LARGE)
        lesser = server.put(LARGE[: SMALL + 1])
        server.fault(Phase.PULL, STALL)
        async with trio.open_nursery() as nursery:
            for _ in range(2 + 8):
                nursery.start_soon(remote.inspect, digest_of(LARGE))
            await wait_all_tasks_blocked(0.02)
            with pytest.raises(Crowded, match="busy with other probes for 30 s"):
                await remote.inspect(Digest.parse(lesser))
            assert server.commands["PULL"] == 2 + 8
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stuck", [2, 8])
async def test_probes_that_are_never_answered_do_not_hold_up_the_others(
    jumping_clock: MockClock, stuck: int
) -> None:
    """A lookup has five seconds, and most of them are left when its turn comes."""
    async with bad_server() as server, remote_of(server) as remote:
        await judged(remote, server)
        server.put(LARGE)
        server.fault(Phase.PULL, STALL, times=stuck)
        failed: list[float] = []

        async def in_vain(nobody: Digest) -> None:
            with pytest.raises(TimedOut):
                await remote.inspect(nobody)
            failed.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for number in range(stuck):
                if number and number % 2 == 0:
                    await trio.sleep(2.2)
                nobody = Digest.parse(server.put(LARGE[: 2 * SMALL + number]))
                nursery.start_soon(in_vain, nobody)
            await trio.sleep(0.1)
            for _ in range(3):
                asked = trio.current_time()
                assert (await remote.inspect(digest_of(LARGE))).length == len(LARGE) + 16
                assert trio.current_time() - asked < 4
            assert not failed
        assert len(failed) == stuck
        assert (remote._probes.value, remote._late_probes.value) == (2, 8)


async def test_questions_do_not_queue_behind_bodies(nursery: trio.Nursery) -> None:
    lanes = {"connections": 1, "parking": nursery}
    async with bad_server() as server, remote_of(server, **lanes) as remote:
        server.put(CONTENT)
        async with remote.fetch(DIGEST):
            with trio.fail_after(5):
                assert (await remote.inspect(DIGEST)).length == len(PACKED)
                assert await remote.find_absent([DIGEST]) == set()
        assert server.connections == 2


async def test_a_fetch_goes_on_with_the_parked_probe(nursery: trio.Nursery) -> None:
    async with bad_server() as server, remote_of(server, parking=nursery) as remote:
        server.put(LARGE)
        stat = await remote.inspect(digest_of(LARGE))
        assert await fetched(remote, digest_of(LARGE)) == pack(LARGE)
        assert stat.length == len(LARGE) + 16
        assert server.pulls == 1
        await fetched(remote, digest_of(LARGE))
        assert server.pulls == 2


async def test_a_parked_probe_is_given_up_after_a_while(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the sockets are real
    async with bad_server() as server, remote_of(server, parking=nursery) as remote:
        server.put(LARGE)
        await judged(remote, server)
        await remote.inspect(digest_of(LARGE))
        await trio.sleep(2.5)
        assert "parked=0" in repr(remote)
        [travelled] = server.travelled
        assert travelled < 16 << 10
        await fetched(remote, digest_of(LARGE))
        assert server.pulls == 2


async def test_the_oldest_parked_probe_makes_room(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    blobs = [LARGE + bytes([each]) for each in range(6)]
    async with bad_server() as server, remote_of(server, parking=nursery) as remote:
        for blob in blobs:
            server.put(blob)
            await remote.inspect(digest_of(blob))
        assert "parked=4" in repr(remote)
        for blob in reversed(blobs):
            assert await fetched(remote, digest_of(blob)) == pack(blob)
        assert server.pulls == len(blobs) + 2


# --- bodies


async def test_fetch_and_deposit() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        await remote.deposit(DIGEST, lambda: MemoryBody(PACKED))
        assert await fetched(remote) == PACKED
        with pytest.raises(BlobNotFound):
            await fetched(remote, ABSENT)
        assert server.connections == 1


async def test_deployed_servers_are_not_asked_for_ranges() -> None:
    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        await judged(remote, server)
        for offset, length in ((0, 16), (1 << 20, None), (16, 1)):
            with pytest.raises(RangeError):
                async with remote.fetch(DIGEST, offset=offset, length=length):
                    pass
        assert (server.connections, server.ranged) == (1, 0)


async def test_a_body_that_is_given_up_costs_its_connection_and_no_place() -> None:
    async with bad_server() as server, remote_of(server, connections=1) as remote:
        server.put(LARGE)
        for _ in range(3):
            async with remote.fetch(digest_of(LARGE)):
                pass
        await wait_all_tasks_blocked(0.01)
        assert (server.connections, server.open) == (3, 0)


async def test_a_connection_that_brought_wrong_bytes_is_not_used_again() -> None:
    async def use() -> None:
        async with remote.fetch(DIGEST) as body:
            assert await body.readinto(memoryview(bytearray(1 << 16))) == len(PACKED)
            raise CorruptBlob("says who looked at them")

    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        with pytest.raises(CorruptBlob):
            await use()
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


# --- connections that turn out dead

Operation = Callable[[RemoteStore], Awaitable[Any]]
OPERATIONS: dict[str, tuple[Operation, Phase]] = {
    "find_absent": (lambda remote: remote.find_absent([DIGEST]), Phase.CHECK),
    "inspect": (lambda remote: remote.inspect(DIGEST), Phase.SIZE),
    "fetch": (fetched, Phase.SIZE),
    "deposit": (lambda remote: remote.deposit(DIGEST, lambda: MemoryBody(PACKED)), Phase.STORED),
}
each_operation = pytest.mark.parametrize(
    ("operation", "phase"), OPERATIONS.values(), ids=list(OPERATIONS)
)


@each_operation
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_an_idle_connection_that_was_ended_is_replaced(
    operation: Operation, phase: Phase, reset: bool
) -> None:
    """The server was restarted, or had enough of an idle connection."""
    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        await operation(remote)
        await server.hang_up(reset=reset)
        await operation(remote)
        assert server.connections == 2


@each_operation
@pytest.mark.parametrize("fault", [CLOSE, RESET], ids=["closed", "reset"])
async def test_a_pooled_connection_that_dies_of_the_command_is_replaced_once(
    operation: Operation, phase: Phase, fault: Fault
) -> None:
    """Its end had not arrived yet when the command was sent."""
    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        await operation(remote)
        server.fault(phase, fault, times=1)
        await operation(remote)
        assert server.connections == 2
        server.fault(phase, fault, times=2)
        with pytest.raises(ConnectionBroken):
            await operation(remote)
        assert server.connections == 3  # once, not twice
        await operation(remote)


@each_operation
async def test_a_fresh_connection_that_dies_is_not_replaced(
    operation: Operation, phase: Phase
) -> None:
    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        server.fault(phase, CLOSE, times=1)
        with pytest.raises(ConnectionBroken):
            await operation(remote)
        assert server.connections == 1


@each_operation
async def test_a_connection_that_has_begun_to_answer_is_not_replaced(
    operation: Operation, phase: Phase
) -> None:
    async with bad_server() as server, remote_of(server) as remote:
        server.put(CONTENT)
        await operation(remote)
        server.fault(phase, Fault(after=1, then="close"), times=1)
        with pytest.raises(ConnectionBroken):
            await operation(remote)
        assert server.connections == 1


@each_operation
async def test_a_server_that_is_gone_for_good_is_an_error_of_the_second_try(
    operation: Operation, phase: Phase
) -> None:
    async with bad_server() as server, remote_of(server, connections=1) as remote:
        server.put(CONTENT)
        await operation(remote)
        server.fault(phase, RESET, times=1)
        server.fault(Phase.VERDICT, Fault(instead=b"ERBD"), times=1)
        with pytest.raises(ServerRefused):
            await operation(remote)
        await operation(remote)  # the only place of the pool is free again


@each_operation
async def test_a_connection_that_timed_out_is_closed(
    operation: Operation, phase: Phase, jumping_clock: MockClock
) -> None:
    async with bad_server() as server, remote_of(server, connections=1) as remote:
        server.put(CONTENT)
        server.fault(phase, STALL, times=1)
        with pytest.raises(TimedOut):
            await operation(remote)
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0
        await operation(remote)
        assert (server.connections, server.open) == (2, 1)


# --- roots


def test_a_root_that_does_not_fit_on_the_wire() -> None:
    with pytest.raises(UsageError, match="at most 255 bytes"):
        RemoteStore(Server("host"), "ä" * 128)
    with pytest.raises(UsageError, match="not UTF-8"):
        RemoteStore(Server("host"), "\udc80")
    RemoteStore(Server("host"), "r" * 255)
