"""Many blobs over few connections: what goes ahead, and whom an error hits."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client import BatchError, CafsClient
from cafsfs.client.connection import RemoteBody, ServerConnection
from cafsfs.client.pipeline import LARGE, WINDOW, PullBatch, Source
from cafsfs.client.pool import Pool
from cafsfs.client.remote import RemoteStore
from cafsfs.client.resuming import ResumingBody
from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    ConnectionBroken,
    ConnectTimedOut,
    CorruptBlob,
    RemoteProtocolError,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from cafsfs.store.contracts import Failures, PackedBody, Wanted
from cafsfs.store.memory import MemoryPackedStore
from cafsfs.store.unpacking import UnpackingStore
from tests.bad_server import BadServer, Fault, Phase, bad_server, pack
from tests.client.test_client import nowhere
from tests.server.stand import digest_of, pull, take
from tests.store.samples import MemoryDestination

RESET = Fault(then="reset")
STALL = Fault(then="stall")
CONTENTS = [b"%d" % number * 100 for number in range(30)]


def wanted_of(*contents: bytes) -> dict[Wanted, MemoryDestination]:
    found = {}
    for content in contents:
        kept = MemoryDestination()
        found[Wanted(digest_of(content), kept)] = kept
    return found


@asynccontextmanager
async def remote_of(port: int, **options: Any) -> AsyncIterator[RemoteStore]:
    remote = RemoteStore(Server("127.0.0.1", port), "/root", **options)
    try:
        yield remote
    finally:
        remote.close()


async def pull_all(
    server: BadServer, contents: Sequence[bytes] = CONTENTS, **options: Any
) -> dict[bytes, BaseException | None]:
    """Pull all, over one connection by default; what became of each. Checks every promise."""
    options.setdefault("connections", 1)
    wanted = wanted_of(*contents)
    async with remote_of(server.port, **options) as remote:
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
        failures = await store.pull_many(list(wanted))
    for (each, kept), content in zip(wanted.items(), contents, strict=True):
        if each in failures:
            assert "committed" not in kept.ended
        else:
            assert kept.ended[-1] == "committed"
            assert kept.content == content
    return {content: failures.get(each) for each, content in zip(wanted, contents, strict=True)}


def failed(found: dict[bytes, BaseException | None]) -> dict[bytes, type[BaseException]]:
    return {content: type(error) for content, error in found.items() if error is not None}


# --- all is well


@pytest.mark.parametrize("how", ["none", "zstd", "zlib", "zstd-asyncio"])
async def test_many_small_ones_and_large_ones_among_them(how: str) -> None:
    random = Random(1)
    lengths = [
        0,
        1,
        LARGE - 16,
        LARGE - 15,
        3 << 20,
        *(random.randrange(20_000) for _ in range(90)),
    ]
    contents = [random.randbytes(length // 2) + bytes(length - length // 2) for length in lengths]
    random.shuffle(contents)
    async with bad_server() as server:
        for content in contents:
            server.put(content, how)
        assert failed(await pull_all(server, contents, connections=2)) == {}
        assert (server.connections, server.commands) == (2, {"PULL": len(contents)})


async def test_who_comes_during_a_batch_waits_for_its_turn_and_not_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Be it one question, or another batch."""
    monkeypatch.setattr("cafsfs.client.pipeline._TURN", 0)
    first, second = ([b"%d %d" % (each, number) for number in range(3000)] for each in range(2))
    async with bad_server() as server, remote_of(server.port, connections=1) as remote:
        for content in (*first, *second):
            server.put(content)
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
        ended: list[tuple[str, int]] = []

        async def pull_many(contents: list[bytes]) -> None:
            wanted = wanted_of(*contents)
            assert await store.pull_many(list(wanted)) == {}
            assert [kept.content for kept in wanted.values()] == contents
            ended.append(("batch", server.commands["PULL"]))

        async def check() -> None:
            assert await store.find_missing([digest_of(b"absent")])
            ended.append(("check", server.commands["PULL"]))

        async with trio.open_nursery() as batches:
            batches.start_soon(pull_many, first)
            while not server.commands["PULL"]:
                await trio.lowlevel.checkpoint()
            batches.start_soon(pull_many, second)
            batches.start_soon(check)
        assert [what for what, _ in ended] == ["check", "batch", "batch"]
        assert ended[0][1] <= 4 * WINDOW
        assert ended[1][1] >= 6000 - 4 * WINDOW  # they took turns
        assert (server.connections, server.commands["PULL"]) == (1, 6000)


async def test_a_lot_is_bounded_and_bodies_survive_being_cut() -> None:
    """Memory: a buffer a connection, whatever travels."""
    sizes: list[int] = []

    class Taker:
        async def take(self, lot: Sequence[tuple[Wanted, memoryview]]) -> Failures[Wanted]:
            sizes.append(sum(len(packed) for _, packed in lot))
            for wanted, packed in lot:
                assert digest_of(bytes(packed[16:])) == wanted.digest
            return {}

        async def take_body(self, wanted: Wanted, body: PackedBody) -> None:
            raise AssertionError("all are small")

    random = Random(2)
    contents = [random.randbytes(random.randrange(150_000)) for _ in range(60)]
    async with bad_server() as server, remote_of(server.port) as remote:
        for content in contents:
            server.put(content)
        assert await remote.fetch_many(list(wanted_of(*contents)), Taker()) == {}
        assert sum(sizes) == sum(map(len, contents)) + 16 * len(contents)
        assert max(sizes) <= 2 * LARGE


async def test_a_slow_disk_is_not_the_servers_fault(jumping_clock: MockClock) -> None:
    class Slow:
        async def take(self, lot: Sequence[tuple[Wanted, memoryview]]) -> Failures[Wanted]:
            await trio.sleep(100)
            return {}

        async def take_body(self, wanted: Wanted, body: PackedBody) -> None:
            raise AssertionError("all are small")

    contents = [bytes([number]) * 100_000 for number in range(30)]
    async with bad_server() as server, remote_of(server.port, connections=1) as remote:
        for content in contents:
            server.put(content)
        assert await remote.fetch_many(list(wanted_of(*contents)), Slow()) == {}
        assert server.commands == {"PULL": 30}


# --- the window

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def greeting(handler: Handler) -> AsyncIterator[int]:
    """A server that greets, then does as told; its port."""

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"BLOBPUSH_SERVER_V001NONE")
        heard = b""
        while len(heard) < len(b"VERS001\x05/root"):
            heard += await stream.receive_some(len(b"VERS001\x05/root") - len(heard))
        with suppress(trio.BrokenResourceError):
            await handler(stream)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_window_goes_ahead_and_no_more() -> None:
    heard = bytearray()
    gate = trio.Event()
    contents = [b"%d" % number for number in range(1000)]

    async def answer(stream: trio.SocketStream) -> None:
        answered = 0
        async for data in stream:
            heard.extend(data)
            while gate.is_set() and len(heard) >= (answered + 1) * 54:
                content = contents[answered]
                packed = pack(content)
                await stream.send_all(take(digest_of(content), len(packed)) + packed)
                answered += 1
            assert len(heard) // 54 - answered <= WINDOW

    wanted = wanted_of(*contents)
    async with greeting(answer) as port, remote_of(port, connections=1) as remote:
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.pull_many, list(wanted))
            while len(heard) < 54 * WINDOW:
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked(0.01)
            assert heard == b"".join(pull(digest_of(each)) for each in contents[:WINDOW])
            gate.set()
            nursery.cancel_scope.cancel()
    assert {tuple(kept.ended) for kept in wanted.values()} <= {(), ("committed",), ("abandoned",)}


def batch_of(count: int) -> PullBatch:
    async def measure(digest: Digest) -> int:
        raise AssertionError(digest)

    async def connect() -> ServerConnection:
        raise AssertionError

    def going_on(digest: Digest, body: RemoteBody) -> AbstractAsyncContextManager[ResumingBody]:
        raise AssertionError(digest, body)

    source = Source(
        name="server",
        pool=Pool(connect, name="server", limit=1),
        deadlines=Deadlines(),
        measure=measure,
        going_on=going_on,
    )
    store = UnpackingStore(MemoryPackedStore(), limiter=trio.CapacityLimiter(1))
    return PullBatch(source, list(wanted_of(*(b"%d" % each for each in range(count)))), store)


def test_half_a_window_is_asked_for_at_a_time() -> None:
    batch = batch_of(1000)
    assert len(batch.take(0)) == WINDOW
    assert len(batch.take(WINDOW // 2 + 1)) == 0
    assert len(batch.take(WINDOW // 2)) == WINDOW // 2


def test_large_blobs_do_not_go_ahead_far() -> None:
    """So that a connection which breaks was asked for little in vain, and others share the work."""
    batch = batch_of(1000)
    for _ in range(50):
        batch.saw(1 << 20)
    assert len(batch.take(0)) == 4
    for _ in range(100):
        batch.saw(1 << 30)
    assert len(batch.take(0)) == 2  # the next is on its way while one is unpacked
    for _ in range(300):
        batch.saw(100)
    assert len(batch.take(0)) == WINDOW


# --- whom an error hits


async def test_absent_ones_and_refused_ones() -> None:
    async with bad_server() as server:
        for content in CONTENTS[::2]:
            server.put(content)
        server.fault(Phase.PULL, Fault(instead=b"ERIO"), skip=9, times=2)
        refused = dict.fromkeys(CONTENTS[9:11], ServerRefused)
        expected = dict.fromkeys(CONTENTS[1::2], BlobNotFound) | refused
        assert failed(await pull_all(server)) == expected
        assert server.connections == 1


@pytest.mark.parametrize(
    ("phase", "fault", "error"),
    [
        (Phase.PULL, RESET, ConnectionBroken),
        (Phase.PULL, Fault(after=20, then="close"), ConnectionBroken),
        (Phase.BODY, Fault(after=100, then="reset"), ConnectionBroken),
        (Phase.PULL, Fault(instead=b"GARBAGE!"), RemoteProtocolError),
        (Phase.PULL, Fault(instead=b"ERBD"), RemoteProtocolError),
        (Phase.PULL, Fault(instead=b"HAVE"), RemoteProtocolError),
        (Phase.PULL, Fault(spoil=30), RemoteProtocolError),
        (Phase.PULL, STALL, TimedOut),
        (Phase.BODY, Fault(after=100, then="stall"), TimedOut),
        (Phase.BODY, Fault(drip=(10, 9)), TimedOut),
        (Phase.BODY, Fault(spoil=40), CorruptBlob),
        (Phase.BODY, Fault(spoil=0), CorruptBlob),
        (Phase.PULL, Fault(lie=7), CorruptBlob),
        (Phase.PULL, Fault(lie=-7), CorruptBlob),
    ],
)
async def test_an_error_hits_its_own_blob_only(
    jumping_clock: MockClock, phase: Phase, fault: Fault, error: type[Exception]
) -> None:
    async with bad_server() as server:
        for content in CONTENTS:
            server.put(content)
        server.fault(phase, fault, skip=7, times=1)
        assert failed(await pull_all(server)) == {CONTENTS[7]: error}
        # At most one in its place, and one that asks why the answer is so late.
        assert server.connections <= 2 + server.commands["SIZE"] <= 3


async def test_a_large_one_that_breaks_hits_no_other(jumping_clock: MockClock) -> None:
    large = Random(3).randbytes(2 << 20)
    contents = [*CONTENTS[:5], large, *CONTENTS[5:]]
    for fault, error in (
        (Fault(after=1 << 20, then="reset"), ConnectionBroken),
        (Fault(spoil=1 << 20), CorruptBlob),
        (Fault(after=1 << 20, then="stall"), TimedOut),
        (Fault(drip=(1000, 9)), TimedOut),
    ):
        async with bad_server() as server:
            for content in contents:
                server.put(content)
            server.fault(Phase.BODY, fault, skip=5, times=1)
            assert failed(await pull_all(server, contents)) == {large: error}


async def test_a_large_one_goes_on_where_it_broke_and_hits_no_other() -> None:
    large = Random(3).randbytes(4 << 20)
    contents = [*CONTENTS[:5], large, *CONTENTS[5:]]
    async with bad_server(ranges="sound") as server:
        for content in contents:
            server.put(content)
        server.fault(Phase.BODY, Fault(after=3 << 20, then="close"), skip=5, times=1)
        assert failed(await pull_all(server, contents)) == {}
        assert sum(server.travelled) < 6 << 20
        assert server.ranged == 2 + 2


async def test_after_wrong_bytes_nobody_is_taken_for_absent() -> None:
    """What a server says that is out of step means nothing."""
    packed = pack(CONTENTS[0])

    async def answer(stream: trio.SocketStream) -> None:
        heard = bytearray()
        async for data in stream:
            heard.extend(data)
            while len(heard) >= 54:
                digest = Digest(bytes(heard[10:42]))
                del heard[:54]
                if digest == digest_of(CONTENTS[1]):
                    await stream.send_all(b"NONE")
                else:
                    spoilt = packed if digest == digest_of(CONTENTS[0]) else b"?"
                    await stream.send_all(take(digest, len(spoilt)) + spoilt)

    wanted = wanted_of(CONTENTS[2], CONTENTS[1], CONTENTS[0])
    async with greeting(answer) as port, remote_of(port, connections=1) as remote:
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
        failures = await store.pull_many(list(wanted))
    wrong, absent, right = wanted
    assert [type(failures.get(each)) for each in (wrong, absent, right)] == [
        CorruptBlob,
        BlobNotFound,  # said anew by a connection that has not lied
        type(None),
    ]


async def test_a_full_disk_hits_its_own_blob_only() -> None:
    class Full(MemoryDestination):
        def write(self, data: bytes | memoryview, /) -> None:
            raise OSError(28, "No space left on device")

    async with bad_server() as server:
        for content in CONTENTS:
            server.put(content)
        wanted = list(wanted_of(*CONTENTS))
        full = Full()
        wanted[4] = Wanted(wanted[4].digest, full)
        async with remote_of(server.port, connections=1) as remote:
            store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
            failures = await store.pull_many(wanted)
        assert [type(error) for error in failures.values()] == [OSError]
        assert (list(failures), full.ended) == ([wanted[4]], ["abandoned"])
        assert server.connections == 1


# --- connections


async def test_a_restarted_server_is_not_noticed(tmp_path: Path) -> None:
    async with bad_server() as server:
        blobs = [(server.put(each), tmp_path / each[:4].decode()) for each in CONTENTS]
        async with CafsClient("/root", [server.address], connections_per_server=2) as client:
            await client.pull_batch(blobs, retry=False)
            for reset in (False, True):
                await server.hang_up(reset=reset)
                await client.pull_batch(blobs, retry=False)
        assert server.connections == 6


async def test_nobody_there_fails_all_at_once() -> None:
    _, port = nowhere().split(":")
    wanted = list(wanted_of(*CONTENTS))
    async with remote_of(int(port), connections=2) as remote:
        store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
        failures = await store.pull_many(wanted)
    assert failures.keys() == set(wanted)
    assert {type(error) for error in failures.values()} == {Unreachable}


async def test_a_server_that_says_nothing_is_waited_for_once(jumping_clock: MockClock) -> None:
    async with bad_server() as server:
        for content in CONTENTS:
            server.put(content)
        server.fault(Phase.PULL, STALL)
        began = trio.current_time()
        found = await pull_all(server, connections=2)
        assert failed(found) == dict.fromkeys(CONTENTS, TimedOut)
        assert trio.current_time() - began < 40


async def test_a_server_that_freezes_costs_a_batch_one_deadline(jumping_clock: MockClock) -> None:
    """Not one for each connection, window or blob, nor that of a blob which is read from disk."""
    async with bad_server() as server:
        for content in CONTENTS:
            server.put(content)
        server.fault(Phase.PULL, STALL, skip=7)
        server.fault(Phase.GREETING, STALL, skip=2)
        began = trio.current_time()
        found = await pull_all(server, connections=2)
        assert failed(found) == dict.fromkeys(failed(found), TimedOut)
        assert len(failed(found)) == len(CONTENTS) - 7
        assert trio.current_time() - began == pytest.approx(5 + 5, abs=1)
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


@pytest.mark.parametrize("length", [1000, 2 << 20])
async def test_a_server_that_freezes_within_a_body_costs_a_batch_little_more(
    length: int, jumping_clock: MockClock
) -> None:
    contents = [bytes([number]) * length for number in range(20)]
    async with bad_server() as server:
        for content in contents:
            server.put(content)
        server.fault(Phase.BODY, Fault(after=100, then="stall"), skip=7)
        server.fault(Phase.GREETING, STALL, skip=2)
        began = trio.current_time()
        found = await pull_all(server, contents, connections=2)
        assert set(failed(found).values()) == {TimedOut, ConnectTimedOut}
        assert len(failed(found)) == 20 - 7
        assert trio.current_time() - began == pytest.approx(30 + 5, abs=1)
        await wait_all_tasks_blocked(0.01)
        assert server.open == 0


async def test_a_server_that_lets_nobody_else_in_may_still_answer(jumping_clock: MockClock) -> None:
    content = bytes(1000)
    async with bad_server() as server:
        server.put(content)
        server.fault(Phase.GREETING, RESET, skip=1)
        server.fault(Phase.PULL, Fault(drip=(40, 10)), times=1)
        assert failed(await pull_all(server, [content])) == {}


async def test_an_answer_that_comes_while_nobody_greets_is_in_time(
    jumping_clock: MockClock,
) -> None:
    content = bytes(1000)
    async with bad_server() as server:
        server.put(content)
        server.fault(Phase.GREETING, STALL, skip=1)
        server.fault(Phase.PULL, Fault(drip=(30, 4)), times=1)  # the last of it after 8 s
        assert failed(await pull_all(server, [content])) == {}


async def test_a_server_that_may_be_reading_from_disk_is_waited_for(
    jumping_clock: MockClock,
) -> None:
    deadlines = Deadlines(answer=10.0, disk_rate=100.0)
    content = bytes(1000)
    async with bad_server() as server:
        server.put(content)
        for seconds, error in ((15.0, {}), (30.0, {content: TimedOut})):
            server.fault(Phase.PULL, Fault(drip=(40, seconds)), times=1)  # twice so long
            assert failed(await pull_all(server, [content], deadlines=deadlines)) == error


async def test_batches_share_the_places_of_a_pool(tmp_path: Path) -> None:
    """One that is done does not wait for a connection that it no longer needs."""
    async with bad_server() as server:
        for content in CONTENTS:
            server.put(content)
        server.fault(Phase.SIZE, STALL, times=1)
        async with remote_of(server.port, connections=2) as remote:
            store = UnpackingStore(remote, limiter=trio.CapacityLimiter(2))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(remote.inspect, digest_of(CONTENTS[0]))
                await wait_all_tasks_blocked(0.01)
                with trio.fail_after(5):
                    assert await store.pull_many(list(wanted_of(*CONTENTS))) == {}
                nursery.cancel_scope.cancel()


async def test_leftovers_go_to_the_next_server(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.routing: going on with the next server")
    async with bad_server() as first, bad_server() as second:
        for content in CONTENTS:
            first.put(content)
            second.put(content)
        first.blobs.pop(digest_of(CONTENTS[1]).raw)
        first.have(digest_of(CONTENTS[2]).hex, pack(b"wrong"))
        for server in (first, second):
            server.blobs.pop(digest_of(CONTENTS[3]).raw)
        blobs = [(digest_of(each), tmp_path / digest_of(each).hex) for each in CONTENTS]
        async with CafsClient("/root", [first.address, second.address]) as client:
            with pytest.raises(BatchError) as caught:
                await client.pull_batch(blobs)
        assert {k: type(v) for k, v in caught.value.failures.items()} == {
            digest_of(CONTENTS[3]).hex: BlobNotFound
        }
        assert len(os.listdir(tmp_path)) == len(CONTENTS) - 1
        assert second.commands["PULL"] == 3


# --- sizes


async def test_sizes_of_many_are_a_few_round_trips_over_few_connections() -> None:
    random = Random(4)
    contents = [random.randbytes(random.randrange(5000)) for _ in range(600)]
    hows = ["none", "zstd", "zlib", "zlib-asyncio"]
    async with bad_server() as server:
        names = [server.put(each, hows[at % 4]) for at, each in enumerate(contents)]
        large = Random(5).randbytes(6 << 20)
        names.append(server.put(large, "zstd"))
        async with CafsClient("/root", [server.address], connections_per_server=2) as client:
            sizes = await client.size_batch([*names, names[0]])
            assert sizes == dict(zip(names, map(len, [*contents, large]), strict=True))
            stats = await client.stat_batch(names[:3])
            assert stats[names[2]].packed_size == len(pack(contents[2], "zlib"))
            assert await client.size_batch([]) == {}
        assert server.connections <= 4  # a probe has one of its own, and the test of ranges


async def test_an_error_hits_its_own_size_only(jumping_clock: MockClock) -> None:
    names = [digest_of(each).hex for each in CONTENTS]
    for fault, error, more in (
        (RESET, ConnectionBroken, 1),
        (Fault(instead=b"GARBAGE!"), RemoteProtocolError, 1),
        (Fault(instead=b"ERIO"), ServerRefused, 0),
        (Fault(after=3, then="stall"), TimedOut, 1),
    ):
        async with bad_server() as server:
            for content in CONTENTS[1:]:
                server.put(content)
            server.fault(Phase.SIZE, fault, skip=6, times=1)
            async with CafsClient("/root", [server.address], connections_per_server=1) as client:
                with pytest.raises(BatchError) as caught:
                    await client.stat_batch(names, retry=False)
            assert {each: type(why) for each, why in caught.value.failures.items()} == {
                names[0]: BlobNotFound,
                names[6]: error,
            }
            assert server.connections == 1 + more


@pytest.mark.parametrize("pause", [0.2, 1.0])
async def test_sizes_that_drip_are_not_waited_for(pause: float, jumping_clock: MockClock) -> None:
    """Twenty answers have the deadline of one."""
    names = [digest_of(b"%d" % number) for number in range(60)]
    async with bad_server() as server, remote_of(server.port, connections=1) as remote:
        server.fault(Phase.SIZE, Fault(drip=(4, pause)))
        began = trio.current_time()
        failures = await remote.inspect_many(names, lambda *_: None)
        absent = [each for each in failures.values() if isinstance(each, BlobNotFound)]
        if pause < 0.25:
            assert len(absent) == 60
            assert trio.current_time() - began == pytest.approx(12, abs=1)
        else:
            assert len(absent) < 20
            assert trio.current_time() - began == pytest.approx(5 + 5, abs=1)


async def test_wrong_bytes_of_a_blob_that_only_a_pull_measures() -> None:
    async with bad_server() as server:
        names = [server.put(each, "zlib-asyncio") for each in CONTENTS]
        wrong = server.have(digest_of(b"other").hex, pack(b"content", "zlib-asyncio"))
        async with CafsClient("/root", [server.address]) as client:
            with pytest.raises(BatchError) as caught:
                await client.size_batch([*names, wrong])
        assert {each: type(why) for each, why in caught.value.failures.items()} == {
            wrong: CorruptBlob
        }
