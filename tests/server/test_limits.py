"""What a server does not let its clients do: hold connections, memory or the disk."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from cafsfs.errors import StoreError
from cafsfs.server import CafsServer, Limits
from tests.bad_server import pack
from tests.cli.guides import documented
from tests.packing.samples import zstd_bomb
from tests.server.stand import (
    GREETING,
    HELLO,
    RawClient,
    check,
    digest_of,
    pull,
    push,
    serving,
    stream,
    take,
)

CONTENT = b"some content"
PACKED = pack(CONTENT)
DIGEST = digest_of(CONTENT)
ENDLESS = bytes(48 << 20)  # more than the buffers of both sides hold


async def test_one_connection_too_many_is_closed_at_once(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log(documented("refused a connection").pattern)
    limits = Limits(connections=2)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as first:
        async with await stand.greeted(), await stand.connect() as third:
            assert await third.hear_all() == b""
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with await stand.greeted():  # one has left: there is room again
            pass
        assert await first.ask(check(DIGEST)) == b"NONE"


async def test_silence_between_commands_is_bounded_by_idle(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    limits = Limits(idle=1800, stall=60)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as client:
        assert await client.ask(check(DIGEST)) == b"NONE"
        began = trio.current_time()
        await trio.sleep(1799)
        assert await client.ask(check(DIGEST)) == b"NONE"
        assert await client.hear_all() == b""
        assert trio.current_time() - began == pytest.approx(1799 + 1800, abs=1)


MIDDLES = {
    "before the version": (b"", GREETING),
    "within the version": (b"VERS", GREETING),
    "before the root": (b"VERS001", GREETING + b"NONE"),
    "within the root": (b"VERS001\x05/ro", GREETING + b"NONE"),
    "within a command": (HELLO + check(DIGEST)[:9], GREETING + b"NONE"),
    "within a PUSH": (HELLO + push(DIGEST, PACKED)[:-1], GREETING + b"NONE"),
    "within a chunk": (HELLO + stream(DIGEST, PACKED)[:-3], GREETING + b"NONE"),
    "between chunks": (HELLO + stream(DIGEST, PACKED, end=b""), GREETING + b"NONE"),
}


@pytest.mark.parametrize(("said", "heard"), MIDDLES.values(), ids=list(MIDDLES))
async def test_silence_in_the_middle_is_bounded_by_stall(
    tmp_path: Path, said: bytes, heard: bytes, jumping_clock: MockClock
) -> None:
    limits = Limits(idle=1800, stall=60)
    async with serving(tmp_path, limits=limits) as stand, await stand.connect() as client:
        began = trio.current_time()
        await client.say(said)
        assert await client.hear_all() == heard
        # A message that has begun gets its stall anew with its first byte.
        assert 59 < trio.current_time() - began < 121
        assert stand.stored() == []


@pytest.mark.parametrize(
    ("before", "trickled"),
    [
        (b"", b"VERS001"),
        (b"VERS001", b"\xff" + b"r" * 255),
        (HELLO, check(DIGEST)),
        (HELLO + push(DIGEST, PACKED)[:-10], PACKED[-10:] * 9),
        (HELLO + stream(DIGEST, PACKED, end=b""), b"\x01\x00x" * 9),
    ],
    ids=["version", "root", "command", "push", "stream"],
)
async def test_one_byte_now_and_then_does_not_hold_a_connection(
    tmp_path: Path, before: bytes, trickled: bytes, jumping_clock: MockClock
) -> None:
    limits = Limits(idle=1800, stall=3, rate=1024)
    async with serving(tmp_path, limits=limits) as stand, await stand.connect() as client:
        await client.say(before)
        await client.hear(20 if before in {b"", b"VERS001"} else 24)
        began = trio.current_time()
        assert await _said_until_cut_off(client, trickled, 1, pause=1.4) < len(trickled)
        assert trio.current_time() - began < 10
        assert stand.stored() == []


@pytest.mark.parametrize("rest", [0, 8 << 20], ids=["nothing", "too slowly"])
async def test_client_that_takes_too_little_of_a_pull_is_closed(
    tmp_path: Path, rest: int, jumping_clock: MockClock
) -> None:
    content = bytes(64 << 20)
    limits = Limits(stall=10, rate=2 << 20)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        began = trio.current_time()
        await client.say(pull(digest))
        for _ in range(4):
            await trio.sleep(9)
            await client.hear(rest)  # 0.9 MB/s
        assert len(await client.hear_all()) < len(content)
        assert trio.current_time() - began < 60


async def test_who_asks_and_never_listens_is_closed(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    limits = Limits(stall=60)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as client:
        stand.keep(pack(bytes(1 << 16)), DIGEST)
        began = trio.current_time()
        questions = pull(DIGEST) * 1_000_000
        assert await _said_until_cut_off(client, questions, 1 << 16) < len(questions)
        assert trio.current_time() - began == pytest.approx(60, abs=10)


async def _said_until_cut_off(
    client: RawClient, data: bytes, step: int, *, pause: float = 0
) -> int:
    """Say ``data`` in steps; returns how many bytes went before the server closed."""
    for at in range(0, len(data), step):
        try:
            await client.say(data[at : at + step])
        except trio.BrokenResourceError:
            return at
        await trio.sleep(pause)
    return len(data)


async def test_oversized_push_is_cut_off(tmp_path: Path) -> None:
    limits = Limits(blob=1 << 20)
    async with serving(tmp_path, limits=limits) as stand:
        for length in ((1 << 20) + 1, 1 << 62):
            client = await stand.greeted()
            await client.say(b"PUSHblake3" + DIGEST.raw + struct.pack("<Q", length))
            assert await _said_until_cut_off(client, ENDLESS, 1 << 16) < len(ENDLESS)
            await client.aclose()
        assert stand.stored() == []
        digest = digest_of(bytes((1 << 20) - 16))
        async with await stand.greeted() as client:  # as long as allowed
            assert await client.ask(push(digest, pack(bytes((1 << 20) - 16)))) == b"HAVE"


@pytest.mark.parametrize("known", [False, True], ids=["new", "there already"])
@pytest.mark.parametrize("header", [b"NONE" + bytes(12), b"garbage, no header"])
async def test_endless_stream_is_cut_off(tmp_path: Path, header: bytes, known: bool) -> None:
    limits = Limits(blob=1 << 20)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as client:
        if known:
            stand.keep(PACKED, DIGEST)
        await client.say(stream(DIGEST, header, end=b""))
        chunks = (struct.pack("<H", 65534) + bytes(65534)) * (len(ENDLESS) >> 16)
        assert await _said_until_cut_off(client, chunks, 1 << 16) < len(chunks)
        assert stand.stored() == [DIGEST.hex] * known


@pytest.mark.parametrize("how", ["zstd", "zlib", "zstd-asyncio", "zlib-asyncio"])
async def test_upload_that_unpacks_to_too_much_is_refused(tmp_path: Path, how: str) -> None:
    limits = Limits(content=1 << 20)
    async with serving(tmp_path, limits=limits) as stand, await stand.greeted() as client:
        for content, answer in ((bytes((1 << 20) + 1), b"ERIONONE"), (bytes(1 << 20), b"HAVEHAVE")):
            digest = digest_of(content)
            for upload in (push(digest, pack(content, how)), stream(digest, pack(content, how))):
                assert await client.ask(upload + check(digest), 8) == answer


async def test_bomb_that_announces_itself_is_not_unpacked(tmp_path: Path) -> None:
    """1 MiB of it would keep a thread busy for ten seconds and more."""
    bomb = struct.pack("<4sHHQ", b"ZSTD", 16, 0, 1 << 45) + zstd_bomb(1 << 18)
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        with trio.fail_after(5):
            assert await client.ask(stream(DIGEST, bomb) + check(DIGEST), 8) == b"ERIONONE"


async def test_log_of_a_million_bad_commands_is_short(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(PACKED, DIGEST)
        await client.say(pull(DIGEST, 0, 9) * 500)
        assert await client.hear(2000) == b"ERIO" * 500
        [session] = stand.server._sessions
        assert session.tally.refusals == 500
        assert len(session.tally.refused) == 3


def test_a_server_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        CafsServer(tmp_path / "missing")


async def test_a_server_needs_a_free_port(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        second = CafsServer(tmp_path)
        with pytest.raises(StoreError, match="cannot listen on"):
            await second.serve("127.0.0.1", stand.port)


async def test_a_blob_at_the_end_of_a_pull_is_whole_for_a_patient_client(tmp_path: Path) -> None:
    content = Random(5).randbytes(3 << 20)
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        expected = take(digest, len(content) + 16) + pack(content)
        assert await client.ask(pull(digest), len(expected)) == expected


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_socket_of_a_supervisor_is_one_of_tcp(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    """The gate goes by the client's address, and one of a unix socket has none."""
    family = socket.AF_UNIX if kind is socket.SOCK_STREAM else socket.AF_INET
    with (
        socket.socket(family, kind) as sock,
        pytest.raises(StoreError, match="no TCP, but AF_") as caught,
    ):
        await CafsServer(tmp_path).serve("127.0.0.1", 0, inherited=[sock])
    assert "ListenStream=" in str(caught.value.hint)
