"""``cafsfs mount``: in the background, its options, and how it says why it failed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import FSTYPE, clear_mount, mount_lines
from tests.fuse.processes import (
    CAFSFS,
    PATIENCE,
    Finished,
    Process,
    attempt,
    cafsfs,
    descriptors_of,
    eventually,
    is_alive,
    pids_of,
    run,
)
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots, Served

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


class Background:
    """Mounts in the background below a scratch directory."""

    def __init__(self, scratch: Path, uri: str) -> None:
        self.uri = uri
        self.point = scratch / "mnt"
        self.point.mkdir()
        self.cache = scratch / "cache"
        self.log = scratch / "mount.log"

    def mount(self, *options: str | Path, uri: str | None = None) -> Finished:
        return cafsfs(*self.arguments(*options, uri=uri))

    def arguments(self, *options: str | Path, uri: str | None = None) -> list[str]:
        words = ["mount", "--cache-dir", self.cache, "--log-file", self.log, *options]
        return [str(each) for each in [*words, uri or self.uri, self.point]]

    def line(self) -> tuple[str, str]:
        """Type and source in mountinfo."""
        [found] = [each[2:] for each in mount_lines() if each[0] == str(self.point)]
        return found

    def is_mounted(self) -> bool:
        return any(each[0] == str(self.point) for each in mount_lines())

    def daemons(self) -> list[int]:
        return [pid for pid in pids_of(str(self.point)) if "--background-child" in _words(pid)]


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


@pytest.fixture
def background(server: BadServerProcess, scratch: Path) -> Iterator[Background]:
    made = Background(scratch, f"cafs://{server.address}{ROOT}")
    yield made
    daemons = made.daemons()
    clear_mount(made.point)
    for pid in daemons:
        eventually(lambda pid=pid: not is_alive(pid), what="the daemon has ended")  # type: ignore[misc]
    warnings = [line for line in _log(made) if " WARNING " in line or " ERROR " in line]
    assert not warnings, warnings


def _log(made: Background) -> list[str]:
    return made.log.read_text().splitlines() if made.log.exists() else []


@pytest.fixture
def blob(blobs: BlobMaker, server: BadServerProcess) -> Blob:
    made = blobs.random(5000)
    server.put(made.source)
    return made


# --- in the background


def test_it_returns_when_the_mount_answers_and_prints_nothing(
    background: Background, blob: Blob
) -> None:
    done = background.mount().ok()
    run("cmp", background.point / blob.hash, blob.source).ok()
    assert (done.out, done.err) == (b"", "")


def test_its_daemon_keeps_no_pipe_no_terminal_and_no_directory(
    background: Background, scratch: Path
) -> None:
    # With pipes, as in `x=$(cafsfs mount …)`: who reads them waits for all who hold them.
    done = subprocess.run(
        [*CAFSFS, *background.arguments()],
        capture_output=True,
        stdin=subprocess.PIPE,
        timeout=20,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    [daemon] = background.daemons()
    files = descriptors_of(daemon)
    assert [files[n] for n in "012"] == ["/dev/null"] * 3
    others = [to for to in files.values() if list(files.values()).count(to) == 1]
    assert not [to for to in others if to.startswith(("pipe:", "/dev/pts", "/dev/tty"))]
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    assert os.getsid(daemon) == daemon != os.getsid(0)


def test_it_outlives_the_shell_that_started_it(background: Background, blob: Blob) -> None:
    words = [*CAFSFS, *background.arguments()]
    with Process("sh", "-c", '"$@"; kill -HUP 0', "sh", *words) as shell:
        assert shell.finish().code == -signal.SIGHUP
    run("cmp", background.point / blob.hash, blob.source).ok()


def test_relative_paths_are_those_of_the_caller(
    background: Background, scratch: Path, blob: Blob
) -> None:
    done = run(*CAFSFS, "mount", "--cache-dir", "cache", background.uri, "mnt", cwd=scratch)
    assert (done.ok().out, done.err) == (b"", "")
    run("cmp", background.point / blob.hash, blob.source).ok()
    assert (scratch / "cache/blobs").is_dir()


def test_a_link_to_the_mount_point_is_as_good(
    background: Background, scratch: Path, blob: Blob
) -> None:
    link = scratch / "link"
    link.symlink_to("mnt")
    cafsfs("mount", "--cache-dir", background.cache, background.uri, link).ok()
    run("cmp", link / blob.hash, blob.source).ok()
    again = cafsfs("mount", background.uri, link)
    assert f"error: cannot mount on `{background.point}`" in again.err
    cafsfs("unmount", link).ok()
    assert not background.is_mounted()


# --- options


def test_the_name_is_the_uri_as_given_and_the_type_is_fuse_cafsfs(background: Background) -> None:
    uri = f"{background.uri}?cache-size=1G"
    background.mount(uri=uri).ok()
    assert background.line() == (FSTYPE, uri)
    assert run("findmnt", "-no", "SOURCE", background.point).ok().text.strip() == uri


def test_a_uri_of_two_servers_is_the_name_comma_and_all(background: Background, blob: Blob) -> None:
    uri = background.uri.replace(ROOT, f",localhost:{background.uri.split(':')[-1]}")
    background.mount(uri=uri).ok()
    assert background.line() == (FSTYPE, uri)
    run("cmp", background.point / blob.hash, blob.source).ok()


@pytest.mark.parametrize(
    ("given", "shown"),
    [("x", "x"), (r"a\,b", "a,b"), ("a=b", "a=b"), ("a b", r"a\040b"), ("-x", "-x"), ("ü", "ü")],
)
def test_fsname_replaces_the_name(background: Background, given: str, shown: str) -> None:
    background.mount("-o", f"fsname={given}").ok()
    assert background.line() == (FSTYPE, shown)


def test_a_backslash_in_fsname_is_kept(background: Background) -> None:
    background.mount("--fsname", "a\\b").ok()
    assert background.line() == (FSTYPE, r"a\134b")


def test_uid_and_gid_own_everything(background: Background, blob: Blob) -> None:
    background.mount("-o", "uid=1234,gid=4321,cache-size=1G,lookup_timeout=3").ok()
    for name in ("", "blake3", ".cafsfs/version", blob.hash):
        shown = run("stat", "--format=%u:%g", background.point / name).ok().text
        assert shown == "1234:4321\n"
    assert '"bound_bytes": 1073741824' in run("cat", background.point / ".cafsfs/stats.json").text


@needs_root
@pytest.mark.parametrize("allow", [True, False])
def test_allow_other_decides_whether_others_may_read(
    background: Background, blob: Blob, scratch: Path, allow: bool
) -> None:
    background.mount(*(["-o", "allow_other"] if allow else [])).ok()
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = run(*nobody, "cat", background.point / blob.hash)
    if allow:
        assert done.ok().out == blob.content
    else:
        assert done.code == 1
        assert "Permission denied" in done.err


def test_mount_options_of_the_kernel_are_passed_on(background: Background) -> None:
    background.mount("-o", "noexec,noatime,rw,nofail,x-systemd.automount,_netdev").ok()
    line = next(
        line.split()[5]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {background.point} " in line
    )
    assert set(line.split(",")) == {"ro", "nosuid", "nodev", "noexec", "noatime"}


def test_an_unknown_option_is_a_usage_error_with_a_hint(background: Background) -> None:
    done = background.mount("-o", "alow_other")
    assert done.code == 2
    assert documented("is not an option (-o)").search(done.err)
    assert "hint: did you mean `allow-other`?" in done.err


def test_nonempty_mounts_over_files(background: Background, blob: Blob) -> None:
    (background.point / "file").touch()
    background.mount("--nonempty").ok()
    assert attempt("os.listdir(a[0])", background.point) == ["blake3"]


# --- stores


def test_a_store_on_this_machine_is_mounted_by_file_uri(
    mounting: Mounting, roots: Roots, blobs: BlobMaker
) -> None:
    small, large = roots.put(blobs.text(50_000), "zstd"), roots.put(blobs.random(3_000_000))
    mount = mounting(uri=roots.uri)
    for each in (small, large):
        assert attempt("os.stat(a[0]).st_size", mount.path(each)) == each.size
        run("cmp", mount.path(each), each.source).ok()
    assert attempt("os.stat(a[0])", mount.point / ("0" * 64)) == "ENOENT"
    assert attempt("os.getxattr(a[0], 'user.cafs.source').decode()", mount.path(small)) == str(
        roots.directory / "data"
    )


def test_the_embedded_server_is_mounted(
    mounting: Mounting, roots: Roots, blobs: BlobMaker, scratch: Path
) -> None:
    blob = roots.put(blobs.text(3_000_000), "zlib")
    with Served(roots, scratch / "serve.log") as served:
        run("cmp", mounting(uri=served.uri).path(blob), blob.source).ok()


# --- failures


def failed(done: Finished, code: int, *said: str) -> None:
    """One line that says what is wrong, perhaps one that helps, and no more."""
    assert done.code == code, done.err
    for each in said:
        assert each in done.err
    assert "Traceback" not in done.err
    errors = [line for line in done.err.splitlines() if line and not line.startswith("hint: ")]
    assert len(errors) == 1, done.err
    assert done.out == b""


def test_a_mount_point_that_is_missing(background: Background) -> None:
    background.point.rmdir()
    done = background.mount()
    failed(done, 1, f"mkdir {background.point}")
    assert documented("there is no such directory").search(done.err)
    background.point.mkdir()


def test_a_mount_point_that_is_not_empty(background: Background) -> None:
    (background.point / "file").touch()
    done = background.mount()
    failed(done, 1, "hint: pass `--nonempty`")
    assert documented("directory is not empty").search(done.err)


def test_a_mount_point_that_is_a_file(background: Background) -> None:
    background.point.rmdir()
    background.point.touch()
    failed(background.mount(), 1, "not a directory")


def test_a_mount_point_that_is_a_mount_of_ours(background: Background) -> None:
    background.mount().ok()
    hint = f"hint: unmount it first: cafsfs unmount {background.point}"
    done = background.mount()
    failed(done, 1, f"`{background.uri}` is mounted there", hint)
    assert documented("is mounted there").search(done.err)


def test_a_mount_point_below_a_file(background: Background) -> None:
    failed(cafsfs("mount", background.uri, "/etc/passwd/mnt"), 1, "Not a directory")


@pytest.mark.parametrize("foreground", [["--foreground"], []], ids=["foreground", "background"])
def test_a_file_uri_without_a_root(background: Background, foreground: list[str]) -> None:
    done = background.mount(*foreground, uri=f"file://{background.point.parent}/none")
    failed(done, 1, f"there is no root `{background.point.parent}/none`", "hint: make it: mkdir -p")
    assert documented("there is no root").search(done.err)
    assert not background.is_mounted()


@pytest.mark.parametrize("foreground", [["--foreground"], []], ids=["foreground", "background"])
def test_a_cache_that_cannot_be_written(background: Background, foreground: list[str]) -> None:
    done = background.mount(*foreground, "--cache-dir", "/etc/passwd/cache")
    failed(done, 1, "cannot use `/etc/passwd/cache` as a cache: Not a directory", "--cache-dir")


@pytest.mark.parametrize("foreground", [["--foreground"], []], ids=["foreground", "background"])
def test_fusermount3_that_is_not_installed(background: Background, foreground: list[str]) -> None:
    done = run(*CAFSFS, *background.arguments(*foreground), env={"PATH": "/nowhere"})
    failed(done, 1, "fusermount3 is not installed", "hint: install it: apt-get install fuse3")
    assert documented("fusermount3 is not installed").search(done.err)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("cafs://127.0.0.1", "names no root"),
        ("cafs://127.0.0.1:99999/data", "is not a port"),
        ("http://127.0.0.1/data", "is not the URI of a store"),
        ("data", "is not the URI of a store"),
        ("cafs://127.0.0.1/data?colour=red", "`colour` is not an option (URI)"),
        ("cafs://127.0.0.1/data?cache-size=much", "`much` is no value for --cache-size (URI)"),
        ("file://host/data", "names a host"),
    ],
)
def test_a_uri_that_is_none(background: Background, uri: str, said: str) -> None:
    failed(background.mount(uri=uri), 2, said)


def test_a_value_that_is_none_is_named_with_its_place(background: Background) -> None:
    done = background.mount(uri="cafs://127.0.0.1/data?cache-size=much")
    assert documented("is no value for --cache-size").search(done.err)


def test_a_kernel_that_refuses_is_quoted(background: Background, scratch: Path) -> None:
    fake = scratch / "bin/fusermount3"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\necho 'fusermount3: mount failed: Operation not permitted' >&2; exit 1"
    )
    fake.chmod(0o755)
    done = run(
        *CAFSFS, *background.arguments(), env={"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    )
    failed(done, 1, "mount failed: Operation not permitted", "CAP_SYS_ADMIN")


def test_a_mount_that_answers_with_an_error_is_taken_back(
    background: Background, scratch: Path
) -> None:
    fake = scratch / "bin/stat"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1")
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = run(*CAFSFS, *background.arguments(), env={"PATH": path})
    failed(done, 1, f"cannot mount on `{background.point}`: the mount answers with an error")
    assert not background.is_mounted()
    assert background.daemons() == []


# --- supervisors


def test_a_supervisor_is_told_when_the_mount_answers_and_when_it_ends(
    mounting: Mounting, scratch: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(scratch / "notify"))
        supervisor.settimeout(PATIENCE)
        mount = mounting(env={"NOTIFY_SOCKET": str(scratch / "notify")})
        assert supervisor.recv(1000).decode() == f"READY=1\nSTATUS=mounted on {mount.point}"
        mount.stop()
        assert supervisor.recv(1000).decode() == "STOPPING=1"


def test_a_supervisor_that_does_not_listen_is_no_reason_to_fail(mounting: Mounting) -> None:
    mounting(env={"NOTIFY_SOCKET": "/nowhere/notify"}).stop()
