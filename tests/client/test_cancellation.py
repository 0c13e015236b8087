"""Cancelled at any stage, nothing is left: no socket, no place taken, no file, no stuck task."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.client import CafsClient
from tests.bad_server import Fault, Phase, bad_server
from tests.server.stand import digest_of

SMALL = b"The quick brown fox jumps over the lazy dog.\n" * 100
LARGE = Random(1).randbytes(12 << 20)

Operation = Callable[[CafsClient, Path], Awaitable[object]]


def check(client: CafsClient, _: Path) -> Awaitable[object]:
    return client.check(digest_of(SMALL))


def size(client: CafsClient, _: Path) -> Awaitable[object]:
    return client.size(digest_of(SMALL))


def probe(client: CafsClient, _: Path) -> Awaitable[object]:
    return client.size(digest_of(LARGE))


def pull(client: CafsClient, directory: Path) -> Awaitable[object]:
    return client.pull(digest_of(LARGE), directory / "new" / "copy")


def pull_batch(client: CafsClient, directory: Path) -> Awaitable[object]:
    blobs = [(digest_of(SMALL), directory / f"copy{number}") for number in range(5)]
    return client.pull_batch(blobs)


def stream(client: CafsClient, directory: Path) -> Awaitable[object]:
    return client.stream(directory.parent / "large")


STAGES: dict[str, tuple[Operation, Phase, int]] = {
    "check, connecting": (check, Phase.GREETING, 5),
    "check, being greeted": (check, Phase.VERDICT, 0),
    "check, before the answer": (check, Phase.CHECK, 0),
    "size, within the answer": (size, Phase.SIZE, 5),
    "probe, connecting": (probe, Phase.GREETING, 5),
    "probe, before the answer": (probe, Phase.PULL, 0),
    "probe, within the header": (probe, Phase.BODY, 7),
    "pull, before the answer": (pull, Phase.PULL, 0),
    "pull, within the answer": (pull, Phase.PULL, 53),
    "pull, before the body": (pull, Phase.BODY, 0),
    "pull, within the body": (pull, Phase.BODY, 5 << 20),
    "pull, before the last byte": (pull, Phase.BODY, len(LARGE) + 15),
    "pull_batch, within a body": (pull_batch, Phase.BODY, 1000),
    "stream, not taken": (stream, Phase.UPLOAD, 1 << 20),
    "stream, before the answer": (stream, Phase.STORED, 0),
}


@pytest.mark.parametrize(("operation", "phase", "after"), STAGES.values(), ids=list(STAGES))
async def test_cancelled(tmp_path: Path, operation: Operation, phase: Phase, after: int) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    directory = tmp_path / "copies"
    directory.mkdir()
    async with bad_server() as server:
        server.put(SMALL)
        if operation is not stream:
            server.put(LARGE)
        async with CafsClient("/root", [server.address], connections_per_server=1) as client:
            skip = 1 if (operation, phase) == (probe, Phase.GREETING) else 0
            server.fault(phase, Fault(after=after, then="stall"), skip=skip)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(operation, client, directory)
                with trio.fail_after(10):  # a file is hashed first, in a thread
                    while not server.open:  # noqa: ASYNC110  # nobody tells
                        await trio.sleep(0.001)
                await wait_all_tasks_blocked(0.03)
                assert server.open > 0
                nursery.cancel_scope.cancel()
            assert [path for path in directory.rglob("*") if path.is_file()] == []
            server.mend()
            with trio.fail_after(10):  # the only place of the pool is free
                await operation(client, directory)
        await wait_all_tasks_blocked(0.01)
        if operation is not stream:  # there the bad server does not listen, and so does not notice
            assert server.open == 0


async def test_cancelled_before_it_began(tmp_path: Path) -> None:
    async with bad_server() as server, CafsClient("/root", [server.address]) as client:
        server.put(SMALL)
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.pull(digest_of(SMALL), tmp_path / "copy")
        assert scope.cancelled_caught
        assert os.listdir(tmp_path) == []


async def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    """Not at chosen stages but at each turn of the event loop in which a pull waits."""
    content = LARGE[: 3 << 20]
    digest = digest_of(content)
    async with bad_server() as server:
        server.put(content)
        async with CafsClient("/root", [server.address], connections_per_server=1) as client:
            for turns in range(120):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.pull, digest, tmp_path / "copy")
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                left = os.listdir(tmp_path)
                assert left in ([], ["copy"])
                if left:
                    assert (tmp_path / "copy").read_bytes() == content
                    (tmp_path / "copy").unlink()
            with trio.fail_after(10):
                await client.pull(digest, tmp_path / "copy")
