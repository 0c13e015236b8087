"""Where the bench happens: a directory, a server with one big blob, and mounts of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.children import BenchError, Child, python, run

ROOT = "bench"
OURS = "tests.bench.ours"
PEER = "tests.bench.peer"
PLAIN = "tests.bench.plain"
FILLING = "tests.bench.filling"
RAW = "tests.bench.raw"

MIB = 1 << 20

_MEMORY = Path("/dev/shm")
# Of the big blob at once: the file, the server's, one in pieces, the warm caches of a mount and of
# rclone, a cold one that may have three, an upload and the copy; of the words that compress: the
# file, and two that are packed.
_COPIES = 12
# Of each of many tiny blobs: a page, and an inode, a name and a row (5.4 GiB a million, measured).
_BLOB_ROOM = 6 << 10  # bytes
_SLACK = 1 << 30  # bytes of memory for all processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: how long, and the peak memory of the process that did it, in bytes.

    ``details``: whatever else was measured, by names that end with the unit.
    """

    seconds: float
    peak: int
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where files are read: the big one's directory, and the one of the small ones.

    ``daemon``: the process that answers, if one does.
    """

    directory: Path
    small: Path
    daemon: Child | None = None

    def sample(self, of_reader: Sample) -> Sample:
        """The sample with the peak of who has answered; when that has ended."""
        return of_reader if self.daemon is None else replace(of_reader, peak=self.daemon.peak)


@contextmanager
def work_directory(given: Path | None, size: int, blobs: int) -> Iterator[Path]:
    """An empty directory with room for copies of a blob of ``size`` bytes, and ``blobs`` tiny ones.

    On tmpfs if they fit; gone afterwards.

    Raises BenchError where there is no room.
    """
    room = _COPIES * size + _BLOB_ROOM * blobs
    if given is not None:
        base = given.resolve()  # children run elsewhere
    elif _room_in_memory() >= room:
        base = _MEMORY
    else:
        base = Path(tempfile.gettempdir())
    if shutil.disk_usage(base).free < room:
        raise BenchError(f"`{base}` has no room for the {room} bytes of the bench")
    path = Path(tempfile.mkdtemp(prefix=f"cafsfs-bench-{os.getpid()}-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _room_in_memory() -> int:
    """Bytes that tmpfs takes without driving the processes out of memory."""
    if not os.access(_MEMORY, os.W_OK):
        return 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
            return min(available - _SLACK, shutil.disk_usage(_MEMORY).free)
    return 0


class Stage:
    """A running server below ``directory``, with ``blob``, a file of ``size`` bytes, uploaded.

    ``blobs``: how many tiny ones a cache of many has. ``settle``: seconds after which a mount is
    looked at again. ``share``: of whatever else there are many, this part is enough.
    """

    def __init__(
        self, directory: Path, size: int, *, blobs: int, settle: float, share: float = 1.0
    ) -> None:
        self.directory = directory
        self.size = size
        self.blobs = blobs
        self.settle = settle
        self.share = share
        self.files = directory / "files"
        self.blob = self.files / "blob"
        self.target = directory / "target"
        self.targets = directory / "targets"
        self.cold = directory / "cold-cache"
        self.address = ""
        self.digest = ""
        self.store = directory / "store"
        self._server: Child | None = None
        self._started = ExitStack()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Start the server, with the blob in its store; ends all that was started."""
        self.files.mkdir()
        made = self.ask(PLAIN, "make", str(self.blob), str(self.size))
        self.blob = self.blob.rename(self.files / made)  # named as it is in a mount
        self.digest = self.ask(FILLING, "packed", str(self.root(ROOT)), str(self.blob), "NONE", "0")
        with self._started:
            self._server, self.address = self._started.enter_context(self.serve())
            yield

    @contextmanager
    def serve(self) -> Iterator[tuple[Child, str]]:
        """A server of the store, and its address."""
        command = python("cafsfs", "serve", str(self.store), "--listen", "127.0.0.1:0")
        with self.child(command, "serve") as server:
            line = server.await_line(f"serving {self.store} on ")
            yield server, line.split()[-1]

    def start(self, command: Sequence[str], name: str) -> Child:
        """Start what runs until the bench ends."""
        return self._started.enter_context(self.child(command, name))

    @contextmanager
    def child(self, command: Sequence[str], name: str) -> Iterator[Child]:
        """A process that is ended; its peak counts afterwards."""
        child = Child(command, log=self.directory / f"{name}.log")
        try:
            yield child
        finally:
            child.end()

    @property
    def server(self) -> Child:
        """The process that serves the store."""
        assert self._server is not None
        return self._server

    def root(self, name: str) -> Path:
        """The directory of a root in the server's store, which is made."""
        directory = self.store / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def part(self, count: int) -> int:
        """As many of ``count`` as this bench measures with."""
        return max(1, round(count * self.share))

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file or directory that is made when it is needed first."""
        path = self.directory / name
        if not path.exists():
            make(path)
        return path

    # --- what rows are made of

    def time(self, module: str, verb: str, *arguments: object) -> Sample:
        """Run a child that prints how long its work took."""
        output, peak = run(module, (verb, *map(str, arguments)), self.directory / "child.log")
        return Sample(seconds=float(output), peak=peak)

    def ask(self, module: str, *arguments: object) -> str:
        """Run a child that prints what it has found out."""
        return run(module, [str(each) for each in arguments], self.directory / "child.log")[0]

    def clear(self) -> None:
        """Remove what earlier runs have left, so that each finds the same."""
        self.target.unlink(missing_ok=True)
        for tree in (self.cold, self.targets):
            with suppress(FileNotFoundError):
                shutil.rmtree(tree)

    def check_target(self, digest: str) -> None:
        """Raises BenchError unless the target is this blob."""
        if self.ask(PLAIN, "fingerprint", self.target) != digest:
            raise BenchError("what came back is not what was uploaded")

    @contextmanager
    def mount(self, cache: Path, *, address: str = "") -> Iterator[Place]:
        """A fresh mount; the peak of its daemon counts afterwards."""
        uri = f"cafs://{address or self.address}/{ROOT}"
        with self.mount_point() as point:
            arguments = ("--cache-dir", str(cache), uri, str(point))
            with self.child(
                python("cafsfs", "mount", "--foreground", *arguments), "mount"
            ) as daemon:
                daemon.await_line(f"mounted {uri} on ")
                yield Place(directory=point, small=point, daemon=daemon)

    @contextmanager
    def mount_point(self) -> Iterator[Path]:
        """An empty directory; whatever is mounted on it afterwards is taken away."""
        point = Path(tempfile.mkdtemp(prefix="mount-", dir=self.directory))
        try:
            yield point
        finally:
            _detach(point)
            point.rmdir()

    @property
    def uri(self) -> str:
        """What is mounted."""
        return f"cafs://{self.address}/{ROOT}"


Run = Callable[[Stage], Sample]


def is_mounted(point: Path) -> bool:
    """Whether something is mounted there."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(point) for line in mounts)


def _detach(point: Path) -> None:
    """Unmount what a daemon has left that had to be killed."""
    if is_mounted(point):
        subprocess.run(["fusermount3", "-u", "-z", str(point)], check=False)
