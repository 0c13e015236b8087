"""Several processes on one cache, without a mount: one pull a blob, and sudden deaths."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.upkeep import open_disk_cache
from tests.store.samples import content_of, strays
from tests.store.stacks import upkeep_of

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parent.parent.parent.parent
SIZE = 20_000
BLOBS = 30
ROOMY = 10 * BLOBS * SIZE
TIGHT = 8 * SIZE
STORM = 6.0  # seconds


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(BLOBS):
        content = content_of(SIZE + number, number + 1)
        (source / hash_bytes(content).hex).write_bytes(content)
    (tmp_path / "log").touch()
    return source


@contextmanager
def process(directory: Path, bound: int, rounds: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.store.cache.sharing"]
    paths = [directory / name for name in ("cache", "source", "log")]
    with subprocess.Popen(
        [*command, *paths, str(bound), str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def pulls(directory: Path) -> Counter[str]:
    return Counter((directory / "log").read_text().split())


def check_end(child: subprocess.Popen[bytes]) -> None:
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, b"")


async def check_cache(directory: Path, bound: int) -> None:
    """Whoever comes next finds verified blobs, within bounds, and an index that agrees."""
    async with open_disk_cache(directory, bounds=Bounds(size=Amount(bound)), keep=False) as cache:
        await upkeep_of(cache).adopt()
        await upkeep_of(cache).round()
        files = {
            Digest.parse(path.name): path.read_bytes()
            for path in (directory / "blobs").rglob("*")
            if path.is_file()
        }
        assert files, "nothing was cached, so nothing is shown"
        assert all(hash_bytes(content) == digest for digest, content in files.items())
        rows = {digest: size for digest, size, _ in cache.ledger.index.listing()}
        assert rows == {digest: len(content) for digest, content in files.items()}
        assert sum(rows.values()) <= bound
        assert cache.usage.used == sum(rows.values())
    assert strays(directory) == []


@pytest.mark.parametrize("count", [2, 5])
async def test_each_blob_is_pulled_once(count: int, source: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(process(tmp_path, ROOMY, 2)) for _ in range(count)]
        for child in children:
            check_end(child)
    assert pulls(tmp_path) == dict.fromkeys([path.name for path in source.iterdir()], 1)
    await check_cache(tmp_path / "cache", ROOMY)


async def test_each_death_costs_the_pulls_that_it_cut(source: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        victim = stack.enter_context(process(tmp_path, ROOMY, 1))
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        others = [stack.enter_context(process(tmp_path, ROOMY, 1)) for _ in range(2)]
        for child in others:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
        victim.kill()
        for child in others:
            check_end(child)
    counted = pulls(tmp_path)
    assert set(counted) == {path.name for path in source.iterdir()}
    # It pulled four at once, and what it had is taken over.
    assert sum(counted.values()) <= BLOBS + 4
    assert max(counted.values()) <= 2
    await check_cache(tmp_path / "cache", ROOMY)


@pytest.mark.parametrize("bound", [ROOMY, TIGHT])
async def test_a_storm_of_deaths(bound: int, source: Path, tmp_path: Path) -> None:
    chance = random.Random(bound)
    end = time.monotonic() + STORM
    with ExitStack() as stack:
        children = [stack.enter_context(process(tmp_path, bound, 1000)) for _ in range(3)]
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.1, 0.6))
            victim = chance.choice(children)
            assert victim.poll() is None, victim.communicate()[1].decode()
            stop = chance.random() < 0.2
            victim.send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.2))
            victim.kill()
            children.remove(victim)
            children.append(stack.enter_context(process(tmp_path, bound, 1000)))
        last = [stack.enter_context(process(tmp_path, bound, 1)) for _ in range(2)]
        for child in children:
            child.kill()
        for child in last:
            check_end(child)
    await check_cache(tmp_path / "cache", bound)
