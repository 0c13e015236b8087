"""What is on its way: what the steps behind the scenes tell those who wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.store.cache.cached_file import CachedFile
from cafsfs.store.cache.progress import Contradiction, Progress
from tests.store.samples import MIB, content_of

CONTENT = content_of(5 * MIB)
SEEN = 4 * MIB + 1


@pytest.fixture
def files(tmp_path: Path, no_descriptor_left: None) -> Iterator[list[int]]:
    opened: list[int] = []
    for name in ("shown", "other"):
        (tmp_path / name).write_bytes(CONTENT)
        opened.append(os.open(tmp_path / name, os.O_RDWR))
    yield opened
    for each in opened:
        os.close(each)


@pytest.fixture
async def progress(files: list[int]) -> Progress:
    progress = Progress()
    limiter = trio.CapacityLimiter(1)
    progress.stream(len(CONTENT), lambda each: CachedFile(each, len(CONTENT), limiter))
    assert progress.show(files[0], holds=0)
    progress.advance(len(CONTENT))
    assert progress.look(SEEN) is not None
    return progress


def close(progress: Progress) -> None:
    for each in progress.files:
        each.close()


async def test_comparing_counts_as_progress(progress: Progress, files: list[int]) -> None:
    """It takes minutes for a blob of many gigabytes, and those who wait have half of one."""
    file = CachedFile(files[1], len(CONTENT), trio.CapacityLimiter(1))
    before = progress.count
    await trio.to_thread.run_sync(progress.compare, file)
    assert progress.count - before >= SEEN // MIB
    before = progress.count
    await trio.to_thread.run_sync(progress.copy_seen, files[1])
    assert progress.count - before >= SEEN // MIB
    close(progress)


@pytest.mark.parametrize("at", [0, MIB - 1, 2 * MIB + 5, SEEN - 1])
async def test_any_byte_that_was_seen_and_differs_is_found(
    progress: Progress, files: list[int], at: int
) -> None:
    file = CachedFile(files[1], len(CONTENT), trio.CapacityLimiter(1))
    os.pwrite(files[1], bytes([CONTENT[at] ^ 1]), at)
    with pytest.raises(Contradiction):
        await trio.to_thread.run_sync(progress.compare, file)
    close(progress)


@pytest.mark.parametrize("work", ["compare", "copy"])
async def test_who_has_left_does_not_wait_for_a_comparison(
    progress: Progress, files: list[int], work: str
) -> None:
    file = CachedFile(files[1], len(CONTENT), trio.CapacityLimiter(1))
    before = progress.count

    def cancelled() -> None:
        trio.from_thread.run_sync(scope.cancel)
        if work == "compare":
            progress.compare(file)
        else:
            progress.copy_seen(files[1])

    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(cancelled)
    assert scope.cancelled_caught
    assert progress.count - before <= 1
    close(progress)


async def test_a_file_that_lacks_what_was_seen_is_not_shown(
    progress: Progress, files: list[int]
) -> None:
    assert not progress.show(files[1], holds=SEEN - 1)
    assert len(progress.files) == 1
    assert progress.show(files[1], holds=SEEN)
    assert progress.is_shown(files[1])
    assert progress.look(SEEN) is progress.files[1]
    assert progress.look(SEEN + 1) is None, "it holds no more yet"
    close(progress)


async def test_who_waits_for_the_least_is_woken_and_nobody_by_each_piece(
    progress: Progress, files: list[int], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.shrink(0)
    wakes: list[int] = []
    wake = progress.wake

    def noted() -> None:
        wakes.append(progress.count)
        wake()

    monkeypatch.setattr(progress, "wake", noted)
    woken: list[int] = []

    async def wait(end: int) -> None:
        while progress.look(end) is None:
            await progress.news(end)
        woken.append(end - SEEN)

    for more in (200, 100, 300):
        nursery.start_soon(wait, SEEN + more)
        await wait_all_tasks_blocked()
    for end, expected in ((99, []), (150, [100]), (160, [100]), (300, [100, 200, 300])):
        progress.advance(SEEN + end)
        await wait_all_tasks_blocked()
        assert sorted(woken) == expected
    progress.advance(len(CONTENT))
    await wait_all_tasks_blocked()
    assert len(wakes) == 2
    close(progress)
