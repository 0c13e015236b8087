"""Ranges of a server that gets them right, and of those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.client.remote import SMALL, RemoteStore
from cafsfs.client.servers import Server
from cafsfs.errors import (
    BlobNotFound,
    ConnectionBroken,
    CorruptBlob,
    RangeError,
    ServerRefused,
)
from cafsfs.packing import Header
from cafsfs.store.contracts import PackedStat
from tests.bad_server import MIB, BadServer, Fault, Phase, bad_server, pack
from tests.server.stand import digest_of, serving

CONTENT = Random(1).randbytes(3 * MIB)
DIGEST = digest_of(CONTENT)
PACKED = pack(CONTENT)
SHORT = Random(2).randbytes(SMALL)  # large enough to be probed, too short for a range at 1 MiB
ABSENT = digest_of(b"absent")


@asynccontextmanager
async def meeting(ranges: str, **options: Any) -> AsyncIterator[tuple[BadServer, RemoteStore]]:
    async with bad_server(ranges=ranges) as server:
        remote = RemoteStore(Server("127.0.0.1", server.port), "/root", **options)
        server.put(CONTENT)
        server.put(SHORT)
        try:
            yield server, remote
        finally:
            remote.close()


async def fetched(remote: RemoteStore, offset: int, length: int | None) -> bytes:
    packed = b""
    buffer = memoryview(bytearray(1 << 16))
    async with remote.fetch(DIGEST, offset=offset, length=length) as body:
        while count := await body.readinto(buffer):
            packed += buffer[:count]
        assert len(packed) == body.length
    return packed


# --- the test


@pytest.mark.parametrize("content", [CONTENT, SHORT], ids=["long", "short"])
async def test_a_deployed_server_is_tested_once_and_for_a_few_kilobytes(content: bytes) -> None:
    async with meeting("broken") as (server, remote):
        for _ in range(3):
            assert (await remote.inspect(digest_of(content))).length == len(content) + 16
            with pytest.raises(RangeError, match="does not answer ranges with the right bytes"):
                await fetched(remote, 16, 16)
        await wait_all_tasks_blocked(0.01)
        assert (server.pulls, server.ranged) == (3, 1)  # the second range was never read
        assert len(server.travelled) == 4  # none of them was kept
        assert max(server.travelled) < 16 << 10
        assert (server.connections, server.open) == (5, 1)


@pytest.mark.parametrize("content", [CONTENT, SHORT], ids=["long", "short"])
async def test_a_sound_server_is_tested_once_and_then_asked_on_a_pooled_connection(
    content: bytes,
) -> None:
    async with meeting("sound") as (server, remote):
        for _ in range(3):
            stat = await remote.inspect(digest_of(content))
            assert stat == PackedStat(len(content) + 16, Header.parse(pack(content)[:16]))
        assert server.pulls == 0
        assert server.ranged == 2 + 3
        assert (server.connections, server.open) == (2, 1)
        await remote.inspect(digest_of(content))
        assert server.commands["SIZE"] == 2 + 4  # the first time SIZE alone, and in the test


@pytest.mark.parametrize("skip", [0, 1], ids=["first", "second"])
async def test_a_server_that_sends_the_beginning_for_every_range_fails(skip: int) -> None:
    """Its announcements are right, and the number of the bytes is."""
    async with meeting("sound") as (server, remote):
        wrong = b"No packed blob's" if skip == 0 else PACKED[:16]
        server.fault(Phase.BODY, Fault(instead=wrong), skip=skip, times=1)
        assert (await remote.inspect(DIGEST)).length == len(PACKED)
        assert (server.pulls, server.ranged) == (1, 2)
        await remote.inspect(DIGEST)
        assert (server.pulls, server.ranged) == (2, 2)


async def test_content_that_looks_like_an_answer_is_not_taken_for_one() -> None:
    """Behind the header of a deployed server's body stands what somebody has uploaded."""
    for start in (b"NONE", b"ERIO", b"ERBD", b"SIZE" + bytes(8), b"TAKE" + bytes(50)):
        content = start + CONTENT
        async with meeting("broken") as (server, remote):
            server.put(content)
            assert (await remote.inspect(digest_of(content))).length == len(content) + 16
            assert (server.pulls, server.ranged) == (1, 1)


async def test_a_server_that_refuses_ranges_fails() -> None:
    async with meeting("sound") as (server, remote):
        server.fault(Phase.PULL, Fault(instead=b"ERIO"), times=1)
        assert (await remote.inspect(DIGEST)).length == len(PACKED)
        with pytest.raises(RangeError):
            await fetched(remote, 16, 16)


async def test_a_test_that_breaks_off_is_made_once_more_and_no_oftener() -> None:
    async with meeting("sound") as (server, remote):
        server.fault(Phase.PULL, Fault(then="close"), times=2)
        for _ in range(2):
            with pytest.raises(ConnectionBroken):
                await remote.inspect(DIGEST)
        assert (server.pulls, server.ranged) == (0, 2)
        assert (await remote.inspect(DIGEST)).length == len(PACKED)
        assert (server.pulls, server.ranged) == (1, 2)


async def test_a_server_that_cannot_be_reached_for_the_test_is_tested_later() -> None:
    async with meeting("sound") as (server, remote):
        await remote.find_absent([DIGEST])  # a connection for SIZE
        server.fault(Phase.GREETING, Fault(then="close"), times=3)
        for _ in range(3):
            with pytest.raises(ConnectionBroken):
                await remote.inspect(DIGEST)
        await remote.inspect(DIGEST)
        assert (server.pulls, server.ranged) == (0, 2 + 1)


async def test_a_blob_that_goes_before_the_test_says_nothing_of_the_server() -> None:
    async with meeting("sound") as (server, remote):
        server.fault(Phase.PULL, Fault(instead=b"NONE"))
        for _ in range(3):
            with pytest.raises(BlobNotFound):
                await remote.inspect(DIGEST)
        await wait_all_tasks_blocked(0.01)
        server.mend()
        await remote.inspect(DIGEST)
        assert server.pulls == 0


async def test_nobody_waits_for_the_test_that_another_blob_has_begun() -> None:
    async with meeting("sound") as (server, remote):
        server.fault(Phase.PULL, Fault(then="stall"), times=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.inspect, DIGEST)
            await wait_all_tasks_blocked(0.01)
            with trio.fail_after(5):
                await remote.inspect(digest_of(SHORT))
            assert (server.pulls, server.ranged) == (1, 1)
            nursery.cancel_scope.cancel()
        await remote.inspect(DIGEST)  # a test that was given up says nothing
        assert server.pulls == 1


# --- sizes from a sound server


async def test_a_small_blob_tells_its_header_too() -> None:
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        small = server.put(b"small", "zstd")
        stat = await remote.inspect(digest_of(b"small"))
        assert stat.length == len(server.blobs[bytes.fromhex(small)])
        assert stat.header is not None
        assert stat.header.content_length == 5
        assert server.pulls == 0


async def test_an_absent_blob_costs_a_round_trip() -> None:
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        for _ in range(2):
            with pytest.raises(BlobNotFound):
                await remote.inspect(ABSENT)
        assert server.connections == 2


@pytest.mark.parametrize("packed", [b"", b"NONE", b"x" * 100], ids=["empty", "short", "garbage"])
async def test_what_is_no_blob(packed: bytes) -> None:
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        server.have(ABSENT.hex, packed)
        with pytest.raises(CorruptBlob):
            await remote.inspect(ABSENT)
        assert (server.connections, server.open) == (2, 1)


async def test_length_and_header_are_of_the_same_blob() -> None:
    """A NONE blob without a length in its header has the length that SIZE tells, if it is its."""
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        name = digest_of(b"content")
        server.have(name.hex, pack(CONTENT, "zstd"))
        server.recompress_after_size(name.hex, pack(CONTENT, "none-asyncio"))
        stat = await remote.inspect(name)
        assert stat.header is not None
        assert stat.header.content_length_in(stat.length) == len(CONTENT)


async def test_a_server_that_falls_out_of_step_is_asked_for_no_more_ranges(
    expect_log: Callable[[str], None],
) -> None:
    """Another one has taken its address."""
    expect_log("WARNING cafsfs.client.ranges: .* for no more ranges")
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        server.ranges = "broken"
        for _ in range(3):
            assert (await remote.inspect(DIGEST)).length == len(PACKED)
        assert (server.pulls, server.ranged) == (3, 4)


# --- ranges from a sound server


async def test_ranges_are_exact() -> None:
    ranges = [(0, 16), (5, 0), (16, None), (MIB, 5), (2 * MIB - 1, 2), (2 * MIB + 7, None)]
    async with meeting("sound") as (server, remote):
        for offset, length in [*ranges, (len(PACKED), None), (len(PACKED), 0)]:
            end = None if length is None else offset + length
            assert await fetched(remote, offset, length) == PACKED[offset:end]
        assert (server.connections, server.open) == (2, 1)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, len(PACKED) + 1), (len(PACKED) + 1, None), (len(PACKED) + 1, 0), (1 << 62, 1)],
)
async def test_a_range_outside_the_blob(offset: int, length: int | None) -> None:
    async with meeting("sound") as (server, remote):
        for _ in range(2):
            with pytest.raises(RangeError):
                await fetched(remote, offset, length)
        assert server.open == 1


async def test_a_range_that_is_refused() -> None:
    async with meeting("sound") as (server, remote):
        await remote.inspect(DIGEST)
        server.fault(Phase.PULL, Fault(instead=b"ERIO"))
        with pytest.raises(ServerRefused):
            await fetched(remote, MIB, 5)
        assert server.open == 1


async def test_a_range_of_an_absent_blob() -> None:
    async with meeting("sound") as (server, remote):
        for _ in range(2):
            with pytest.raises(BlobNotFound):
                async with remote.fetch(ABSENT, offset=1):
                    pass
            await remote.inspect(DIGEST)
        assert server.open == 1


# --- our own server


async def test_our_server_is_sound(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        stand.keep(PACKED, DIGEST)
        remote = RemoteStore(Server(stand.host, stand.port), "/root")
        expected = PackedStat(len(PACKED), Header.parse(PACKED[:16]))
        assert [await remote.inspect(DIGEST) for _ in range(2)] == [expected] * 2
        assert await fetched(remote, MIB + 3, 5) == PACKED[MIB + 3 : MIB + 8]
        remote.close()


class Turns:
    """A line to a server that counts how often the client speaks after the server has."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._speaker = "server"
        self.taken = 0

    async def join(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, "client", client, server)
            nursery.start_soon(self._forward, "server", server, client)

    async def _forward(self, who: str, source: trio.SocketStream, to: trio.SocketStream) -> None:
        async for data in source:
            self.taken += who == "client" != self._speaker
            self._speaker = who
            await to.send_all(data)


async def test_first_byte_of_a_cold_blob_is_there_after_two_round_trips(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path) as stand:
        stand.keep(PACKED, DIGEST)
        line = Turns(stand.port)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, line.join, [listener])
        port = listener.socket.getsockname()[1]
        remote = RemoteStore(Server("127.0.0.1", port), "/root")
        await remote.inspect(DIGEST)
        line.taken = 0
        stat = await remote.inspect(DIGEST)
        assert (stat.length, line.taken) == (len(PACKED), 1)
        async with remote.fetch(DIGEST) as body:
            assert await body.readinto(memoryview(bytearray(100))) == 100
            assert line.taken == 2
        remote.close()
