"""The cache below a mount: it survives a remount, and what others do to it never shows as data."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting, cached_file, drop_pages
from tests.fuse.mounted import clear_mount, learn_size
from tests.fuse.processes import Process, attempt, cafsfs, eventually, run
from tests.fuse.serving import ROOT, Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 900_000


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


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
    drop_pages(mount, blob)
    cached_file(mount.cache, blob).unlink()
    pulls = server.counts()["pulls"]
    run("cmp", mount.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls + 1


def test_a_blob_that_is_open_outlives_its_cached_file(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    script = 'exec 3<"$0"; rm "$1"; cat <&3'
    run("head", "-c1", mount.path(blob)).ok()
    done = run("sh", "-c", script, mount.path(blob), cached_file(mount.cache, blob))
    assert done.ok().out == blob.content


@pytest.mark.parametrize("left", [0, 1, 4096, 500_000, SIZE - 1])
def test_a_cached_file_that_is_truncated_is_pulled_again(
    mounting: Mounting, server: BadServerProcess, blob: Blob, left: int
) -> None:
    mount = mounting()
    mount.announce("WARNING .*was not its content; discarded")
    run("head", "-c1", mount.path(blob)).ok()
    drop_pages(mount, blob)
    with cached_file(mount.cache, blob).open("r+b") as file:
        file.truncate(left)
    pulls = server.counts()["pulls"]
    run("cmp", mount.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == pulls + 1
    assert mount.counters()["cache_discards"] == 1


def test_a_cached_file_that_is_truncated_under_a_reader_is_pulled_again(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(8 << 20)
    server.put(blob.source)
    mount = mounting()
    mount.announce("WARNING .*changed by somebody else; verifying .* again")
    mount.announce("WARNING .*what the cache had for .* was not its content; discarded")
    script = 'exec 3<"$0"; head -c 4096 <&3; truncate -s 5000000 "$1"; cat <&3'
    done = run("sh", "-c", script, mount.path(blob), cached_file(mount.cache, blob)).ok()
    # Whatever head has read ahead of what it printed is not read again.
    assert done.out[:4096] == blob.content[:4096]
    assert done.out[4096:] == blob.content[-len(done.out[4096:]) :]
    assert mount.counters()["cache_discards"] == 1
    assert cached_file(mount.cache, blob).read_bytes() == blob.content


def test_a_cache_that_is_removed_under_a_mount_is_no_reason_to_fail(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, blob: Blob
) -> None:
    mount = mounting()
    run("cmp", mount.path(blob), blob.source).ok()
    other = blobs.random(1000)
    server.put(other.source)
    drop_pages(mount, blob)
    shutil.rmtree(mount.cache / "blobs")
    run("cmp", mount.path(other), other.source).ok()
    run("cmp", mount.path(blob), blob.source).ok()


def test_a_pull_that_is_cut_leaves_no_partial_file(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    mount.announce("WARNING .*(was stopped|connection)")
    learn_size(mount, server, blob)
    server.fault(Phase.BODY, Fault(drip=(10_000, 0.2)))
    partial = mount.cache / "partial"
    with Process("cat", mount.path(blob)):
        eventually(lambda: list(partial.iterdir()), what="a partial file")
        mount.stop()
    assert list(partial.iterdir()) == []
    assert not cached_file(mount.cache, blob).exists()


def test_a_mount_over_a_large_cache_answers_at_once(mounting: Mounting, scratch: Path) -> None:
    for number in range(5000):
        name = f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}" * 4
        path = scratch / "cache/blobs" / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    began = time.monotonic()
    mount = mounting()
    assert attempt("os.listdir(a[0])", mount.point) == ["blake3"]
    assert time.monotonic() - began < 5


def test_the_cache_survives_unmounts_and_kills(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    some = [blobs.random(SIZE + number) for number in range(5)]
    for each in some:
        server.put(each.source)
    first = mounting()
    for each in some[:3]:
        run("cmp", first.path(each), each.source).ok()
    first.stop()
    second = mounting()
    for each in some:
        run("cmp", second.path(each), each.source).ok()
    second.daemon.signal(signal.SIGKILL)  # before the index is written
    assert second.daemon.ended(within=5)
    clear_mount(second.point)
    pulls = server.counts()["pulls"]
    third = mounting()
    for each in some:
        run("cmp", third.path(each), each.source).ok()
    assert server.counts()["pulls"] == pulls
    assert third.counters()["cache_discards"] == 0
    size = sum(each.size for each in some)
    # The rows that the killed one had no time to write are found by a look at the files.
    eventually(lambda: third.stats()["cache"]["bytes"] == size, what="all are counted")
    listed = attempt("sorted(os.listdir(a[0]))", third.point / "blake3")
    assert listed == sorted(each.hash for each in some)
    assert list((third.cache / "partial").iterdir()) == []


def test_the_cache_is_private(mounting: Mounting, blob: Blob, scratch: Path) -> None:
    mount = mounting(cache=scratch / "not" / "there" / "yet")
    run("cmp", mount.path(blob), blob.source).ok()
    assert mount.cache.stat().st_mode & 0o777 == 0o700
    for path in mount.cache.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("below", ["", "blobs"])
def test_a_cache_that_others_can_write_to_is_refused(
    mode: int, below: str, server: BadServerProcess, scratch: Path
) -> None:
    loose = scratch / "cache" / below
    loose.mkdir(parents=True)
    (scratch / "mnt").mkdir()
    (scratch / "cache").chmod(0o700)
    loose.chmod(mode)
    uri = f"cafs://{server.address}{ROOT}"
    done = cafsfs("mount", "--cache-dir", scratch / "cache", uri, scratch / "mnt")
    assert done.code == 1
    assert f"others can write to the cache `{loose}`" in done.err
    assert documented("others can write to the cache").search(done.err)
    assert f"hint: keep them out: chmod go-w {loose}" in done.err
    assert loose.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_a_cache_of_another_user_is_refused(server: BadServerProcess, scratch: Path) -> None:
    (scratch / "cache").mkdir(mode=0o700)
    (scratch / "mnt").mkdir()
    os.chown(scratch / "cache", 65534, 65534)
    uri = f"cafs://{server.address}{ROOT}"
    done = cafsfs("mount", "--cache-dir", scratch / "cache", uri, scratch / "mnt")
    assert done.code == 1
    assert f"the cache `{scratch / 'cache'}` belongs to user 65534" in done.err
    assert documented("who decides what is read from it").search(done.err)
