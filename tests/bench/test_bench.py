"""The bench runs, shows every row and leaves nothing behind; how fast it is, no test judges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.children import TREE
from tests.bench.rows import ROWS


@pytest.mark.process
@pytest.mark.fuse
def test_shows_every_row_and_leaves_nothing(tmp_path: Path) -> None:
    options = ["--size", "4M", "--blobs", "300", "--settle", "0.1", "--runs", "1"]
    options += ["--share", "0.01"]
    command = [sys.executable, "-m", "tests.bench", *options, "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in ROWS:
        assert row.work in done.stdout
        assert row.peer_name in done.stdout
    assert str(tmp_path) in done.stdout
    assert not list(tmp_path.iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
