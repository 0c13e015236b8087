"""Mounts, servers and scratch directories of which nothing is left, however a test ends."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.mounted import CONNECTIONS, FSTYPE, Mounted, mount_lines, remove_tree
from tests.fuse.processes import attempt, memory_of_the_kernel, opened, pids_of, run
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots


class Mounting(Protocol):
    """Mounts ``uri`` (by default: of ``server``) with options; see Mounted for the rest."""

    def __call__(self, *options: str | Path, uri: str = ..., **rest: Any) -> Mounted: ...


@pytest.fixture(scope="session")
def fusectl() -> Iterator[None]:
    """What shows and aborts mounts; mounted if it is missing, where that is allowed.

    Test runs that go on at the same time share it: the last one unmounts what one of them mounted.
    """
    ours = "cafsfs-tests"
    with opened(Path("/sys/fs/fuse")) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not any(each[2] == "fusectl" for each in mount_lines()):
            run("mount", "-t", "fusectl", ours, CONNECTIONS)
        yield
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gives the other up, come what may
            if any(each[2:] == ("fusectl", ours) for each in mount_lines()):
                run("umount", CONNECTIONS)


def cached_file(cache: Path, blob: Blob) -> Path:
    """Where a cache keeps a blob."""
    return cache / "blobs" / blob.hash[:2] / blob.hash[2:4] / blob.hash


def drop_pages(mount: Mounted, blob: Blob) -> None:
    """Let the kernel ask again: what it remembers is right, and would hide what happened."""
    expression = "os.posix_fadvise(os.open(a[0], 0), 0, 0, os.POSIX_FADV_DONTNEED)"
    attempt(expression, mount.path(blob))


@pytest.fixture(scope="package", autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where mounts of these tests have their control sockets: nobody else's mounts are there."""
    with (
        tempfile.TemporaryDirectory(prefix="cafsfs-run-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("CAFSFS_RUNTIME_DIR", name)
        yield Path(name)


@pytest.fixture
def kernel_remembers() -> Iterator[None]:
    """For a test of what the kernel remembers: no other one lets it forget meanwhile."""
    with memory_of_the_kernel(fcntl.LOCK_SH):
        yield


@pytest.fixture(scope="session")
def base(fusectl: None) -> Iterator[Path]:
    """A directory for all scratch directories; at the end nothing of this session is left."""
    with tempfile.TemporaryDirectory(prefix="cafsfs-tests-") as name:
        base = Path(name)
        base.chmod(0o755)  # mounts of ordinary users are below it
        yield base
        mounts = [each for each in mount_lines() if each[2] == FSTYPE and each[0].startswith(name)]
        assert not mounts, f"mounts are left: {mounts}"
        assert not pids_of(name), f"processes are left: {pids_of(name)}"
        assert not list(base.iterdir()), f"files are left: {list(base.iterdir())}"


@pytest.fixture(scope="module")
def home(base: Path) -> Iterator[Path]:
    """A directory for the mount, cache and server that a module shares."""
    directory = Path(tempfile.mkdtemp(dir=base))
    directory.chmod(0o755)
    yield directory
    remove_tree(directory)


@pytest.fixture
def scratch(base: Path) -> Iterator[Path]:
    """A directory for one test."""
    directory = Path(tempfile.mkdtemp(dir=base))
    directory.chmod(0o755)
    yield directory
    remove_tree(directory)


@pytest.fixture
def blobs(scratch: Path, request: pytest.FixtureRequest) -> BlobMaker:
    return BlobMaker(scratch, request.node.nodeid)


@pytest.fixture
def roots(scratch: Path) -> Roots:
    return Roots(scratch / "roots")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[BadServerProcess]:
    with BadServerProcess() as server:
        yield server


@pytest.fixture
def server(shared_server: BadServerProcess) -> Iterator[BadServerProcess]:
    """A server for this module's tests; whole again after each."""
    yield shared_server
    shared_server.thaw()
    shared_server.mend()


@pytest.fixture(scope="module")
def shared_mount(shared_server: BadServerProcess, home: Path) -> Iterator[Mounted]:
    mounted = Mounted(f"cafs://{shared_server.address}{ROOT}", home)
    yield mounted
    wrong = mounted.clear()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def mount(server: BadServerProcess, shared_mount: Mounted) -> Iterator[Mounted]:
    """The mount of ``server`` that this module's tests share."""
    yield shared_mount
    wrong = shared_mount.judge_log()
    assert not wrong, "unannounced in the log:\n" + "\n".join(wrong)


@pytest.fixture
def mounting(server: BadServerProcess, scratch: Path) -> Iterator[Mounting]:
    """Makes mounts for one test."""
    made: list[Mounted] = []

    def mount(*options: str | Path, uri: str | None = None, **rest: Any) -> Mounted:
        home = rest.pop("home", None) or scratch
        mounted = Mounted(uri or f"cafs://{server.address}{ROOT}", home, options, **rest)
        made.append(mounted)
        return mounted

    yield mount
    server.thaw()
    wrong = [complaint for each in reversed(made) for complaint in each.clear()]
    assert not wrong, "\n".join(wrong)
