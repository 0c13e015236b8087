"""A mount and a server that share a secret; and one that does not know it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounting, cached_file
from tests.fuse.processes import attempt, cafsfs, run
from tests.fuse.serving import BlobMaker, Roots, Served

pytestmark = pytest.mark.fuse

SECRET = "0123456789abcdefSECRET"
MIB = 1 << 20
DENIED = r"WARNING .*demands authentication, and we have no secret"


@pytest.fixture
def secret(scratch: Path) -> Path:
    return hold(scratch / "secret", SECRET)


def hold(path: Path, value: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(value)
    return path


@pytest.fixture
def served(roots: Roots, scratch: Path, secret: Path) -> Iterator[Served]:
    """Demands authentication of everybody."""
    with Served(roots, scratch / "serve.log", "--secret-file", secret) as served:
        yield served


def test_what_is_read_through_encryption_is_right(
    served: Served, secret: Path, mounting: Mounting, blobs: BlobMaker
) -> None:
    """Small ones, one that is read while it comes, one that compresses; whole and at random."""
    small, large, text = blobs.random(5000), blobs.random(40 * MIB), blobs.text(9 * MIB)
    for blob in (small, large):
        served.roots.put(blob)
    served.roots.put(text, "zstd")
    mount = mounting(
        *("--secret-file", secret, "--auth", "required", "--verify-first", "1M"), uri=served.uri
    )
    for blob in (small, text, large):
        assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == blob.size
        run("cmp", blob.source, mount.path(blob)).ok()
    piece = large.content[30 * MIB + 5 : 30 * MIB + 4101]
    read = "os.pread(os.open(a[0], 0), 4096, int(a[1])).hex()"
    assert attempt(read, mount.path(large), str(30 * MIB + 5)) == piece.hex()
    [own] = (mount.cache / "authenticated").iterdir()
    assert own.stat().st_mode & 0o777 == 0o700
    assert cached_file(own, large).is_file()
    assert not (mount.cache / "blobs").exists()
    mount.logged(f"what was pulled with authentication is cached in {own}")
    stats = run("cat", mount.point / ".cafsfs/stats.json").ok().text
    assert str(own) in stats
    command = Path("/proc", str(mount.daemon.pid), "cmdline").read_text()
    for shown in (stats, mount.log.read_text(), command):
        assert SECRET not in shown


def test_without_the_secret_reads_fail_and_the_log_says_why(
    served: Served, mounting: Mounting, blobs: BlobMaker
) -> None:
    blob = served.roots.put(blobs.random(5000))
    mount = mounting(uri=served.uri)
    mount.announce(DENIED)
    mount.announce("WARNING .*lookup")
    began = time.monotonic()
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == "EIO"
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == "EIO"
    assert time.monotonic() - began < 5
    mount.logged(DENIED)


def test_a_mount_recovers_when_the_server_takes_its_secret(
    roots: Roots, scratch: Path, mounting: Mounting, blobs: BlobMaker
) -> None:
    """Nobody has to mount again when the server's was the wrong one."""
    ours, wrong = (
        hold(scratch / "ours", SECRET),
        hold(scratch / "servers", "somebody else's secret"),
    )
    blob = roots.put(blobs.random(5000))
    with Served(roots, scratch / "serve.log", "--secret-file", wrong) as served:
        mount = mounting("--secret-file", ours, uri=served.uri)
        mount.announce("WARNING .*has another secret than we have")
        mount.announce("WARNING .*lookup")
        assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == "EIO"
        mount.logged("has another secret than we have")
        served.kill()
        hold(wrong, SECRET)
        served.start()
        deadline = time.monotonic() + 30
        while attempt("os.stat(a[0]).st_size", mount.path(blob)) != blob.size:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        run("cmp", blob.source, mount.path(blob)).ok()


def test_a_background_mount_says_what_is_wrong_with_its_secret(
    served: Served, secret: Path, scratch: Path
) -> None:
    secret.chmod(0o644)
    point = scratch / "mnt"
    point.mkdir()
    cache = ("--cache-dir", scratch / "cache")
    done = cafsfs("mount", *cache, "--secret-file", secret, served.uri, point)
    assert done.code == 2
    assert f"hint: take them away: chmod 600 {secret}" in done.err
    done = cafsfs("mount", *cache, "--auth", "required", served.uri, point)
    assert done.code == 2
    assert "error: authentication is required, and there is no secret" in done.err
    assert not os.path.ismount(point)
