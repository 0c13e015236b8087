"""The whole way in one test: put, mount, cat, compare, unmount; all by the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounted import clear_mount, mount_lines, remove_tree
from tests.fuse.processes import cafsfs, run
from tests.fuse.serving import Roots, Served

pytestmark = pytest.mark.fuse


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cafsfs-tests-"))
    yield directory
    clear_mount(directory / "mnt")
    remove_tree(directory)


def test_put_mount_cat_compare_unmount(scratch: Path) -> None:
    file = scratch / "hello.txt"
    file.write_text("Hello from a blob store.\n" * 50_000)
    point, cache = scratch / "mnt", scratch / "cache"
    point.mkdir()

    with Served(Roots(scratch / "store"), scratch / "serve.log") as server:
        # Each line that `put` prints is `<hash>  <path>`, as b3sum prints it.
        blob, path = cafsfs("put", server.uri, file).ok().text.split()
        assert path == str(file)

        cafsfs("mount", server.uri, point, "--cache-dir", cache).ok()
        assert run("cat", point / blob).ok().text == file.read_text()
        run("cmp", point / f"{blob}.txt", file).ok()
        assert run("ls", point / "blake3").ok().text.split() == [blob]

        cafsfs("unmount", point).ok()
        assert str(point) not in {each[0] for each in mount_lines()}
        assert list(point.iterdir()) == []
