"""Blobs that are read while they come, by real programs, and what the kernel keeps of them."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Process, attempt, attempting, cafsfs, eventually, outcome, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SIZE = 6 * MIB
STREAMED = ("--verify-first", "1M")
COME = 4 * MIB  # bytes that come before the server falls silent
STALLS = Fault(after=COME, then="stall")
# So slow that somebody reads the first bytes before the last one shows that they are wrong.
WRONG_AND_SLOW = Fault(spoil=16, drip=(MIB, 0.4))
AT_ONCE = 10.0  # seconds; a busy machine is slow, and what waits does so for thirty
FIRST = "len(os.pread(os.open(a[0], 0), 65536, int(a[1])))"


@pytest.fixture
def mount(mounting: Mounting) -> Mounted:
    return mounting(*STREAMED)


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def test_the_first_bytes_are_read_before_the_last_have_come(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    server.fault(Phase.BODY, STALLS)
    path = mount.path(blob)
    for at in (0, MIB, 2 * MIB):
        assert attempt(FIRST, path, str(at), within=AT_ONCE) == 65536
    assert attempt("open(a[0], 'rb').read(100000).hex()", path) == blob.content[:100000].hex()
    mapped = "mmap.mmap(os.open(a[0], 0), 0, prot=mmap.PROT_READ)[1000000:1000008].hex()"
    assert attempt(mapped, path, within=AT_ONCE) == blob.content[1000000:1000008].hex()


def test_readers_at_different_places_share_one_pull_and_wait_for_their_part(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    server.fault(Phase.BODY, Fault(drip=(MIB // 2, 0.05)))
    path = mount.path(blob)
    copies = [attempting("open(a[0], 'rb').read() == open(a[1], 'rb').read()", path, blob.source)]
    copies += [
        attempting(
            "os.pread(os.open(a[0], 0), 9, int(a[1])) == os.pread(os.open(a[2], 0), 9, int(a[1]))",
            *(path, str(at), blob.source),
        )
        for at in (SIZE - 9, 3 * MIB, 100)
    ]
    try:
        assert [outcome(each) for each in copies] == [True] * 4
    finally:
        for each in copies:
            each.end()
    assert mount.counters()["pulls"] == 1


def test_always_verified_first_means_always(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting("--verify-first", "always", "--read-timeout", "1")
    mount.announce("WARNING .*(has not moved|sent nothing)")
    server.fault(Phase.BODY, STALLS)
    assert attempt(FIRST, mount.path(blob), "0") == "ETIMEDOUT"


@pytest.mark.parametrize("wrong", [0, 3 * MIB, -1], ids=["first", "middle", "last"])
def test_a_wrong_byte_fails_every_copy_and_leaves_nothing_in_the_kernel(
    mount: Mounted, server: BadServerProcess, blob: Blob, wrong: int
) -> None:
    mount.announce("WARNING .*read: .*(has wrong bytes|hashes to)")
    server.fault(Phase.BODY, Fault(spoil=16 + wrong if wrong >= 0 else -1))
    path = mount.path(blob)
    for command in (
        ("cp", path, blob.source.with_suffix(".copy")),
        ("cat", path),
        ("dd", f"if={path}", "of=/dev/null", "bs=1M"),
        ("tar", "-cf", blob.source.with_suffix(".tar"), "-C", mount.point, blob.hash),
        (sys.executable, "-c", _SENDFILE, path),
    ):
        done = run(*command)
        assert done.code != 0, done.command
        assert "Input/output error" in done.err or "File shrank" in done.err
    mapped = run(sys.executable, "-c", _MAP_ALL, path)
    assert mapped.code == -signal.SIGBUS
    server.mend()
    server.hang_up()
    run("cmp", path, blob.source).ok()


_SENDFILE = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
while os.sendfile(1, file, None, 1 << 20):
    pass
"""
_MAP_ALL = """
import mmap, os, sys
bytes(mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ))
"""


def test_what_was_seen_of_a_pull_that_was_left_is_not_seen_again(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    """Nobody has verified it: the next reader gets all of it anew."""
    server.fault(Phase.BODY, Fault(spoil=16 + 50_000, after=COME, then="stall"))
    head = "open(a[0], 'rb').read(100000).hex()"
    assert attempt(head, mount.path(blob)) != blob.content[:100000].hex()
    eventually(lambda: mount.stats()["pulls_in_flight"] == 0, what="the pull has stopped")
    server.mend()
    server.hang_up()
    assert attempt(head, mount.path(blob)) == blob.content[:100000].hex()
    run("cmp", mount.path(blob), blob.source).ok()


def test_what_the_failed_pull_has_shown_is_gone_for_who_has_it_open_too(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    mount.announce("WARNING .*read: ")
    server.fault(Phase.BODY, WRONG_AND_SLOW)
    done = run(sys.executable, "-c", _THREE_READS, mount.path(blob)).ok()
    assert done.text.split() == ["4096", "EIO", "EIO"]


_THREE_READS = """
import errno, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
for at in (0, os.fstat(file).st_size - 9, 0):
    try:
        print(len(os.pread(file, 4096, at)))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_a_reader_that_is_killed_leaves_no_pull(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    mount.announce("WARNING .*(was stopped|has not moved)")
    server.fault(Phase.BODY, STALLS)
    stays = "[time.sleep(60) for file in [open(a[0], 'rb')] if file.read(1000000)]"
    with attempting(stays, mount.path(blob)) as reader:
        eventually(lambda: mount.stats()["pulls_in_flight"] == 1, what="it reads")
        reader.signal(signal.SIGKILL)
    eventually(lambda: mount.stats()["pulls_in_flight"] == 0, what="the pull has stopped")


# Runs cafsfs where INIT cannot be patched; with an argument, nor the kernel's own files written.
_UNPATCHED = """
import sys
from cafsfs.cli.app import invoke
from cafsfs.errors import MountError
from cafsfs.fuse import mounts, session

def refuse(error):
    def refused(*arguments):
        raise error
    return refused

session.patch_answer = refuse(MountError("cannot be patched"))
if sys.argv[1] == "at all":
    mounts.set_max_background = refuse(PermissionError(13, "Permission denied"))
sys.exit(invoke(sys.argv[2:]))
"""
UNPATCHED = "WARNING .*cannot be patched"


def unpatched(how: str) -> tuple[str, ...]:
    return (sys.executable, "-c", _UNPATCHED, how)


def test_stats_tell_what_the_kernel_does(mount: Mounted, mounting: Mounting) -> None:
    assert mount.connection("max_background").read_text() == "256\n"
    run("cat", mount.point / ".cafsfs/version").ok()
    kernel = mount.stats()["kernel"]
    assert kernel["parallel_lookups"] is True
    assert (kernel["max_background"], kernel["max_tasks"]) == (256, 1024)
    eventually(lambda: mount.stats()["kernel"]["read_ahead_kb"] == 1024, what="read-ahead is set")


def test_the_kernels_own_files_are_the_second_way(mounting: Mounting) -> None:
    mount = mounting(program=unpatched("by INIT"))
    mount.announce(UNPATCHED)
    assert mount.connection("max_background").read_text() == "256\n"
    kernel = mount.stats()["kernel"]
    assert (kernel["parallel_lookups"], kernel["max_background"]) == (False, 256)


def test_where_the_kernel_lets_few_reads_through_stalled_ones_leave_room_for_others(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting(program=unpatched("at all"))
    mount.announce(UNPATCHED)
    mount.announce("WARNING .*(do not move|has not moved)")
    assert mount.stats()["kernel"]["max_background"] == 12
    cached = blobs.random(10 * MIB)
    stuck = [blobs.random(SIZE) for _ in range(3)]
    for each in (cached, *stuck):
        server.put(each.source)
    run("cat", mount.path(cached)).ok()
    server.fault(Phase.BODY, Fault(after=1000, then="stall"))
    stalled = [
        attempting(FIRST, mount.path(each), str(at * MIB // 2))
        for each in stuck
        for at in range(10)
    ]
    try:
        # Twelve are all that the kernel lets through: of these, some are answered with an error.
        eventually(lambda: not all(each.runs for each in stalled), what="some fail")
        done = run("dd", f"if={mount.path(cached)}", "iflag=direct", "bs=1M", "status=none")
        assert done.ok().out == cached.content
        assert done.seconds < AT_ONCE
        waiting = [each for each in stalled if each.runs]
        assert waiting, "nobody waits any longer: nothing was shown"
        failed = [outcome(each) for each in stalled if not each.runs]
        assert set(failed) == {"EIO"}
    finally:
        for reader in stalled:
            reader.signal(signal.SIGKILL)
            reader.end()


def test_who_has_seen_wrong_bytes_is_not_helped_over_the_end_by_who_opens_later(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    """The kernel has one memory for all who have an inode open: the right end is not for him."""
    mount.announce("WARNING .*read: ")
    server.fault(Phase.BODY, WRONG_AND_SLOW)
    path, flag = mount.path(blob), blob.source.with_suffix(".flag")
    reader = Process(sys.executable, "-c", _READ_ON, path, flag)
    with reader:
        eventually(lambda: flag.exists() and flag.read_text() == "EIO", what="the pull fails")
        server.mend()
        server.hang_up()
        run("cmp", path, blob.source).ok()
        flag.write_text("go on")
        assert reader.finish().ok().text == "EIO\n"
    run("cmp", path, blob.source).ok()
    run("cmp", mount.path(blob, ".bin"), blob.source).ok()


_READ_ON = """
import errno, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
os.read(file, 4096)
try:
    os.pread(file, 9, os.fstat(file).st_size - 9)
except OSError as error:
    open(sys.argv[2], "w").write(errno.errorcode[error.errno])
while open(sys.argv[2]).read() != "go on":
    time.sleep(0.01)
try:
    while os.read(file, 1 << 20):
        pass
    print("the end")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_the_end_that_the_kernel_has_of_a_former_pull_vouches_for_no_later_one(
    mount: Mounted, server: BadServerProcess, blob: Blob
) -> None:
    mount.announce("WARNING .*read: ")
    path = mount.path(blob)
    tail = "len(os.pread(os.open(a[0], 0), 1 << 20, int(a[1])))"
    assert attempt(tail, path, str(SIZE - MIB)) == MIB
    cafsfs("cache", "evict", "--cache-dir", mount.cache, str(blob)).ok()
    server.hang_up()
    server.fault(Phase.BODY, Fault(spoil=16, after=SIZE - 1000, then="stall"))
    with Process("cat", path) as reader:
        eventually(lambda: mount.stats()["pulls_in_flight"] == 1, what="it reads")
        assert not reader.ended(1.0), "it has read wrong bytes to their end"
    server.mend()
    server.hang_up()
    eventually(lambda: mount.stats()["pulls_in_flight"] == 0, what="the pull has failed")
    run("cmp", path, blob.source).ok()
