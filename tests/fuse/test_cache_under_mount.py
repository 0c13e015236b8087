"""The cache below a mount: it survives a remount, and what others do to it never shows as data."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import Process, attempt, eventually, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 900_000


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def cached_file(mount: Mounted, blob: Blob) -> Path:
    return mount.cache / "blobs" / blob.hash[:2] / blob.hash[2:4] / blob.hash


def test_the_cache_survives_a_remount(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    run("cat", mount.path(blob)).ok()
    mount.stop()
    pulls = server.counts()["pulls"]
    again = mounting()
    run("cmp", again.path(blob), blob.source).ok()
    assert attempt("os.listdir(a[0])", again.point / "blake3") == [blob.hash]
    assert server.counts()["pulls"] == pulls
    assert again.stats()["cache"]["bytes"] == SIZE


def test_two_mounts_share_a_cache(
    mounting: Mounting, server: BadServerProcess, blob: Blob, scratch: Path
) -> None:
    (scratch / "second").mkdir()
    first, second = mounting(), mounting(home=scratch / "second", cache=scratch / "cache")
    run("cmp", first.path(blob), blob.source).ok()
    pulls = server.counts()["pulls"]
    run("cmp", second.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls


def test_a_cached_file_that_is_removed_is_pulled_again(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    run("head", "-c1", mount.path(blob)).ok()
    _drop_pages(mount, blob)
    cached_file(mount, blob).unlink()
    pulls = server.counts()["pulls"]
    run("cmp", mount.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls + 1


def test_a_blob_that_is_open_outlives_its_cached_file(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    script = 'exec 3<"$0"; rm "$1"; cat <&3'
    run("head", "-c1", mount.path(blob)).ok()
    done = run("sh", "-c", script, mount.path(blob), cached_file(mount, blob))
    assert done.ok().out == blob.content


@pytest.mark.parametrize("left", [0, 1, 4096, 500_000, SIZE - 1])
def test_a_cached_file_that_is_truncated_gives_no_wrong_data(
    mounting: Mounting, server: BadServerProcess, blob: Blob, scratch: Path, left: int
) -> None:
    mount = mounting()
    mount.announce("WARNING")
    run("head", "-c1", mount.path(blob)).ok()
    _drop_pages(mount, blob)
    with cached_file(mount, blob).open("r+b") as file:
        file.truncate(left)
    done = run("cp", mount.path(blob), scratch / "copy")
    if done.code == 0:
        assert (scratch / "copy").read_bytes() == blob.content
    else:
        assert "Input/output error" in done.err
    # Whether the first reader had bad luck or not, the next has not.
    run("cmp", mount.path(blob), blob.source).ok()


def test_a_cached_file_that_is_truncated_under_a_reader_gives_no_wrong_data(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(8 << 20)
    server.put(blob.source)
    mount = mounting()
    mount.announce("WARNING .*read: ")
    script = 'exec 3<"$0" >/dev/null; head -c 4096 <&3; truncate -s 5000000 "$1"; cat <&3'
    done = run("sh", "-c", script, mount.path(blob), cached_file(mount, blob))
    assert done.code == 1
    assert "Input/output error" in done.err
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == blob.size


def test_a_cache_that_is_removed_under_a_mount_is_no_reason_to_fail(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, blob: Blob
) -> None:
    mount = mounting()
    mount.announce("WARNING .*cannot (use|write) the cache")
    run("cmp", mount.path(blob), blob.source).ok()
    other = blobs.random(1000)
    server.put(other.source)
    _drop_pages(mount, blob)
    shutil.rmtree(mount.cache / "blobs")
    run("cmp", mount.path(other), other.source).ok()
    run("cmp", mount.path(blob), blob.source).ok()


def test_a_pull_that_is_cut_leaves_no_partial_file(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    mount.announce("WARNING .*(is being unmounted|was stopped|connection)")
    learn_size(mount, server, blob)
    server.fault(Phase.BODY, Fault(drip=(10_000, 0.2)))
    partial = mount.cache / "partial"
    with Process("cat", mount.path(blob)):
        eventually(lambda: list(partial.iterdir()), what="a partial file")
        mount.stop()
    assert list(partial.iterdir()) == []
    assert not cached_file(mount, blob).exists()


def test_a_mount_over_a_large_cache_answers_at_once(mounting: Mounting, scratch: Path) -> None:
    for number in range(5000):
        name = f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}" * 4
        path = scratch / "cache/blobs" / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    began = time.monotonic()
    mount = mounting()
    assert attempt("os.listdir(a[0])", mount.point) == ["blake3"]
    assert time.monotonic() - began < 2


def _drop_pages(mount: Mounted, blob: Blob) -> None:
    """Let the kernel ask again: what it remembers is right, and would hide what happened."""
    expression = "os.posix_fadvise(os.open(a[0], 0), 0, 0, os.POSIX_FADV_DONTNEED)"
    attempt(expression, mount.path(blob))
