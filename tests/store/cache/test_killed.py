"""Killed at each step of whatever a cache does, the next start finds all in order.

``dying.py`` says what a step is. Each of these directories was left by a process that SIGKILL ended
there; the next process has it now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import trio

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.blob_files import PINNED
from cafsfs.store.cache.bounds import CacheUsage
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Totals
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.local_root import blob_path
from cafsfs.store.memory import MemoryStore
from cafsfs.store.read_caching import ReadCachingStore
from tests.store.cache.dying import CONTENTS, DEEDS, DIGESTS, TIGHT, Deed, upkeep_of
from tests.store.samples import pull, put, strays

pytestmark = pytest.mark.process

DISCARDED = "WARNING cafsfs.store.cache.disk_cache: what the cache had for .* was not its content"
REBUILT = "WARNING cafsfs.store.cache.database: .* is unusable .*: rebuilding it from the files"


REPOSITORY = Path(__file__).parent.parent.parent.parent


@dataclass(frozen=True)
class Death:
    deed: str
    number: int
    step: str

    def __str__(self) -> str:
        return f"{self.deed}-{self.number:02}-before-{self.step}"


def _run(*arguments: str) -> bytes:
    command = [sys.executable, "-m", "tests.store.cache.dying", *arguments]
    # The order of a set of digests is the same in every run then.
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, cwd=REPOSITORY, env=env, timeout=100
    )
    return done.stdout


@cache
def every_death() -> list[Death]:
    """As a first run counts them: about a second, when the tests are collected."""
    counted: dict[str, list[str]] = json.loads(_run())
    return [Death(deed, n, step) for deed, steps in counted.items() for n, step in enumerate(steps)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "death" in metafunc.fixturenames:
        metafunc.parametrize("death", every_death(), ids=str)


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Death], Path]:
    """The directory of a cache whose process died there; all deaths of a deed at once."""

    @cache
    def die(deed: str) -> tuple[Path, list[str]]:
        directory = tmp_path_factory.mktemp(deed)
        return directory, json.loads(_run(deed, str(directory)))

    def left(death: Death) -> Path:
        directory, died_before = die(death.deed)
        assert died_before[death.number] == death.step
        return directory / str(death.number)

    return left


async def test_killed(
    death: Death, left_behind: Callable[[Death], Path], expect_log: Callable[[str], None]
) -> None:
    directory = left_behind(death)
    deed = DEEDS[death.deed]
    wrong = {
        digest for digest, content in found(directory).items() if hash_bytes(content) != digest
    }
    assert wrong <= {DIGESTS[number] for number in deed.wrong}
    if wrong:
        expect_log(DISCARDED)
    if (directory / "index.sqlite").exists():
        expect_log_of_index(directory, expect_log)
    upstream = await store_of_all()
    async with (
        open_disk_cache(directory, bounds=TIGHT, keep=False) as cache,
        trio.open_nursery() as nursery,
    ):
        assert notices_what_it_lacks(cache)
        store = ReadCachingStore(cache, upstream, nursery)
        await read(store, CONTENTS[::2])
        await upkeep_of(cache).adopt()
        assert rows(cache) == sizes(directory)
        await read(store, CONTENTS)
        await upkeep_of(cache).round()
        check_books(cache)
        check_pins(cache, deed)
    for digest, content in found(directory).items():
        assert hash_bytes(content) == digest
    assert strays(directory) == []


def expect_log_of_index(directory: Path, expect_log: Callable[[str], None]) -> None:
    if (directory / "index.sqlite").read_bytes().startswith(b"garbage"):
        expect_log(REBUILT)


async def store_of_all() -> MemoryStore:
    store = MemoryStore()
    for content in CONTENTS:
        await put(store, content)
    return store


async def read(store: ReadCachingStore, contents: list[bytes]) -> None:
    for content in contents:
        assert await pull(store, hash_bytes(content)) == content


def found(directory: Path) -> dict[Digest, bytes]:
    """What stands under ``blobs/``; all of it is named by a hash."""
    files = (path for path in (directory / "blobs").rglob("*") if not path.is_dir())
    return {Digest.parse(path.name): path.read_bytes() for path in files}


def notices_what_it_lacks(cache: DiskCache) -> bool:
    """Does the index agree with the files, or know that it may not? Then it adopts them."""
    agrees = rows(cache) == sizes(cache.premises.directory)
    dead = cache.premises.dead_sessions()
    for descriptor, _ in dead:
        os.close(descriptor)
    return agrees or bool(dead) or not cache.ledger.complete


def sizes(directory: Path) -> dict[Digest, int]:
    return {digest: len(content) for digest, content in found(directory).items()}


def rows(cache: DiskCache) -> dict[Digest, int]:
    return {digest: size for digest, size, _ in cache.ledger.index.listing()}


def check_books(cache: DiskCache) -> None:
    files = sizes(cache.premises.directory)
    used = sum(files.values())
    assert rows(cache) == files
    assert cache.ledger.index.totals() == Totals(len(files), used, complete=True)
    pinned = sum(files[digest] for digest in files if is_marked(cache, digest))
    assert used <= max(TIGHT.size.bytes, pinned)
    assert cache.usage == CacheUsage(used=used, bound=TIGHT.size.bytes, blobs=len(files))


def check_pins(cache: DiskCache, deed: Deed) -> None:
    files = found(cache.premises.directory).keys()
    marked = {digest for digest in files if is_marked(cache, digest)}
    pins = set(cache.ledger.index.pins())
    assert {DIGESTS[number] for number in deed.pinned} <= pins & files
    assert marked <= pins
    # A blob that is half unpinned is pinned still, and can be unpinned again.
    assert pins - marked <= {DIGESTS[number] for number in deed.unpinned}


def is_marked(cache: DiskCache, digest: Digest) -> bool:
    path = blob_path(cache.premises.blobs, digest)
    return path.stat().st_mode & 0o777 == PINNED
