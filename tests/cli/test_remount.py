"""``mount -o remount``, by a daemon that answers as it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cafsfs.cli import mount_helper, remount
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.fuse import mounts
from cafsfs.fuse.mounts import FSTYPE, Mount
from cafsfs.reloading import RELOAD

POINT = "/mnt/cafs"
URI = "cafs://h/data"


class Daemon:
    """Answers for the mount on ``POINT``."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, object]] = []
        self.answer: dict[str, object] = {"concerned": True, "changed": [], "fixed": []}

    def __call__(self, request: Mapping[str, object]) -> dict[Path, dict[str, Any]]:
        self.asked.append(request)
        return {Path("1.sock"): {"concerned": False}, Path("2.sock"): self.answer}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    made = Daemon()
    monkeypatch.setattr(remount, "ask_all", made)
    there = Mount(POINT, 5, FSTYPE, URI, options=frozenset({"ro", "noatime"}))
    monkeypatch.setattr(mounts, "find_mount", lambda p: there if p == POINT else None)
    return made


def test_the_daemon_is_asked_and_nothing_is_mounted(daemon: Daemon) -> None:
    options = "rw,remount,user_id=0,group_id=0,allow_other,cache_size=2G,_netdev"
    assert mount_helper.mount([URI, POINT, "-o", options]) == 0
    [asked] = daemon.asked
    assert asked == {
        "command": RELOAD,
        "mountpoint": POINT,
        "options": {"allow_other": "true", "cache_size": "2G"},
    }


def test_what_cannot_change_is_named(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.answer["fixed"] = ["cache_dir", "uid"]
    assert mount_helper.mount([URI, POINT, "-o", "remount,cache_dir=/x,uid=7"]) == 32
    said = capfd.readouterr().err
    assert f"error: cannot change while `{POINT}` is mounted: cache-dir, uid" in said
    assert f"hint: unmount it, and mount it again: cafsfs unmount {POINT}" in said


def test_what_only_the_kernel_could_change_is_named_unless_it_is_so(
    daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper.mount([URI, POINT, "-o", "remount,noatime"]) == 0
    assert mount_helper.mount([URI, POINT, "-o", "remount,noatime,noexec"]) == 32
    assert f"cannot change while `{POINT}` is mounted: noexec\n" in capfd.readouterr().err


def test_a_daemon_that_does_not_answer(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.answer["concerned"] = False
    assert mount_helper.mount([URI, POINT, "-o", "remount"]) == 32
    assert f"error: cannot remount `{POINT}`: its daemon does not answer" in capfd.readouterr().err


def test_what_is_not_ours_is_not_remounted(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mounts, "find_mount", lambda _: Mount(POINT, 5, "tmpfs", URI))
    assert mount_helper.mount([URI, POINT, "-o", "remount"]) == 32
    assert "no mount of cafsfs is there" in capfd.readouterr().err
    assert daemon.asked == []


def test_there_is_nothing_to_remount(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.mount([URI, "/mnt/other", "-o", "remount"]) == 32
    assert "no mount of cafsfs is there" in capfd.readouterr().err
    assert daemon.asked == []


def test_only_a_remount_ignores_what_the_kernel_has_said() -> None:
    assert parse_mount_options(["max_read=4096,remount"]).remount
    with pytest.raises(Exception, match="`max_read` is not an option"):
        parse_mount_options(["max_read=4096"])
