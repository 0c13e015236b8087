"""Can a machine mount? On one of files, each thing that can be wrong is."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from cafsfs.config.options import MountOptions
from cafsfs.doctor import machine
from cafsfs.doctor.case import Look, Verdict
from cafsfs.report.ours import Found, State
from tests.doctor.conftest import CaseMaker, only, seen

LOOKS = [
    machine.look_at_device,
    machine.look_at_fusermount3,
    machine.look_at_allow_other,
    machine.look_at_fusectl,
    machine.look_at_request_timeouts,
    machine.look_at_background,
    machine.look_at_descriptors,
]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
def test_nothing_is_wrong_with_a_machine_that_is_well(look: Look, case: CaseMaker) -> None:
    assert only(look, case())[0] is Verdict.FINE


def test_a_device_that_is_missing(case: CaseMaker, root: Path) -> None:
    (root / "dev/fuse").unlink()
    verdict, text, fix = only(machine.look_at_device, case())
    assert (verdict, text) == (Verdict.BROKEN, "there is no /dev/fuse")
    assert "modprobe fuse" in fix
    assert "--device /dev/fuse" in fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_without_a_driver(case: CaseMaker, root: Path) -> None:
    (root / "dev/fuse").unlink()
    os.mknod(root / "dev/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 250))
    verdict, text, _ = only(machine.look_at_device, case())
    assert verdict is Verdict.BROKEN
    assert text.startswith("/dev/fuse cannot be opened: ")


def test_a_helper_that_is_missing(case: CaseMaker, root: Path) -> None:
    (root / "usr/bin/fusermount3").unlink()
    verdict, text, fix = only(machine.look_at_fusermount3, case())
    assert (verdict, text) == (Verdict.BROKEN, "fusermount3 is not installed")
    assert "apt-get install fuse3" in fix


@pytest.mark.skipif(os.geteuid() != 0, reason="its file has to be root's")
def test_a_helper_without_rights_is_enough_for_root_alone(case: CaseMaker, root: Path) -> None:
    program = root / "usr/bin/fusermount3"
    program.chmod(0o755)
    verdict, text, fix = only(machine.look_at_fusermount3, case())
    assert verdict is Verdict.BROKEN
    assert text == f"{program} is not setuid root, so only root can mount"
    assert only(machine.look_at_fusermount3, case(uid=0))[0] is Verdict.FINE
    subprocess.run(fix.removeprefix("as root: "), shell=True, check=True)
    assert only(machine.look_at_fusermount3, case())[0] is Verdict.FINE


@pytest.mark.parametrize("text", ["# user_allow_other\n", "mount_max = 9", None])
def test_others_are_let_in_only_where_that_is_allowed(
    text: str | None, case: CaseMaker, root: Path
) -> None:
    conf = root / "etc/fuse.conf"
    conf.unlink() if text is None else conf.write_text(text)
    wanted = case(options=MountOptions(allow_other=True))
    verdict, _, fix = only(machine.look_at_allow_other, wanted)
    assert verdict is Verdict.BROKEN
    assert only(machine.look_at_allow_other, case())[0] is Verdict.ADVICE
    assert only(machine.look_at_allow_other, case(uid=0))[0] is Verdict.FINE
    do(fix, root)
    assert only(machine.look_at_allow_other, wanted)[0] is Verdict.FINE


def test_what_is_allowed_may_have_a_comment(case: CaseMaker, root: Path) -> None:
    (root / "etc/fuse.conf").write_text(" user_allow_other  # for builds\n")
    assert only(machine.look_at_allow_other, case())[0] is Verdict.FINE


def do(fix: str, root: Path) -> None:
    """Follow a fix, on the machine of files."""
    command = fix.partition("as root: ")[2].replace("/etc/", f"{root}/etc/")
    subprocess.run(command, shell=True, check=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_fusectl_that_is_not_mounted(*, there: bool, case: CaseMaker, root: Path) -> None:
    connections = root / "sys/fs/fuse/connections"
    (connections / "42").rmdir()
    if not there:
        connections.rmdir()
    verdict, text, fix = only(machine.look_at_fusectl, case())
    assert verdict is Verdict.ADVICE
    assert text.startswith("fusectl is not mounted")
    assert fix == "as root: mount -t fusectl fusectl /sys/fs/fuse/connections"


@pytest.mark.parametrize("name", ["default_request_timeout", "max_request_timeout"])
def test_a_kernel_that_ends_mounts_which_only_wait(name: str, case: CaseMaker, root: Path) -> None:
    limit = root / "proc/sys/fs/fuse" / name
    limit.write_text("33\n")
    verdict, text, fix = only(machine.look_at_request_timeouts, case())
    assert verdict is Verdict.BROKEN
    assert f"(fs.fuse.{name})" in text
    assert f"sysctl fs.fuse.{name}=0" in fix
    hasty = case(options=MountOptions(read_timeout=20))
    assert only(machine.look_at_request_timeouts, hasty)[0] is Verdict.FINE
    limit.write_text("34\n")
    assert only(machine.look_at_request_timeouts, case())[0] is Verdict.FINE


def test_few_background_requests_for_ordinary_users(case: CaseMaker, root: Path) -> None:
    (root / "sys/module/fuse/parameters/max_user_bgreq").write_text("12\n")
    verdict, text, _ = only(machine.look_at_background, case())
    assert verdict is Verdict.ADVICE
    assert "lets 12 reads" in text
    assert only(machine.look_at_background, case(uid=0))[0] is Verdict.FINE


def test_a_mount_that_the_kernel_does_little_for(case: CaseMaker) -> None:
    kernel = {"parallel_lookups": False, "max_background": 12, "read_ahead_kb": 128, "minor": 7}
    found = seen(machine.look_at_live_kernel, case(mount=live(kernel)))
    assert [verdict for verdict, _, _ in found] == [Verdict.ADVICE] * 3
    fixes = [fix for _, _, fix in found]
    assert fixes[1].endswith("echo 256 >/sys/fs/fuse/connections/7/max_background")
    assert fixes[2].endswith("echo 1024 >/sys/class/bdi/0:7/read_ahead_kb")


def test_a_mount_that_the_kernel_does_all_for(case: CaseMaker) -> None:
    kernel = {"parallel_lookups": True, "max_background": 256, "read_ahead_kb": 1024, "minor": 7}
    assert seen(machine.look_at_live_kernel, case(mount=live(kernel))) == []
    silent = Found(mountpoint="/m", uri="cafs://h/r", state=State.SILENT)
    assert seen(machine.look_at_live_kernel, case(mount=silent)) == []


def live(kernel: Mapping[str, object]) -> Found:
    return Found(mountpoint="/m", uri="cafs://h/r", state=State.LIVE, status={"kernel": kernel})
