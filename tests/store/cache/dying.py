"""What a cache does, killed at each step: the process that dies. ``test_killed.py`` runs it.

A step is a system call that changes something, or a statement of SQLite's. The process dies before
each step and once after the last: what stands on the disk after a step is what stands there before
the next. A write is two steps, so that it is torn in the middle, too.

``python -m tests.store.cache.dying`` tells the steps of every deed, as JSON.
``python -m tests.store.cache.dying DEED DIRECTORY`` makes ``DIRECTORY/0``, ``DIRECTORY/1``, … and
does the deed in each of them, until it dies at the step of that number; tells where each died.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import sqlite3
import sys
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio

from cafsfs.errors import BlobNotFound
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import curation, upkeep
from cafsfs.store.cache.blob_files import PINNED
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.durability import syncfs
from cafsfs.store.cache.upkeep import Upkeep, open_disk_cache
from cafsfs.store.local_root import blob_path
from tests.store.samples import content_of, put

SIZE = 3000
CONTENTS = [content_of(SIZE, number) for number in range(1, 7)]
DIGESTS = [hash_bytes(content) for content in CONTENTS]
ROOMY = Bounds(size=Amount(100 * SIZE))
TIGHT = Bounds(size=Amount(3 * SIZE))


@dataclass(frozen=True, kw_only=True)
class Deed:
    """``before`` makes the directory what it is when ``act`` begins.

    ``whole``: opening and closing the cache are steps, too. ``pinned``: blobs that were pinned
    before and stay so; ``unpinned``: those that do not. ``wrong``: blobs that stand there with
    wrong bytes before.
    """

    act: Callable[[DiskCache], Awaitable[object]]
    before: Callable[[DiskCache], Awaitable[object]] | None = None
    by_hand: Callable[[Path], object] = lambda _: None
    whole: bool = False
    bounds: Bounds = ROOMY
    pinned: tuple[int, ...] = ()
    unpinned: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()


# --- what is done


def upkeep_of(cache: DiskCache) -> Upkeep:
    assert isinstance(cache.keeper, Upkeep)
    return cache.keeper


def putting(*numbers: int) -> Callable[[DiskCache], Awaitable[None]]:
    async def act(cache: DiskCache) -> None:
        for number in numbers:
            await put(cache, CONTENTS[number])
        await cache.keeper.flush()

    return act


async def put_three_pin_two(cache: DiskCache) -> None:
    await putting(0, 1, 2)(cache)
    await curation.pin(cache, DIGESTS[:2])


async def use(cache: DiskCache) -> None:
    for digest in DIGESTS[:3]:
        (await cache.open(digest)).close()
    cache.ledger.remember_length(DIGESTS[5], SIZE)
    await cache.keeper.flush()


async def adopt_and_evict(cache: DiskCache) -> None:
    await upkeep_of(cache).adopt()
    await upkeep_of(cache).round()


async def mend(cache: DiskCache) -> None:
    """What stands there is wrong: it is thrown away, and comes again."""
    try:
        await cache.open(DIGESTS[0])
    except BlobNotFound:
        await putting(0)(cache)


# --- what stands there before


def place(directory: Path, number: int, content: bytes, mode: int = 0o600) -> None:
    path = blob_path(directory / "blobs", DIGESTS[number])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def take_away(directory: Path, number: int) -> None:
    blob_path(directory / "blobs", DIGESTS[number]).unlink()


def debris(content: bytes) -> Callable[[Path], object]:
    """What a dead holder has left of the second blob."""
    return lambda directory: (directory / "partial" / DIGESTS[1].hex).write_bytes(content)


def strangers(directory: Path) -> None:
    """Files without a row, a pinned one among them, and a row without a file."""
    place(directory, 3, CONTENTS[3])
    place(directory, 4, CONTENTS[4], PINNED)
    take_away(directory, 1)


DEEDS: dict[str, Deed] = {
    "first-use": Deed(act=putting(0), whole=True),
    "next-use": Deed(before=putting(0), act=putting(1), whole=True),
    "commit": Deed(before=putting(0), act=putting(1)),
    "commit-pinned": Deed(
        before=put_three_pin_two,
        by_hand=lambda directory: take_away(directory, 0),
        act=putting(0),
        pinned=(0, 1),
    ),
    "mend": Deed(
        before=putting(0, 1),
        by_hand=lambda directory: place(directory, 0, bytes(SIZE)),
        act=mend,
        wrong=(0,),
    ),
    "evict": Deed(
        before=putting(0, 1, 2, 3, 4, 5),
        act=lambda cache: upkeep_of(cache).round(),
        bounds=TIGHT,
    ),
    "evict-but-pinned": Deed(
        before=put_three_pin_two,
        by_hand=strangers,
        act=adopt_and_evict,
        bounds=TIGHT,
        pinned=(0, 1, 4),
    ),
    "evict-by-order": Deed(
        before=putting(0, 1, 2), act=lambda cache: curation.evict(cache, DIGESTS[:2])
    ),
    "take-over": Deed(by_hand=debris(CONTENTS[1][:2000]), act=putting(1)),
    "take-over-of-all": Deed(by_hand=debris(CONTENTS[1]), act=putting(1)),
    "take-over-of-too-much": Deed(by_hand=debris(CONTENTS[1] + b"more"), act=putting(1)),
    "take-over-of-wrong-bytes": Deed(by_hand=debris(bytes(SIZE)), act=putting(1)),
    "sweep": Deed(by_hand=debris(CONTENTS[1][:2000]), act=lambda cache: cache.measure()),
    "index": Deed(before=putting(0, 1, 2), act=use),
    "adopt": Deed(
        before=putting(0, 1, 2),
        by_hand=strangers,
        act=lambda cache: upkeep_of(cache).adopt(),
        pinned=(4,),
    ),
    "rebuild": Deed(
        before=put_three_pin_two,
        by_hand=lambda directory: (directory / "index.sqlite").write_bytes(b"garbage" * 1000),
        act=lambda cache: upkeep_of(cache).adopt(),
        whole=True,
        pinned=(0, 1),
    ),
    "pin": Deed(before=putting(0, 1, 2), act=lambda cache: curation.pin(cache, DIGESTS[:3])),
    "unpin": Deed(
        before=put_three_pin_two,
        act=lambda cache: curation.unpin(cache, DIGESTS[:1]),
        pinned=(1,),
        unpinned=(0,),
    ),
    "sync": Deed(before=putting(0, 1, 2), act=lambda cache: upkeep_of(cache).sync()),
    "repair": Deed(
        before=putting(0, 1, 2),
        by_hand=lambda directory: place(directory, 0, bytes(SIZE)),
        act=lambda cache: curation.verify(cache, repair=True, jobs=1),
        wrong=(0,),
    ),
}


# --- how it dies


class Steps:
    """Counts the steps of what is done below ``directory``, once ``count`` was called."""

    def __init__(self, directory: Path, fatal: int | None) -> None:
        self.names: list[str] = []
        self._directory = directory.resolve()
        self._fatal = fatal
        self._counts = False
        self._lock = threading.Lock()
        self._locked: set[int] = set()  # descriptors: closing one of them gives up its lock

    def count(self) -> None:
        self._counts = True

    def stop(self) -> None:
        self._counts = False

    def step(self, name: str) -> None:
        if not self._counts:
            return
        with self._lock:
            if len(self.names) == self._fatal:
                print(name, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            self.names.append(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every step there is, as Python code takes it."""
        with ExitStack() as stack:
            for name in ("mkdir", "unlink", "rename", "chmod", "ftruncate", "fchmod", "write"):
                call = self._named(name, getattr(os, name))
                stack.enter_context(patch.object(os, name, call))
            stack.enter_context(patch.object(fcntl, "fcntl", self._named("fcntl", fcntl.fcntl)))
            stack.enter_context(patch.object(upkeep, "syncfs", self._named("sync", syncfs)))
            stack.enter_context(patch.object(os, "open", self._open(os.open)))
            stack.enter_context(patch.object(os, "close", self._close(os.close)))
            stack.enter_context(patch.object(os, "pwrite", self._pwrite(os.pwrite)))
            stack.enter_context(patch.object(fcntl, "flock", self._flock(fcntl.flock)))
            stack.enter_context(patch.object(sqlite3, "connect", self._connect(sqlite3.connect)))
            yield

    def _named(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(what: Any, *rest: Any, **options: Any) -> Any:
            changes = isinstance(what, int) or (name == "mkdir") is not os.path.lexists(what)
            if changes:
                self.step(f"{name}-{self._describe(what)}")
            return call(what, *rest, **options)

        return watched

    def _open(self, call: Callable[..., int]) -> Callable[..., int]:
        def watched(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT and not os.path.exists(path):
                self.step(f"create-{self._describe(path)}")
            return call(path, flags, *rest, **options)

        return watched

    def _close(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def watched(descriptor: int) -> None:
            if descriptor in self._locked:
                self._locked.discard(descriptor)
                self.step(f"close-{self._describe(descriptor)}")
            call(descriptor)

        return watched

    def _pwrite(self, call: Callable[..., int]) -> Callable[..., int]:
        def watched(descriptor: int, data: bytes | memoryview, offset: int) -> int:
            what = self._describe(descriptor)
            self.step(f"pwrite-{what}")
            half = call(descriptor, data[: len(data) // 2], offset)
            self.step(f"torn-pwrite-{what}")
            return half + call(descriptor, data[half:], offset + half)

        return watched

    def _flock(self, call: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def watched(descriptor: int, how: int) -> None:
            self.step(f"flock-{self._describe(descriptor)}")
            call(descriptor, how)
            self._locked.add(descriptor)

        return watched

    def _connect(self, call: Callable[..., Any]) -> Callable[..., Any]:
        steps = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                steps.step_of_sql(sql)
                return super().execute(sql, parameters)

        return lambda *rest, **options: call(*rest, **options, factory=Connection)

    def step_of_sql(self, sql: str) -> None:
        """What is said between these two changes nothing on the disk."""
        if re.match("BEGIN|COMMIT|PRAGMA journal_mode", sql):
            self.step("-".join(sql.split()[:2]))

    def _describe(self, what: str | Path | int) -> str:
        """A path below the directory, the same in every run."""
        path = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
        text = str(path.relative_to(self._directory)) if self._directory in path.parents else "it"
        for number, digest in enumerate(DIGESTS):
            text = re.sub(f"(../../)?{digest.hex}", f"blob{number}", text)
            text = text.replace(f"{digest.hex[:2]}/{digest.hex[2:4]}", "ab/cd")
            text = re.sub(f"blobs/{digest.hex[:2]}$", "blobs/ab", text)
        text = re.sub(r"/[0-9]+\.[0-9a-f]{8}", "", text)
        return text.removesuffix(" (deleted)").replace("/", ".")


async def _prepare(deed: Deed, directory: Path) -> None:
    async with open_disk_cache(directory, bounds=ROOMY, keep=False) as cache:
        if deed.before is not None:
            await deed.before(cache)
        await upkeep_of(cache).adopt()


async def _do(deed: Deed, directory: Path, fatal: int | None) -> list[str]:
    steps = Steps(directory, fatal)
    with steps.watching():
        if deed.whole:
            steps.count()
        async with open_disk_cache(directory, bounds=deed.bounds, keep=False) as cache:
            steps.count()
            await deed.act(cache)
            if not deed.whole:
                steps.step("nothing")
                steps.stop()
        steps.step("nothing")
    return steps.names


def _in_a_fork(work: Callable[[], object]) -> tuple[int, str]:
    """Do it in a process that has imported everything; its exit status, and what it printed."""
    out, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(end, 1)
        os.close(out)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(end)
    with open(out) as file:
        printed = file.read()
    return os.waitpid(child, 0)[1], printed


def _do_in_a_fork(deed: Deed, directory: Path, fatal: int | None) -> str:
    def prepare() -> None:
        if deed.before is not None or not deed.whole:
            trio.run(_prepare, deed, directory)
        deed.by_hand(directory)

    def act() -> None:
        print("\n".join(trio.run(_do, deed, directory, fatal)), flush=True)

    status, printed = _in_a_fork(prepare)
    assert status == 0, printed
    status, printed = _in_a_fork(act)
    assert status == (0 if fatal is None else signal.SIGKILL), (status, printed)
    return printed.strip()


def count_steps(deed: Deed) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        return _do_in_a_fork(deed, Path(directory, "cache"), None).splitlines()


def main() -> None:
    logging.getLogger("cafsfs").setLevel(logging.CRITICAL)
    if len(sys.argv) == 1:
        print(json.dumps({name: count_steps(deed) for name, deed in DEEDS.items()}))
        return
    deed, directory = DEEDS[sys.argv[1]], Path(sys.argv[2])
    names = count_steps(deed)
    print(json.dumps([_do_in_a_fork(deed, directory / str(n), n) for n in range(len(names))]))


if __name__ == "__main__":
    main()
