"""What waits for a server that does not answer, how long, and whom it does not hinder."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import attempt, attempting, eventually, outcome, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

LOOKUP = 1.5  # seconds
READ = 1.5  # seconds
SLACK = 1.0  # seconds that a busy machine may add
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
    hasty: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    hasty.announce("WARNING .*the size of .* is not known")
    run("cat", hasty.path(blob)).ok()
    server.freeze()
    names = [f"{digit}" * 64 for digit in range(4)]
    stalled = [attempting("os.stat(a[0])", hasty.point / name) for name in names]
    try:
        eventually(lambda: hasty.waiting >= 4, within=LOOKUP, what="four lookups wait")
        # Under another name, that the kernel has not looked up before.
        fifth = run("stat", hasty.path(blob, ".txt"), within=LOOKUP).ok()
        assert hasty.waiting == 4, "they wait no longer: nothing was shown"
        assert fifth.seconds < LOOKUP / 2
        assert [outcome(each) for each in stalled] == ["ETIMEDOUT"] * 4
    finally:
        for each in stalled:
            each.end()


def test_reads_that_wait_do_not_slow_the_reading_of_a_cached_blob(
    hasty: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    hasty.announce("WARNING .*(has not moved|is being unmounted)")
    cached = blobs.random(10 << 20)
    server.put(cached.source)
    run("cat", hasty.path(cached)).ok()
    large = blobs.random(30 << 20)
    server.put(large.source)
    learn_size(hasty, server, large)
    server.freeze()
    read = "len(os.pread(os.open(a[0], 0), 9, int(a[1])))"
    stalled = [attempting(read, hasty.path(large), str(at << 20)) for at in range(30)]
    try:
        eventually(lambda: hasty.waiting >= 30, within=READ, what="thirty reads wait")
        # The kernel has the pages of this one; only a direct read asks the daemon.
        done = run("dd", f"if={hasty.path(cached)}", "iflag=direct", "bs=1M", "status=none")
        assert done.ok().out == cached.content
        assert done.seconds < READ
    finally:
        for each in stalled:
            each.signal(signal.SIGKILL)
            each.end()


def test_a_lookup_without_an_answer_times_out_and_is_not_absent(
    hasty: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    hasty.announce("WARNING .*the size of .* is not known")
    server.freeze()
    began = time.monotonic()
    assert attempt("os.stat(a[0])", hasty.path(blob)) == "ETIMEDOUT"
    assert LOOKUP - 0.1 < time.monotonic() - began < LOOKUP + SLACK
    server.thaw()
    # Nothing of it was remembered.
    assert attempt("os.stat(a[0]).st_size", hasty.path(blob)) == SIZE


def test_open_never_waits(hasty: Mounted, server: BadServerProcess, known: Blob) -> None:
    server.freeze()
    done = run(sys.executable, "-ISc", "import os, sys; os.open(sys.argv[1], 0)", hasty.path(known))
    assert done.ok().seconds < LOOKUP / 2


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
        time.sleep(0.1)
        assert reader.runs
        reader.signal(signal.SIGKILL)
        assert reader.ended(within=1)


def test_a_size_that_only_a_pull_tells_times_out_and_is_known_later(
    hasty: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    hasty.announce("WARNING .*the size of .* is not known")
    blob = blobs.text(4_000_000)
    server.put(blob.source, "zstd-asyncio")
    server.fault(Phase.BODY, Fault(drip=(100_000, LOOKUP / 5)))
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
    mount = mounting("--connections", "2")
    mount.announce("WARNING .*is being unmounted")
    large = [blobs.random(1 << 20) for _ in range(4)]
    for each in large:
        server.put(each.source)
        learn_size(mount, server, each)
    server.fault(Phase.BODY, Fault(drip=(1000, 0.05)))
    readers = [attempting("len(open(a[0], 'rb').read())", mount.path(each)) for each in large]
    try:
        eventually(lambda: mount.stats()["pulls_in_flight"] == 4, what="four pulls are under way")
        assert run("stat", mount.path(blob)).ok().seconds < 1
        assert mount.stats()["pulls_in_flight"] == 4
        mount.stop()
    finally:
        for reader in readers:
            reader.end()
