"""A request that is withdrawn at the wrong moment does not freeze the daemon.

pyfuse3 reads a request when it has seen that there is one, blocking and with the GIL held: if it
has gone by then, because its process was killed, every thread stands still until the next one
comes. A thief that takes requests from under the daemon has the same effect, and more often.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Process, attempt, eventually

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may take another's descriptor"),
]

BOUND = 4.0  # seconds, of which it takes two at most

# Takes requests from the descriptor of another process, and refuses each with ENOSYS.
_THIEF = """
import ctypes, os, struct, sys
pid, number = map(int, sys.argv[1:])
pidfd_getfd = 438
fuse = ctypes.CDLL(None).syscall(pidfd_getfd, os.pidfd_open(pid), number, 0)
while True:
    unique, = struct.unpack_from("Q", os.read(fuse, 1 << 21), 8)
    os.write(fuse, struct.pack("IiQ", 16, -38, unique))
"""


def fuse_descriptor(pid: int) -> str:
    for each in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(each) == "/dev/fuse":
            return each.name
    raise AssertionError("no descriptor of the session")


def is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text() == "fuse_dev_do_read"


def test_a_frozen_daemon_comes_to_itself(mounting: Mounting) -> None:
    mount = mounting()
    pid = mount.daemon.pid
    with Process(sys.executable, "-c", _THIEF, str(pid), fuse_descriptor(pid)):
        eventually(lambda: freeze(mount), what="the daemon is frozen")
    began = time.monotonic()
    eventually(lambda: not is_frozen(pid), within=BOUND, what="it goes on, without a request")
    print(f"after {time.monotonic() - began:.1f} s")
    assert attempt("os.listdir(a[0])", mount.point) == ["blake3"]


def freeze(mount: Mounted) -> bool:
    """Ask for something, and see whether the daemon is frozen from then on."""
    attempt("os.statvfs(a[0]).f_bsize", mount.point)
    if not is_frozen(mount.daemon.pid):
        return False
    time.sleep(0.05)  # it may have read just then
    return is_frozen(mount.daemon.pid)
