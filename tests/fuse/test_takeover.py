"""A server with wrong bytes dies in the middle of them, and one with the right ones takes over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Process, attempt, eventually, run
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots, Served

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SIZE = 6 * MIB
COME = 4 * MIB  # bytes that come before the server dies
OPTIONS = ("--verify-first", "1M", "--progress-timeout", "3", "--read-timeout", "10")
BOUND = 2 * 10 + 2.0  # seconds for a reader, on a busy machine
FIRST = "os.pread(os.open(a[0], 0), 9, int(a[1])).hex()"

_SENDFILE = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
while os.sendfile(1, file, None, 1 << 20):
    pass
"""
_MAP_ALL = """
import mmap, os, sys
sys.stdout.buffer.write(mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ))
"""
# Reads the end first: it has nothing of the first server.
_BACKWARDS = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
pieces = [os.pread(file, 1 << 16, at) for at in range(int(sys.argv[2]) - (1 << 16), -1, -1 << 16)]
sys.stdout.buffer.write(b"".join(reversed(pieces)))
"""


def readers(path: Path) -> dict[str, tuple[str | Path, ...]]:
    """Commands that write to standard output what they read."""
    python = (sys.executable, "-ISc")
    return {
        "cat": ("cat", path),
        "cp": ("cp", path, "/dev/stdout"),
        "dd": ("dd", f"if={path}", "bs=1M", "status=none"),
        "dd of small blocks": ("dd", f"if={path}", "bs=4k", "status=none"),
        "mmap": (*python, _MAP_ALL, path),
        "sendfile": (*python, _SENDFILE, path),
        "backwards": (*python, _BACKWARDS, path, str(SIZE)),
    }


@pytest.fixture
def right(roots: Roots, scratch: Path) -> Iterator[Served]:
    with Served(roots, scratch / "right.log") as served:
        yield served


@pytest.fixture
def mount(server: BadServerProcess, right: Served, mounting: Mounting) -> Mounted:
    uri = f"cafs://{server.address},{right.address};priority=1{ROOT}"
    mount = mounting(*OPTIONS, uri=uri)
    mount.announce("^[^\n]* WARNING [^\n]*$")
    return mount


@pytest.fixture
def blob(server: BadServerProcess, roots: Roots, blobs: BlobMaker) -> Blob:
    made = roots.put(blobs.random(SIZE))
    server.put(made.source)
    return made


def dies(server: BadServerProcess) -> None:
    server.fault(Phase.GREETING, Fault(then="reset"))
    server.hang_up(reset=True)


def leaves(server: BadServerProcess) -> None:
    server.fault(Phase.GREETING, Fault(then="close"))
    server.hang_up()


def says_no_more(server: BadServerProcess) -> None:
    """It does so already."""


ENDS = [dies, leaves, says_no_more, BadServerProcess.freeze]


@contextmanager
def reading(mount: Mounted, blob: Blob) -> Iterator[dict[str, Process]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Process(*command))
            for name, command in readers(mount.path(blob)).items()
        }


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("at", [0, 2 * MIB], ids=["first", "middle"])
def test_nobody_ends_well_with_wrong_bytes(
    mount: Mounted,
    server: BadServerProcess,
    blob: Blob,
    at: int,
    end: Callable[[BadServerProcess], None],
) -> None:
    server.fault(Phase.BODY, Fault(spoil=16 + at, after=COME, then="stall"))
    with reading(mount, blob) as all_readers:
        right = blob.content[at : at + 9]
        seen = bytes.fromhex(attempt(FIRST, mount.path(blob), str(at)))
        assert seen == bytes([right[0] ^ 0xFF]) + right[1:], "nobody sees a wrong byte"
        end(server)
        done = {name: each.finish(within=BOUND) for name, each in all_readers.items()}
    for name, each in done.items():
        assert each.code or each.out == blob.content, f"{name} ended well with wrong bytes"
    assert any(each.code for each in done.values())
    whole = lambda: run("cmp", mount.path(blob), blob.source).code == 0  # noqa: E731
    eventually(whole, what="the next one who opens it reads the right bytes")


@pytest.mark.parametrize("end", ENDS)
def test_everybody_ends_well_if_the_bytes_were_right(
    mount: Mounted, server: BadServerProcess, blob: Blob, end: Callable[[BadServerProcess], None]
) -> None:
    server.fault(Phase.BODY, Fault(after=COME, then="stall"))
    with reading(mount, blob) as all_readers:
        assert attempt(FIRST, mount.path(blob), "0") == blob.content[:9].hex()
        assert server.counts()["pulls"] > 0
        end(server)
        done = {name: each.finish(within=BOUND) for name, each in all_readers.items()}
    assert [name for name, each in done.items() if each.ok().out != blob.content] == []
