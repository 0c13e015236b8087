"""``cafsfs doctor`` of real mounts: live, hung and dead ones; it touches none."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Finished, attempting, cafsfs, eventually, outcome
from tests.fuse.serving import BlobMaker

pytestmark = pytest.mark.fuse

QUICK = 12.0  # seconds; two for who does not answer, the rest for a busy machine


def doctor(mount: Mounted) -> tuple[Finished, dict[str, Any]]:
    done = cafsfs("doctor", "--json", mount.point, within=QUICK)
    found = {each["check"]: each for each in json.loads(done.text)["findings"]}
    return done, found


def test_a_live_mount_is_well(mounting: Mounting) -> None:
    mount = mounting()
    done, found = doctor(mount)
    assert found["mounts"]["finding"] == f"the mount on {mount.point} answers"
    assert found["cache rights"]["finding"] == f"the cache {mount.cache} is ours, and private"
    assert found["servers"]["verdict"] == "fine"
    assert done.code == 0


def test_a_mount_whose_readers_hang_is_looked_at_all_the_same(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting("--lookup-timeout", "60", "--connect-timeout", "60")
    blob = blobs.random(100)
    server.put(blob.source)
    server.freeze()
    with attempting("os.stat(a[0]).st_size", mount.path(blob)) as reader:
        eventually(lambda: mount.waiting, what="the reader waits")
        done, found = doctor(mount)
        assert reader.runs
        server.thaw()
        assert outcome(reader)
    assert found["mounts"]["verdict"] == "fine"
    assert found["servers"]["verdict"] == "broken"
    assert done.code == 1


def test_a_hung_mount_hangs_nobody(mounting: Mounting) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGSTOP)
    with attempting("os.listdir(a[0])", mount.point / "blake3"):
        done, found = doctor(mount)
    assert done.code == 1
    assert found["mounts"]["finding"] == (
        f"process {mount.daemon.pid} of the mount on `{mount.point}` does not answer"
    )
    fix = found["mounts"]["fix"]
    assert fix.startswith(f"cafsfs unmount --force {mount.point}, ")
    cafsfs("unmount", "--force", mount.point).ok()
    mount.daemon.signal(signal.SIGCONT)
    mount.announce("ERROR .*")
    assert mount.has_ended()


def test_a_dead_mount_is_known(mounting: Mounting) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGKILL)
    assert mount.daemon.ended(5)
    done, found = doctor(mount)
    assert done.code == 1
    assert (
        found["mounts"]["finding"] == f"the mount on `{mount.point}` is dead: its process has gone"
    )
    cafsfs("unmount", mount.point).ok()
