"""Mounts that others start: mount(8) by its helper, and users in strange directories."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.fuse import mounts

pytestmark = pytest.mark.fuse

HELPER = [sys.executable, "-P", "-c", "from cafsfs.cli.mount_helper import main; main()"]
CAFSFS = [sys.executable, "-P", "-m", "cafsfs"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A store in ``store/data``, a mount point ``mnt``, and nothing mounted there afterwards."""
    with tempfile.TemporaryDirectory(prefix="cafsfs-tests-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        (place / "store" / "data").mkdir(parents=True)
        (place / "mnt").mkdir()
        try:
            yield place
        finally:
            point = mounts.canonical(str(place / "mnt"))
            if mounts.find_mount(point) is not None:
                run([*CAFSFS, "unmount", "--force", point])


def run(command: list[str], cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def test_the_helper_of_mount_8_mounts_in_the_background(place: Path) -> None:
    uri = f"file://{place}/store/data"
    options = f"rw,_netdev,nofail,noexec,nosuid,nodev,cache_dir={place}/cache,x-systemd.automount"
    done = run([*HELPER, uri, str(place / "mnt"), "-n", "-o", options])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mounted = mounts.find_mount(mounts.canonical(str(place / "mnt")))
    assert mounted is not None
    assert mounted.source == uri  # to the letter, or `mount -a` stacks a second one
    assert mounted.fstype == "fuse.cafsfs"
    assert run(["ls", str(place / "mnt")]).stdout == "blake3\n"
    again = run([*HELPER, uri, str(place / "mnt")])
    assert again.returncode == 32
    assert "is mounted there" in again.stderr


def test_nothing_is_imported_from_the_working_directory(place: Path) -> None:
    strange = place / "strange"
    strange.mkdir()
    for name in ("trio", "queue", "cafsfs"):
        (strange / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')")
    command = f"file://{place}/store/data {place}/mnt --cache-dir {place}/cache".split()
    done = run([*CAFSFS, "mount", *command], cwd=str(strange))
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(strange / os.pardir / "mnt") == ["blake3"]
