"""Shells offer our mounts, also hung ones, without touching them."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.fuse.conftest import Mounting
from tests.fuse.processes import attempting, run

pytestmark = pytest.mark.fuse


def test_mounts_are_offered_though_one_hangs(mounting: Mounting) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGSTOP)
    asked = {
        "_CAFSFS_COMPLETE": "bash_complete",
        "COMP_WORDS": "cafsfs unmount ",
        "COMP_CWORD": "2",
    }
    program = "import sys; from cafsfs.cli.app import invoke; sys.exit(invoke([]))"
    with attempting("os.listdir(a[0])", mount.point / "blake3") as reader:
        offered = run(sys.executable, "-c", program, env=asked, within=10).ok().text
        mount.daemon.signal(signal.SIGCONT)
        assert reader.ended(10)
    assert f"plain,{mount.point}" in offered.splitlines()
    assert "plain,/proc" not in offered.splitlines()
