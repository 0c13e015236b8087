"""Pulled once, read from memory ever after, and told in time when something changes."""

from __future__ import annotations

import os

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import attempt, attempting, eventually, outcome, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 1_500_000
READERS = 64
AT_ONCE = 10.0  # seconds, on a busy machine


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def blocks(mount: Mounted, blob: Blob) -> int:
    found: int = attempt("os.stat(a[0]).st_blocks", mount.path(blob))
    return found


def test_64_readers_at_once_on_a_cold_blob_make_one_pull(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    asked = server.counts()["pulls"]
    script = 'p=; for i in $(seq 64); do cmp $0 $1 & p="$p $!"; done; for i in $p; do wait $i; done'
    run("sh", "-e", "-c", script, mount.path(blob), blob.source).ok()
    assert server.counts()["pulls"] == asked + 1
    assert mount.counters()["pulls"] == 1


def test_64_readers_that_wait_for_a_frozen_server_all_get_the_content(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    mount = mounting()
    learn_size(mount, server, blob)
    asked = server.counts()["pulls"]
    server.freeze()
    expression = "[open(a[0], 'rb').read() == open(a[1], 'rb').read() for _ in [0]][0]"
    readers = [attempting(expression, mount.path(blob), blob.source) for _ in range(READERS)]
    try:
        opened = lambda: mount.counters()["opens"] == READERS  # noqa: E731
        eventually(opened, what=f"{READERS} readers have opened the blob")
        server.thaw()
        assert [outcome(reader) for reader in readers] == [True] * READERS
    finally:
        for reader in readers:
            reader.end()
    assert server.counts()["pulls"] == asked + 1


@pytest.mark.usefixtures("kernel_remembers")
def test_the_second_read_never_reaches_the_daemon(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    before = mount.counters()
    run("cmp", mount.path(blob), blob.source).ok()
    after = mount.counters()
    assert after["opens"] == before["opens"] + 1
    assert (after["reads"], after["read_bytes"]) == (before["reads"], before["read_bytes"])


@pytest.mark.usefixtures("kernel_remembers")
def test_the_second_look_never_reaches_the_daemon(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == SIZE
    before = mount.counters()["lookups"]
    assert attempt("[os.stat(a[0]).st_size for _ in range(9)][-1]", mount.path(blob)) == SIZE
    # The other one looked up is stats.json: its attributes are never remembered, its name is.
    assert mount.counters()["lookups"] == before


def test_st_blocks_changes_with_the_pull_without_waiting_for_a_timeout(
    mount: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    def seconds_until_told(blob: Blob) -> float:
        server.put(blob.source)
        assert blocks(mount, blob) == 1
        run("head", "-c1", mount.path(blob)).ok()
        told = lambda: blocks(mount, blob) == -(-SIZE // 512)  # noqa: E731
        return eventually(told, what="st_blocks of what was pulled")

    # The kernel was allowed to remember the 1 for a second; a busy machine may be slow at times.
    assert min(seconds_until_told(blobs.random(SIZE)) for _ in range(4)) < 0.5


def test_st_blocks_is_never_0_for_a_file_that_is_not_empty(
    mount: Mounted, server: BadServerProcess, blobs: BlobMaker, blob: Blob
) -> None:
    tiny = blobs.of(b"x")
    server.put(tiny.source)
    for each in (blob, tiny):
        assert blocks(mount, each) == 1
        run("cat", mount.path(each)).ok()
        assert blocks(mount, each) >= 1


def test_st_blocks_falls_when_a_blob_is_evicted_and_it_is_read_again_from_memory_or_server(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting("--cache-size", "4M")
    first, second = blobs.random(3 << 20), blobs.random(3 << 20)
    for each in (first, second):
        server.put(each.source)
        run("cmp", mount.path(each), each.source).ok()
    eventually(lambda: blocks(mount, first) == 1, what="st_blocks of what was evicted")
    assert mount.counters()["evictions"] == 1
    assert attempt("os.listdir(a[0])", mount.point / "blake3") == [second.hash]
    run("cmp", mount.path(first), first.source).ok()


def test_a_blob_larger_than_the_cache_is_read_all_the_same(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting("--cache-size", "1M")
    blob = blobs.random(3 << 20)
    server.put(blob.source)
    run("cmp", mount.path(blob), blob.source).ok()


def test_what_is_cached_is_read_without_a_server(
    mounting: Mounting, server: BadServerProcess, blob: Blob
) -> None:
    first = mounting()
    run("cat", first.path(blob)).ok()
    first.stop()
    server.freeze()
    again = mounting("--lookup-timeout", "30")
    run("cmp", again.path(blob), blob.source, within=AT_ONCE).ok()
    assert again.counters()["cache_hits"] == 1
    again.stop()


def test_a_mount_needs_no_server_to_start(mounting: Mounting) -> None:
    mount = mounting(uri="cafs://127.0.0.1:1/data")
    mount.announce("WARNING .*cannot connect to 127.0.0.1:1")
    assert attempt("os.listdir(a[0])", mount.point) == ["blake3"]
    assert attempt("os.stat(a[0])", mount.point / ("0" * 64)) == "EIO"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may")
def test_the_kernel_reads_further_ahead_after_the_first_answer(mount: Mounted) -> None:
    ahead = lambda: mount.stats()["kernel"]["read_ahead_kb"] == 1024  # noqa: E731
    eventually(ahead, what="a read-ahead of 1 MiB")
