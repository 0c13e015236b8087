"""Every sentence that is promised of CafsClient, against sound servers and bad ones."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client import BatchError, CafsClient, Member, Server
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    ConnectTimedOut,
    CorruptBlob,
    InvalidDigest,
    RemoteProtocolError,
    ServerRefused,
    StoreError,
    TimedOut,
    TooFewReplicas,
    Unreachable,
    UsageError,
)
from cafsfs.packing import Compression
from tests.bad_server import BadServer, Fault, Phase, bad_server, pack
from tests.client.test_transport import unused_port
from tests.server.stand import digest_of, serving

TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 100
DIGEST = digest_of(TEXT)
NOISE = Random(1).randbytes(3 << 20)
ABSENT = digest_of(b"absent")
CONTENTS = {"empty": b"", "small": b"small", "text": TEXT, "noise": NOISE, "zeros": bytes(5 << 20)}

STALL = Fault(then="stall")
RESET = Fault(then="reset")
CLOSE = Fault(then="close")

Expect = Callable[[str], None]
NEXT = "WARNING cafsfs.store.routing: going on with the next server"

DOWN = "WARNING cafsfs.store.router: .* is down, the others are asked"

both_ways = pytest.mark.parametrize("retry", [True, False], ids=["retry", "no retry"])


def nowhere() -> str:
    """A server that refuses connections."""
    return f"127.0.0.1:{unused_port()}"


def client_of(*servers: BadServer | str, connections: int = 2) -> CafsClient:
    return CafsClient(
        "/root",
        [
            Member(Server.parse(each if isinstance(each, str) else each.address), priority=number)
            for number, each in enumerate(servers)
        ],
        connections_per_server=connections,
    )


# --- all is well


@both_ways
@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
async def test_there_and_back(
    tmp_path: Path, content: bytes, compression: Compression, retry: bool
) -> None:
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "store").mkdir()
    async with serving(tmp_path / "store") as stand, CafsClient("/root", [stand.address]) as client:
        expected = digest_of(content)
        assert not await client.check(expected, retry=retry)
        name = await client.stream(tmp_path / "file", compression, retry=retry)
        assert name == expected.hex
        assert await client.check(name, retry=retry)
        assert await client.size(name, retry=retry) == len(content)
        await client.pull(name, tmp_path / "copy", retry=retry)
        assert (tmp_path / "copy").read_bytes() == content
        stat = await client.stat(name, retry=retry)
        packed = stand.path(expected).read_bytes()
        assert (stat.size, stat.packed_size) == (len(content), len(packed))
        assert (stat.source, stat.compression) == (stand.address, Compression(packed[:4]))
        if len(content) >= 1024 and content is not NOISE:
            assert stat.compression is compression
            assert (len(packed) < len(content)) is (compression is not Compression.NONE)


@both_ways
async def test_absent_everywhere(tmp_path: Path, retry: bool) -> None:
    async with (
        bad_server() as first,
        bad_server() as second,
        client_of(first, second) as client,
    ):
        with trio.fail_after(5):  # no answer is waited for that does not come
            assert not await client.check(ABSENT, retry=retry)
            for operation in (client.size, client.stat):
                with pytest.raises(BlobNotFound, match=ABSENT.hex):
                    await operation(ABSENT, retry=retry)
            with pytest.raises(BlobNotFound) as caught:
                await client.pull(ABSENT, tmp_path / "copy", retry=retry)
            assert caught.value.hash == ABSENT.hex
        assert os.listdir(tmp_path) == []
        # Nothing unexpected happened: the connections are kept. Who does not retry asks one; who
        # has a choice has greeted each once.
        assert (first.connections, second.connections) == ((2, 2) if retry else (1, 0))
        assert first.open == 1


@pytest.mark.parametrize("content", [TEXT, bytes(3 << 20), NOISE], ids=["text", "zeros", "noise"])
@pytest.mark.parametrize("how", ["none-asyncio", "zlib-asyncio", "zstd-asyncio"])
async def test_size_of_what_the_asyncio_client_stored(how: str, content: bytes) -> None:
    """Its headers tell nothing: the content of what it compressed must be pulled to know."""
    async with bad_server() as server, client_of(server) as client:
        name = server.put(content, how)
        assert await client.size(name) == len(content)
        stat = await client.stat(name)
        assert (stat.size, stat.packed_size) == (len(content), len(pack(content, how)))


@pytest.mark.parametrize("how", ["none", "zlib", "zstd"])
async def test_size_of_a_large_blob_is_not_paid_for_with_a_pull(how: str) -> None:
    content = Random(2).randbytes(6 << 20)
    async with bad_server() as server:
        async with client_of(server) as client:
            assert await client.size(server.put(content, how)) == len(content)
        await wait_all_tasks_blocked(0.01)
        assert sum(server.travelled) < 32 << 10


async def test_connections_are_reused(tmp_path: Path) -> None:
    async with bad_server() as server, client_of(server) as client:
        name = server.put(TEXT, "zstd")
        for _ in range(5):
            await client.pull(name, tmp_path / "copy")
            await client.size(name)
            await client.check(name)
        assert server.connections == 1


async def test_who_goes_on_after_the_with_meets_errors_of_ours(
    expect_log: Callable[[str], None],
) -> None:
    """And no nursery that is closed."""
    expect_log("WARNING cafsfs.store.router: .* is down")
    async with bad_server() as server:
        address = server.address
    async with client_of(address, "127.0.0.1:9") as client:
        pass
    with pytest.raises(Unreachable):
        await client.check(ABSENT)


async def test_many_at_once_share_the_connections() -> None:
    async with bad_server() as server:
        servers = [server.address, server.address]  # named twice, it is still one
        async with (
            CafsClient("/root", servers, connections_per_server=3) as client,
            trio.open_nursery() as nursery,
        ):
            for number in range(50):
                nursery.start_soon(client.check, digest_of(b"%d" % number))
        assert server.connections == 3


async def test_hashes_may_be_digests_or_text(tmp_path: Path) -> None:
    async with bad_server() as server, client_of(server) as client:
        name = server.put(TEXT)
        assert await client.check_batch([name, ABSENT]) == {name: True, ABSENT.hex: False}
        assert await client.size(Digest.parse(name)) == await client.size(name)
        with pytest.raises(InvalidDigest):
            await client.check(name.upper())
        with pytest.raises(InvalidDigest):
            await client.pull("../../etc/passwd", tmp_path / "copy")


async def test_leaving_closes_the_connections_that_are_idle_and_later_those_in_use() -> None:
    async with bad_server() as server:
        name = server.put(TEXT)
        async with client_of(server) as client:
            await client.check(name)
            server.fault(Phase.CHECK, Fault(drip=(1, 0.02)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.check, name)
                nursery.start_soon(client.check, name)
                await wait_all_tasks_blocked(0.005)
                await client.aclose()
        await wait_all_tasks_blocked(0.05)  # the drip has a pause at its end, too
        assert server.open == 0


@pytest.mark.parametrize(
    ("root", "servers", "connections"),
    [
        ("/root", [], 4),
        ("/root", "cafs1.example.com", 4),
        ("/root", ["host:port"], 4),
        ("/root", ["host"], 0),
        ("/" * 256, ["host"], 4),
    ],
)
def test_a_client_that_cannot_work_is_not_made(
    root: str, servers: list[str], connections: int
) -> None:
    with pytest.raises(UsageError):
        CafsClient(root, servers, connections_per_server=connections)


# --- a bad server, and a good one behind it

Operation = Callable[[CafsClient, Path, bool], Awaitable[object]]


def check(client: CafsClient, _: Path, retry: bool) -> Awaitable[object]:
    return client.check(DIGEST, retry=retry)


def size(client: CafsClient, _: Path, retry: bool) -> Awaitable[object]:
    return client.size(DIGEST, retry=retry)


def pull(client: CafsClient, directory: Path, retry: bool) -> Awaitable[object]:
    return client.pull(DIGEST, directory / "copy", retry=retry)


def stream(client: CafsClient, directory: Path, retry: bool) -> Awaitable[object]:
    return client.stream(directory.parent / "file", retry=retry)


FAULTS: dict[str, tuple[Operation, Phase, Fault, type[CafsError]]] = {
    "check, greeting stalls": (check, Phase.GREETING, STALL, ConnectTimedOut),
    "check, another protocol": (
        check,
        Phase.GREETING,
        Fault(instead=b"HTTP/1.1 400 Bad Request\r\n"),
        RemoteProtocolError,
    ),
    "check, version refused": (check, Phase.VERDICT, Fault(instead=b"ERBD"), ServerRefused),
    "check, stall": (check, Phase.CHECK, STALL, TimedOut),
    "check, reset": (check, Phase.CHECK, RESET, ConnectionBroken),
    "check, garbage": (check, Phase.CHECK, Fault(instead=b"xxxx"), RemoteProtocolError),
    "check, ERIO": (check, Phase.CHECK, Fault(instead=b"ERIO"), ServerRefused),
    "size, stall": (size, Phase.SIZE, STALL, TimedOut),
    "size, close": (size, Phase.SIZE, CLOSE, ConnectionBroken),
    "size, garbage": (size, Phase.SIZE, Fault(instead=b"\0" * 12), RemoteProtocolError),
    "size, ERIO": (size, Phase.SIZE, Fault(instead=b"ERIO"), ServerRefused),
    "size, wrong bytes": (size, Phase.BODY, Fault(spoil=100), CorruptBlob),
    "pull, stall": (pull, Phase.PULL, STALL, TimedOut),
    "pull, reset": (pull, Phase.PULL, RESET, ConnectionBroken),
    "pull, garbage": (pull, Phase.PULL, Fault(instead=b"GARB" * 20), RemoteProtocolError),
    "pull, ERIO": (pull, Phase.PULL, Fault(instead=b"ERIO"), ServerRefused),
    "pull, another blob": (pull, Phase.PULL, Fault(spoil=30), RemoteProtocolError),
    "pull, announces more": (pull, Phase.PULL, Fault(lie=10), TimedOut),
    "pull, announces less": (pull, Phase.PULL, Fault(lie=-10), CorruptBlob),
    "pull, announces next to nothing": (pull, Phase.PULL, Fault(lie=5 - 4516), CorruptBlob),
    "pull, body stalls": (pull, Phase.BODY, Fault(after=2000, then="stall"), TimedOut),
    "pull, body is reset": (pull, Phase.BODY, Fault(after=2000, then="reset"), ConnectionBroken),
    "pull, body is closed": (pull, Phase.BODY, Fault(after=2000, then="close"), ConnectionBroken),
    "pull, one wrong byte": (pull, Phase.BODY, Fault(spoil=4000), CorruptBlob),
    "pull, wrong magic": (pull, Phase.BODY, Fault(spoil=0), CorruptBlob),
    "stream, not taken": (stream, Phase.STORED, STALL, TimedOut),
    "stream, reset": (stream, Phase.STORED, RESET, ConnectionBroken),
    "stream, garbage": (stream, Phase.STORED, Fault(instead=b"NONE"), RemoteProtocolError),
    "stream, ERIO": (stream, Phase.STORED, Fault(instead=b"ERIO"), ServerRefused),
}
each_fault = pytest.mark.parametrize(
    ("operation", "phase", "fault", "error"), FAULTS.values(), ids=list(FAULTS)
)


def prepare(tmp_path: Path, first: BadServer, second: BadServer) -> Path:
    """Both servers have the blob; returns a directory with an older copy of it."""
    (tmp_path / "file").write_bytes(TEXT)
    directory = tmp_path / "copies"
    directory.mkdir()
    (directory / "copy").write_bytes(b"an older copy")
    for server in (first, second):
        server.put(TEXT)
    return directory


@each_fault
async def test_without_retry_the_first_error_is_raised(
    tmp_path: Path,
    jumping_clock: MockClock,
    operation: Operation,
    phase: Phase,
    fault: Fault,
    error: type[CafsError],
) -> None:
    async with bad_server() as first, bad_server() as second:
        directory = prepare(tmp_path, first, second)
        first.fault(phase, fault)
        async with client_of(first, second) as client:
            with pytest.raises(error) as caught:
                await operation(client, directory, False)
            assert type(caught.value) is error
            assert second.connections == 0
        assert os.listdir(directory) == ["copy"]
        assert (directory / "copy").read_bytes() == b"an older copy"


@each_fault
async def test_with_retry_the_next_server_is_tried(
    tmp_path: Path,
    jumping_clock: MockClock,
    expect_log: Expect,
    operation: Operation,
    phase: Phase,
    fault: Fault,
    error: type[CafsError],
) -> None:
    if operation is not check:
        expect_log(NEXT)
    if phase is Phase.GREETING:
        expect_log(DOWN)
    async with bad_server() as first, bad_server() as second:
        directory = prepare(tmp_path, first, second)
        first.fault(phase, fault)
        async with client_of(first, second) as client:
            result = await operation(client, directory, True)
            assert result in (True, len(TEXT), DIGEST.hex, None)
            if operation is pull:
                assert (directory / "copy").read_bytes() == TEXT
            assert os.listdir(directory) == ["copy"]
            await wait_all_tasks_blocked(0.01)
            # A connection that saw anything unexpected is closed; ERIO is an answer in step.
            assert first.open == (1 if fault.instead == b"ERIO" else 0)
            assert second.open == 1


@each_fault
async def test_when_all_servers_are_bad_their_error_is_raised(
    tmp_path: Path,
    jumping_clock: MockClock,
    expect_log: Expect,
    operation: Operation,
    phase: Phase,
    fault: Fault,
    error: type[CafsError],
) -> None:
    if operation is not check:
        expect_log(NEXT)
    if phase is Phase.GREETING:
        expect_log(DOWN)
    async with bad_server() as first, bad_server() as second:
        directory = prepare(tmp_path, first, second)
        for server in (first, second):
            server.fault(phase, fault)
        async with client_of(first, second) as client:
            with pytest.raises(error):
                await operation(client, directory, True)
        assert os.listdir(directory) == ["copy"]
        assert (directory / "copy").read_bytes() == b"an older copy"


@both_ways
async def test_headers_that_lie_about_the_content(
    tmp_path: Path, expect_log: Expect, retry: bool
) -> None:
    lies = [
        pack(TEXT, how, announced=len(TEXT) + by)
        for how in ("none", "zstd", "zlib")
        for by in (1, -1, 1 << 40)
    ]
    async with bad_server() as first, bad_server() as second:
        second.put(TEXT)
        if retry:
            expect_log(NEXT)
        for packed in lies:
            first.have(DIGEST.hex, packed)
            async with client_of(first, second) as client:
                if retry:
                    await client.pull(DIGEST, tmp_path / "copy")
                    assert (tmp_path / "copy").read_bytes() == TEXT
                    assert await client.size(DIGEST) == len(TEXT)
                    (tmp_path / "copy").unlink()
                else:
                    with pytest.raises(CorruptBlob):
                        await client.pull(DIGEST, tmp_path / "copy", retry=False)
                    with pytest.raises(CorruptBlob):
                        await client.size(DIGEST, retry=False)
        assert os.listdir(tmp_path) == []


async def test_a_blob_that_is_recompressed_between_size_and_pull(tmp_path: Path) -> None:
    async with bad_server() as server, client_of(server) as client:
        for number in range(3):
            server.put(TEXT)
            server.recompress_after_size(DIGEST.hex, pack(TEXT, "zstd", flags=1, level=19))
            if number == 0:
                await client.pull(DIGEST, tmp_path / "copy", retry=False)
                assert (tmp_path / "copy").read_bytes() == TEXT
            elif number == 1:
                assert await client.size(DIGEST, retry=False) == len(TEXT)
            else:
                stat = await client.stat(DIGEST, retry=False)
                assert stat.packed_size == len(pack(TEXT, "zstd", level=19))


async def test_whatever_a_server_says_it_is_the_right_bytes_or_an_error_of_ours(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    random = Random(1)
    copy = tmp_path / "copy"
    right = 0
    async with bad_server() as server, client_of(server) as client:
        for _ in range(200):
            server.put(TEXT, random.choice(["none", "zstd", "zlib", "zstd-asyncio"]))
            phase = random.choice([Phase.GREETING, Phase.VERDICT, Phase.SIZE, Phase.PULL])
            words = [random.randbytes(random.randrange(80)), b"NONE", b"HAVE", b"ERBD", b"TAKE"]
            lies = [Fault(instead=word + random.randbytes(9)) for word in words]
            spoilt = (Phase.BODY, Fault(spoil=random.randrange(40)))
            server.fault(*random.choice([(phase, random.choice(lies)), spoilt]), times=2)
            with suppress(CafsError):
                await client.pull(DIGEST, copy)
                assert copy.read_bytes() == TEXT
                copy.unlink()
                right += 1
            assert os.listdir(tmp_path) == []
            server.mend()
    assert 0 < right < 200


# --- absent here, or nowhere


async def test_absent_here_and_there_elsewhere(tmp_path: Path) -> None:
    async with bad_server() as first, bad_server() as second:
        second.put(TEXT)
        async with client_of(first, second) as client:
            assert await client.check(DIGEST)
            assert await client.size(DIGEST) == len(TEXT)
            await client.pull(DIGEST, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == TEXT


@pytest.mark.parametrize("order", [1, -1], ids=["down first", "down last"])
async def test_absent_is_said_only_if_all_have_said_so(
    tmp_path: Path, expect_log: Expect, order: int
) -> None:
    expect_log(DOWN)  # and then it is asked last
    async with (
        bad_server() as server,
        client_of(*(nowhere(), server)[::order]) as client,
    ):
        for operation in (client.check, client.size, client.stat):
            with pytest.raises(Unreachable):
                await operation(ABSENT)
        with pytest.raises(Unreachable):
            await client.pull(ABSENT, tmp_path / "copy")
        with pytest.raises(Unreachable):
            await client.check_batch([ABSENT])


async def test_a_server_that_is_down_does_not_stand_in_the_way(
    tmp_path: Path, expect_log: Expect
) -> None:
    expect_log(NEXT)
    expect_log(DOWN)
    (tmp_path / "file").write_bytes(TEXT)
    async with bad_server() as server, client_of(nowhere(), server) as client:
        name = await client.stream(tmp_path / "file")
        await client.pull(name, tmp_path / "copy")
        assert await client.check(name)
        with pytest.raises(Unreachable):
            await client.check(name, retry=False)


async def test_an_upload_says_which_servers_have_it(tmp_path: Path, expect_log: Expect) -> None:
    expect_log(NEXT)
    (tmp_path / "file").write_bytes(TEXT)
    async with bad_server() as first, bad_server() as second, bad_server() as third:
        addresses = [each.address for each in (first, second, third)]
        async with CafsClient("/root", addresses, replicas=2) as client:
            done = await client.upload(tmp_path / "file")
            assert done.hash == DIGEST.hex
            holders = [each for each in (first, second, third) if each.blobs]
            assert sorted(done.servers) == sorted(each.address for each in holders)
            assert len(holders) == 2
            for each in holders:
                each.blobs.clear()
                each.fault(Phase.STORED, Fault(instead=b"ERIO"))
            with pytest.raises(TooFewReplicas, match="only, not on 2 servers") as caught:
                await client.upload(tmp_path / "file")
            assert len(caught.value.servers) == 1


async def test_servers_tells_of_each(tmp_path: Path, expect_log: Expect) -> None:
    expect_log(NEXT)
    expect_log(DOWN)
    async with bad_server() as server:
        server.put(TEXT)
        gone = Member(Server.parse(nowhere()), zone="us", priority=3, weight=2.0)
        async with CafsClient("/root", [server.address, gone], zone="us") as client:
            await client.pull(DIGEST, tmp_path / "copy")
            up, down = client.servers()
            assert (up.name, up.state, up.zone, up.errors) == (server.address, "up", None, 0)
            assert (down.name, down.state, down.zone) == (str(gone.server), "down", "us")
            assert (down.priority, down.weight) == (3, 2.0)
            assert down.reason is not None
            assert "Connection refused" in down.reason


async def test_who_was_killed_and_is_not_asked_is_known_to_be_down(
    nursery: trio.Nursery,
) -> None:
    server, alive, ended = BadServer(), trio.CancelScope(), trio.Event()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with alive:
            await server.serve(task_status=task_status)
        ended.set()

    await nursery.start(serve)
    async with client_of(server) as client:
        assert not await client.check(ABSENT)
        alive.cancel()
        await ended.wait()
        for _ in range(500):
            state = client.servers()[0]
            if state.state != "up":
                break
            await wait_all_tasks_blocked(0.01)
        assert state.state == "down"
        assert state.reason is not None
        assert "Connection refused" in state.reason


async def test_errors_of_a_body_are_raised_as_they_are(tmp_path: Path) -> None:
    """The client's own tasks put nothing into a group."""
    async with bad_server() as server:
        with pytest.raises(ZeroDivisionError):
            async with client_of(server, nowhere()):
                raise ZeroDivisionError


# --- the other connections


async def test_retry_goes_on_over_the_other_connections(tmp_path: Path) -> None:
    async with bad_server() as server:
        server.put(TEXT)
        async with client_of(server, connections=4) as client:
            server.fault(Phase.BODY, Fault(after=9, then="reset"), times=3)
            await client.pull(DIGEST, tmp_path / "copy")
            assert server.connections == 4
            server.fault(Phase.BODY, Fault(after=9, then="reset"), times=4)
            with pytest.raises(ConnectionBroken):
                await client.pull(DIGEST, tmp_path / "copy")


@both_ways
@pytest.mark.parametrize("operation", [check, size, pull, stream])
async def test_a_restarted_server_is_not_noticed(
    tmp_path: Path, operation: Operation, retry: bool
) -> None:
    async with bad_server() as server:
        directory = prepare(tmp_path, server, server)
        async with client_of(server, connections=1) as client:
            await operation(client, directory, retry)
            for reset in (False, True):
                await server.hang_up(reset=reset)
                await operation(client, directory, retry)
            assert server.connections == 3


# --- deadlines


async def test_timeouts_are_as_given(tmp_path: Path, jumping_clock: MockClock) -> None:
    async with bad_server() as server:
        server.put(TEXT)
        client = CafsClient(
            "/root",
            [server.address],
            connect_timeout=7,
            answer_timeout=11,
            progress_timeout=13,
        )
        for phase, seconds in ((Phase.VERDICT, 7), (Phase.PULL, 11), (Phase.BODY, 13)):
            server.fault(phase, STALL, times=1)
            began = trio.current_time()
            with pytest.raises(TimedOut):
                await client.pull(DIGEST, tmp_path / "copy")
            assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)
        await client.aclose()


# --- batches


@both_ways
async def test_batches_with_more_items_than_connections(tmp_path: Path, retry: bool) -> None:
    contents = [TEXT[: number * 60] for number in range(40)]
    paths = [tmp_path / f"{number}" for number in range(40)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    (tmp_path / "store").mkdir()
    async with (
        serving(tmp_path / "store") as stand,
        CafsClient("/root", [stand.address], connections_per_server=2) as client,
    ):
        hashes = await client.stream_batch(paths, Compression.ZSTD, retry=retry)
        assert hashes == [digest_of(content).hex for content in contents]
        copies = [tmp_path / "copies" / path.name for path in paths]
        await client.pull_batch(zip(hashes, copies, strict=True), retry=retry)
        assert [copy.read_bytes() for copy in copies] == contents


async def test_a_batch_uses_all_connections_and_no_more(tmp_path: Path) -> None:
    async with bad_server() as server:
        blobs = [(server.put(b"%d" % number), tmp_path / f"{number}") for number in range(20)]
        server.fault(Phase.BODY, Fault(drip=(10, 0.005)))
        for limit, connections in ((2, 2), (None, 3)):
            async with CafsClient("/root", [server.address], connections_per_server=3) as client:
                before = server.connections
                await client.pull_batch(blobs, max_concurrent=limit)
                assert server.connections - before == connections


@both_ways
async def test_an_error_of_a_batch_hits_only_its_own_blob(tmp_path: Path, retry: bool) -> None:
    async with bad_server() as server, client_of(server) as client:
        good = [server.put(b"%d" % number) for number in range(6)]
        wrong = server.have(digest_of(b"wrong").hex, pack(b"other content"))
        names = [good[0], "no hash", *good[1:3], ABSENT.hex, *good[3:5], wrong, good[5]]
        blobs = [(name, tmp_path / "copies" / name) for name in names]
        with pytest.raises(BatchError, match="3 of 9 failed") as caught:
            await client.pull_batch(blobs, retry=retry)
        assert {name: type(error) for name, error in caught.value.failures.items()} == {
            "no hash": InvalidDigest,
            ABSENT.hex: BlobNotFound,
            wrong: CorruptBlob,
        }
        assert sorted(os.listdir(tmp_path / "copies")) == sorted(good)


@both_ways
async def test_an_error_of_an_upload_batch_hits_only_its_own_file(
    tmp_path: Path, retry: bool
) -> None:
    (tmp_path / "good").write_bytes(TEXT)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / name for name in ("missing", "good", "directory", "pipe")]
    async with bad_server() as server, client_of(server) as client:
        with pytest.raises(BatchError, match="3 of 4 failed") as caught:
            await client.stream_batch(paths, retry=retry)
        assert caught.value.failures.keys() == {str(path) for path in paths if path != paths[1]}
        assert all(type(error) is StoreError for error in caught.value.failures.values())
        assert server.blobs.keys() == {DIGEST.raw}


async def test_batches_of_nothing_and_of_twice_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    async with bad_server() as server, client_of(server) as client:
        assert await client.stream_batch([]) == []
        await client.pull_batch([])
        assert await client.check_batch([]) == {}
        assert server.connections == 0
        twice = await client.stream_batch([tmp_path / "file"] * 2)
        assert twice == [DIGEST.hex] * 2
        await client.pull_batch([(DIGEST, tmp_path / "a"), (DIGEST, tmp_path / "b")])
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == TEXT
        with pytest.raises(UsageError):
            await client.pull_batch([(DIGEST, tmp_path / "c")], max_concurrent=-1)


# --- uploads


async def test_a_file_that_changes_while_it_is_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NOISE * 10)
    async with bad_server() as server, client_of(server) as client:
        server.fault(Phase.UPLOAD, STALL)

        async def change() -> None:
            await wait_all_tasks_blocked(0.05)
            path.write_bytes(NOISE * 9)
            await server.hang_up()
            server.mend()

        with pytest.raises(CorruptBlob, match="changed"):
            await _both(change, lambda: client.stream(path))
        assert server.blobs == {}


async def _both(first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[str]]) -> None:
    """Run both; raises what ``second`` raises, without a group around it."""
    failure: CafsError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        try:
            await second()
        except CafsError as error:
            failure = error
    if failure is not None:
        raise failure


async def test_a_server_that_refuses_the_upload_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    (tmp_path / "store").mkdir()
    async with (
        serving(tmp_path / "store") as stand,
        CafsClient("/no/such/root", [stand.address]) as client,
    ):
        with pytest.raises(ServerRefused, match="ERIO"):
            await client.stream(tmp_path / "file")
