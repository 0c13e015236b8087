"""What waits for a server that does not answer, how long, and whom it does not hinder."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import attempt, attempting, eventually, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

LOOKUP = 1.5  # seconds; by default it is 5
READ = 1.5  # seconds; by default it is 30
SLACK = 3.0  # seconds that a busy machine may add
AT_ONCE = 10.0  # seconds, on a busy machine; who waits for the server where PATIENT takes 30
PATIENT = ("--lookup-timeout=30", "--read-timeout=30", "--connect-timeout=30")
SIZE = 600_000


@pytest.fixture
def hasty(mounting: Mounting) -> Mounted:
    """A mount of short deadlines."""
    return mounting("--lookup-timeout", str(LOOKUP), "--read-timeout", str(READ))


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


@pytest.fixture
def known(hasty: Mounted, server: BadServerProcess, blob: Blob) -> Blob:
    """A blob of which nothing but the size is known."""
    learn_size(hasty, server, blob)
    return blob


def test_four_lookups_that_wait_do_not_slow_a_fifth_of_a_cached_name(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    mount.announce("WARNING .*the size of .* is not known")
    run("cat", mount.path(blob)).ok()
    server.freeze()
    names = [f"{digit}" * 64 for digit in range(4)]
    stalled = [attempting("os.stat(a[0])", mount.point / name) for name in names]
    try:
        eventually(lambda: mount.waiting >= 4, what="four lookups wait")
        # Under another name, that the kernel has not looked up before.
        run("stat", mount.path(blob, ".txt"), within=AT_ONCE).ok()
        assert mount.waiting == 4, "they wait no longer: nothing was shown"
    finally:
        server.thaw()
        for each in stalled:
            each.end()


def test_reads_that_wait_do_not_slow_the_reading_of_a_cached_blob(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting(*PATIENT)
    mount.announce("WARNING .*has not moved")
    cached = blobs.random(10 << 20)
    server.put(cached.source)
    run("cat", mount.path(cached)).ok()
    large = blobs.random(30 << 20)
    server.put(large.source)
    learn_size(mount, server, large)
    server.freeze()
    read = "len(os.pread(os.open(a[0], 0), 9, int(a[1])))"
    stalled = [attempting(read, mount.path(large), str(at << 20)) for at in range(30)]
    try:
        eventually(lambda: mount.waiting >= 30, what="thirty reads wait")
        # The kernel has the pages of this one; only a direct read asks the daemon.
        dd = ("dd", f"if={mount.path(cached)}", "iflag=direct", "bs=1M", "status=none")
        assert run(*dd, within=AT_ONCE).ok().out == cached.content
    finally:
        server.thaw()
        for each in stalled:
            each.end()


def test_a_lookup_without_an_answer_times_out_and_is_not_absent(
    hasty: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    hasty.announce("WARNING .*the size of .* is not known")
    server.freeze()
    began = time.monotonic()
    assert documented("Connection timed out").search(run("stat", hasty.path(blob)).err)
    assert LOOKUP - 0.1 < time.monotonic() - began < LOOKUP + SLACK
    server.thaw()
    # Nothing of it was remembered.
    assert attempt("os.stat(a[0]).st_size", hasty.path(blob)) == SIZE


def test_open_never_waits(mounting: Mounting, server: BadServerProcess, blob: Blob) -> None:
    mount = mounting(*PATIENT)
    learn_size(mount, server, blob)
    server.freeze()
    opening = "import os, sys; os.open(sys.argv[1], 0)"
    run(sys.executable, "-ISc", opening, mount.path(blob), within=AT_ONCE).ok()


def test_a_read_without_progress_fails(
    hasty: Mounted, server: BadServerProcess, known: Blob
) -> None:
    hasty.announce("WARNING .*has not moved")
    server.freeze()
    began = time.monotonic()
    assert attempt("len(os.read(os.open(a[0], 0), 9))", hasty.path(known)) in {"EIO", "ETIMEDOUT"}
    assert READ - 0.1 < time.monotonic() - began < 1.4 * READ + SLACK  # readers ask again


def test_a_read_with_progress_does_not_fail_however_long_it_takes(
    hasty: Mounted, server: BadServerProcess, known: Blob
) -> None:
    server.fault(Phase.BODY, Fault(drip=(SIZE // 16, READ / 6)))
    done = run("cat", hasty.path(known)).ok()
    assert done.out == known.content
    assert done.seconds > 1.5 * READ


def test_a_copy_of_a_blob_whose_pull_stalls_fails(
    hasty: Mounted, server: BadServerProcess, known: Blob
) -> None:
    hasty.announce("WARNING .*has not moved")
    server.fault(Phase.BODY, Fault(after=SIZE // 2, then="stall"))
    done = run("cp", hasty.path(known), "/dev/null", within=1.4 * READ + SLACK)
    assert done.code == 1
    assert "error reading" in done.err


@pytest.mark.parametrize(
    "expression",
    [
        "len(os.read(os.open(a[0], 0), 9))",
        "mmap.mmap(os.open(a[0], 0), 0, prot=mmap.PROT_READ)[70000]",
        "os.sendfile(os.open('/dev/null', 1), os.open(a[0], 0), None, 100)",
    ],
    ids=["read", "mmap", "sendfile"],
)
def test_a_reader_that_waits_dies_at_once_when_it_is_killed(
    mount: Mounted, server: BadServerProcess, blob: Blob, expression: str
) -> None:
    mount.announce("WARNING .*(has not moved|connection|was stopped)")
    learn_size(mount, server, blob)
    server.freeze()
    with attempting(expression, mount.path(blob)) as reader:
        eventually(lambda: mount.waiting > 0, what="the reader waits")
        mount.stats()  # is answered after the daemon has taken the read
        assert reader.runs
        reader.signal(signal.SIGKILL)
        assert reader.ended(within=AT_ONCE)


def test_a_size_that_only_a_pull_tells_times_out_and_is_known_later(
    hasty: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    hasty.announce("WARNING .*the size of .* is not known")
    blob = blobs.text(4_000_000)
    server.put(blob.source, "zstd-asyncio")
    server.fault(Phase.BODY, Fault(drip=(100_000, LOOKUP / 3)))
    assert attempt("os.stat(a[0]).st_size", hasty.path(blob)) == "ETIMEDOUT"
    pulls = server.counts()["pulls"]
    seen = eventually(lambda: hasty.stats()["pulls_in_flight"] == 0, what="the pull ends")
    assert seen > 0.1, "it went on"
    assert attempt("os.stat(a[0]).st_size", hasty.path(blob)) == blob.size
    run("cmp", hasty.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls


def test_a_lookup_is_answered_while_large_blobs_keep_all_connections_busy(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, blob: Blob
) -> None:
    mount = mounting("--connections", "2", *PATIENT)
    large = [blobs.random(1 << 20) for _ in range(4)]
    for each in large:
        server.put(each.source)
        learn_size(mount, server, each)
    server.fault(Phase.BODY, Fault(drip=(1000, 0.05)))
    readers = [attempting("len(open(a[0], 'rb').read())", mount.path(each)) for each in large]
    try:
        eventually(lambda: mount.stats()["pulls_in_flight"] == 4, what="four pulls are under way")
        run("stat", mount.path(blob), within=AT_ONCE).ok()
        assert mount.stats()["pulls_in_flight"] == 4
        mount.stop()
    finally:
        for reader in readers:
            reader.end()
