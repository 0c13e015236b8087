"""mount(8), /etc/fstab and mount units: by the helper, as real commands, as root and as a user."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fuse.processes import Finished, eventually
from tests.systemd.machine import Machine
from tests.systemd.service import DEAD, SERVER, URI, Blob

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

OPTIONS = "allow_other,_netdev,nofail"


class Fstab:
    """The mounts of a machine that its /etc/fstab names, or could."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.point = "/mnt/tab"
        machine.run("mkdir", "-p", self.point).ok()

    def write(self, options: str, *, kind: str = "cafsfs", uri: str = URI) -> None:
        self.machine.write("/etc/fstab", f"{uri} {self.point} {kind} {options} 0 0\n")

    def mount(self, *words: str) -> Finished:
        return self.machine.run("mount", *words)

    def types(self) -> list[str]:
        return self.machine.mounts(self.point)

    def daemons(self) -> list[int]:
        """Numbers in the machine of the daemons on this mount point."""
        return [
            pid
            for pid, words in self.machine.processes().items()
            if "--background-child" in words and self.point in words
        ]

    def clear(self) -> None:
        while self.types():
            self.machine.run("umount", "-l", self.point).ok()
        eventually(lambda: not self.daemons(), what="its daemons have gone")
        self.machine.write("/etc/fstab", "")


@pytest.fixture
def fstab(server: Machine) -> Iterator[Fstab]:
    made = Fstab(server)
    yield made
    made.clear()


@pytest.mark.parametrize("kind", ["cafsfs", "fuse.cafsfs"])
def test_mount_and_umount(fstab: Fstab, blob: Blob, kind: str) -> None:
    done = fstab.mount("-t", kind, "-o", OPTIONS, URI, fstab.point).ok()
    assert (done.out, done.err) == (b"", "")
    assert fstab.types() == ["fuse.cafsfs"]
    assert fstab.machine.cat(f"{fstab.point}/{blob.hash}") == blob.content
    [daemon] = fstab.daemons()
    found = fstab.machine.run("ls", "-l", f"/proc/{daemon}/fd").ok().text
    assert "pts" not in found
    fstab.machine.run("umount", fstab.point).ok()
    eventually(lambda: not fstab.daemons(), what="the daemon has ended")
    assert fstab.types() == []


def test_a_line_of_fstab_is_mounted_by_its_mount_point(fstab: Fstab, blob: Blob) -> None:
    fstab.write(f"{OPTIONS},cache_size=1G,noexec,nosuid,nodev,x-systemd.automount,comment=x")
    fstab.mount(fstab.point).ok()
    assert fstab.machine.cat(f"{fstab.point}/{blob.hash}") == blob.content
    source = fstab.machine.run("findmnt", "-no", "SOURCE,OPTIONS", fstab.point).ok().text.split()
    assert source[0] == URI
    assert {"ro", "noexec"} <= set(source[1].split(","))


@pytest.mark.parametrize("uri", [URI, "cafs://127.0.0.1:2403,localhost:2403;zone=x/data?zone=x"])
def test_mount_a_twice_makes_one_mount(fstab: Fstab, uri: str) -> None:
    fstab.write(OPTIONS, uri=uri)
    for _ in range(2):
        fstab.mount("-a").ok()
        assert fstab.types() == ["fuse.cafsfs"]
    assert len(fstab.daemons()) == 1


def test_a_second_mount_on_ours_is_refused(fstab: Fstab) -> None:
    words = ("-t", "cafsfs", URI, fstab.point)
    fstab.mount(*words).ok()
    again = fstab.mount(*words)
    assert again.code == 32
    assert f"`{URI}` is mounted there" in again.err
    assert fstab.types() == ["fuse.cafsfs"]


def test_a_dead_mount_makes_way(fstab: Fstab, blob: Blob) -> None:
    words = ("-t", "cafsfs", URI, fstab.point)
    fstab.mount(*words).ok()
    for daemon in fstab.daemons():
        fstab.machine.kill(daemon, signal.SIGKILL)
    eventually(lambda: DEAD in fstab.machine.run("ls", fstab.point).err, what="a dead mount")
    fstab.mount(*words).ok()
    assert fstab.types() == ["fuse.cafsfs"]
    assert fstab.machine.cat(f"{fstab.point}/{blob.hash}") == blob.content


def test_what_is_not_ours_is_not_touched(fstab: Fstab) -> None:
    fstab.mount("-t", "tmpfs", "strange", fstab.point).ok()
    fstab.machine.run("touch", f"{fstab.point}/file").ok()
    done = fstab.mount("-t", "cafsfs", URI, fstab.point)
    assert (done.code, "directory is not empty" in done.err) == (32, True)
    fstab.machine.run("cafsfs", "unmount", "--dead", fstab.point).ok()
    assert fstab.types() == ["tmpfs"]


def test_it_is_read_only_whatever_is_asked(fstab: Fstab, blob: Blob) -> None:
    fstab.mount("-t", "cafsfs", "-o", "rw", URI, fstab.point).ok()
    done = fstab.machine.run("touch", f"{fstab.point}/{blob.hash}")
    assert (done.code, "Read-only file system" in done.err) == (1, True)


def test_an_unknown_option_is_refused_but_not_if_mount_is_sloppy(fstab: Fstab) -> None:
    words = ("-t", "cafsfs", "-o", "frobnicate", URI, fstab.point)
    done = fstab.mount(*words)
    assert done.code != 0
    assert "`frobnicate` is not an option (-o)" in done.err
    assert fstab.types() == []
    fstab.mount("-s", *words).ok()
    assert fstab.types() == ["fuse.cafsfs"]


def test_fake_mounts_nothing(fstab: Fstab) -> None:
    fstab.mount("-f", "-t", "cafsfs", URI, fstab.point).ok()
    assert fstab.types() == []


def test_a_remount_changes_what_can_change_and_mounts_nothing(fstab: Fstab, blob: Blob) -> None:
    fstab.write(OPTIONS)
    fstab.mount(fstab.point).ok()
    [daemon] = fstab.daemons()
    fstab.mount("-o", "remount,cache_size=3G", fstab.point).ok()
    stats = fstab.machine.cat(f"{fstab.point}/.cafsfs/stats.json")
    assert b'"bound_bytes": 3221225472' in stats
    again = fstab.mount("-o", "remount,uid=7", fstab.point)
    assert again.code == 32
    assert f"cannot change while `{fstab.point}` is mounted: uid" in again.err
    fstab.mount("-o", "remount,rw", fstab.point).ok()
    assert fstab.types() == ["fuse.cafsfs"]
    assert fstab.daemons() == [daemon]
    assert fstab.machine.run("touch", f"{fstab.point}/{blob.hash}").code == 1


# --- ordinary users


def test_a_user_mounts_what_fstab_lets_users_mount(fstab: Fstab, blob: Blob) -> None:
    machine = fstab.machine
    machine.run("chown", "joe", fstab.point).ok()
    fstab.write("noauto,user,cache_dir=/home/joe/.cache/cafsfs")
    machine.as_user("mount", fstab.point).ok()
    assert machine.as_user("cat", f"{fstab.point}/{blob.hash}").ok().out == blob.content
    [daemon] = fstab.daemons()
    assert machine.run("stat", "-c", "%U", f"/proc/{daemon}").ok().text == "joe\n"
    machine.kill(daemon, signal.SIGKILL)
    eventually(lambda: DEAD in machine.as_user("ls", fstab.point).err, what="a dead mount")
    machine.as_user("mount", fstab.point).ok()
    assert fstab.types() == ["fuse.cafsfs"]
    assert machine.as_user("cat", f"{fstab.point}/{blob.hash}").ok().out == blob.content
    machine.as_user("umount", fstab.point).ok()
    assert fstab.types() == []


def test_a_user_may_not_mount_on_what_belongs_to_another(fstab: Fstab) -> None:
    fstab.machine.run("chown", "root", fstab.point).ok()
    done = fstab.machine.as_user("mount", "-t", "cafsfs", URI, fstab.point)
    assert (done.code, "user has no write access to mountpoint" in done.err) == (32, True)
    fstab.write("noauto")
    assert fstab.machine.as_user("mount", fstab.point).code != 0
    assert fstab.types() == []


# --- units


UNIT = f"""
[Unit]
After={SERVER}
Wants={SERVER}
[Mount]
What={URI}
Where=/mnt/tab
Type=cafsfs
Options=allow_other,_netdev
TimeoutSec=20
"""
AUTOMOUNT = """
[Automount]
Where=/mnt/tab
[Install]
WantedBy=remote-fs.target
"""


@pytest.fixture
def units(fstab: Fstab) -> Iterator[Fstab]:
    machine = fstab.machine
    machine.write("/etc/systemd/system/mnt-tab.mount", UNIT)
    machine.write("/etc/systemd/system/mnt-tab.automount", AUTOMOUNT)
    machine.systemctl("daemon-reload").ok()
    yield fstab
    machine.systemctl("disable", "--now", "mnt-tab.automount")
    machine.systemctl("stop", "mnt-tab.mount")
    machine.run("sh", "-c", "rm /etc/systemd/system/mnt-tab.*").ok()
    machine.systemctl("daemon-reload").ok()


def test_a_mount_unit_mounts_without_a_home(units: Fstab, blob: Blob) -> None:
    machine = units.machine
    done = machine.systemctl("start", "mnt-tab.mount")
    assert done.code == 0, machine.journal("mnt-tab.mount")
    assert machine.cat(f"{units.point}/{blob.hash}") == blob.content
    [daemon] = units.daemons()
    assert b"HOME=" not in machine.cat(f"/proc/{daemon}/environ")
    machine.run("ls", f"/var/cache/cafsfs/blobs/{blob.hash[:2]}/{blob.hash[2:4]}/{blob.hash}").ok()
    machine.systemctl("stop", "mnt-tab.mount").ok()
    eventually(lambda: not units.daemons(), what="the daemon has ended")
    assert machine.show("mnt-tab.mount", "Result") == "success"
    assert units.types() == []


def test_an_automount_unit_mounts_when_somebody_looks(units: Fstab, blob: Blob) -> None:
    machine = units.machine
    machine.systemctl("start", "mnt-tab.automount").ok()
    assert units.types() == ["autofs"]
    assert machine.run("cat", f"{units.point}/{blob.hash}").ok().out == blob.content
    assert units.types() == ["autofs", "fuse.cafsfs"]
    [daemon] = units.daemons()
    machine.kill(daemon, signal.SIGKILL)
    eventually(lambda: DEAD in machine.run("ls", units.point).err, what="a dead mount")
    machine.systemctl("restart", "mnt-tab.mount").ok()
    assert machine.cat(f"{units.point}/{blob.hash}") == blob.content
