"""However a mount ends: waiters get an error, in bounded time, and nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import CONNECTIONS, Mounted, learn_size
from tests.fuse.processes import (
    CAFSFS,
    Process,
    attempt,
    attempting,
    cafsfs,
    eventually,
    outcome,
    process_state,
    run,
)
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")

SIZE = 600_000
BOUND = 10.0  # seconds for any end, on a busy machine; who waits for the server waits for 30
PATIENT = ("--lookup-timeout=30", "--read-timeout=30", "--connect-timeout=30")
READ = "len(open(a[0], 'rb').read())"
CUT = {"EIO", "ENOTCONN", "ECONNABORTED"}  # what the kernel or we tell a waiter at the end


def unmount_program() -> tuple[str, ...]:
    return ("umount",) if os.geteuid() == 0 else ("fusermount3", "-u")


def abort(mount: Mounted) -> None:
    mount.connection("abort").write_text("1")


def force(mount: Mounted) -> None:
    if os.geteuid() != 0:
        mount.connection("abort")  # root needs none
    cafsfs("unmount", "--force", mount.point).ok()


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


class Waiters:
    """A read and a lookup that wait for a frozen server."""

    def __init__(self, mount: Mounted, server: BadServerProcess, blob: Blob) -> None:
        learn_size(mount, server, blob)
        server.freeze()
        self._mount = mount
        self.read = attempting(READ, mount.path(blob))
        self.lookup = attempting("os.stat(a[0])", mount.point / ("0" * 64))

    def __enter__(self) -> Self:
        try:
            eventually(lambda: self._mount.waiting >= 2, what="a read and a lookup wait")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.read.end()
        self.lookup.end()

    def outcomes(self) -> set[str]:
        return {outcome(self.read, within=BOUND), outcome(self.lookup, within=BOUND)}


ENDINGS: dict[str, Callable[[Mounted], object]] = {
    "SIGTERM": lambda mount: mount.daemon.signal(signal.SIGTERM),
    "SIGINT": lambda mount: mount.daemon.signal(signal.SIGINT),
    "umount": lambda mount: run(*unmount_program(), mount.point).ok(),
    "umount -l": lambda mount: run("fusermount3", "-uz", mount.point).ok(),
    "abort": abort,
    "cafsfs unmount": lambda mount: cafsfs("unmount", mount.point).ok(),
    "cafsfs unmount --lazy": lambda mount: cafsfs("unmount", "--lazy", mount.point).ok(),
    "cafsfs unmount --force": force,
}


@pytest.mark.parametrize("how", ENDINGS)
def test_an_idle_mount_ends_and_leaves_nothing(mounting: Mounting, blob: Blob, how: str) -> None:
    mount = mounting()
    run("cmp", mount.path(blob), blob.source).ok()
    ENDINGS[how](mount)
    assert mount.has_ended(within=BOUND)
    assert mount.daemon.finish().code == 0, mount.log.read_text()
    run("cmp", mounting().path(blob), blob.source).ok()  # and it can be mounted again


@needs_root
def test_umount_force_ends_an_idle_mount(mounting: Mounting) -> None:
    mount = mounting()
    run("umount", "-f", mount.point).ok()
    assert mount.has_ended(within=BOUND)
    assert mount.daemon.finish().code == 0, mount.log.read_text()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "abort", "cafsfs unmount --force"])
def test_waiters_get_an_error_and_the_mount_ends(
    mounting: Mounting, server: BadServerProcess, blob: Blob, how: str
) -> None:
    mount = mounting(*PATIENT)
    with Waiters(mount, server, blob) as waiters:
        ENDINGS[how](mount)
        assert waiters.outcomes() <= CUT
        assert mount.has_ended(within=BOUND)
        assert mount.daemon.finish().code == 0, mount.log.read_text()


@needs_root
def test_umount_force_fails_the_waiters_and_the_mount_ends(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    with Waiters(mount, server, blob) as waiters:
        run("umount", "-f", mount.point)  # if it finds it still busy, the daemon detaches
        assert waiters.outcomes() <= CUT
        assert mount.has_ended(within=BOUND)
        assert mount.daemon.finish().code == 0, mount.log.read_text()


@pytest.mark.parametrize("how", ["umount -l", "cafsfs unmount --lazy"])
def test_a_lazy_unmount_lets_readers_finish(
    mounting: Mounting, server: BadServerProcess, blob: Blob, how: str
) -> None:
    mount = mounting()
    learn_size(mount, server, blob)
    server.freeze()
    with attempting(READ, mount.path(blob)) as reader:
        eventually(lambda: mount.waiting > 0, what="a read waits")
        ENDINGS[how](mount)
        assert not mount.is_mounted()
        assert mount.daemon.runs
        server.thaw()
        assert outcome(reader) == SIZE
    assert mount.has_ended(within=BOUND)
    assert mount.daemon.finish().code == 0, mount.log.read_text()


def test_a_busy_mount_is_not_unmounted_and_goes_on(mounting: Mounting, blob: Blob) -> None:
    mount = mounting()
    with Process("tail", "-f", mount.path(blob)) as user:
        eventually(lambda: mount.stats()["filesystem"]["open_handles"], what="the blob is open")
        done = cafsfs("unmount", mount.point)
        assert done.code == 1
        assert documented("cannot unmount").search(done.err)
        assert f"hint: a process uses it (`fuser -vm {mount.point}` tells which)" in done.err
        assert user.runs
        run("cmp", mount.path(blob), blob.source).ok()


def test_a_mount_that_hangs_is_unmounted_by_force(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    with Waiters(mount, server, blob) as waiters:
        mount.stats()  # is answered after the daemon has taken both requests
        mount.daemon.signal(signal.SIGSTOP)
        eventually(lambda: process_state(mount.daemon.pid) == "T", what="the daemon is stopped")
        waiters.lookup.signal(signal.SIGKILL)
        assert not waiters.lookup.ended(within=0.3), (
            "this cannot even be killed; else nothing is shown"
        )
        force(mount)
        assert waiters.lookup.ended(within=BOUND)
        assert outcome(waiters.read, within=BOUND) in CUT
        assert not mount.is_mounted()
        mount.daemon.signal(signal.SIGCONT)
        assert mount.has_ended(within=BOUND)
        assert mount.daemon.finish().code == 0, mount.log.read_text()


def test_a_daemon_that_hangs_is_unmounted_without_being_asked(
    mounting: Mounting, blob: Blob
) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGSTOP)
    cafsfs("unmount", mount.point, within=BOUND).ok()
    mount.daemon.signal(signal.SIGCONT)
    assert mount.has_ended(within=BOUND)


def kill(mount: Mounted) -> None:
    mount.daemon.signal(signal.SIGKILL)
    assert mount.daemon.ended(within=BOUND)
    assert attempt("os.listdir(a[0])", mount.point) == "ENOTCONN"
    assert mount.is_mounted()


def test_what_a_killed_daemon_leaves_is_cleared_by_unmount(mounting: Mounting, blob: Blob) -> None:
    mount = mounting()
    run("cmp", mount.path(blob), blob.source).ok()
    kill(mount)
    assert documented("Transport endpoint").search(run("ls", mount.point).err)
    cafsfs("unmount", mount.point, within=BOUND).ok()
    assert not mount.is_mounted()
    run("cmp", mounting().path(blob), blob.source).ok()


def test_what_a_killed_daemon_leaves_is_mounted_over(mounting: Mounting, blob: Blob) -> None:
    kill(mounting())
    again = mounting()
    run("cmp", again.path(blob), blob.source).ok()
    again.stop()
    assert not again.is_mounted(), "one is left below"


def test_a_mount_that_hangs_is_not_mounted_over(
    mounting: Mounting, server: BadServerProcess
) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGSTOP)
    refused = cafsfs("mount", "--cache-dir", mount.cache, f"cafs://{server.address}/x", mount.point)
    assert refused.code == 1
    assert f"hint: unmount it first: cafsfs unmount {mount.point}" in refused.err


def test_a_daemon_killed_in_the_middle_of_a_pull_leaves_a_cache_that_can_be_used(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting(*PATIENT)
    with Waiters(mount, server, blob) as waiters:
        mount.daemon.signal(signal.SIGKILL)
        assert waiters.outcomes() <= CUT
        cafsfs("unmount", mount.point, within=BOUND).ok()
        server.thaw()
        run("cmp", mounting().path(blob), blob.source).ok()


def test_unmounting_twice_says_that_nothing_is_mounted(mounting: Mounting) -> None:
    mount = mounting()
    cafsfs("unmount", mount.point).ok()
    done = cafsfs("unmount", mount.point)
    assert (done.code, done.err) == (1, f"error: nothing is mounted on `{mount.point}`\n")
    assert documented("nothing is mounted").search(done.err)


@pytest.mark.parametrize("flag", [(), ("--lazy",), ("--force",)], ids=str)
def test_unmount_leaves_mounts_of_others_alone(flag: tuple[str, ...]) -> None:
    done = cafsfs("unmount", *flag, "/proc")
    assert done.code == 1
    assert "`/proc` is a mount of type proc, not one of cafsfs" in done.err
    assert Path("/proc/self").exists()


def test_a_mount_point_that_is_a_symbolic_link_is_unmounted_by_any_name(
    mounting: Mounting, scratch: Path, blob: Blob
) -> None:
    mount = mounting()
    link = scratch / "link"
    link.symlink_to(mount.point)
    cafsfs("unmount", link).ok()
    assert mount.has_ended(within=BOUND)


@needs_root
def test_root_needs_no_fusectl_to_force(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    namespace = ("unshare", "--mount", "--propagation", "slave")
    if run(*namespace, "true").code:
        pytest.skip("no mount namespace without fusectl to be had here, as in a chroot")
    mount = mounting(*PATIENT)
    command = (*CAFSFS, "unmount", "--force", str(mount.point))
    script = f"umount {CONNECTIONS}; exec {shlex.join(command)}"
    with Waiters(mount, server, blob) as waiters:
        run(*namespace, "sh", "-c", script).ok()
        assert waiters.outcomes() <= CUT
    assert mount.has_ended(within=BOUND)  # here too: the daemon has detached it
