"""Where INIT cannot be patched, the mount works without, says so, and keeps lookups short."""

from __future__ import annotations

import sys
import time

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, attempting, eventually, outcome, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

_UNPATCHED = """
import sys
import cafsfs.fuse.session
from cafsfs.cli.app import invoke
from cafsfs.errors import MountError

def fail(request, answer):
    raise MountError("the kernel does not offer parallel lookups")

cafsfs.fuse.session.patch_answer = fail
sys.exit(invoke(sys.argv[1:]))
"""
SIZE = 600_000
HURRIED = 1.0  # seconds; what a lookup may wait then
SLACK = 3.0  # seconds that a busy machine may add; else a lookup would wait 5


@pytest.fixture
def mount(mounting: Mounting) -> Mounted:
    made = mounting("--lookup-timeout", "5", program=(sys.executable, "-c", _UNPATCHED))
    made.announce("WARNING .*the kernel does not offer parallel lookups: mounted without")
    return made


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def test_the_mount_works_without(mount: Mounted, blob: Blob) -> None:
    run("cmp", mount.path(blob), blob.source).ok()
    mount.stop()


def test_the_log_and_stats_json_say_so(mount: Mounted) -> None:
    mount.logged(documented("the kernel does not offer parallel lookups").pattern)
    assert mount.stats()["kernel"]["parallel_lookups"] is False


def test_a_lookup_waits_a_second_at_most(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    mount.announce("WARNING .*the size of .* is not known after 1 s")
    server.freeze()
    began = time.monotonic()
    assert attempt("os.stat(a[0])", mount.path(blob)) == "ETIMEDOUT"
    assert HURRIED - 0.1 < time.monotonic() - began < HURRIED + SLACK


def test_lookups_that_wait_hold_a_cached_name_back_for_a_second_each_and_no_more(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    mount.announce("WARNING .*the size of .* is not known after 1 s")
    run("cat", mount.path(blob)).ok()
    server.freeze()
    stalled = [attempting("os.stat(a[0])", mount.point / (digit * 64)) for digit in "12"]
    try:
        eventually(lambda: mount.waiting > 0, what="a lookup waits")
        done = run("stat", mount.path(blob, ".txt")).ok()
        assert done.seconds < 2 * HURRIED + SLACK
        assert [outcome(each) for each in stalled] == ["ETIMEDOUT"] * 2
    finally:
        for each in stalled:
            each.end()
