"""A handler that raises costs its caller an EIO, never everybody the mount."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.processes import attempt, forget_names, run
from tests.fuse.serving import BlobMaker

pytestmark = pytest.mark.fuse

# Runs cafsfs with one method of FileSystem broken.
_BROKEN = """
import sys
from cafsfs.cli.app import invoke
from cafsfs.vfs.filesystem import FileSystem

def broken(self, *arguments):
    raise KeyError("a bug")

async def broken_later(self, *arguments):
    raise KeyError("a bug")

later = sys.argv[1] in {"lookup", "getattr", "getxattr", "open", "read"}
setattr(FileSystem, sys.argv[1], broken_later if later else broken)
sys.exit(invoke(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("method", "expression"),
    [
        ("getxattr", "os.getxattr(a[0], 'user.cafs.hash')"),
        ("lookup", "os.stat(a[0] + '.other')"),
        ("open", "os.open(a[0], 0)"),
        ("read", "os.read(os.open(a[0], 0), 1)"),
        ("opendir", "os.listdir(os.path.dirname(a[0]))"),
        ("readdir", "os.listdir(os.path.dirname(a[0]))"),
        ("statfs", "os.statvfs(a[0])"),
    ],
)
def test_a_handler_that_raises_gives_eio_and_a_traceback_in_the_log(
    mounting: Mounting, scratch: Path, method: str, expression: str
) -> None:
    mount = mounting(program=(sys.executable, "-c", _BROKEN, method))
    mount.announce(f"ERROR cafsfs.fuse.operations: {method} failed\nTraceback")
    path = mount.point / ".cafsfs/version"
    if method == "getxattr":
        path = mount.point
    for _ in range(2):
        assert attempt(expression, path) == "EIO"
    mount.logged("KeyError: 'a bug'")
    mount.stop()


@pytest.mark.parametrize("method", ["release", "forget"])
def test_an_error_where_nobody_waits_for_an_answer_is_logged_and_the_mount_goes_on(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, method: str
) -> None:
    blob = blobs.random(1000)
    server.put(blob.source)
    mount = mounting(program=(sys.executable, "-c", _BROKEN, method))
    mount.announce(f"ERROR cafsfs.fuse.operations: _?{method}(?:dir)? failed\nTraceback")
    run("cmp", mount.path(blob), blob.source).ok()
    if method == "forget":
        forget_names()
    mount.logged("KeyError: 'a bug'")
    run("cmp", mount.path(blob), blob.source).ok()
    mount.stop()


def test_the_rest_of_the_mount_goes_on(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(1000)
    server.put(blob.source)
    mount = mounting(program=(sys.executable, "-c", _BROKEN, "getxattr"))
    mount.announce("ERROR cafsfs.fuse.operations: getxattr failed\nTraceback")
    assert attempt("os.getxattr(a[0], 'user.cafs.hash')", mount.path(blob)) == "EIO"
    run("cmp", mount.path(blob), blob.source).ok()
    assert mount.counters()["handler_errors"] == 1
