"""Many clients at once, each served as if it were alone."""

from __future__ import annotations

import os
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from cafsfs.server import Limits
from tests.bad_server import pack
from tests.server.stand import HELLO, check, digest_of, pull, push, serving, stream, take

CLIENTS = 200


async def test_two_hundred_clients_at_once(tmp_path: Path) -> None:
    random = Random(4)
    shared = random.randbytes(300_000)
    done: list[int] = []

    async def use(number: int) -> None:
        own = random.randbytes(5_000 + number)
        digest = digest_of(own)
        upload = (push, stream)[number % 2](digest, pack(own))
        expected = take(blob, len(shared) + 16) + pack(shared)
        async with await stand.connect() as client:
            async with trio.open_nursery() as nursery:
                # Said and heard at once, as a client that pipelines does.
                said = HELLO + upload + pull(blob) + check(digest)
                nursery.start_soon(client.say, said)
                heard = await client.hear(20 + 4 + 4 + len(expected) + 4)
            assert heard == b"BLOBPUSH_SERVER_V001" + b"NONE" + b"HAVE" + expected + b"HAVE"
        done.append(number)

    async with serving(tmp_path, limits=Limits(connections=CLIENTS)) as stand:
        blob = stand.keep_content(shared)
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(use, number)
        assert len(done) == CLIENTS
        assert len(stand.stored()) == CLIENTS + 1


async def test_a_stalled_upload_and_idle_clients_slow_nobody(tmp_path: Path) -> None:
    content = bytes(100_000)
    digest = digest_of(content)
    async with serving(tmp_path) as stand:
        stalled = [await stand.greeted() for _ in range(50)]
        for number, client in enumerate(stalled):
            if number % 2:
                await client.say(push(digest, pack(content))[:-1])
        async with await stand.greeted() as client:
            with trio.fail_after(5):
                assert await client.ask(push(digest, pack(content))) == b"HAVE"
        for client in stalled:
            await client.aclose()


async def test_slow_clients_cost_few_hops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is writable when a third of it is free: not each time that a client takes a bit."""
    hops = 0
    run = trio.to_thread.run_sync

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal hops
        hops += 1
        return await run(*args, **options)

    async def settled() -> int:
        before = -1
        while before != hops:
            before = hops
            await trio.testing.wait_all_tasks_blocked(0.05)
        return hops

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    async with serving(tmp_path) as stand, AsyncExitStack() as stack:
        digest = stand.keep_content(bytes(48 << 20))  # more than the buffers of both sides hold
        slow = [await stack.enter_async_context(await stand.greeted()) for _ in range(40)]
        for client in slow:
            await client.say(pull(digest))
        before = await settled()
        for _ in range(50):
            for client in slow:
                await client.hear(1000)
        assert await settled() - before < 2 * len(slow)


async def test_a_disk_that_hangs_holds_up_nobody_elses_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    sendfile = os.sendfile

    def hanging(*args: Any) -> int:
        assert freed.wait(60)
        return sendfile(*args)

    monkeypatch.setattr(os, "sendfile", hanging)
    small = bytes(4096)
    async with serving(tmp_path) as stand, AsyncExitStack() as stack:
        stack.callback(freed.set)  # the last of all
        large = stand.keep_content(bytes(1 << 20))
        clients = [await stack.enter_async_context(await stand.greeted()) for _ in range(20)]
        for client in clients:
            await client.say(pull(large))
            assert await client.hear(54) == take(large, (1 << 20) + 16)
        async with await stand.greeted() as client:
            digest = digest_of(small)
            with trio.fail_after(30):
                assert await client.ask(push(digest, pack(small)) + check(digest), 8) == b"HAVEHAVE"
                expected = take(digest, 4112) + pack(small)
                assert await client.ask(pull(digest), len(expected)) == expected
        freed.set()
        for client in clients:
            assert await client.hear(16 + (1 << 20)) == pack(bytes(1 << 20))
