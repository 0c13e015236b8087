"""What one client may say, and what it hears: versions, roots, order, garbage."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from tests.bad_server import pack
from tests.packing.samples import unpack
from tests.server.stand import (
    GREETING,
    HELLO,
    check,
    digest_of,
    pull,
    push,
    serving,
    size,
    size_answer,
    stream,
    take,
)

CONTENT = b"some content"
PACKED = pack(CONTENT)
DIGEST = digest_of(CONTENT)
ABSENT = digest_of(b"absent")


async def test_version_000_is_answered_erbd_and_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.connect() as client:
        await client.say(b"VERS000")
        assert await client.hear_all() == GREETING + b"ERBD"


async def test_version_002_is_closed_without_a_word_for_there_is_no_secret(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.connect() as client:
        await client.say(b"VERS002" + bytes(8))
        assert await client.hear_all() == GREETING


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0", b"VERSabc", b"\0" * 4096, b"SSH-2.0"],
)
async def test_who_speaks_something_else_is_closed(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path) as stand, await stand.connect() as client:
        await client.say(garbage)
        assert await client.hear_all() == GREETING


async def test_a_client_that_only_looks_in_costs_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        async with await stand.connect() as client:
            assert await client.hear(20) == GREETING
        async with await stand.connect() as client:
            await client.say(b"VERS001\xff")  # a root of 255 bytes that never comes
        async with await stand.greeted() as client:
            assert await client.ask(check(ABSENT)) == b"NONE"


async def test_unknown_command_costs_two_seconds_then_the_connection_is_closed(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        began = trio.current_time()
        await client.say(b"WHAT")
        assert await client.hear_all() == b""
        assert 2 <= trio.current_time() - began < 3


async def test_another_hash_type_is_an_unknown_command(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        await client.say(b"CHCKsha256" + bytes(32))
        assert await client.hear_all() == b""


async def test_absent_is_four_bytes_for_every_question(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        for question in (check(ABSENT), size(ABSENT), pull(ABSENT), pull(ABSENT, 16, 1)):
            assert await client.ask(question + check(ABSENT), 8) == b"NONENONE"


async def test_everything_in_one_segment_is_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.connect() as client:
        await client.say(
            HELLO
            + push(DIGEST, PACKED)
            + check(DIGEST)
            + pull(DIGEST)
            + stream(DIGEST, PACKED, chunk=5)
            + pull(ABSENT)
            + size(DIGEST)
            + check(ABSENT)
        )
        await client.finish_saying()
        assert await client.hear_all() == (
            GREETING
            + b"NONE"
            + b"HAVE"
            + b"HAVE"
            + (take(DIGEST, len(PACKED)) + PACKED)
            + b"HAVE"
            + b"NONE"
            + size_answer(len(PACKED))
            + b"NONE"
        )


async def test_everything_byte_by_byte_is_answered_alike(tmp_path: Path) -> None:
    said = HELLO + stream(DIGEST, PACKED, chunk=9) + check(DIGEST) + push(DIGEST, PACKED)
    async with serving(tmp_path) as stand, await stand.connect() as client:
        for at in range(len(said)):
            await client.say(said[at : at + 1])
        await client.finish_saying()
        assert await client.hear_all() == GREETING + b"NONE" + b"HAVE" * 3


async def test_thousand_questions_at_once_are_a_thousand_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(PACKED, DIGEST)
        await client.say((check(DIGEST) + check(ABSENT)) * 500)
        assert await client.hear(4000) == b"HAVENONE" * 500


async def test_half_closed_client_gets_its_answers_then_the_end(tmp_path: Path) -> None:
    content = bytes(3 << 20)
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        await client.say(pull(digest))
        await client.finish_saying()
        assert await client.hear_all() == take(digest, len(content) + 16) + pack(content)


@pytest.mark.parametrize(
    "beginning",
    [check(DIGEST)[:-1], push(DIGEST, PACKED)[:-1], stream(DIGEST, PACKED, end=b"")],
    ids=["command", "push", "stream"],
)
async def test_client_that_leaves_in_the_middle_leaves_nothing(
    tmp_path: Path, beginning: bytes, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        await client.say(beginning)
        await client.finish_saying()
        assert await client.hear_all() == b""
        assert stand.stored() == []


async def test_client_that_resets_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        big = stand.keep_content(bytes(16 << 20))
        for beginning in (push(DIGEST, PACKED)[:-1], stream(DIGEST, PACKED, end=b""), pull(big)):
            client = await stand.greeted()
            await client.say(beginning)
            await client.hear(54 if beginning == pull(big) else 0)
            client.reset()
        async with await stand.greeted() as client:
            assert await client.ask(check(DIGEST)) == b"NONE"
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert stand.stored() == [big.hex]


async def test_whatever_is_said_nothing_wrong_is_stored_and_the_server_goes_on(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    """Sound sessions with some bytes changed; a traceback in the log would fail the test."""
    random = Random(1)
    contents = {digest_of(each).hex: each for each in (b"one", b"two" * 1000)}
    sound = HELLO + b"".join(
        push(digest_of(each), pack(each, "zlib"))
        + stream(digest_of(each), pack(each), chunk=100)
        + pull(digest_of(each))
        + size(digest_of(each))
        for each in contents.values()
    )
    async with serving(tmp_path) as stand:
        for _ in range(150):
            said = bytearray(sound)
            for _ in range(random.randrange(1, 4)):
                said[random.randrange(len(said))] = random.randrange(256)
            async with await stand.connect() as client:
                await client.say(bytes(said[: random.choice([len(said), random.randrange(7000)])]))
                await client.finish_saying()
                assert (await client.hear_all()).startswith(GREETING)
        for path in tmp_path.rglob("*"):
            if path.is_file():
                assert unpack([path.read_bytes()]) == contents[path.name]
        async with await stand.greeted() as client:
            assert await client.ask(check(ABSENT)) == b"NONE"


async def test_broken_files_of_a_store_are_errors_of_one_command(tmp_path: Path) -> None:
    """A deployed server takes any bytes: what it stored comes back to whoever pulls it."""
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(b"garbage that is no blob", DIGEST)
        assert await client.ask(check(DIGEST)) == b"HAVE"
        assert await client.ask(size(DIGEST)) == b"ERIO"
        assert await client.ask(pull(DIGEST), 77) == take(DIGEST, 23) + b"garbage that is no blob"
        assert await client.ask(check(ABSENT)) == b"NONE"


async def test_serves_ipv6(tmp_path: Path) -> None:
    async with serving(tmp_path, host="::1") as stand, await stand.greeted() as client:
        assert await client.ask(check(ABSENT)) == b"NONE"
