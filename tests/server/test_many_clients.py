"""Two hundred clients at once, each served as if it were alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

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
