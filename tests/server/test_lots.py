"""Questions that came together: answered together, in order, and no client holds up another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from cafsfs.digest import Digest
from cafsfs.errors import RangeError
from cafsfs.server import CafsServer, lots
from cafsfs.server.lots import LOT, Question, reply_to
from cafsfs.store.local_root import LocalRoot, blob_path
from cafsfs.store.memory import MemoryPackedStore
from cafsfs.wire import Absent, Check, FileError, Have, Measure, PackedLength, Pull, Take
from tests.bad_server import MIB, pack
from tests.server.stand import (
    Stand,
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

KIB = 1 << 10
ABSENT = digest_of(b"absent")
CONTENTS = [Random(number).randbytes(100 * number) for number in range(100)]
WORKERS = trio.CapacityLimiter(1)
LARGE = Random(1).randbytes(3 * MIB)  # sent by sendfile


def _keep_all(stand: Stand) -> list[Digest]:
    return [stand.keep_content(content) for content in CONTENTS]


def _pulled(content: bytes) -> bytes:
    return take(digest_of(content), len(content) + 16) + pack(content)


async def _exchange(stand: Stand, said: bytes, expected: bytes) -> None:
    """Say all at once, and hear ``expected`` and nothing more."""
    async with await stand.greeted() as client, trio.open_nursery() as nursery:

        async def say() -> None:
            await client.say(said)
            await client.finish_saying()

        nursery.start_soon(say)
        assert await client.hear_all() == expected


async def test_pipelined_pulls_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        digests = _keep_all(stand)
        order = Random(2).choices(range(len(CONTENTS)), k=1000)
        said = b"".join(pull(digests[number]) for number in order)
        await _exchange(stand, said, b"".join(_pulled(CONTENTS[number]) for number in order))


async def test_every_kind_of_question_beside_every_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        digests = _keep_all(stand)
        large = stand.keep_content(LARGE)
        empty, broken = digest_of(b"empty"), digest_of(b"broken")
        stand.keep(b"", empty)
        stand.keep(b"no blob of ours", broken)
        exchange = {
            check(digests[7]): b"HAVE",
            check(ABSENT): b"NONE",
            size(digests[9]): size_answer(916),
            size(ABSENT): b"NONE",
            size(broken): b"ERIO",
            pull(digests[11]): _pulled(CONTENTS[11]),
            pull(ABSENT): b"NONE",
            pull(digests[3], 0, 1): b"ERIO",
            pull(digests[3], 317): b"ERIO",
            pull(digests[3], 16): take(digests[3], 16) + pack(CONTENTS[3])[:16],
            pull(large): _pulled(LARGE),
            pull(large, 100_000, 1): take(large, 100_000, 1) + pack(LARGE)[MIB:][:100_000],
            pull(large, 16): take(large, 16) + pack(LARGE)[:16],
            pull(empty): take(empty, 0),
            pull(broken): take(broken, 15) + b"no blob of ours",
        }
        questions = Random(3).choices(list(exchange), k=300)
        await _exchange(stand, b"".join(questions), b"".join(exchange[each] for each in questions))


async def test_uploads_between_pipelined_pulls(tmp_path: Path) -> None:
    one, two = b"one" * 1000, LARGE
    async with serving(tmp_path) as stand:
        digests = _keep_all(stand)
        said = (
            b"".join(map(pull, digests[:10]))
            + pull(digest_of(one))
            + push(digest_of(one), pack(one))
            + pull(digest_of(one))
            + check(digest_of(two))
            + stream(digest_of(two), pack(two))
            + size(digest_of(two))
            + push(ABSENT, pack(b"wrong"))
            + pull(digests[10])
        )
        expected = (
            b"".join(map(_pulled, CONTENTS[:10]))
            + (b"NONE" + b"HAVE" + _pulled(one))
            + (b"NONE" + b"HAVE" + size_answer(len(two) + 16))
            + (b"ERIO" + _pulled(CONTENTS[10]))
        )
        await _exchange(stand, said, expected)


async def test_what_came_before_garbage_is_answered(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        [digest, *_] = _keep_all(stand)
        began = trio.current_time()
        await client.say(pull(digest) * 3 + b"WHAT" + pull(digest))
        assert await client.hear_all() == _pulled(CONTENTS[0]) * 3
        assert 2 <= trio.current_time() - began < 3


async def test_a_question_in_two_segments_waits_for_the_second(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = _keep_all(stand)[5]
        answer = _pulled(CONTENTS[5])
        assert await client.ask(pull(digest) * 2 + pull(digest)[:9], 2 * len(answer)) == answer * 2
        assert await client.ask(pull(digest)[9:], len(answer)) == answer


async def test_a_file_that_shrinks_within_a_lot_breaks_the_answers_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread

    def short(descriptor: int, count: int, offset: int) -> bytes:
        if count == 516:
            os.truncate(f"/proc/self/fd/{descriptor}", 100)
        return pread(descriptor, count, offset)

    async with serving(tmp_path) as stand:
        digests = _keep_all(stand)
        monkeypatch.setattr(os, "pread", short)
        said = b"".join(map(pull, digests[4:7]))
        await _exchange(stand, said, _pulled(CONTENTS[4]) + _pulled(CONTENTS[5])[: 54 + 100])


async def test_who_leaves_within_a_lot_leaves_no_file_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        digests = _keep_all(stand)
        large = stand.keep_content(bytes(48 * MIB))
        client = await stand.greeted()
        await client.say((b"".join(map(pull, digests[:5])) + pull(large)) * 9)
        await client.hear(MIB)
        client.reset()
        other = await stand.greeted()
        await other.say(pull(large) * 2)
        await other.hear(MIB)
        # The other one is cancelled in the middle; the fixture of this folder counts descriptors.
    await other.aclose()


async def test_a_stop_ends_a_lot_between_two_turns(tmp_path: Path) -> None:
    content = bytes(48 * MIB)  # more than the buffers of both sides hold
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        await client.say(pull(digest) * 3)
        heard = await client.hear(54)
        stand.server.stop()
        assert heard + await client.hear_all() == _pulled(content)


async def test_a_store_that_is_no_directory_is_asked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryPackedStore()

    async def open_root(*_: object) -> MemoryPackedStore:
        return store

    monkeypatch.setattr(CafsServer, "_open_root", open_root)
    digest = digest_of(LARGE)
    async with serving(tmp_path) as stand:
        said = pull(digest) + push(digest, pack(LARGE)) + check(digest) + size(digest)
        said += pull(digest) + pull(digest, 16) + pull(digest, 0, 9)
        expected = b"NONE" + b"HAVE" + b"HAVE" + size_answer(len(LARGE) + 16)
        expected += _pulled(LARGE) + take(digest, 16) + pack(LARGE)[:16] + b"ERIO"
        await _exchange(stand, said, expected)


# --- how far one turn goes


@pytest.fixture
def place(tmp_path: Path) -> Callable[[int], Digest]:
    """Keeps a blob of so many packed bytes below ``tmp_path``."""

    def keep(length: int) -> Digest:
        content = Random(length).randbytes(length - 16)
        path = blob_path(tmp_path / "blobs", digest_of(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(content))
        return digest_of(content)

    return keep


@pytest.fixture
def root(tmp_path: Path) -> LocalRoot:
    return LocalRoot(tmp_path, limiter=trio.CapacityLimiter(1))


@pytest.fixture
def _endless_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lots, "_TURN", 3600)


@pytest.mark.usefixtures("_endless_turn")
async def test_a_lot_is_answered_in_one_hop(
    root: LocalRoot, place: Callable[[int], Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = place(4 * KIB)
    kinds: list[Question] = [Pull(small), Check(small), Measure(small), Check(ABSENT), Pull(ABSENT)]
    hops: list[object] = []
    run = trio.to_thread.run_sync

    async def counted(*args: object, **options: object) -> object:
        hops.append(args)
        return await run(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    replies = await reply_to((kinds * LOT)[: LOT + 1], root, WORKERS)
    assert len(hops) == 1
    assert len(replies) == LOT
    expected = [Take(small, 4 * KIB, 0), Have(), PackedLength(4 * KIB), Absent(), Absent()]
    assert [each.answer for each in replies] == (expected * LOT)[:LOT]


@pytest.mark.usefixtures("_endless_turn")
async def test_bodies_of_a_lot_are_bounded(root: LocalRoot, place: Callable[[int], Digest]) -> None:
    replies = await reply_to([Pull(place(60 * KIB))] * LOT, root, WORKERS)
    assert [each.body is not None and each.body.whole for each in replies] == [True] * 5


@pytest.mark.usefixtures("_endless_turn")
async def test_a_large_body_ends_a_lot_and_is_not_read(
    root: LocalRoot, place: Callable[[int], Digest]
) -> None:
    small, large = place(4 * KIB), place(64 * KIB + 1)
    replies = await reply_to([Pull(small), Pull(large), Pull(small)], root, WORKERS)
    body = replies[-1].body
    assert len(replies) == 2
    assert body is not None
    assert not body.whole
    assert len(body.head) == 4 * KIB
    os.close(body.descriptor)


async def test_a_slow_disk_gives_its_thread_back_after_each_file(
    root: LocalRoot, place: Callable[[int], Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    opened = os.open

    def slow(*args: object) -> int:
        nonlocal now
        now += 0.01
        return opened(*args)  # type: ignore[arg-type]

    small = place(4 * KIB)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "open", slow)
    assert len(await reply_to([Pull(small)] * LOT, root, WORKERS)) == 1


async def test_an_error_is_its_own_questions(
    root: LocalRoot, place: Callable[[int], Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, folder = place(4 * KIB), place(5 * KIB)
    path = blob_path(Path(root.name) / "blobs", folder)
    path.unlink()
    path.mkdir()
    questions: list[Question] = [
        Pull(small, 0, 1),
        Pull(small, 1),
        Pull(folder),
        Check(folder),
        Measure(folder),
    ]
    monkeypatch.setattr(lots, "_TURN", 3600)
    outside, byte, unreadable, absent, no_length = await reply_to(questions, root, WORKERS)
    assert outside.answer == unreadable.answer == no_length.answer == FileError()
    assert isinstance(outside.reason, RangeError)
    assert str(unreadable.reason) == f"`{root.name}`: Is a directory"
    assert byte.answer == Take(small, 1, 0)
    assert absent.answer == Absent()
