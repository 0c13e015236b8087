"""Updatedb, mount(8), systemd and other mounts: what they lack, and whether the fix brings it."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from cafsfs.doctor import neighbours
from cafsfs.doctor.case import Verdict
from cafsfs.report.ours import Found, State
from tests.doctor.conftest import CaseMaker, only, seen
from tests.doctor.test_machine import do

DEBIAN = """PRUNE_BIND_MOUNTS="yes"
# PRUNENAMES=".git .bzr .hg .svn"
PRUNEPATHS="/tmp /var/spool /media"
PRUNEFS="NFS afs autofs binfmt_misc fuse.sshfs fusectl"
"""
MOUNT = Found(mountpoint="/mnt/cafs", uri="cafs://h/r", state=State.LIVE)


@pytest.mark.parametrize(
    "text", [DEBIAN, DEBIAN.replace("PRUNEFS=", " PRUNEFS = "), "", "x=1\n", "x=1"]
)
def test_updatedb_is_told(text: str, case: CaseMaker, root: Path) -> None:
    conf = root / "etc/updatedb.conf"
    conf.write_text(text)
    verdict, _, fix = only(neighbours.look_at_updatedb, case())
    assert verdict is Verdict.ADVICE
    do(fix, root)
    assert only(neighbours.look_at_updatedb, case())[0] is Verdict.FINE
    assert conf.read_text().replace("fuse.cafsfs ", "").startswith(text)


def test_updatedb_that_knows_of_us(case: CaseMaker, root: Path) -> None:
    conf = root / "etc/updatedb.conf"
    conf.write_text(DEBIAN.replace("fusectl", "FUSE.cafsfs"))
    assert only(neighbours.look_at_updatedb, case())[0] is Verdict.FINE
    conf.write_text(DEBIAN.replace("/media", "/mnt"))
    assert only(neighbours.look_at_updatedb, case(mount=MOUNT))[0] is Verdict.FINE
    assert only(neighbours.look_at_updatedb, case())[0] is Verdict.ADVICE


@pytest.mark.parametrize("state", [State.DEAD, State.SILENT])
def test_the_fix_of_a_mount_is_for_a_shell(state: State, case: CaseMaker) -> None:
    mount = Found(mountpoint="/mnt/my blobs", uri="cafs://h/r", state=state)
    _, text, fix = only(neighbours.look_at_mounts, case(mount=mount))
    assert "`/mnt/my blobs`" in text
    words = shlex.split(re.split(r"[;,]", fix)[0])
    assert [words[:2], words[-1]] == [["cafsfs", "unmount"], "/mnt/my blobs"]


@pytest.mark.parametrize(
    ("waiting", "verdict"), [(None, Verdict.ADVICE), (0, Verdict.ADVICE), (1, Verdict.BROKEN)]
)
def test_a_silent_mount_of_another_is_bad_if_somebody_waits(
    waiting: int | None, verdict: Verdict, case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = replace(MOUNT, state=State.SILENT, waiting=waiting, pid=7)
    monkeypatch.setattr(neighbours, "find_ours", lambda: [mount])
    assert only(neighbours.look_at_mounts, case())[0] is verdict
    assert only(neighbours.look_at_mounts, case(mount=mount))[0] is Verdict.BROKEN


def test_without_updatedb_nothing_is_said(case: CaseMaker) -> None:
    assert seen(neighbours.look_at_updatedb, case()) == []


@pytest.mark.parametrize("kind", ["cafsfs", "fuse.cafsfs"])
def test_fstab_needs_the_helper(kind: str, case: CaseMaker, root: Path) -> None:
    fstab = root / "etc/fstab"
    fstab.write_text("/dev/sda1 / ext4 defaults 0 1\n")
    assert seen(neighbours.look_at_helper, case()) == []
    fstab.write_text(f"# ours\ncafs://h/r /mnt/cafs {kind} _netdev 0 0\n")
    verdict, text, _ = only(neighbours.look_at_helper, case())
    assert verdict is Verdict.BROKEN
    assert text == "fstab has /mnt/cafs, and mount(8) does not find mount.cafsfs"
    (root / "usr/sbin/mount.cafsfs").symlink_to("/opt/cafsfs/bin/mount.cafsfs")
    assert only(neighbours.look_at_helper, case())[0] is Verdict.FINE


@pytest.mark.parametrize(
    ("key", "template"), [("mountpoint", "cafsfs"), ("directory", "cafsfs-serve")]
)
def test_units(key: str, template: str, case: CaseMaker, root: Path) -> None:
    assert seen(neighbours.look_at_units, case()) == []
    (root / "etc/cafsfs/data.toml").write_text(f'{key} = "/x"\n')
    (root / "etc/cafsfs/config.toml").write_text('cache-size = "5G"\n')
    (root / "etc/cafsfs/broken.toml").write_text("=")
    verdict, text, _ = only(neighbours.look_at_units, case())
    assert verdict is Verdict.ADVICE
    assert text == f"/etc/cafsfs/data.toml is there, and {template}@.service is not installed"
    system = root / "usr/lib/systemd/system"
    system.mkdir(parents=True)
    (system / f"{template}@.service").touch()
    verdict, text, fix = only(neighbours.look_at_units, case())
    assert text == f"{template}@data.service does not start at boot"
    assert fix == f"as root: systemctl enable --now {template}@data.service"
    other = root / "etc/systemd/system/other"
    other.mkdir(parents=True)
    (other / f"{template}@data.service").touch()
    assert only(neighbours.look_at_units, case())[1] == text
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    for kind in ("service", "socket"):
        (wants / f"{template}@data.{kind}").symlink_to(system / f"{template}@.{kind}")
        assert only(neighbours.look_at_units, case())[0] is Verdict.FINE
        (wants / f"{template}@data.{kind}").unlink()


def test_without_systemd_nothing_is_said_of_units(case: CaseMaker) -> None:
    assert seen(neighbours.look_at_failed_units, case()) == []
