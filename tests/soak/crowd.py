"""Readers of a mount who compare each byte with what it should be, as a process of its own.

``python -m tests.soak.crowd POINT CATALOGUE THREADS SEED``; each line of the catalogue is a hash
and the file with its content. They read in different ways, for ever, and let the kernel forget what
they have read, so that the mount is asked. Times are of the steady clock that all processes share.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.obeying import Obeying, obey

_PIECE = 256 << 10  # bytes
_PAGE = mmap.PAGESIZE
_PAUSE = 0.1  # seconds between two reads, at most
_PROGRAM = 60.0  # seconds for one that is started
_MAP = """
import mmap, os, sys
sys.stdout.buffer.write(mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ))
"""


@dataclass(frozen=True, slots=True)
class Incident:
    """Somebody got an error, or wrong bytes, or did not get on."""

    what: str  # the errno's name, "wrong", or how a program failed
    how: str
    blob: str
    began: float
    ended: float


@dataclass(slots=True)
class Report:
    """What a crowd has seen since it was asked last; ``worst``: seconds of the longest read.

    ``reading``: how many read now, the longest of them for ``lasting`` seconds.
    """

    reads: int = 0
    worst: float = 0.0
    reading: int = 0
    lasting: float = 0.0
    incidents: list[Incident] = field(default_factory=list)


class CrowdProcess(Obeying):
    """A crowd in a process of its own; it reads until told otherwise."""

    def __init__(self, point: Path, catalogue: Path, *, threads: int, seed: int) -> None:
        super().__init__("tests.soak.crowd", str(point), str(catalogue), str(threads), str(seed))

    def report(self) -> Report:
        said = self.ask(do="report")
        incidents = [Incident(**each) for each in said.pop("incidents")]
        return Report(incidents=incidents, **said)

    def pause(self) -> None:
        """No read begins any more; those under way go on."""
        self.ask(do="pause")

    def go_on(self) -> None:
        self.ask(do="go on")


# --- ways to read: is all that was read right? OSError and Failed tell of errors


class Failed(Exception):
    """A program did not succeed."""


def read_whole(path: str, source: str, chance: random.Random) -> bool:
    with open(path, "rb", buffering=0) as file, open(source, "rb") as right:
        pieces: Iterator[bytes] = iter(lambda: file.read(_PIECE), b"")
        # To the end: only who gets there without an error has a promise that all was right.
        equal = [piece == right.read(len(piece)) for piece in pieces]
        return all(equal) and not right.read(1)


def read_piece(path: str, source: str, chance: random.Random) -> bool:
    with open(path, "rb", buffering=0) as file:
        at = chance.randrange(os.stat(source).st_size)
        return _is_right(file.fileno(), at, memoryview(bytearray(_PIECE)), source)


def read_direct(path: str, source: str, chance: random.Random) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        at = chance.randrange(os.stat(source).st_size) // _PAGE * _PAGE
        return _is_right(file, at, memoryview(mmap.mmap(-1, _PIECE)), source)
    finally:
        os.close(file)


def _is_right(file: int, at: int, buffer: memoryview, source: str) -> bool:
    """Read as programs do: what comes short goes on, with an error if the kernel has met one."""
    with open(source, "rb") as right:
        good = os.pread(right.fileno(), len(buffer), at)
    count = 0
    while count < len(good) and (got := os.preadv(file, [buffer[count:]], at + count)):
        count += got
        if (at + count) % _PAGE:  # the end; a direct read could not go on there
            break
    return buffer[:count] == good


def copy(path: str, source: str, chance: random.Random) -> bool:
    return _program("cp", path, "/dev/stdout") == Path(source).read_bytes()


def map_all(path: str, source: str, chance: random.Random) -> bool:
    return _program(sys.executable, "-ISc", _MAP, path) == Path(source).read_bytes()


def _program(*command: str) -> bytes:
    with tempfile.TemporaryFile() as out:
        done = subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=_PROGRAM,
            check=False,
        )
        if done.returncode:
            raise Failed(f"{Path(command[0]).name} ended with {done.returncode}")
        out.seek(0)
        return out.read()


Way = Callable[[str, str, random.Random], bool]
# Programs cost a hundred times a read, so there are fewer of them.
WAYS: dict[Way, int] = {read_whole: 20, read_piece: 20, read_direct: 20, copy: 2, map_all: 1}
IN_PART = {read_piece.__name__, read_direct.__name__}


class Crowd:
    """Threads that read; the others look at them."""

    def __init__(self, point: str, catalogue: list[tuple[str, str]], seed: int) -> None:
        self._point = point
        self._catalogue = catalogue
        self._seed = seed
        self._lock = threading.Lock()
        self._report = Report()
        self._since: dict[int, float] = {}  # of those who read now
        self._going = threading.Event()
        self._going.set()

    def read_for_ever(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while True:
            self._going.wait()
            name, source = chance.choice(self._catalogue)
            [way] = chance.choices(list(WAYS), list(WAYS.values()))
            began = self._since[number] = time.monotonic()
            what = self._read(way, f"{self._point}/{name}", source, chance)
            ended = time.monotonic()
            with self._lock:
                del self._since[number]
                self._report.reads += 1
                self._report.worst = max(self._report.worst, ended - began)
                if what:
                    incident = Incident(what, way.__name__, name, began, ended)
                    self._report.incidents.append(incident)
            # Work for the mount, not for the machine; and who fails at once must not do only that.
            time.sleep(chance.random() * _PAUSE)

    def _read(self, way: Way, path: str, source: str, chance: random.Random) -> str:
        """What went wrong; nothing, by rights."""
        try:
            right = way(path, source, chance)
            if chance.random() < 0.5:
                forget(path)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        except (Failed, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if right else "wrong"

    async def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        match request["do"]:
            case "pause":
                self._going.clear()
            case "go on":
                self._going.set()
            case "report":
                with self._lock:
                    report, self._report = self._report, Report()
                    now, since = time.monotonic(), list(self._since.values())
                report.reading = len(since)
                report.lasting = now - min(since, default=now)
                return asdict(report)
        return {}


def forget(path: str) -> None:
    """Let the kernel ask for it again."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _main(point: str, catalogue: str, threads: str, seed: str) -> None:
    lines = Path(catalogue).read_text().splitlines()
    blobs = [(name, source) for name, _, source in (line.partition(" ") for line in lines)]
    crowd = Crowd(point, blobs, int(seed))
    for number in range(int(threads)):
        threading.Thread(target=crowd.read_for_ever, args=[number], daemon=True).start()
    trio.run(obey, {}, crowd.obey)


if __name__ == "__main__":
    _main(*sys.argv[1:])
