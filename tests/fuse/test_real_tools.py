"""Real programs, each in a process of its own, read what is in a mount as from any other disk."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, need, run
from tests.fuse.serving import Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 3 * (1 << 20) + 4321  # some read-aheads, some pages, some bytes


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    """A blob that no process has read yet."""
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def test_cp_copies_a_blob_with_its_size_and_time(mount: Mounted, blob: Blob, scratch: Path) -> None:
    run("cp", "-p", mount.path(blob), scratch / "copy").ok()
    assert (scratch / "copy").read_bytes() == blob.content
    assert (scratch / "copy").stat().st_mtime == 946_684_800  # 2000-01-01, as for every blob


def test_cp_archive_copies_no_attribute_of_ours(mount: Mounted, blob: Blob, scratch: Path) -> None:
    run("cp", "-a", mount.path(blob), scratch / "copy").ok()
    assert (scratch / "copy").read_bytes() == blob.content
    assert attempt("os.listxattr(a[0])", scratch / "copy") == []


def test_cat_writes_it_out(mount: Mounted, blob: Blob) -> None:
    assert run("cat", mount.path(blob)).ok().out == blob.content


def test_cmp_finds_no_difference(mount: Mounted, blob: Blob) -> None:
    run("cmp", mount.path(blob), blob.source).ok()


@pytest.mark.parametrize("flags", [[], ["iflag=direct"]], ids=["buffered", "direct"])
def test_dd_reads_blocks(mount: Mounted, blob: Blob, flags: list[str]) -> None:
    done = run("dd", f"if={mount.path(blob)}", "bs=64K", "status=none", *flags)
    assert done.ok().out == blob.content


def test_dd_seeks(mount: Mounted, blob: Blob) -> None:
    done = run("dd", f"if={mount.path(blob)}", "bs=1000", "skip=2000", "count=3", "status=none")
    assert done.ok().out == blob.content[2_000_000:2_003_000]


def test_tar_archives_it(mount: Mounted, blob: Blob) -> None:
    archive = run("tar", "-cf", "-", "-C", mount.point, blob.hash).ok().out
    assert _only_member(archive) == blob.content


def test_tar_sparse_archives_no_hole_for_a_blob_that_was_not_pulled_yet(
    mount: Mounted, blob: Blob
) -> None:
    archive = run("tar", "--sparse", "-cf", "-", "-C", mount.point, blob.hash).ok().out
    assert _only_member(archive) == blob.content


def test_tar_sparse_archives_a_blob_of_one_byte(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess
) -> None:
    blob = blobs.of(b"!")
    server.put(blob.source)
    archive = run("tar", "--sparse", "-cf", "-", "-C", mount.point, blob.hash).ok().out
    assert _only_member(archive) == b"!"


def test_seeking_for_holes_finds_none(mount: Mounted, blob: Blob) -> None:
    expression = "[os.lseek(os.open(a[0], 0), 0, each) for each in (os.SEEK_DATA, os.SEEK_HOLE)]"
    assert attempt(expression, mount.path(blob)) == [0, SIZE]


def test_rsync_copies_it_and_finds_nothing_to_do_the_second_time(
    mount: Mounted, blob: Blob, scratch: Path
) -> None:
    need("rsync")
    command = ("rsync", "-a", "-X", "--itemize-changes", str(mount.path(blob)))
    assert run(*command, scratch / "copy").ok().text.startswith(">f")
    assert (scratch / "copy").read_bytes() == blob.content
    assert not run(*command, scratch / "copy").ok().text


def test_find_walks_the_mount(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    found = run("find", mount.point, "-type", "f", "-size", f"{SIZE}c").ok().text.split()
    assert str(mount.point / "blake3" / blob.hash) in found


def test_file_tells_the_kind_of_content(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess
) -> None:
    need("file")
    blob = blobs.of(b"%PDF-1.7\n" + bytes(1000))
    server.put(blob.source)
    assert "PDF document" in run("file", mount.path(blob, ".pdf")).ok().text


def test_grep_finds_a_line(mount: Mounted, blobs: BlobMaker, server: BadServerProcess) -> None:
    blob = blobs.of(b"hay\n" * 100_000 + b"needle\n" + b"hay\n" * 100_000)
    server.put(blob.source)
    assert run("grep", "-n", "needle", mount.path(blob)).ok().text == "100001:needle\n"


def test_sha256sum_is_that_of_the_source(mount: Mounted, blob: Blob) -> None:
    in_mount = run("sha256sum", mount.path(blob)).ok().text.split()[0]
    assert in_mount == run("sha256sum", blob.source).ok().text.split()[0]


def test_stat_tells_the_exact_size_before_anything_is_pulled(mount: Mounted, blob: Blob) -> None:
    pulls = mount.counters()["pulls"]
    said = run("stat", "--format=%F %s %a %h", mount.path(blob)).ok().text
    assert said == f"regular file {SIZE} 444 1\n"
    assert mount.counters()["pulls"] == pulls


def test_du_shows_what_is_cached(mount: Mounted, blob: Blob) -> None:
    def used() -> int:
        return int(run("du", "--block-size=512", mount.path(blob)).ok().text.split()[0])

    assert used() == 1
    run("cat", mount.path(blob)).ok()
    assert used() == -(-SIZE // 512)


def test_python_maps_it(mount: Mounted, blob: Blob) -> None:
    expression = (
        "(lambda m: [len(m), m[0], m[-1], m.find(bytes.fromhex(a[1]))])"
        "(mmap.mmap(os.open(a[0], os.O_RDONLY), 0, prot=mmap.PROT_READ))"
    )
    needle = blob.content[2_500_000:2_500_016]
    found = attempt(expression, mount.path(blob), needle.hex())
    assert found == [SIZE, blob.content[0], blob.content[-1], 2_500_000]


def test_python_opens_it_as_a_zip_file(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("a/b.txt", b"within" * 1000)
    blob = blobs.of(archive.getvalue())
    server.put(blob.source)
    run(sys.executable, "-m", "zipfile", "-t", mount.path(blob, ".zip")).ok()
    listed = run(sys.executable, "-m", "zipfile", "-l", mount.path(blob, ".zip")).ok().text
    assert "a/b.txt" in listed


def test_sendfile_sends_it(mount: Mounted, blob: Blob, scratch: Path) -> None:
    expression = (
        "(lambda i, o: sum(iter(lambda: os.sendfile(o, i, None, 1 << 20), 0)))"
        "(os.open(a[0], os.O_RDONLY), os.open(a[1], os.O_WRONLY | os.O_CREAT))"
    )
    assert attempt(expression, mount.path(blob), scratch / "copy") == SIZE
    assert (scratch / "copy").read_bytes() == blob.content


def test_shutil_copies_it(mount: Mounted, blob: Blob, scratch: Path) -> None:
    attempt("__import__('shutil').copyfile(a[0], a[1])", mount.path(blob), scratch / "copy")
    assert (scratch / "copy").read_bytes() == blob.content


def test_an_empty_blob_is_an_empty_file(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess
) -> None:
    blob = blobs.of(b"")
    server.put(blob.source)
    assert run("cat", mount.path(blob)).ok().out == b""
    assert run("stat", "--format=%s %b", mount.path(blob)).ok().text == "0 0\n"


@pytest.mark.parametrize("how", ["none", "zstd", "zlib", "zstd-asyncio", "zlib-asyncio"])
@pytest.mark.parametrize("size", [100, 3_000_000], ids=["small", "large"])
def test_every_packing_reads_the_same(
    mount: Mounted, blobs: BlobMaker, server: BadServerProcess, how: str, size: int
) -> None:
    blob = blobs.text(size)
    server.put(blob.source, how)
    run("cmp", mount.path(blob), blob.source).ok()
    assert run("stat", "--format=%s", mount.path(blob)).ok().text == f"{size}\n"


def _only_member(archive: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        [member] = tar.getmembers()
        extracted = tar.extractfile(member)
        assert extracted is not None
        return extracted.read()
