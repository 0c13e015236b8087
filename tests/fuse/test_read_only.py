"""Nothing in a mount can be changed, by nobody: EROFS, for root too."""

from __future__ import annotations

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(5000)
    server.put(made.source)
    return made


@pytest.mark.parametrize(
    "expression",
    [
        "os.open(a[0], os.O_WRONLY)",
        "os.open(a[0], os.O_RDWR)",
        "os.open(a[0], os.O_RDONLY | os.O_TRUNC)",
        "os.open(a[0], os.O_WRONLY | os.O_APPEND)",
        "os.open(a[1] + '/new', os.O_WRONLY | os.O_CREAT)",
        "os.open(a[1] + '/' + '0' * 64, os.O_WRONLY | os.O_CREAT)",
        "os.open(a[1], os.O_TMPFILE | os.O_WRONLY)",
        "os.rename(a[0], a[1] + '/new')",
        "os.replace(a[0], a[0] + '.x')",
        "os.unlink(a[0])",
        "os.rmdir(a[1] + '/blake3')",
        "os.mkdir(a[1] + '/new')",
        "os.mkfifo(a[1] + '/new')",
        "os.symlink('x', a[1] + '/new')",
        "os.link(a[0], a[1] + '/new')",
        "os.chmod(a[0], 0o777)",
        "os.chown(a[0], os.getuid(), os.getgid())",
        "os.utime(a[0])",
        "os.truncate(a[0], 0)",
        "os.setxattr(a[0], 'user.x', b'')",
        "os.removexattr(a[0], 'user.cafs.hash')",
    ],
)
def test_changing_anything_is_erofs(mount: Mounted, blob: Blob, expression: str) -> None:
    assert attempt(expression, mount.path(blob), mount.point) == "EROFS"
    run("cmp", mount.path(blob), blob.source).ok()


def test_a_shared_writable_mapping_is_refused(mount: Mounted, blob: Blob) -> None:
    expression = "len(mmap.mmap(os.open(a[0], os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_WRITE))"
    assert attempt(expression, mount.path(blob)) == "EACCES"


def test_a_program_in_a_blob_cannot_be_run(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess
) -> None:
    script = blobs.of(b"#!/bin/sh\necho ran\n")
    server.put(script.source)
    assert attempt("os.execv(a[0], [a[0]])", mount.path(script)) == "EACCES"
    assert run("sh", mount.path(script)).ok().text == "ran\n"


def test_reading_changes_no_time(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    assert attempt("os.stat(a[0]).st_atime", mount.path(blob)) == 946_684_800


def test_locks_of_readers_work(mount: Mounted, blob: Blob) -> None:
    run("flock", "--shared", mount.path(blob), "true").ok()
