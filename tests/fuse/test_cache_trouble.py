"""A cache that is cut, full, spoilt, sick or gone: who reads gets the right bytes all the same."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting, cached_file, drop_pages
from tests.fuse.mounted import Mounted, clear_mount
from tests.fuse.processes import CAFSFS, Process, eventually, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 700_000
MIB = 1 << 20
DISCARDED = "WARNING .*what the cache had for .* was not its content; discarded"
CHANGED = "WARNING .*a cached blob (was changed|of .* has none at).*; verifying .* again"
IN_THE_WAY = "WARNING .*not cached, because of what somebody else has put there: .*directory"
SICK = (
    "WARNING .*(cannot (read|use) the cache|cannot remove .* from the cache|index.sqlite"
    "|the cache (is bypassed|can only be read))"
)
NO_ROOM = "WARNING .*the cache has no room, and nothing to evict: No space left on device"
INDEX_IS_FULL = "WARNING .*index.sqlite.*(full|No space)"

# Reads all files so many times, in an order of its own, past the kernel's cache; tells how many it
# has read, what went wrong, and which bytes were not those of the source.
_READER = """
import json, os, random, sys
rounds, pairs = int(sys.argv[1]), json.load(open(sys.argv[2]))
done = {"reads": 0, "errors": [], "wrong": []}
for _ in range(rounds):
    random.shuffle(pairs)
    for path, source in pairs:
        try:
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                content = b"".join(iter(lambda: file.read(1 << 18), b""))
        except OSError as error:
            done["errors"].append(f"{path}: {error}")
            continue
        done["reads"] += 1
        if content != open(source, "rb").read():
            done["wrong"].append(path)
print(json.dumps(done))
"""


class Readers:
    """Processes that read the same blobs of a mount, all at the same time."""

    def __init__(
        self, mount: Mounted, blobs: Sequence[Blob], *, count: int = 16, rounds: int = 2
    ) -> None:
        self._reads = rounds * len(blobs)
        self._log = mount.log
        pairs = mount.point.parent / "pairs.json"
        pairs.write_text(json.dumps([[str(mount.path(each)), str(each.source)] for each in blobs]))
        command = (sys.executable, "-I", "-S", "-c", _READER, str(rounds), pairs)
        self._stack = ExitStack()
        self._processes = [self._stack.enter_context(Process(*command)) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def run(self) -> bool:
        return any(each.runs for each in self._processes)

    def check(self) -> None:
        """Wait for them: all of them have read everything, and rightly."""
        for each in self._processes:
            told = json.loads(each.finish(within=60).ok().out)
            expected = {"reads": self._reads, "errors": [], "wrong": []}
            assert told == expected, self._log.read_text()


def read_all(mount: Mounted, blobs: Sequence[Blob]) -> None:
    with Readers(mount, blobs, count=1, rounds=1) as readers:
        readers.check()


@pytest.fixture
def some(blobs: BlobMaker, server: BadServerProcess) -> list[Blob]:
    return serve(server, [blobs.random(SIZE + number) for number in range(6)])


def serve(server: BadServerProcess, blobs: list[Blob]) -> list[Blob]:
    for each in blobs:
        server.put(each.source)
    return blobs


def announce(pattern: str, *mounts: Mounted) -> None:
    """Mounts one after the other write to the same log."""
    for each in mounts:
        each.announce(pattern)


def end(mount: Mounted) -> None:
    mount.stop()
    assert mount.judge_log() == []


# --- disks


def mounted(command: Sequence[str | Path], point: Path) -> None:
    done = subprocess.run(["mount", *command, point], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")


@contextmanager
def disk(point: Path, command: Sequence[str | Path]) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    point.mkdir(exist_ok=True)
    mounted(command, point)
    try:
        yield point
    finally:
        # Lazily: a test that fails may have left a file open, and still leaves no mount.
        subprocess.run(["umount", "--lazy", point], check=True)


def tmpfs(point: Path, size: int, inodes: int = 0) -> Sequence[str | Path]:
    return ["-t", "tmpfs", "-o", f"size={size},mode=0700,nr_inodes={inodes}", "tmpfs"]


def ext4(point: Path, size: int, inodes: int = 0) -> Sequence[str | Path]:
    """On a loop device."""
    image = point.with_suffix(".img")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size)
        few = ("-N", str(inodes)) if inodes else ()
        make: list[str | Path] = ["mkfs.ext4", "-q", "-m", "0", *few, image]
        subprocess.run(make, check=True, capture_output=True)
    return ["-o", "loop", image]


DISKS: dict[str, Callable[[Path, int, int], Sequence[str | Path]]] = {"tmpfs": tmpfs, "ext4": ext4}


@pytest.fixture(params=DISKS)
def small(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with room for about a dozen blobs of a megabyte."""
    point = scratch / "disk"
    with disk(point, DISKS[request.param](point, 16 * MIB, 0)):
        yield point


@pytest.fixture
def ext4_disk(scratch: Path) -> Iterator[Path]:
    point = scratch / "disk"
    with disk(point, ext4(point, 32 * MIB)):
        yield point


def shut_down(point: Path) -> None:
    """Cut the power: nothing reaches the disk any more, and all I/O is an error from here on."""
    request = 0x8004587D  # EXT4_IOC_SHUTDOWN
    nothing_is_written = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH
    descriptor = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, request, nothing_is_written)
    except OSError as error:
        pytest.skip(f"this kernel cannot shut ext4 down: {error}")
    finally:
        os.close(descriptor)


# --- a disk that is full


def test_a_disk_that_fills_up_while_sixteen_read(
    small: Path, mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    many = serve(server, [blobs.random(MIB + number) for number in range(24)])
    mount = mounting("--cache-size", "1G", "--cache-free", "0", cache=small / "cache")
    mount.announce(NO_ROOM)
    mount.announce(INDEX_IS_FULL)
    with Readers(mount, many) as readers:
        readers.check()
    counters = mount.counters()
    assert counters["uncached"] + counters["evictions"] > 0
    assert counters["pull_errors"] == 0
    trouble = mount.stats()["cache"]["trouble"]
    assert trouble is None or "No space left on device" in trouble


def test_a_disk_that_somebody_else_has_filled(
    small: Path, mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting("--cache-size", "1G", "--cache-free", "0", cache=small / "cache")
    mount.announce(NO_ROOM)
    mount.announce(INDEX_IS_FULL)
    fill(small / "big")
    pulls = server.counts()["pulls"]
    with Readers(mount, some, rounds=1) as readers:
        readers.check()
    assert mount.counters()["uncached"] > 0
    mount.logged(documented("has no room, and nothing to evict").pattern)
    # While one reader has it open, it is not pulled for another.
    with Process("sh", "-c", 'exec 3<"$0"; exec sleep 100', mount.path(some[0])) as holder:
        eventually(lambda: Path(f"/proc/{holder.pid}/fd/3").is_symlink(), what="it is open")
        run("cmp", mount.path(some[0]), some[0].source).ok()
        pulls = server.counts()["pulls"]
        with Readers(mount, some[:1], rounds=3, count=4) as readers:
            readers.check()
        assert server.counts()["pulls"] == pulls
        assert holder.runs
    (small / "big").unlink()
    read_all(mount, some)
    assert len(list((small / "cache/blobs").glob("??/??/*"))) == len(some)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@pytest.mark.parametrize("kind", DISKS)
def test_a_disk_without_inodes_left(
    kind: str,
    scratch: Path,
    request: pytest.FixtureRequest,
    server: BadServerProcess,
    blobs: BlobMaker,
) -> None:
    point = scratch / "disk"
    with disk(point, DISKS[kind](point, 16 * MIB, 60)):
        mounting: Mounting = request.getfixturevalue("mounting")
        many = serve(server, [blobs.random(100 + number) for number in range(60)])
        mount = mounting("--cache-size", "1G", "--cache-free", "0", cache=point / "cache")
        mount.announce(NO_ROOM)
        mount.announce(INDEX_IS_FULL)
        with Readers(mount, many) as readers:
            readers.check()
        counters = mount.counters()
        assert counters["uncached"] + counters["evictions"] > 0
        assert mount.clear() == []


# --- files that others spoil


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
    path.with_suffix(".new").rename(path)


def make_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOIL: list[Callable[[Path], None]] = [flip, cut, extend, replace, Path.unlink, make_a_directory]


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_file_that_is_spoilt_between_two_opens(
    spoil: Callable[[Path], None], mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting()
    mount.announce(DISCARDED)
    mount.announce(IN_THE_WAY)
    read_all(mount, some)
    for blob in some:
        drop_pages(mount, blob)
    eventually(lambda: mount.stats()["filesystem"]["open_handles"] == 0, what="all is closed")
    for blob in some[:3]:
        spoil(cached_file(mount.cache, blob))
    pulls = server.counts()["pulls"]
    read_all(mount, some)
    assert server.counts()["pulls"] == pulls + 3
    if spoil is make_a_directory:
        mount.logged(IN_THE_WAY, times=3)
        assert mount.counters()["uncached"] == 3
        assert mount.stats()["cache"]["trouble"] is None
    elif spoil is not Path.unlink:
        assert mount.counters()["cache_discards"] == 3
        assert len(re.findall(DISCARDED, mount.logged(DISCARDED, times=3))) == 3
        mount.logged(documented("what the cache had for").pattern)
    if spoil is not make_a_directory:
        assert cached_file(mount.cache, some[0]).read_bytes() == some[0].content


@pytest.mark.parametrize("spoil", [flip, cut, extend, replace, Path.unlink])
def test_a_file_that_is_spoilt_under_a_reader(
    spoil: Callable[[Path], None], mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    [blob] = serve(server, [blobs.random(8 * MIB)])
    mount = mounting()
    mount.announce(CHANGED)
    mount.announce(DISCARDED)
    script = 'dd bs=64k count=1 status=none; echo >&2; read -r _ <"$0"; cat'
    gate = mount.point.parent / "gate"
    os.mkfifo(gate)
    reader = ("sh", "-c", f'exec <"$1"; {script}', gate, mount.path(blob))
    with Process(*reader) as process:
        descriptor = os.open(gate, os.O_WRONLY)  # waits until it has read the beginning
        spoil(cached_file(mount.cache, blob))
        os.write(descriptor, b"\n")
        os.close(descriptor)
        assert process.finish().ok().out == blob.content
    run("cmp", mount.path(blob), blob.source).ok()


def test_files_that_are_spoilt_while_sixteen_read(
    mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting()
    mount.announce(DISCARDED)
    mount.announce(CHANGED)
    mount.announce("WARNING .*cannot use the cache")
    read_all(mount, some)
    spoilt = 0
    with Readers(mount, some, rounds=20) as readers:
        while readers.run:
            time.sleep(0.03)
            spoilt += 1
            with suppress(FileNotFoundError):  # it is just being discarded
                SPOIL[spoilt % 5](cached_file(mount.cache, some[spoilt % len(some)]))
        readers.check()
    assert spoilt > 10
    read_all(mount, some)
    for blob in some:
        assert cached_file(mount.cache, blob).read_bytes() == blob.content


@pytest.mark.parametrize("what", ["cache", "cache/blobs", "cache/partial"])
def test_directories_that_are_removed_while_sixteen_read(
    what: str, mounting: Mounting, server: BadServerProcess, some: list[Blob], scratch: Path
) -> None:
    mount = mounting()
    mount.announce("WARNING .*(cannot use the cache: No such file|index.sqlite)")
    read_all(mount, some)
    with Readers(mount, some, rounds=20) as readers:
        while readers.run:
            for each in (scratch / what).iterdir() if what == "cache" else [scratch / what]:
                run("rm", "-rf", each)
            time.sleep(0.1)
        readers.check()
    read_all(mount, some)
    assert mount.daemon.runs
    assert "Traceback" not in mount.log.read_text()


# --- power cuts


def another_boot(cache: Path) -> None:
    with closing(sqlite3.connect(cache / "index.sqlite")) as db, db:
        db.execute("UPDATE blobs SET boot = 'another boot'")


def durable(cache: Path) -> set[str]:
    with closing(sqlite3.connect(cache / "index.sqlite")) as db:
        rows = db.execute("SELECT digest FROM blobs WHERE durable").fetchall()
    return {digest.hex() for (digest,) in rows}


def zero(path: Path) -> None:
    """As some filesystems leave a young file: of the right length, and nothing in it."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def kill(mount: Mounted) -> None:
    mount.daemon.signal(signal.SIGKILL)
    assert mount.daemon.ended(within=5)
    clear_mount(mount.point)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def test_after_a_power_cut_no_wrong_byte_is_served(
    mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    first = mounting()
    read_all(first, some[:3])
    end(first)  # with a syncfs that covers them
    second = mounting()
    read_all(second, some)
    time.sleep(2.5)  # the index is written every two seconds
    kill(second)
    assert durable(second.cache) == {each.hash for each in some[:3]}
    another_boot(second.cache)
    for lose, blob in zip([zero, empty, cut], some[3:], strict=True):
        lose(cached_file(second.cache, blob))
    pulls = server.counts()["pulls"]
    third = mounting()
    announce(DISCARDED, first, second, third)
    with Readers(third, some, count=4, rounds=1) as readers:
        readers.check()
    assert server.counts()["pulls"] == pulls + 3
    assert third.counters()["cache_discards"] == 3
    wrong = r"cache had for (\w+) was not"
    discarded = set(re.findall(wrong, third.logged(wrong, times=3)))
    assert discarded == {each.hash for each in some[3:]}


@pytest.mark.parametrize("is_covered", [True, False])
def test_what_a_syncfs_covers_is_not_hashed_after_a_power_cut(
    is_covered: bool, mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    [blob] = serve(server, [blobs.random(16 * MIB)])
    mount = mounting()
    run("cmp", mount.path(blob), blob.source).ok()
    end(mount)
    another_boot(mount.cache)
    if not is_covered:
        with closing(sqlite3.connect(mount.cache / "index.sqlite")) as db, db:
            db.execute("UPDATE blobs SET durable = 0")
    pulls = server.counts()["pulls"]
    again = mounting()
    before = bytes_read(again)
    run("head", "-c1", again.path(blob)).ok()
    assert (bytes_read(again) - before >= blob.size) is not is_covered
    run("cmp", again.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls


def bytes_read(mount: Mounted) -> int:
    """By all read calls of the daemon, from wherever."""
    counters = Path(f"/proc/{mount.daemon.pid}/io").read_text().split()
    return int(counters[counters.index("rchar:") + 1])


def test_a_real_power_cut(
    ext4_disk: Path, mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    first = mounting(cache=ext4_disk / "cache")
    read_all(first, some[:3])
    end(first)
    second = mounting(cache=ext4_disk / "cache")
    read_all(second, some)
    shut_down(ext4_disk)
    kill(second)
    subprocess.run(["umount", ext4_disk], check=True)
    # A namespace of another test may have a copy of the mount, and who mounts again would get that.
    used = ("losetup", "--noheadings", "--associated", ext4_disk.with_suffix(".img"))
    eventually(lambda: not run(*used).ok().out, within=60, what="the disk is let go")
    mounted(ext4(ext4_disk, 0), ext4_disk)
    lost = [each for each in some[3:] if not is_whole(cached_file(second.cache, each), each)]
    assert lost, "nothing was lost, so nothing is shown"
    assert all(is_whole(cached_file(second.cache, each), each) for each in some[:3])
    another_boot(second.cache)
    pulls = server.counts()["pulls"]
    third = mounting(cache=ext4_disk / "cache")
    announce(DISCARDED, first, second, third)
    read_all(third, some)
    assert server.counts()["pulls"] == pulls + len(lost)
    assert third.clear() == []


def is_whole(path: Path, blob: Blob) -> bool:
    return path.exists() and path.read_bytes() == blob.content


# --- an index that is none


def put_garbage(index: Path) -> None:
    index.write_bytes(b"garbage" * 5000)


def put_a_directory(index: Path) -> None:
    index.unlink()
    (index / "with a file").mkdir(parents=True)


def put_another_database(index: Path) -> None:
    index.unlink()
    with closing(sqlite3.connect(index)) as db, db:
        db.execute("CREATE TABLE blobs(name TEXT)")


UNUSABLE = "WARNING .*index.sqlite` is unusable .*: rebuilding it from the files"
INDICES: list[tuple[Callable[[Path], None], str]] = [
    (put_garbage, UNUSABLE),
    (empty, ""),
    (cut, UNUSABLE),
    (Path.unlink, ""),
    (put_another_database, UNUSABLE),
    (put_a_directory, "WARNING .*the index of the cache is kept in memory only: .*sqlite"),
]


@pytest.mark.parametrize(("ruin", "warning"), INDICES)
def test_an_index_that_is_none(
    ruin: Callable[[Path], None],
    warning: str,
    mounting: Mounting,
    server: BadServerProcess,
    some: list[Blob],
) -> None:
    mount = mounting()
    read_all(mount, some)
    end(mount)
    ruin(mount.cache / "index.sqlite")
    pulls = server.counts()["pulls"]
    again = mounting()
    if warning:
        announce(warning, mount, again)
        again.logged(warning)
    if ruin is put_garbage:
        again.logged(documented("is unusable (file is not a database)").pattern)
    read_all(again, some)
    assert server.counts()["pulls"] == pulls
    size = sum(each.size for each in some)
    full = {"blobs": len(some), "bytes": size, "complete": True}
    eventually(lambda: full.items() <= again.stats()["cache"].items(), what="adopted")


@pytest.mark.parametrize("ruin", [put_garbage, Path.unlink, put_a_directory])
def test_an_index_that_is_ruined_under_a_mount(
    ruin: Callable[[Path], None], mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting()
    mount.announce("WARNING .*index.sqlite")
    read_all(mount, some[:3])
    ruin(mount.cache / "index.sqlite")
    for blob in some:
        drop_pages(mount, blob)
    read_all(mount, some)
    time.sleep(2.5)
    read_all(mount, some)
    assert server.counts()["pulls"] > 0
    assert "Traceback" not in mount.log.read_text()


# --- a disk that can only be read, and one that cannot even be read


def test_a_cache_that_can_only_be_read(
    scratch: Path, mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting()
    read_all(mount, some[:3])
    end(mount)
    before = snapshot(mount.cache)
    frozen = scratch / "frozen"
    frozen.mkdir()
    with disk(frozen, ["-o", "bind,ro", mount.cache]):
        pulls = server.counts()["pulls"]
        again = mounting(cache=frozen)
        announce("WARNING .*the cache can only be read: `.*` cannot be written", mount, again)
        read_all(again, some)
        assert server.counts()["pulls"] == pulls + 3
        assert "cannot be written" in again.stats()["cache"]["trouble"]
        assert again.counters()["uncached"] == 3
        assert again.clear() == []
    again.logged(documented("the cache can only be read").pattern)
    assert snapshot(mount.cache) == before


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in directory.rglob("*"))
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


def test_a_disk_that_becomes_read_only_while_sixteen_read(
    ext4_disk: Path,
    mounting: Mounting,
    server: BadServerProcess,
    some: list[Blob],
    blobs: BlobMaker,
) -> None:
    more = serve(server, [blobs.random(SIZE) for _ in range(3)])
    mount = mounting(cache=ext4_disk / "cache")
    mount.announce(SICK)
    read_all(mount, some[:2])
    with Readers(mount, some, rounds=10) as readers:
        time.sleep(0.2)
        # What the kernel does when it has found an error on the disk, with files open for writing.
        run("mount", "-o", "remount,abort", ext4_disk).ok()
        with Readers(mount, more) as others:
            others.check()
        readers.check()
    read_all(mount, some)
    time.sleep(5)
    complaints = re.findall("WARNING .*index.sqlite.*", mount.log.read_text())
    assert len(set(complaints)) == len(complaints)
    assert mount.stats()["cache"]["trouble"] is not None, mount.log.read_text()
    assert "Traceback" not in mount.log.read_text()
    assert mount.clear() == []


def test_a_disk_that_fails_while_sixteen_read(
    ext4_disk: Path, mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting(cache=ext4_disk / "cache")
    mount.announce(SICK)
    read_all(mount, some[:4])
    with Readers(mount, some, rounds=10) as readers:
        time.sleep(0.2)
        shut_down(ext4_disk)
        readers.check()
    with Readers(mount, some, rounds=2) as readers:
        readers.check()
    assert "Input/output error" in mount.stats()["cache"]["trouble"]
    mount.logged(documented("the cache is bypassed").pattern)
    assert "Traceback" not in mount.log.read_text()
    assert mount.clear() == []


# --- a clock that jumps


def with_clock(seconds: float) -> tuple[str, ...]:
    """cafsfs on a machine whose clock is wrong by so much."""
    script = (
        "import sys, time; real = time.time; "
        f"time.time = lambda: real() + {seconds!r}; "
        "from cafsfs.cli.app import invoke; sys.exit(invoke(sys.argv[1:]))"
    )
    return (sys.executable, "-c", script)


YEARS = 365.0 * 24 * 3600


@pytest.mark.parametrize("wrong_by", [-50 * YEARS, 20 * YEARS])
def test_a_clock_that_jumps(
    wrong_by: float, mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting(program=with_clock(wrong_by))
    read_all(mount, some)
    end(mount)
    pulls = server.counts()["pulls"]
    right = mounting("--cache-ttl", "30d", "--cache-tti", "30d", program=CAFSFS)
    lost = len(some) if wrong_by < 0 else 0
    eventually(lambda: right.counters()["evictions"] == lost, what="the old ones are evicted")
    read_all(right, some)
    assert server.counts()["pulls"] == pulls + lost
    assert right.counters()["evictions"] == lost
