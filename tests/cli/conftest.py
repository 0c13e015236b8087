"""A server in a process of its own, for the tests of a module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Serving


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may look into; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="cafsfs-tests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="package", autouse=True)
def runtime_directory() -> Iterator[Path]:
    """Where mounts of these tests have their control sockets: nobody else's mounts are there."""
    with (
        tempfile.TemporaryDirectory(prefix="cafsfs-run-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("CAFSFS_RUNTIME_DIR", name)
        yield Path(name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("server"))
    yield serving
    serving.stop()
