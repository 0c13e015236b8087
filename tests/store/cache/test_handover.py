"""A claim in a thread that hangs: nobody waits for it, and nothing of it is left open."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import trio
import trio.testing

from cafsfs.packing import hash_bytes
from cafsfs.store.cache import partials
from cafsfs.store.cache.blob_files import Claimed
from cafsfs.store.cache.handover import hurry

DIGEST = hash_bytes(b"content")


@pytest.fixture
def directory(tmp_path: Path, no_descriptor_left: None) -> Path:
    path = tmp_path / "partial"
    path.mkdir()
    return path


@pytest.fixture
def hung() -> Iterator[Event]:
    """Set, it lets the thread go on."""
    event = Event()
    yield event
    event.set()


def claim(directory: Path) -> tuple[int, Path]:
    claimed = partials.claim(directory, directory.parent / "blobs", DIGEST)
    assert isinstance(claimed, tuple)
    return claimed


async def test_what_comes_in_time_is_handed_over(directory: Path) -> None:
    match await hurry(lambda: claim(directory), trio.CapacityLimiter(1)):
        case (int(descriptor), Path() as path):
            assert partials.is_at(descriptor, path)
            os.close(descriptor)
        case claimed:
            pytest.fail(f"{claimed} is no file to write to")


@pytest.mark.parametrize("left", [b"", b"what a dead holder has left"])
async def test_what_comes_too_late_is_given_up(
    directory: Path, hung: Event, autojump_clock: trio.testing.MockClock, left: bytes
) -> None:
    """What is empty is removed; what is not may be of use to somebody."""
    path = directory / DIGEST.hex
    if left:
        path.write_bytes(left)

    def claim_late() -> Claimed:
        claimed = claim(directory)
        hung.wait()
        return claimed

    limiter = trio.CapacityLimiter(1)
    with pytest.raises(OSError, match="timed out") as caught:
        await hurry(claim_late, limiter)
    assert caught.value.errno == errno.ETIMEDOUT
    hung.set()
    async with limiter:  # the thread has ended
        assert path.exists() == bool(left)
    descriptor, _ = claim(directory)  # nobody holds it any more
    os.close(descriptor)
