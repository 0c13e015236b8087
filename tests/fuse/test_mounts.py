"""Reading mountinfo, and finding a mount point without looking at it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cafsfs.errors import MountError
from cafsfs.fuse import mounts
from cafsfs.fuse.mounts import Mount
from tests.fuse.mounted import clear_mount

LINES = r"""22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
36 27 0:51 / /mnt/cafs ro,nosuid,nodev,relatime - fuse.cafsfs cafs://h:2403/data ro,user_id=0
37 27 0:52 / /mnt/with\040space\011and\012line\134and\043 ro shared:9 - fuse.cafsfs a\040b ro
38 27 0:53 / /mnt/\303\244 rw - tmpfs  rw
39 36 0:54 / /mnt/cafs ro,relatime - fuse.cafsfs cafs://other/data ro
""".replace(r"\303\244", "ä")

Table = Callable[[str], None]


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Sets what ``/proc/self/mountinfo`` says."""
    file = tmp_path / "mountinfo"

    def replaced(path: str) -> Path:
        assert path == "/proc/self/mountinfo"
        return file

    def write(text: str) -> None:
        file.write_bytes(os.fsencode(text))

    monkeypatch.setattr(mounts, "Path", replaced)
    write(LINES)
    return write


def test_mountinfo_is_read(mountinfo: Table) -> None:
    assert mounts.list_mounts() == [
        Mount("/sys", 20, "sysfs", "sysfs"),
        Mount("/", 0, "ext4", "/dev/vda"),
        Mount("/mnt/cafs", 51, "fuse.cafsfs", "cafs://h:2403/data", owner=0),
        Mount("/mnt/with space\tand\nline\\and#", 52, "fuse.cafsfs", "a b"),
        Mount("/mnt/ä", 53, "tmpfs", ""),
        Mount("/mnt/cafs", 54, "fuse.cafsfs", "cafs://other/data"),
    ]


def test_options_are_those_of_the_mount_and_of_its_filesystem(mountinfo: Table) -> None:
    found = mounts.find_mount("/sys")
    assert found is not None
    assert found.options == {"rw", "nosuid", "nodev", "noexec", "relatime"}
    mountinfo("36 27 0:51 / /mnt/cafs ro,noexec shared:1 - fuse.cafsfs x ro,user_id=0,dirsync\n")
    found = mounts.find_mount("/mnt/cafs")
    assert found is not None
    assert found.options == {"ro", "noexec", "user_id=0", "dirsync"}


def test_of_two_mounts_the_one_on_top_is_found(mountinfo: Table) -> None:
    found = mounts.find_mount("/mnt/cafs")
    assert found is not None
    assert found.minor == 54
    assert mounts.find_mount("/mnt/with space\tand\nline\\and#") is not None
    assert mounts.find_mount("/mnt/caf") is None
    assert mounts.find_mount("/mnt/cafs/") is None


def test_names_that_are_no_utf8_are_found(mountinfo: Table) -> None:
    name = os.fsdecode(b"/mnt/\xff\xfe")
    mountinfo(f"36 27 0:51 / {name} ro - fuse.cafsfs x ro\n")
    assert mounts.find_mount(name) is not None


@pytest.mark.parametrize("odd", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028"], ids=ascii)
def test_what_only_python_takes_for_the_end_of_a_line_is_part_of_a_name(
    mountinfo: Table, odd: str
) -> None:
    mountinfo(f"36 27 0:51 / /mnt/a{odd}b ro - fuse.cafsfs x ro\n")
    assert [each.point for each in mounts.list_mounts()] == [f"/mnt/a{odd}b"]


def test_the_real_mountinfo_is_read() -> None:
    assert mounts.list_mounts()
    assert mounts.find_mount("/proc") is not None


# --- where a mount point is


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked about, by stat or lstat; a readlink does not ask what is behind a mount."""
    seen: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(path: str, *rest: object, **options: object) -> object:
            seen.append(os.fspath(path))
            return real(path, *rest, **options)

        monkeypatch.setattr(os, name, watched)

    for each in ("stat", "lstat", "open", "listdir", "scandir", "access"):
        watch(each)
    return seen


@pytest.mark.parametrize("given", ["real/mnt", "link/mnt", "./real/../link/mnt/", "link//mnt/."])
def test_parents_are_resolved_and_the_point_itself_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: list[str], given: str
) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path.resolve() / "real" / "mnt")
    looked_at.clear()
    assert mounts.canonical(given) == wanted
    assert [each for each in looked_at if each.rstrip("/").endswith("mnt")] == []


def test_a_point_that_is_not_there_has_a_place_all_the_same(tmp_path: Path) -> None:
    assert mounts.canonical(f"{tmp_path}/no/where") == f"{tmp_path.resolve()}/no/where"
    assert mounts.canonical("/") == "/"


# --- connections in /sys


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mounts, "_CONNECTIONS", tmp_path)
    directory = tmp_path / "51"
    directory.mkdir()
    (directory / "abort").touch()
    (directory / "max_background").write_text("256\n")
    (directory / "waiting").write_text("not a number\n")
    return directory


def test_settings_of_a_connection(connection: Path) -> None:
    assert mounts.kernel_settings(51)["max_background"] == 256
    (connection / "max_background").write_text("not a number\n")
    assert mounts.kernel_settings(51)["max_background"] is None
    assert mounts.kernel_settings(52) == {"max_background": None, "read_ahead_kb": None}


def test_a_connection_is_aborted_by_its_minor_number(connection: Path) -> None:
    mounts.abort(Mount("/mnt/cafs", 51, "fuse.cafsfs", "x"))
    assert (connection / "abort").read_text() == "1"


def test_a_connection_that_is_dead_already_need_not_be_aborted(connection: Path) -> None:
    mounts.abort(Mount("/mnt/cafs", 52, "fuse.cafsfs", "x"))


def test_without_fusectl_and_without_rights_it_is_said_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_CONNECTIONS", tmp_path)
    monkeypatch.setattr(mounts, "_unmount", lambda *_: errno.EPERM)
    with pytest.raises(MountError, match="not permitted") as caught:
        mounts.abort(Mount("/mnt/cafs", 51, "fuse.cafsfs", "x"))
    assert caught.value.hint is not None
    assert "mount -t fusectl" in caught.value.hint


def test_without_fusectl_the_kernel_is_asked_by_the_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_CONNECTIONS", tmp_path)
    assert mounts._unmount(str(tmp_path), 1) == errno.EINVAL  # it is no mount point
    forced: list[tuple[str, int]] = []

    def busy(point: str, how: int) -> int:
        forced.append((point, how))
        return errno.EBUSY

    monkeypatch.setattr(mounts, "_unmount", busy)
    mounts.abort(Mount("/mnt/cafs", 51, "fuse.cafsfs", "x"))
    assert forced == [("/mnt/cafs", 1)]  # MNT_FORCE


# --- a dead mount makes way

OPTIONS = ("ro", "fsname=x", "subtype=cafsfs")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")
needs_6_5 = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 5),
    reason="this kernel cannot mount beneath",
)


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a mount is whose process has gone; nothing is left of what a test makes."""
    point, elsewhere = tmp_path / "mnt", tmp_path / "elsewhere"
    for each in (point, elsewhere):
        each.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    os.close(mounts.attach(str(point), OPTIONS))
    yield str(point)
    for each in (point, tmp_path / "other"):
        clear_mount(each)
    assert os.listdir(elsewhere) == []


def takes_over(point: str) -> None:
    """It is mounted there, once, and what was there has gone."""
    os.close(mounts.attach(point, ("ro", "fsname=new", "subtype=cafsfs")))
    assert [each.source for each in mounts.list_mounts() if each.point == point] == ["new"]


@pytest.mark.fuse
@needs_root
@needs_6_5
def test_the_new_mount_is_there_before_the_dead_one_goes(
    dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks sees one or the other, and never the empty directory below."""
    monkeypatch.setattr(mounts, "detach", None)
    takes_over(dead)


@pytest.mark.fuse
@needs_root
@pytest.mark.parametrize(
    ("name", "stand_in"),
    [("_copy_beneath", lambda *_: False), ("os.geteuid", lambda: 1000)],
    ids=["an older kernel", "an ordinary user"],
)
def test_where_it_cannot_be_the_dead_one_goes_first(
    dead: str, monkeypatch: pytest.MonkeyPatch, name: str, stand_in: Callable[..., object]
) -> None:
    monkeypatch.setattr(f"cafsfs.fuse.mounts.{name}", stand_in)
    takes_over(dead)


@pytest.mark.fuse
@needs_root
@needs_6_5
def test_of_several_dead_ones_none_stays(dead: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    os.close(mounts.attach(str(other), OPTIONS))
    assert mounts._copy_beneath(str(other), dead)
    clear_mount(other)
    assert len([each for each in mounts.list_mounts() if each.point == dead]) == 2
    takes_over(dead)


@pytest.mark.fuse
@needs_root
def test_the_dead_one_stays_where_nothing_can_be_mounted(
    dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mounts.is_dead(dead)
    monkeypatch.setattr(mounts, "is_dead", lambda _: real)  # asks by a program in PATH, too
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MountError, match="fusermount3 is not installed"):
        mounts.attach(dead, OPTIONS)
    monkeypatch.undo()
    assert mounts.is_dead(dead)
