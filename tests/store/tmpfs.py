"""A filesystem of its own, so small that it fills up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_tmpfs(point: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of ``size`` bytes on ``point``; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(point)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        # Lazily: a test that fails may have left a file open, and still leaves no mount.
        subprocess.run(["umount", "--lazy", str(point)], check=True)
