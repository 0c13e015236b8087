"""The pump: everything, in order, in two buffers, and errors as they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.store.budget import MemoryBudget
from cafsfs.store.pump import PIECE, pump
from tests.store.samples import MIB, content_of


class Pipe:
    """Both ends of a pump: gives ``content`` in pieces of ``steps`` bytes, keeps what comes."""

    def __init__(self, content: bytes, steps: Iterable[int] = (PIECE,)) -> None:
        self._left = memoryview(content)
        self._steps = itertools.cycle(steps)
        self._buffers: dict[int, memoryview] = {}  # of the last two pieces
        self.memory = 0  # bytes of both
        self.pieces: list[bytes] = []
        self.reads = 0

    async def read(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        self._buffers.pop(id(buffer.obj), None)
        self._buffers[id(buffer.obj)] = memoryview(buffer.obj)
        if len(self._buffers) > 2:
            del self._buffers[next(iter(self._buffers))]
        self.memory = sum(each.nbytes for each in self._buffers.values())
        count = min(len(buffer), len(self._left), next(self._steps))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    async def write(self, piece: memoryview) -> None:
        before = bytes(piece)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert piece == before, "read into while it was being written"
        self.pieces.append(before)

    @property
    def written(self) -> bytes:
        return b"".join(self.pieces)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 3])
async def test_passes_everything_in_order(size: int, known: bool) -> None:
    content = content_of(size)
    pipe = Pipe(content, steps=(70_000, 1, PIECE))
    await pump(pipe.read, pipe.write, length=size if known else None)
    assert pipe.written == content
    assert all(len(each) <= PIECE for each in pipe.pieces)


async def test_pieces_double_and_then_are_whole() -> None:
    pipe = Pipe(content_of(16 * MIB))
    await pump(pipe.read, pipe.write, length=16 * MIB)
    sizes = [len(each) for each in pipe.pieces]
    start = [64 << each for each in range(10, 15)]
    assert sizes[:5] == start
    assert sizes[5:-1] == [PIECE] * ((16 * MIB - sum(start)) // PIECE)


async def test_the_first_bytes_are_passed_on_at_once(autojump_clock: MockClock) -> None:
    """Whoever streams waits for no piece to be full."""

    async def read(buffer: memoryview) -> int:
        if pipe.reads:
            await trio.sleep(10)
        return await pipe.read(buffer)

    async def write(piece: memoryview) -> None:
        times.append(trio.current_time() - began)
        await pipe.write(piece)

    pipe = Pipe(content_of(5 * PIECE), steps=(100,))
    times: list[float] = []
    began = trio.current_time()
    with trio.move_on_after(15):
        await pump(read, write, length=5 * PIECE)
    assert times == [0, pytest.approx(10, abs=0.1)]


@given(
    size=st.integers(0, 3 * PIECE),
    steps=st.lists(st.integers(10_000, 2 * PIECE), min_size=1, max_size=5),
    known=st.booleans(),
)
def test_in_any_slicing(size: int, steps: list[int], known: bool) -> None:
    async def check() -> None:
        await pump(pipe.read, pipe.write, length=size if known else None)

    pipe = Pipe(content_of(size), steps)
    trio.run(check)
    assert pipe.written == content_of(size)


@pytest.mark.parametrize(
    ("size", "known", "memory"),
    [
        (1, True, 1),
        (70_000, True, 70_000),
        (300_000, True, 6 << 16),
        (20 * MIB, True, 2 * PIECE),
        (20 * MIB, False, 2 * PIECE),
    ],
)
async def test_memory_is_bounded(size: int, known: bool, memory: int) -> None:
    pipe = Pipe(content_of(size))
    await pump(pipe.read, pipe.write, length=size if known else None)
    assert pipe.memory <= memory


@pytest.mark.parametrize("size", [1, 200_000, 2 * PIECE])
async def test_a_known_length_spares_the_read_of_the_end(size: int) -> None:
    pipe = Pipe(content_of(size))
    await pump(pipe.read, pipe.write, length=size)
    known, pipe = pipe.reads, Pipe(content_of(size))
    await pump(pipe.read, pipe.write)
    assert len(pipe.pieces) == pipe.reads - 1
    assert known <= pipe.reads - 1


@pytest.mark.parametrize("size", [1, 200_000])
async def test_a_small_blob_is_one_piece(size: int) -> None:
    pipe = Pipe(content_of(size), steps=(7000,))
    await pump(pipe.read, pipe.write, length=size)
    assert pipe.pieces == [content_of(size)]


async def test_what_is_shorter_than_its_length_ends_all_the_same() -> None:
    pipe = Pipe(content_of(PIECE + 10))
    await pump(pipe.read, pipe.write, length=3 * PIECE)
    assert pipe.written == content_of(PIECE + 10)


async def test_reads_while_it_writes() -> None:
    """The second piece is complete before the first has been written."""
    pipe = Pipe(content_of(3 << 16))
    seen: list[int] = []

    async def write(piece: memoryview) -> None:
        await wait_all_tasks_blocked()
        seen.append(pipe.reads)

    await pump(pipe.read, write)
    assert seen == [2, 3]  # the third is the read of the end


async def test_an_error_of_the_writer_is_raised_bare_and_stops_the_reader() -> None:
    class DiskFullError(Exception):
        pass

    async def read(buffer: memoryview) -> int:
        if pieces:
            await trio.sleep_forever()
        pieces.append(len(buffer))
        return len(buffer)

    async def write(piece: memoryview) -> None:
        raise DiskFullError

    pieces: list[int] = []
    with pytest.raises(DiskFullError):
        await pump(read, write)
    with pytest.raises(DiskFullError):
        await pump(Pipe(b"x").read, write, length=1)


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_an_error_of_the_reader_is_raised_bare(after: int) -> None:
    class BrokenError(Exception):
        pass

    pipe = Pipe(content_of(5 * PIECE))

    async def read(buffer: memoryview) -> int:
        if pipe.reads == after:
            raise BrokenError
        return await pipe.read(buffer)

    with pytest.raises(BrokenError):
        await pump(read, pipe.write, length=5 * PIECE)
    assert content_of(5 * PIECE).startswith(pipe.written)


async def test_of_two_errors_the_first_is_raised() -> None:
    async def read(buffer: memoryview) -> int:
        reads.append(len(buffer))
        if len(reads) == 1:
            return len(buffer)
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("second")

    async def write(piece: memoryview) -> None:
        raise KeyError("first")

    reads: list[int] = []
    with pytest.raises(KeyError, match="first"):
        await pump(read, write)


async def test_cancelled_it_neither_reads_nor_writes_any_more() -> None:
    async def write(piece: memoryview) -> None:
        writes.append(len(piece))
        await trio.sleep_forever()

    pipe = Pipe(content_of(5 * PIECE))
    writes: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, pipe.read, write)
        await wait_all_tasks_blocked()
        assert (pipe.reads, writes) == (2, [64 << 10])
        nursery.cancel_scope.cancel()
    assert (pipe.reads, writes) == (2, [64 << 10])


@pytest.mark.parametrize("length", [200_000, 400_000])
async def test_a_slow_line_passes_on_what_it_has(autojump_clock: MockClock, length: int) -> None:
    """Readers wait for their bytes; but a hop for each packet would keep a core busy."""

    async def read(buffer: memoryview) -> int:
        await trio.sleep(0.001)
        return await pipe.read(buffer)

    async def write(piece: memoryview) -> None:
        times.append(trio.current_time() - began)
        await pipe.write(piece)

    pipe = Pipe(content_of(length), steps=(100,))
    times: list[float] = []
    began = trio.current_time()
    await pump(read, write, length=length)
    assert pipe.written == content_of(length)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert max(gaps) < 0.03
    assert len(times) < length / 100 / 15


async def test_a_slow_line_keeps_little_memory(autojump_clock: MockClock) -> None:
    async def read(buffer: memoryview) -> int:
        await trio.sleep(0.001)
        return await pipe.read(buffer)

    pipe = Pipe(content_of(MIB), steps=(1000,))
    await pump(read, pipe.write, length=MIB)
    assert pipe.memory <= 4 * (64 << 10)


@pytest.mark.parametrize("length", [200_000, 400_000])
async def test_where_nobody_reads_along_a_slow_line_costs_few_hops(
    autojump_clock: MockClock, length: int
) -> None:
    async def read(buffer: memoryview) -> int:
        await trio.sleep(0.01)
        return await pipe.read(buffer)

    pipe = Pipe(content_of(length), steps=(100,))
    began = trio.current_time()
    await pump(read, pipe.write, length=length, hold=1)
    assert pipe.written == content_of(length)
    assert len(pipe.pieces) <= 1.1 * (trio.current_time() - began) + 2


# --- with a share of a budget


async def test_buffers_are_of_the_share_and_go_with_it() -> None:
    budget = MemoryBudget(20 * MIB)
    pipe = Pipe(content_of(20 * MIB))
    with budget.share() as share:
        await pump(pipe.read, pipe.write, length=20 * MIB, share=share)
        assert budget.held == share.held == 2 * PIECE
    assert budget.held == 0
    assert pipe.written == content_of(20 * MIB)


@pytest.mark.parametrize("total", [0, 64 << 10, 200_000, 3 * MIB])
async def test_a_small_budget_means_small_pieces(total: int) -> None:
    budget = MemoryBudget(total)
    pipe = Pipe(content_of(3 * MIB), steps=(70_000, PIECE))
    with budget.share() as share:
        await pump(pipe.read, pipe.write, length=3 * MIB, share=share)
        assert share.held <= max(total, 64 << 10)
    assert pipe.written == content_of(3 * MIB)


async def test_pieces_shrink_when_others_come() -> None:
    budget = MemoryBudget(4 * PIECE)
    pipe = Pipe(content_of(40 * MIB))
    others = [budget.share() for _ in range(31)]

    async def write(piece: memoryview) -> None:
        if len(pipe.pieces) == 10:
            for other in others:
                other.__enter__()
        await pipe.write(piece)

    with budget.share() as share:
        await pump(pipe.read, write, length=40 * MIB, share=share)
        assert share.held == 2 * budget.piece == 2 * (128 << 10)
    assert pipe.written == content_of(40 * MIB)
    assert max(map(len, pipe.pieces)) == PIECE
    assert len(pipe.pieces[-2]) == 128 << 10


async def test_a_pull_without_progress_gives_its_share_back(autojump_clock: MockClock) -> None:
    """And takes it again when the line goes on; meanwhile others have it."""
    budget = MemoryBudget(MIB)
    pipe = Pipe(content_of(MIB), steps=(100_000,))
    held: list[int] = []

    async def read(buffer: memoryview) -> int:
        if len(held) < 3:
            held.append(share.held)
            await trio.sleep(3 * len(held))
            held.append(share.held)
        return await pipe.read(buffer)

    with budget.share() as share:
        await pump(read, pipe.write, length=MIB, share=share)
    # The sleep of the first read is cancelled after a second, that of the second is not.
    assert held == [64 << 10, 0, 0]
    assert pipe.written == content_of(MIB)


async def test_who_gave_back_waits_for_its_turn(autojump_clock: MockClock) -> None:
    budget = MemoryBudget(MIB)
    pipe = Pipe(content_of(MIB), steps=(100_000,))
    go_on = trio.Event()

    async def read(buffer: memoryview) -> int:
        if pipe.reads == 1:
            await go_on.wait()
        return await pipe.read(buffer)

    async with trio.open_nursery() as nursery:
        with budget.share() as share, budget.share() as other:

            async def run() -> None:
                await pump(read, pipe.write, length=MIB, share=share)

            nursery.start_soon(run)
            await trio.sleep(1.5)
            assert (share.held, pipe.reads) == (0, 1)
            await other.acquire(MIB)
            go_on.set()
            await trio.sleep(0.5)
            assert pipe.reads == 2  # a sip
            assert share.held == 0
            other.give_back(MIB)
            await trio.sleep(0.5)
            assert pipe.written == content_of(MIB)


async def test_a_small_blob_takes_what_it_needs() -> None:
    budget = MemoryBudget(MIB)
    pipe = Pipe(content_of(70_000))
    with budget.share() as share:
        await pump(pipe.read, pipe.write, length=70_000, share=share)
        assert share.held == 70_000
