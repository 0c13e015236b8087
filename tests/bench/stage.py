"""Where the bench happens: a directory, a server with one big blob, and mounts of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.children import TREE, BenchError, Child, run

ROOT = "bench"
OURS = "tests.bench.ours"
PEER = "tests.bench.peer"
PLAIN = "tests.bench.plain"

_MEMORY = Path("/dev/shm")
# Of the big blob at once: the file, the server's, a warm cache, a cold one, one in pieces, and the
# copy.
_COPIES = 6
# Of each of many tiny blobs: a page, and an inode, a name and a row (5.4 GiB a million, measured).
_BLOB_ROOM = 6 << 10  # bytes
_SLACK = 1 << 30  # bytes of memory for all processes
_START_DEADLINE = 20.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: how long, and the peak memory of the process that did it, in bytes.

    ``details``: whatever else was measured, by names that end with the unit.
    """

    seconds: float
    peak: int
    details: Mapping[str, float] = field(default_factory=dict)


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
    looked at again.
    """

    def __init__(self, directory: Path, size: int, *, blobs: int, settle: float) -> None:
        self.directory = directory
        self.size = size
        self.blobs = blobs
        self.settle = settle
        self.blob = directory / "blob"
        self.target = directory / "target"
        self.address = ""
        self.digest = ""
        self._store = directory / "store"
        self._warm = directory / "warm-cache"
        self.cold = directory / "cold-cache"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Start the server and upload the blob."""
        (self._store / ROOT).mkdir(parents=True)
        self.digest = self.ask(PLAIN, "make", str(self.blob), str(self.size))
        arguments = ("serve", str(self._store), "--listen", "127.0.0.1:0")
        server = Child("cafsfs", *arguments, log=self.directory / "serve.log")
        try:
            line = server.await_line(f"serving {self._store} on ", deadline=_START_DEADLINE)
            self.address = line.split()[-1]
            self.ask(OURS, "put", ROOT, self.address, str(self.blob))
            yield
        finally:
            server.end()

    # --- what rows are made of

    def time(self, module: str, verb: str, *arguments: str) -> Sample:
        """Run a child that prints how long its work took."""
        output, peak = run(module, (verb, *arguments), self.directory / "child.log")
        return Sample(seconds=float(output), peak=peak)

    def pull(self, module: str) -> Sample:
        """Pull the blob to a new file."""
        self.clear()
        sample = self.time(module, "pull", ROOT, self.address, self.digest, str(self.target))
        self._check_target()
        return sample

    def put(self, module: str) -> Sample:
        """Upload the blob, which the server does not have."""
        stored = self._store / ROOT / "blobs" / self.digest[:2] / self.digest[2:4] / self.digest
        stored.unlink()
        sample = self.time(module, "put", ROOT, self.address, str(self.blob))
        if not stored.is_file():
            raise BenchError(f"{module} says that it has uploaded what the server does not have")
        return sample

    def copy_cold(self) -> Sample:
        """``cp`` of the blob from a mount whose cache is empty."""
        self.clear()
        with self.mount(self.cold) as (path, daemon):
            sample = self.time(PLAIN, "tool", "cp", str(path), str(self.target))
        self._check_target()
        return Sample(seconds=sample.seconds, peak=daemon.peak)

    def dd_cold(self) -> Sample:
        """``dd`` of the blob from a mount whose cache is empty, to nowhere."""
        self.clear()
        with self.mount(self.cold) as (path, daemon):
            sample = self.time(PLAIN, "tool", "dd", f"if={path}", "of=/dev/null", "bs=1M")
        return Sample(seconds=sample.seconds, peak=daemon.peak)

    def read_cached(self, *, times: int) -> Sample:
        """Read the blob ``times`` times from a new mount whose cache has it; the last one counts.

        The mount is new, so the kernel has no pages of it before the first time.
        """
        self.clear()
        if not self._warm.exists():
            with self.mount(self._warm) as (path, _):
                self.time(PLAIN, "read", str(path), str(self.size))
        with self.mount(self._warm) as (path, daemon):
            for _ in range(times):
                sample = self.time(PLAIN, "read", str(path), str(self.size))
        return Sample(seconds=sample.seconds, peak=daemon.peak)

    def read_plain(self) -> Sample:
        """Read the same bytes from an ordinary file in the kernel's memory."""
        self.time(PLAIN, "read", str(self.blob), str(self.size))
        return self.time(PLAIN, "read", str(self.blob), str(self.size))

    def write_target(self) -> Sample:
        """Write as many bytes to where copies go."""
        self.clear()
        return self.time(PLAIN, "write", str(self.target), str(self.size))

    def clear(self) -> None:
        """Remove what earlier runs have left, so that each finds the same."""
        self.target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.cold)

    @contextmanager
    def mount(self, cache: Path) -> Iterator[tuple[Path, Child]]:
        """The path of the blob in a fresh mount, and the daemon; its ``peak`` counts afterwards."""
        with self.mount_point() as point:
            arguments = ("mount", "--foreground", "--cache-dir", str(cache), self.uri, str(point))
            daemon = Child("cafsfs", *arguments, log=self.directory / "mount.log")
            try:
                daemon.await_line(f"mounted {self.uri} on ", deadline=_START_DEADLINE)
                yield point / self.digest, daemon
            finally:
                daemon.end()

    @contextmanager
    def mount_point(self) -> Iterator[Path]:
        """An empty directory; whatever is mounted on it afterwards is taken away."""
        point = self.directory / "mount"
        point.mkdir()
        try:
            yield point
        finally:
            _detach(point)
            point.rmdir()

    @property
    def uri(self) -> str:
        """What is mounted."""
        return f"cafs://{self.address}/{ROOT}"

    def ask(self, module: str, *arguments: str) -> str:
        """Run a child that prints what it has found out."""
        return run(module, arguments, self.directory / "child.log")[0]

    # ---

    def _check_target(self) -> None:
        if self.ask(PLAIN, "fingerprint", str(self.target)) != self.digest:
            raise BenchError("what came back is not what was uploaded")


def _detach(point: Path) -> None:
    """Unmount what a daemon has left that had to be killed."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if any(line.split()[4] == str(point) for line in mounts):
        command = [sys.executable, "-m", "cafsfs", "unmount", "--force", str(point)]
        subprocess.run(command, cwd=TREE, check=False)
