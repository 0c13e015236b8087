"""A server is frozen: whoever waits for it can be killed, and the mount can be unmounted.

What ends a mount under waiters in other ways is in test_endings, how long waiters wait in
test_deadlines.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import Process, attempting, cafsfs, eventually, is_alive, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 600_000
READERS = 5
DEADLINE = 2.0  # seconds of a lookup, and of a read
PATIENT = ("--lookup-timeout=60", "--read-timeout=60", "--connect-timeout=60")
HASTY = (f"--lookup-timeout={DEADLINE}", f"--read-timeout={DEADLINE}", "--connect-timeout=60")
BOUND = 2 * DEADLINE + 2.0  # seconds until somebody who cannot be killed is dead, on a busy machine
AT_ONCE = 10.0  # seconds, on a busy machine; who is patient waits for 60

BUFFERED = "len(os.read(os.open(a[0], 0), 9))"
MAPPED = "mmap.mmap(os.open(a[0], 0), 0, prot=mmap.PROT_READ)[70000]"
DIRECT = "os.preadv(os.open(a[0], os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)"
LOOKUP = "os.stat(os.path.dirname(a[0]) + '/' + '0' * 64)"


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def waiting(mount: Mounted, server: BadServerProcess, blob: Blob, expression: str) -> Process:
    """A process that waits for a server that is frozen from now on."""
    learn_size(mount, server, blob)
    server.freeze()
    process = attempting(expression, mount.path(blob))
    try:
        eventually(lambda: mount.waiting > 0, what="somebody waits")
        mount.stats()  # is answered after the daemon has taken the request
        assert process.runs
    except BaseException:
        process.end()
        raise
    return process


def opened(mount: Mounted) -> int:
    """Open files of it."""
    count: int = mount.stats()["filesystem"]["open_handles"]
    return count


@pytest.mark.parametrize("expression", [BUFFERED, MAPPED], ids=["buffered", "mmap"])
def test_readers_die_in_less_than_a_second(
    mounting: Mounting, server: BadServerProcess, blob: Blob, expression: str
) -> None:
    mount = mounting(*PATIENT)
    mount.announce("WARNING .*was stopped")
    with ExitStack() as stack:
        readers = [stack.enter_context(waiting(mount, server, blob, expression))]
        readers += [
            stack.enter_context(attempting(expression, mount.path(blob)))
            for _ in range(READERS - 1)
        ]
        eventually(lambda: opened(mount) == READERS, what="all have opened it")
        time.sleep(0.2)  # for those who have opened it to read
        lasted = []
        for each in readers:
            began = time.monotonic()
            each.signal(signal.SIGKILL)
            assert each.ended(within=AT_ONCE)
            lasted.append(time.monotonic() - began)
            assert not is_alive(each.pid)
        # One of them may have been unlucky with this machine.
        assert statistics.median(lasted) < 1.0
        mount.stop()  # and nothing of them is in its way


@pytest.mark.parametrize("expression", [DIRECT, LOOKUP], ids=["O_DIRECT", "lookup"])
def test_who_cannot_be_killed_is_dead_within_the_deadline(
    mounting: Mounting, server: BadServerProcess, blob: Blob, expression: str
) -> None:
    mount = mounting(*HASTY)
    mount.announce("WARNING .*(has not moved|is not known|was stopped)")
    with waiting(mount, server, blob, expression) as process:
        process.signal(signal.SIGKILL)
        assert process.ended(within=BOUND)
        assert not is_alive(process.pid)


def test_an_open_is_not_even_held_up(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    learn_size(mount, server, blob)
    server.freeze()
    opens = "[time.sleep(60) for file in [os.open(a[0], os.O_DIRECT)]]"
    with attempting(opens, mount.path(blob)) as process:
        eventually(lambda: opened(mount) > 0, what="it is open")
        process.signal(signal.SIGKILL)
        assert process.ended(within=AT_ONCE)


UNMOUNTS: dict[str, Callable[[Mounted], object]] = {
    "cafsfs unmount": lambda mount: cafsfs("unmount", mount.point, within=AT_ONCE).ok(),
    "SIGTERM": lambda mount: mount.daemon.signal(signal.SIGTERM),
    "umount -l": lambda mount: run("fusermount3", "-uz", mount.point, within=AT_ONCE).ok(),
}


@pytest.mark.parametrize("how", UNMOUNTS)
@pytest.mark.parametrize("options", [(), ("--finish-pulls",)], ids=["", "finish-pulls"])
def test_a_mount_whose_readers_were_killed_is_unmounted(
    mounting: Mounting,
    server: BadServerProcess,
    blob: Blob,
    options: tuple[str, ...],
    how: str,
) -> None:
    """The read that the kernel still has under way holds up nothing, nor does its pull."""
    mount = mounting(*PATIENT, *options)
    mount.announce("WARNING .*was stopped")
    with waiting(mount, server, blob, BUFFERED) as reader:
        reader.signal(signal.SIGKILL)
        assert reader.ended(within=AT_ONCE)
    UNMOUNTS[how](mount)
    assert mount.has_ended(within=AT_ONCE)
    assert mount.daemon.finish().code == 0, mount.log.read_text()
    assert not is_alive(mount.daemon.pid)


def test_a_busy_mount_says_so_at_once(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    mount.announce("WARNING .*was stopped")
    with waiting(mount, server, blob, BUFFERED) as reader:
        assert cafsfs("unmount", mount.point, within=AT_ONCE).code == 1
        assert reader.runs
        assert mount.is_mounted()


def test_after_a_lazy_unmount_the_deadlines_end_it_all(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*HASTY)
    mount.announce("WARNING .*(has not moved|is not known)")
    with waiting(mount, server, blob, BUFFERED) as reader:
        cafsfs("unmount", "--lazy", mount.point, within=AT_ONCE).ok()
        assert reader.ended(within=BOUND)
        assert mount.has_ended(within=AT_ONCE)
    assert mount.daemon.finish().code == 0, mount.log.read_text()
