"""``cafsfs cache`` beside a live mount, which learns at once what was changed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from tests.cli.caches import Cache, content_of, lines
from tests.cli.running import Serving
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, eventually
from tests.fuse.processes import run as program

pytestmark = pytest.mark.process


@pytest.fixture
def mount(server: Serving, tmp_path: Path) -> Iterator[Mounted]:
    mounted = Mounted(server.uri, tmp_path)
    yield mounted
    wrong = mounted.clear()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def read(mount: Mounted, server: Serving, tmp_path: Path) -> Digest:
    """A blob that was read through the mount just now."""
    content = content_of(300_000, len(str(tmp_path)) + time.time_ns())
    digest = server.put(tmp_path, content)
    assert attempt("len(open(a[0], 'rb').read())", mount.path(digest)) == 300_000
    return digest


def state(mount: Mounted, digest: Digest, name: str = "state") -> Any:
    expression = "os.getxattr(a[0], 'user.cafs.' + a[1]).decode()"
    return attempt(expression, mount.path(digest), name)


def blocks(mount: Mounted, digest: Digest) -> Any:
    return attempt("os.stat(a[0]).st_blocks", mount.path(digest))


@pytest.mark.fuse
def test_what_a_mount_has_read_is_listed_at_once(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert cache.run("ls").ok().text == lines(read)
    [user] = cache.json("status")["users"]
    assert user["pid"] == mount.daemon.pid
    assert user["what"] == f"mount on {mount.point}"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_evicted(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert (state(mount, read), blocks(mount, read)) == ("cached", 586)
    assert cache.run("evict", read).code == 0
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)
    assert mount.stats()["cache"]["blobs"] == 0


@pytest.mark.fuse
def test_a_mount_that_hangs_is_not_waited_for(mount: Mounted, cache: Cache, read: Digest) -> None:
    mount.daemon.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert len(cache.json("status")["users"]) == 1
    assert time.monotonic() - began < 5
    assert cache.run("evict", read).code == 0
    assert time.monotonic() - began < 20
    mount.daemon.signal(signal.SIGCONT)
    eventually(lambda: state(mount, read) == "remote", what="the mount has heard of it")


@pytest.mark.fuse
def test_a_mount_learns_at_once_of_pins(mount: Mounted, cache: Cache, read: Digest) -> None:
    assert state(mount, read, "pin") == "no"
    assert cache.run("pin", read).code == 0
    assert state(mount, read, "pin") == "yes"
    assert cache.run("unpin", read).code == 0
    assert state(mount, read, "pin") == "no"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_repaired(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    cache.spoil(read)
    assert cache.run("verify", "--repair").code == 1
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)
    # Let the kernel forget what it has read: with that, nobody waits for the blob to come again.
    drop = "os.posix_fadvise(os.open(a[0], 0), 0, 0, os.POSIX_FADV_DONTNEED)"
    attempt(drop, mount.path(read))
    mended = program("cat", mount.path(read)).ok().out
    assert hash_bytes(mended) == read
    assert state(mount, read) == "cached"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_collected(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert cache.json("gc", "--cache-size", "100K")["evicted"] == 1
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_prefetched(
    mount: Mounted, cache: Cache, server: Serving, tmp_path: Path
) -> None:
    digest = server.put(tmp_path, content_of(400_000, time.time_ns()))
    assert (state(mount, digest), blocks(mount, digest)) == ("remote", 1)
    assert cache.prefetch(server.uri, digest).code == 0
    assert (state(mount, digest), blocks(mount, digest)) == ("cached", 782)
