"""``make install`` and ``make uninstall``: what goes where, and that it all goes again."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.fuse.processes import REPOSITORY, run
from tests.systemd.machine import Machine
from tests.systemd.tree import Tree

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

EXPECTED = """
    usr/local/bin/cafsfs usr/sbin/mount.cafsfs usr/sbin/mount.fuse.cafsfs
    usr/local/lib/systemd/system/cafsfs@.service usr/local/lib/systemd/user/cafsfs@.service
    usr/local/lib/systemd/system/cafsfs-serve@.service
    usr/local/lib/systemd/system/cafsfs-serve@.socket
    usr/local/lib/sysusers.d/cafsfs.conf usr/local/lib/tmpfiles.d/cafsfs.conf
    usr/local/share/man/man1/cafsfs.1 usr/local/share/man/man8/mount.cafsfs.8
    usr/local/share/doc/cafsfs/examples/mnt-cafs.mount
    usr/local/share/doc/cafsfs/examples/mnt-cafs.automount
"""


def test_everything_stands_where_debian_expects_it(tree: Tree) -> None:
    for each in EXPECTED.split():
        path = tree.installed / each
        assert path.is_symlink() or path.is_file(), each


def test_nothing_in_it_knows_where_it_was_made(tree: Tree) -> None:
    home = tree.installed / "usr/local/lib/cafsfs"
    done = run("grep", "-rlIF", "--exclude=*.pyc", str(tree.installed), str(home))
    assert done.text == ""


def test_it_runs_from_the_place_where_it_will_be(machine: Machine) -> None:
    shown = machine.run("cafsfs", "--version").ok().text
    assert shown.startswith("cafsfs, version ")
    machine.run("cafsfs", "help", "quickstart").ok()  # data of the package
    assert machine.run("/usr/sbin/mount.cafsfs").code == 1
    for directory, mode in (
        ("/etc/cafsfs", "755"),
        ("/etc/credstore", "700"),
        ("/run/cafsfs", "700"),
    ):
        assert machine.run("stat", "-c", "%U %a", directory).ok().text == f"root {mode}\n"
    assert "cafsfs" in machine.run("getent", "passwd", "cafsfs").ok().text


def test_uninstalling_leaves_nothing(tree: Tree) -> None:
    with tempfile.TemporaryDirectory(prefix="cafsfs-tests-", dir=tree.installed.parent) as name:
        copy = Path(name)
        run("cp", "-al", f"{tree.installed}/.", copy).ok()
        (copy / "usr/sbin/mount.other").touch()
        command = ["make", "uninstall", f"DESTDIR={copy}"]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
        left = [each for each in copy.rglob("*") if each.is_symlink() or each.is_file()]
        assert left == [copy / "usr/sbin/mount.other"]
