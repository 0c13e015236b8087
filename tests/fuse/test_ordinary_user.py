"""An ordinary user mounts, reads and unmounts, with the same speed-ups as root.

As root, this makes such a user's world: a mount namespace in which /dev/fuse is open to everybody,
as on any desktop. Its daemon gives up its rights once it has imported what it needs, for the
interpreter may stand where only root may read.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import CONNECTIONS, Mounted
from tests.fuse.processes import CAFSFS, LEASHED, Finished, Process, eventually, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="all tests run as an ordinary user then"),
]

NOBODY = 65534
BOUND = 5.0  # seconds

# Runs cafsfs as nobody. What is imported late must be imported before.
_AS_NOBODY = f"""
import importlib, os, pkgutil, sys
import difflib, encodings.idna, resource
import cafsfs
for module in pkgutil.walk_packages(cafsfs.__path__, "cafsfs."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from cafsfs.cli.app import invoke
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.environ.update(HOME=os.getcwd(), USER="nobody", CAFSFS_RUNTIME_DIR=os.getcwd() + "/run")
sys.exit(invoke(sys.argv[1:]))
"""

# A namespace has all mounts of the moment for its own. Those of the tests that run beside this one
# would not end before it; nothing looks at them meanwhile, for some hang.
_LET_GO = """
import ctypes, sys
detach_and_follow_no_link = 2 | 8
for line in reversed(open("/proc/self/mountinfo").readlines()):
    point = line.split()[4]
    if point.startswith(sys.argv[1] + "/"):
        ctypes.CDLL(None).umount2(point.encode(), detach_and_follow_no_link)
"""

# Everybody may use FUSE here, and what $0 says stands in /etc/fuse.conf; then waits to be ended.
_WORLD = """
"$2" -ISc "$3" "$4"
mknod -m 0666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
echo "$0" >"$1/fuse.conf"
mount --bind "$1/fuse.conf" /etc/fuse.conf
echo ready
exec sleep 1000
"""


class World:
    """A mount namespace of an ordinary user."""

    def __init__(self, scratch: Path, fuse_conf: str = "") -> None:
        private = ("unshare", "--mount", "--propagation", "private")
        let_go = (sys.executable, _LET_GO, tempfile.gettempdir())
        world = ("sh", "-e", "-c", _WORLD, fuse_conf, scratch, *let_go)
        self.holder = Process(*LEASHED, *private, *world)
        self.enter = ("nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", f"--wd={scratch}")
        drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        self.be_nobody = (*self.enter, *drop)
        self.as_nobody = (*self.enter, sys.executable, "-c", _AS_NOBODY)

    def is_ready(self) -> bool:
        conf = run(*self.enter, "stat", "--format=%a", "/dev/fuse")
        return conf.code == 0 and conf.text == "666\n"

    def run(self, *command: str | Path) -> Finished:
        """A program, as nobody."""
        return run(*self.be_nobody, *command)

    def cafsfs(self, *arguments: str | Path) -> Finished:
        return run(*self.as_nobody, *arguments)


@pytest.fixture
def world(scratch: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(scratch, getattr(request, "param", ""))
    eventually(lambda: made.is_ready() or not made.holder.runs, within=BOUND, what="its world")
    if not made.holder.runs:
        why = made.holder.finish().err
        made.holder.end()
        pytest.skip(f"no namespace with a /dev/fuse of its own: {why}")
    for name in ("mnt", "cache", "run"):
        (scratch / name).mkdir(mode=0o755)
        os.chown(scratch / name, NOBODY, NOBODY)
    (scratch / "mount.log").touch()
    yield made
    made.holder.end()


@pytest.fixture
def mount(world: World, mounting: Mounting) -> Mounted:
    made = mounting(program=world.as_nobody)
    assert os.stat(f"/proc/{made.daemon.pid}").st_uid == NOBODY
    return made


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(700_000)
    server.put(made.source)
    return made


def test_an_ordinary_user_mounts_reads_and_unmounts(
    mount: Mounted, world: World, blob: Blob
) -> None:
    world.run("cmp", mount.path(blob), blob.source).ok()
    assert world.run("stat", "--format=%U %s", mount.path(blob)).text == f"nobody {blob.size}\n"
    world.cafsfs("unmount", mount.point).ok()
    assert mount.daemon.ended(BOUND)
    assert mount.daemon.finish().code == 0


def test_init_is_patched_for_an_ordinary_user_too(mount: Mounted, world: World) -> None:
    stats = world.run("cat", mount.point / ".cafsfs/stats.json").ok().text
    assert '"parallel_lookups": true' in stats
    assert mount.connection("max_background").read_text() == "256\n"


def test_writes_of_an_ordinary_user_are_erofs(mount: Mounted, world: World, blob: Blob) -> None:
    done = world.run("touch", mount.path(blob))
    assert (done.code, "Read-only file system" in done.err) == (1, True)


def test_root_may_not_read_the_mount_of_another_user(
    mount: Mounted, world: World, blob: Blob
) -> None:
    done = run(*world.enter, "cat", mount.path(blob))
    assert (done.code, "Permission denied" in done.err) == (1, True)


def test_root_sees_how_the_mount_of_another_user_is(mount: Mounted, world: World) -> None:
    done = run(*world.enter, *CAFSFS, "status", mount.point, "--json").ok()
    told = json.loads(done.text)
    assert (told["state"], told["pid"]) == ("live", mount.daemon.pid)


def test_a_mount_of_another_user_is_foreign_and_no_trouble(
    world: World, mounting: Mounting, scratch: Path
) -> None:
    mount = mounting(program=(*world.enter, *CAFSFS), cache=scratch / "another")
    done = world.cafsfs("status", "--json")
    states = {each["mountpoint"]: each["state"] for each in json.loads(done.text)}
    assert (done.code, states[str(mount.point)]) == (0, "foreign")
    assert world.cafsfs("status", mount.point).code == 1


def test_sigterm_ends_the_mount_of_an_ordinary_user(mount: Mounted, world: World) -> None:
    mount.stop()
    assert world.run("stat", "--format=%U", mount.point).text == "nobody\n"


def test_an_ordinary_user_frees_a_hung_mount_by_force(
    mount: Mounted, world: World, server: BadServerProcess, blob: Blob
) -> None:
    server.freeze()
    with Process(*world.be_nobody, "cat", mount.path(blob)) as waiter:
        eventually(lambda: mount.waiting > 0, what="a lookup waits")
        world.cafsfs("unmount", "--force", mount.point).ok()
        assert waiter.finish(BOUND).code == 1
    assert mount.daemon.ended(BOUND)


def test_without_fusectl_an_ordinary_user_is_told_to_get_it(mount: Mounted, world: World) -> None:
    run(*world.enter, "umount", CONNECTIONS).ok()
    done = world.cafsfs("unmount", "--force", mount.point)
    assert done.code == 1
    assert documented("cannot abort").search(done.err)
    assert f"hint: as root, mount -t fusectl fusectl {CONNECTIONS}; then try again" in done.err
    world.cafsfs("unmount", mount.point).ok()


def test_allow_other_is_refused_with_the_reason(
    world: World, server: BadServerProcess, scratch: Path
) -> None:
    cache, point = scratch / "cache", scratch / "mnt"
    uri = f"cafs://{server.address}/data"
    done = world.cafsfs("mount", "-f", "-o", "allow_other", "--cache-dir", cache, uri, point)
    assert done.code == 1
    assert documented("option allow_other only allowed").search(done.err)
    assert "hint: add a line `user_allow_other` to /etc/fuse.conf" in done.err


@pytest.mark.parametrize("world", ["user_allow_other"], indirect=True)
def test_allow_other_lets_others_in_where_the_machine_allows_it(
    world: World, mounting: Mounting, blob: Blob
) -> None:
    mount = mounting("-o", "allow_other", program=world.as_nobody)
    run(*world.enter, "cmp", mount.path(blob), blob.source).ok()


def test_a_directory_of_somebody_else_is_refused(
    world: World, server: BadServerProcess, scratch: Path
) -> None:
    other = scratch / "other"
    other.mkdir(mode=0o755)
    cache, uri = scratch / "cache", f"cafs://{server.address}/data"
    done = world.cafsfs("mount", "--foreground", "--cache-dir", cache, uri, other)
    assert done.code == 1
    assert "user has no write access to mountpoint" in done.err
    assert "Traceback" not in done.err


def test_the_cache_of_an_ordinary_user_is_closed_to_others(
    mount: Mounted, world: World, blob: Blob
) -> None:
    world.run("cmp", mount.path(blob), blob.source).ok()
    stranger = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    done = run(*world.enter, *stranger, "ls", mount.cache / "blobs")
    assert (done.code, "Permission denied" in done.err) == (2, True)
    for path in [mount.cache / "index.sqlite", *mount.cache.rglob(blob.hash)]:
        assert path.stat().st_mode & 0o077 == 0, path
