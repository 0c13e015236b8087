"""What is in a mount: names, listings, attributes, and what is found but never listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import CAFSFS, attempt, cafsfs, eventually, forget_names, run
from tests.fuse.serving import ROOT, Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 300_000
BORN = "2000-01-01 00:00:00.000000000 +0000"


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(SIZE)
    server.put(made.source)
    return made


def stat(path: Path, form: str) -> str:
    return run("stat", f"--format={form}", path, env={"TZ": "UTC"}).ok().text.rstrip("\n")


# --- names


@pytest.mark.parametrize("extension", [".txt", ".tar.gz", "._-A9", "." + "x" * 32])
def test_a_hash_with_an_extension_is_the_same_file(
    mount: Mounted, blob: Blob, extension: str
) -> None:
    run("cmp", mount.path(blob, extension), blob.source).ok()
    assert stat(mount.path(blob), "%i") == stat(mount.path(blob, extension), "%i")


@pytest.mark.parametrize("extension", ["", ".bin"])
def test_a_hash_below_blake3_is_the_same_file(mount: Mounted, blob: Blob, extension: str) -> None:
    named = mount.point / "blake3" / f"{blob}{extension}"
    assert stat(named, "%i %s") == stat(mount.path(blob), "%i %s")
    run("cmp", named, blob.source).ok()


@pytest.mark.parametrize(
    "name",
    [
        "{upper}",
        "{hash}.",
        "{hash}x",
        "{hash}.{x33}",
        "{hash}.a b",
        "{hash}~",
        "{short}",
        "0{hash}",
        "x",
        ".cafsfs2",
        "blake3/x",
        "blake3/.cafsfs",
        ".cafsfs/{hash}",
        ".cafsfs/x",
        "refs",
        "{long}",
    ],
)
def test_a_name_that_is_none_is_absent_without_asking_a_server(
    mount: Mounted, blob: Blob, server: BadServerProcess, name: str
) -> None:
    hexes = {"hash": blob.hash, "upper": blob.hash.upper(), "short": blob.hash[:-1]}
    path = mount.point / name.format(**hexes, x33="x" * 33, long="f" * 255)
    before = server.counts()["commands"]
    assert attempt("os.stat(a[0])", path) == "ENOENT"
    assert server.counts()["commands"] == before


def test_a_name_of_any_bytes_is_absent(mount: Mounted) -> None:
    assert attempt(r"os.stat(os.fsencode(a[0]) + b'/\xff\xfe\n')", mount.point) == "ENOENT"


@pytest.mark.usefixtures("kernel_remembers")
def test_a_name_that_is_none_is_asked_for_only_once(mount: Mounted) -> None:
    path = mount.point / "no-such-name"
    assert attempt("os.stat(a[0])", path) == "ENOENT"
    before = mount.counters()["lookups"]
    assert attempt("os.stat(a[0])", path) == "ENOENT"
    assert mount.counters()["lookups"] == before


@pytest.mark.usefixtures("kernel_remembers")
def test_an_absent_blob_is_no_such_file_and_remembered_for_a_while(
    mount: Mounted, server: BadServerProcess
) -> None:
    path = mount.point / ("0" * 64)
    assert documented("No such file").search(run("stat", path).err)
    before = server.counts()["commands"]
    assert attempt("open(a[0])", path) == "ENOENT"
    assert server.counts()["commands"] == before


def test_a_blob_that_comes_later_is_found_soon(
    mount: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(100)
    assert attempt("os.stat(a[0])", mount.path(blob)) == "ENOENT"
    server.put(blob.source)
    wait = "[t for t in iter(lambda: __import__('time').sleep(.1) or os.path.exists(a[0]), True)]"
    attempt(wait, mount.path(blob))


# --- listings


def test_the_root_lists_blake3_alone(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    assert attempt("os.listdir(a[0])", mount.point) == ["blake3"]


def test_blake3_lists_the_blobs_that_are_cached_and_only_those(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting()
    read, looked_at = blobs.random(1000), blobs.random(SIZE)
    for each in (read, looked_at):
        server.put(each.source)
        assert stat(mount.path(each), "%s")
    assert attempt("os.listdir(a[0])", mount.point / "blake3") == [read.hash]  # pulled for its size
    run("cat", mount.path(looked_at)).ok()
    listed = sorted([read.hash, looked_at.hash])
    assert attempt("os.listdir(a[0])", mount.point / "blake3") == listed


def test_find_and_ls_pull_nothing(mount: Mounted, blob: Blob, server: BadServerProcess) -> None:
    assert stat(mount.path(blob), "%s")
    before = server.counts()
    run("find", mount.point, "-ls").ok()
    run("ls", "-laR", mount.point).ok()
    assert server.counts() == before


def test_ls_shows_everything_as_read_only(mount: Mounted, blob: Blob) -> None:
    run("cat", mount.path(blob)).ok()
    shown = run("ls", "-la", mount.point).ok().text.splitlines()
    assert [line.split()[-1] for line in shown[1:]] == [".", "..", "blake3"]
    assert {line.split()[0] for line in shown[1:] if not line.endswith(" ..")} == {"dr-xr-xr-x"}
    shown = run("ls", "-la", mount.point / "blake3").ok().text.splitlines()
    files = [line for line in shown[1:] if line[0] == "-"]
    assert {tuple(line.split()[:2]) for line in files} == {("-r--r--r--", "1")}
    assert len(files) == len(shown) - 3  # the total, and two directories


def test_a_large_listing_is_complete(mounting: Mounting, scratch: Path) -> None:
    names = [f"{number:064x}" for number in range(3000)]
    for name in names:
        path = scratch / "cache/blobs" / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    mount = mounting()
    count = "(lambda: [sum(1 for _ in os.scandir(a[0])), __import__('time').sleep(.05)][0])"
    complete = f"[n for n in iter({count}, 3000)]"  # the cache is scanned beside the mount
    attempt(complete, mount.point / "blake3")
    assert attempt("sorted(os.listdir(a[0]))", mount.point / "blake3") == names


# --- attributes


def test_files_are_0444_and_directories_0555_with_one_link(mount: Mounted, blob: Blob) -> None:
    assert stat(mount.path(blob), "%A %h") == "-r--r--r-- 1"
    assert stat(mount.point / ".cafsfs/version", "%A %h") == "-r--r--r-- 1"
    for directory in ("", "blake3", ".cafsfs"):
        assert stat(mount.point / directory, "%A %h") == "dr-xr-xr-x 1"


def test_the_time_of_a_blob_is_constant(mount: Mounted, blob: Blob) -> None:
    assert stat(mount.path(blob), "%x|%y|%z") == f"{BORN}|{BORN}|{BORN}"
    run("cat", mount.path(blob)).ok()
    assert stat(mount.path(blob), "%x|%y|%z") == f"{BORN}|{BORN}|{BORN}"


def test_the_inode_number_is_the_same_after_a_remount(mounting: Mounting, blob: Blob) -> None:
    mount = mounting()
    before = stat(mount.path(blob), "%i")
    mount.stop()
    assert stat(mounting().path(blob), "%i") == before


# --- extended attributes


def test_extended_attributes_are_read_by_name(mount: Mounted, blob: Blob) -> None:
    def attribute(name: str) -> str:
        value: str = attempt(
            "os.getxattr(a[0], a[1]).decode()", mount.path(blob), f"user.cafs.{name}"
        )
        return value

    assert attribute("hash") == blob.hash
    assert attribute("state") == "remote"
    assert attribute("packed_size") == str(SIZE + 16)
    assert attribute("compression") == "NONE"
    assert attribute("verified") == "ENODATA"
    run("cat", mount.path(blob)).ok()
    assert attribute("state") == "cached"
    assert attribute("source").startswith("127.0.0.1:")
    assert attribute("verified").isdigit()


def test_extended_attributes_are_not_listed(mount: Mounted, blob: Blob) -> None:
    assert attempt("os.listxattr(a[0])", mount.path(blob)) == []
    assert attempt("os.listxattr(a[0])", mount.point) == []


def test_an_unknown_attribute_is_no_data_and_the_next_is_answered(
    mount: Mounted, blob: Blob
) -> None:
    for name in ("user.other", "user.cafs.", "user.cafs.x", "security.capability"):
        assert attempt("os.getxattr(a[0], a[1])", mount.path(blob), name) == "ENODATA"
    assert attempt("os.getxattr(a[0], 'user.cafs.hash').decode()", mount.path(blob)) == blob.hash
    assert attempt("os.getxattr(a[0], 'user.cafs.hash').decode()", mount.point) == "ENODATA"


# --- the hidden directory


def test_the_hidden_directory_is_found_by_name_and_never_listed(mount: Mounted) -> None:
    assert stat(mount.point / ".cafsfs", "%F") == "directory"
    assert attempt("os.listdir(a[0])", mount.point / ".cafsfs") == []
    assert ".cafsfs" not in attempt("os.listdir(a[0])", mount.point)


def test_stats_json_tells_what_this_mount_is(mount: Mounted, server: BadServerProcess) -> None:
    stats = mount.stats()
    assert stats["uri"] == f"cafs://{server.address}{ROOT}"
    assert stats["mountpoint"] == str(mount.point)
    assert stats["pid"] == mount.daemon.pid
    assert stats["cache"]["directory"] == str(mount.cache)
    assert stats["kernel"]["parallel_lookups"] is True
    seen = mount.connection("max_background").read_text()
    assert stats["kernel"]["max_background"] == int(seen) == 256


def test_stats_json_is_whole_for_every_reader(mount: Mounted) -> None:
    for command in (["cat"], ["dd", "bs=7", "status=none"], ["head", "-c", "100000"]):
        path = mount.point / ".cafsfs/stats.json"
        argument = f"if={path}" if command[0] == "dd" else str(path)
        assert json.loads(run(*command, argument).ok().out)["version"]


def test_the_version_is_that_of_the_command(mount: Mounted) -> None:
    version = run("cat", mount.point / ".cafsfs/version").ok().text.strip()
    assert cafsfs("--version").ok().text.split()[-1] == version
    assert CAFSFS[-1] == "cafsfs"


# --- the whole


def test_df_shows_the_bound_and_the_fill_of_the_cache(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    mount = mounting("--cache-size", "64M")
    blob = blobs.random(8 << 20)
    server.put(blob.source)
    run("cat", mount.path(blob)).ok()
    shown = run("df", "--block-size=1M", "--output=size,used,avail,pcent", mount.point).ok().text
    assert shown.splitlines()[1].split() == ["64", "8", "56", "13%"]
    numbers = attempt("list(os.statvfs(a[0]))", mount.point)
    assert numbers[:5] == [4096, 4096, 16384, 14336, 14336]
    assert numbers[5] - numbers[6] == 1  # one file; and there is no limit to their number
    assert numbers[6] > 1 << 20
    assert numbers[9] == 97  # the longest name


def test_df_answers_while_the_server_does_not(mount: Mounted, server: BadServerProcess) -> None:
    server.freeze()
    run("df", mount.point, within=4).ok()  # who asks a server waits for 5 at the least
    run("stat", "-f", mount.point, within=4).ok()


def test_an_inode_that_the_kernel_forgets_is_forgotten(mount: Mounted, blob: Blob) -> None:
    def known() -> int:
        inodes: int = mount.stats()["filesystem"]["known_inodes"]
        return inodes

    assert stat(mount.path(blob), "%s")
    before = known()
    assert before >= 1
    forget_names()
    eventually(lambda: known() < before, what="fewer known inodes")
    run("cmp", mount.path(blob), blob.source).ok()
