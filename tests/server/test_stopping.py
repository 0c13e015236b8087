"""A stop: nobody new, who is idle goes at once, transfers get their grace."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cafsfs.server import CafsServer, Limits
from tests.bad_server import pack
from tests.server.stand import RawClient, Stand, digest_of, pull, push, serving, take

CONTENT = bytes(48 << 20)  # more than the buffers of both sides hold
PACKED = pack(CONTENT)
DIGEST = digest_of(CONTENT)


async def test_idle_connections_end_at_once(tmp_path: Path, jumping_clock: MockClock) -> None:
    async with serving(tmp_path) as stand:
        began = trio.current_time()
        async with await stand.greeted() as idle, await stand.connect() as silent:
            await silent.hear(20)
            stand.server.stop()
            assert await idle.hear_all() == b""
            assert await silent.hear_all() == b""
        assert trio.current_time() - began < 1
        await trio.testing.wait_all_tasks_blocked(0.02)
        with pytest.raises(OSError, match="all attempts to connect"):
            await stand.connect()


async def test_transfers_under_way_may_finish(tmp_path: Path, jumping_clock: MockClock) -> None:
    async with serving(tmp_path, limits=Limits(grace=10)) as stand:
        puller, pusher = await _in_the_middle(stand)
        stand.server.stop()
        await trio.sleep(9)
        async with puller, pusher:
            assert await puller.hear(len(PACKED)) == PACKED
            await pusher.say(PACKED[len(PACKED) // 2 :])
            assert await pusher.hear_all() == b"HAVE"
            assert await puller.hear_all() == b""


async def test_transfers_that_take_too_long_are_abandoned(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path, limits=Limits(grace=10)) as stand:
        began = trio.current_time()
        puller, pusher = await _in_the_middle(stand)
        stand.server.stop()
        async with puller, pusher:
            assert await pusher.hear_all() == b""
            assert trio.current_time() - began == pytest.approx(10, abs=1)
            assert len(await puller.hear_all()) < len(PACKED)
        assert stand.stored() == [DIGEST.hex]  # nothing of what was being pushed


async def test_serve_returns_when_all_are_gone(tmp_path: Path) -> None:
    server = CafsServer(tmp_path)
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(server.serve, "localhost", 0)
        assert addresses
        server.stop()
        server.stop()  # a second signal does no harm


async def test_a_server_that_was_stopped_before_it_served_does_not_serve(tmp_path: Path) -> None:
    server = CafsServer(tmp_path)
    server.stop()
    await server.serve("127.0.0.1", 0)


async def _in_the_middle(stand: Stand) -> tuple[RawClient, RawClient]:
    """One client that has begun to pull, and one that has pushed half of another blob."""
    stand.keep(PACKED, DIGEST)
    puller = await stand.greeted()
    await puller.say(pull(DIGEST))
    assert await puller.hear(54) == take(DIGEST, len(PACKED))
    stand.path(DIGEST).rename(stand.directory / DIGEST.hex)  # so that the push is not in vain
    pusher = await stand.greeted()
    await pusher.say(push(DIGEST, PACKED)[: 50 + len(PACKED) // 2])
    return puller, pusher


def test_the_prefix_of_a_push_is_fifty_bytes() -> None:
    assert push(DIGEST, b"") == b"PUSHblake3" + DIGEST.raw + struct.pack("<Q", 0)
    assert len(push(DIGEST, b"")) == 50
