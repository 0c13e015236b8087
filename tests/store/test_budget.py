"""The budget of memory: order, shrinking, nobody starves, and no two wait for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.store.budget import DEFAULT, LARGEST_PIECE, LEAST_PIECE, MemoryBudget, default_budget

MIB = 1 << 20


class Pull:
    """Asks for something in a task of its own; ``got`` when it has it."""

    def __init__(self, budget: MemoryBudget, nursery: trio.Nursery) -> None:
        self.share = budget.share()
        self.share.__enter__()
        self._nursery = nursery
        self.got = 0

    async def ask(self, count: int, *, keep: bool = False) -> None:
        self._nursery.start_soon(self._wait, count, keep)
        await wait_all_tasks_blocked()

    async def _wait(self, count: int, keep: bool) -> None:
        await (self.share.keep(count) if keep else self.share.acquire(count))
        self.got += count

    def end(self) -> None:
        self.share.__exit__(None, None, None)


async def test_what_is_there_is_taken_at_once_and_given_back() -> None:
    budget = MemoryBudget(100)
    with budget.share() as one, budget.share() as other:
        await one.acquire(60)
        assert not other.take(41)
        assert other.take(40)
        assert budget.held == 100
        one.give_back(60)
        assert (budget.held, one.held, other.held) == (40, 0, 40)
    assert budget.state() == {"budget_bytes": 100, "held_bytes": 0, "pulls": 0, "waiting": 0}
    assert repr(budget) == "<MemoryBudget 0 of 100 bytes, 0 shares, 0 waiting>"


async def test_who_waits_is_served_in_order(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(100)
    first, large, small = (Pull(budget, nursery) for _ in range(3))
    await first.ask(90)
    await large.ask(50)
    await small.ask(5)  # there would be room, but it does not overtake
    assert (first.got, large.got, small.got) == (90, 0, 0)
    assert not first.share.take(1)
    first.end()
    await wait_all_tasks_blocked()
    assert (large.got, small.got, budget.held) == (50, 5, 55)


async def test_who_holds_something_goes_first(nursery: trio.Nursery) -> None:
    budget = MemoryBudget(100)
    first, second, late = (Pull(budget, nursery) for _ in range(3))
    await first.ask(60)
    await second.ask(20)
    await late.ask(50)
    await second.ask(30, keep=True)
    first.share.give_back(30)
    await wait_all_tasks_blocked()
    assert (second.got, late.got) == (50, 0)


@pytest.mark.parametrize("total", [0, 10])
async def test_one_runs_whatever_it_wants(nursery: trio.Nursery, total: int) -> None:
    budget = MemoryBudget(total)
    one, other = Pull(budget, nursery), Pull(budget, nursery)
    await one.ask(1000)
    await other.ask(1000)
    await one.ask(5000, keep=True)
    assert (one.got, other.got) == (6000, 0)
    one.end()
    await wait_all_tasks_blocked()
    assert other.got == 1000


async def test_no_two_wait_for_each_other(nursery: trio.Nursery) -> None:
    """All hold a buffer, and each wants a decoder: the first has it, the others after it."""
    budget = MemoryBudget(100)
    pulls = [Pull(budget, nursery) for _ in range(3)]
    for pull in pulls:
        await pull.ask(30)
    for pull in pulls:
        await pull.ask(60, keep=True)
    assert [pull.got for pull in pulls] == [
        90,
        30,
        30,
    ]  # only the first: the others wait for one that goes on
    for pull in pulls:
        pull.end()
        await wait_all_tasks_blocked()
    assert [pull.got for pull in pulls] == [90, 90, 90]
    assert budget.held == 0


async def test_who_has_waited_long_is_let_in_beyond_the_budget(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Shares may be held for hours, and readers have only so much patience."""
    budget = MemoryBudget(80)
    slow, one, other = (Pull(budget, nursery) for _ in range(3))
    await slow.ask(80)
    await one.ask(6)
    await other.ask(6)
    await trio.sleep(4.9)
    assert (one.got, other.got) == (0, 0)
    await trio.sleep(60)
    assert (one.got, other.got) == (6, 0)  # an eighth
    slow.share.give_back(5)
    await wait_all_tasks_blocked()
    assert other.got == 6


@pytest.mark.parametrize("granted", [False, True])
async def test_who_is_cancelled_holds_nothing(nursery: trio.Nursery, granted: bool) -> None:
    budget = MemoryBudget(100)
    first, last = Pull(budget, nursery), Pull(budget, nursery)
    await first.ask(100)
    with budget.share() as gone:
        async with trio.open_nursery() as inner:
            inner.start_soon(gone.acquire, 50)
            await wait_all_tasks_blocked()
            await last.ask(100)
            if granted:
                first.end()
            inner.cancel_scope.cancel()
        assert gone.held == (50 if granted else 0)
    first.end()
    await wait_all_tasks_blocked()
    assert (last.got, budget.held) == (100, 100)


async def test_pieces_are_smaller_the_more_pulls_there_are() -> None:
    budget = MemoryBudget(256 * MIB)
    shares = [budget.share().__enter__() for _ in range(64)]
    assert shares[0].piece == LARGEST_PIECE
    shares += [budget.share().__enter__() for _ in range(136)]
    assert shares[0].piece == 512 << 10
    for share in shares[:90]:
        await share.keep(5 * MIB // 2)
    assert shares[0].piece == LEAST_PIECE
    assert MemoryBudget(0).piece == LEAST_PIECE


async def test_a_decoder_is_counted_once() -> None:
    budget = MemoryBudget(100)
    with budget.share() as share:
        for count in (20, 10, 30):
            await share.keep(count)
        assert (share.kept, budget.held) == (30, 30)


# --- control groups


def group(directory: Path, **limits: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in limits.items():
        (directory / name.replace("__", ".")).write_text(f"{text}\n")


def told(tmp_path: Path, lines: str) -> int:
    (tmp_path / "self").write_text(lines)
    return default_budget(groups=tmp_path / "self", mounted=tmp_path / "fs")


@pytest.mark.parametrize(
    ("own", "above", "budget"),
    [
        ("max", "max", DEFAULT),
        (str(400 * MIB), "max", 100 * MIB),
        ("max", str(200 * MIB), 50 * MIB),
        (str(400 * MIB), str(200 * MIB), 50 * MIB),
        (str(64 << 30), "max", DEFAULT),
    ],
)
def test_a_quarter_of_a_limit(tmp_path: Path, own: str, above: str, budget: int) -> None:
    group(tmp_path / "fs/system.slice/cafs.service", memory__max=own)
    group(tmp_path / "fs/system.slice", memory__max=above)
    group(tmp_path / "fs", memory__max=str(1))
    (tmp_path / "fs/memory.max").unlink()  # the root has none
    assert told(tmp_path, "0::/system.slice/cafs.service\n") == budget


def test_a_limit_that_slows_down_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "fs/a", memory__max="max", memory__high=str(100 * MIB))
    assert told(tmp_path, "0::/a\n") == 25 * MIB


def test_version_1(tmp_path: Path) -> None:
    group(tmp_path / "fs/memory/docker/abc", memory__limit_in_bytes=str(80 * MIB))
    group(tmp_path / "fs/memory", memory__limit_in_bytes=str((1 << 63) - 4096))
    lines = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n"
    assert told(tmp_path, lines) == 20 * MIB


def test_in_a_container_the_root_is_the_own_group(tmp_path: Path) -> None:
    group(tmp_path / "fs/memory", memory__limit_in_bytes=str(80 * MIB))
    assert told(tmp_path, "4:memory:/docker/of/the/host\n") == 20 * MIB


def test_without_control_groups(tmp_path: Path) -> None:
    assert default_budget(groups=tmp_path / "none", mounted=tmp_path) == DEFAULT
    assert 0 < default_budget() <= DEFAULT
