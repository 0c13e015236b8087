"""A machine that goes down and comes up again: with mounts in use, and the right order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.conftest import serve_store
from tests.systemd.machine import Machine
from tests.systemd.service import SERVER, Service, put_blob
from tests.systemd.test_mount_8 import AUTOMOUNT, UNIT
from tests.systemd.tree import Tree

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

POINT = "/mnt/tab"


@pytest.fixture
def other(machine: Machine, tree: Tree) -> Iterator[Machine]:
    """A machine of its own; the shared one has shown that there can be one."""
    with (
        tempfile.TemporaryDirectory(prefix="cafsfs-machine-") as disk,
        Machine(tree, Path(disk)) as it,
    ):
        it.boot()
        yield it


def test_machines_share_no_control_group(machine: Machine, other: Machine) -> None:
    """One would remove what another's systemd has just made; units failed with 219/CGROUP."""
    assert machine.groups
    assert not machine.groups & other.groups


def test_automount_and_service_over_a_reboot(other: Machine) -> None:
    serve_store(other)
    blob = put_blob(other)
    other.write("/etc/systemd/system/mnt-tab.mount", UNIT)
    other.write("/etc/systemd/system/mnt-tab.automount", AUTOMOUNT)
    service = Service(other, "cafs")
    service.drop_in("Environment=X=y")
    for unit in (SERVER, "mnt-tab.automount", service.unit):
        other.systemctl("enable", unit).ok()

    other.power_off()
    other.boot()
    assert other.mounts(POINT) == ["autofs"]
    service.read(blob)
    assert other.run("cat", f"{POINT}/{blob.hash}").ok().out == blob.content
    assert other.mounts(POINT) == ["autofs", "fuse.cafsfs"]

    # A service has files open in both mounts, and stands in one.
    script = "exec 3<$0/$2 4<$1/$2; cd $0; echo >/run/busy; sleep 1000"
    order = ("-p", "After=remote-fs.target", "-p", f"RequiresMountsFor={POINT}")
    words = ("sh", "-c", script, POINT, service.point, blob.hash)
    other.run("systemd-run", "--quiet", *order, "--", *words).ok()
    other.run("sh", "-c", "until test -e /run/busy; do sleep 0.05; done").ok()
    assert other.power_off() < 30  # TimeoutStopSec of the service
    other.boot()
    assert other.mounts(POINT) == ["autofs"]  # nothing of the other life
    assert service.types() == ["fuse.cafsfs"]
    said = other.run("journalctl", "--no-pager", "-o", "cat").ok().text
    assert said.count(f"unmounted {service.point}") == 1
    ours = [line for line in said.splitlines() if "cafs" in line or "mnt-" in line]
    for trouble in ("Failed with", "Failed unmounting", "timed out", "status=9/KILL"):
        assert not [line for line in ours if trouble in line]
