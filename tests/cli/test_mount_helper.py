"""``mount.cafsfs``: what mount(8) says, in the words of ``cafsfs mount``."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest

from cafsfs.cli import mount_helper
from cafsfs.config.mount_options import parse_mount_options

SPEC, POINT = "cafs://h:2403/data", "/mnt/cafs"


class Mounting:
    """Takes what ``cafsfs mount`` would be told, and ends as it is told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.code = 0

    def __call__(self, arguments: list[str]) -> int:
        self.calls.append(arguments)
        return self.code

    @property
    def options(self) -> dict[str, str]:
        """What its -o say, by the parser of ``cafsfs mount``; there was one call."""
        (call,) = self.calls
        texts = [word for before, word in pairwise(call) if before == "-o"]
        arguments = parse_mount_options(texts)
        return {**arguments.layer.values, **dict.fromkeys(arguments.kernel, "kernel")}


@pytest.fixture
def mounting(monkeypatch: pytest.MonkeyPatch) -> Mounting:
    mounting = Mounting()
    monkeypatch.setattr(mount_helper, "invoke", mounting)
    return mounting


@pytest.mark.parametrize(
    "parts", list(permutations([(SPEC,), (POINT,), ("-o", "rw,uid=5"), ("-nv",)])), ids=str
)
def test_the_order_does_not_matter(mounting: Mounting, parts: list[tuple[str, ...]]) -> None:
    words = [word for part in parts for word in part]
    assert mount_helper.mount(words) == 0
    (call,) = mounting.calls
    assert call[0] == "mount"
    assert call[-3] == "--"
    assert call[-2:] == [word for word in words if word in {SPEC, POINT}]
    assert mounting.options == {"uid": "5"}


def test_what_libmount_really_says(mounting: Mounting) -> None:
    """`mount -t cafsfs -o …` of util-linux 2.38, with -v and an fstab line."""
    options = (
        "rw,noexec,nosuid,nodev,_netdev,nofail,user,x-systemd.automount,allow_other,cache-size=5G"
    )
    assert mount_helper.mount([SPEC, POINT, "-v", "-o", options]) == 0
    assert mounting.options == {"allow_other": "true", "cache_size": "5G", "noexec": "kernel"}


# mount(8) of util-linux 2.38: the options that are no filesystem's own, and what they are against.
_OF_MOUNT = """
    async atime noatime auto noauto defaults dev nodev diratime nodiratime dirsync exec noexec group
    iversion noiversion mand nomand _netdev nofail relatime norelatime strictatime nostrictatime
    lazytime nolazytime suid nosuid silent loud owner remount ro rw sync user nouser users
    nosymfollow symfollow X-mount.subdir=x x-systemd.automount user=joe comment=x
"""


@pytest.mark.parametrize("option", _OF_MOUNT.split())
def test_every_option_of_mount_is_taken(mounting: Mounting, option: str) -> None:
    assert mount_helper.mount([SPEC, POINT, "-o", option]) == 0
    passed = {option} & {"noexec", "noatime", "dirsync"}  # fusermount3 knows these
    assert mounting.options == dict.fromkeys(passed, "kernel")


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "uid=5", "-o", "gid=6"],
        ["-o", "uid=5,gid=6"],
        ["-ouid=5,gid=6"],
        ["-t", "cafsfs", "-o", "uid=5,gid=6"],
        ["-N", "/proc/1/ns/mnt", "-o", "uid=5,gid=6"],
    ],
)
def test_options_come_in_several_ways(mounting: Mounting, words: list[str]) -> None:
    assert mount_helper.mount([SPEC, POINT, *words]) == 0
    assert mounting.options == {"uid": "5", "gid": "6"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (r"fsname=a\,b", "a,b"),
        ("fsname=a\\", "a\\"),
        (r"fsname=a\b", r"a\b"),
        ("fsname=a=b", "a=b"),
        ("fsname=", ""),
    ],
)
def test_values_arrive_as_they_are(mounting: Mounting, option: str, value: str) -> None:
    assert mount_helper.mount([SPEC, POINT, "-o", "gid=6", "-o", option, "-o", "uid=5"]) == 0
    assert mounting.options == {"gid": "6", "fsname": value, "uid": "5"}


def test_a_spec_that_begins_with_a_dash_is_refused(
    mounting: Mounting, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper.mount(["--help", POINT]) == 1
    assert mounting.calls == []
    assert capsys.readouterr().err.startswith(
        "mount.cafsfs: unknown option `--help`\n\nhint: usage:"
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "it takes a URI and a directory"),
        ([SPEC], "it takes a URI and a directory"),
        ([SPEC, POINT, "more"], "it takes a URI and a directory"),
        ([SPEC, POINT, "-x"], "unknown option `-x`"),
        ([SPEC, POINT, "-o", "frobnicate"], "`frobnicate` is not an option (-o)"),
        ([SPEC, POINT, "-f", "-o", "frobnicate"], "`frobnicate` is not an option (-o)"),
    ],
)
def test_a_wrong_call(
    mounting: Mounting, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert mount_helper.mount(words) == 1
    assert mounting.calls == []
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"mount.cafsfs: {complaint}\n\nhint: ")


def test_sloppy_lets_unknown_options_pass(mounting: Mounting) -> None:
    for words in (["-s", "-o", "frobnicate,uid=5"], ["-o", "frobnicate,uid=5", "-nsv"]):
        mounting.calls.clear()
        assert mount_helper.mount([SPEC, POINT, *words]) == 0
        assert mounting.options == {"uid": "5"}


def test_an_o_without_options_says_nothing(mounting: Mounting) -> None:
    assert mount_helper.mount([SPEC, POINT, "-o"]) == 0
    assert mounting.options == {}


def test_fake_does_everything_but_the_mount(mounting: Mounting) -> None:
    assert mount_helper.mount([SPEC, POINT, "-fv", "-o", "uid=5"]) == 0
    assert mounting.calls == []


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (2, 1), (1, 32), (3, 32), (130, 32)])
def test_exit_codes_are_those_of_mount(mounting: Mounting, code: int, wanted: int) -> None:
    mounting.code = code
    assert mount_helper.mount([SPEC, POINT]) == wanted


def test_a_bad_value_is_a_wrong_call(capfd: pytest.CaptureFixture[str]) -> None:
    """All the way, without a stand-in."""
    assert mount_helper.mount([SPEC, POINT, "-o", "uid=joe"]) == 1
    assert "`joe` is no value for --uid (-o)" in capfd.readouterr().err
    assert mount_helper.mount(["http://h/data", POINT]) == 1
    assert "is not the URI of a store" in capfd.readouterr().err
    assert mount_helper.mount([SPEC, "/none/mnt"]) == 32
    assert "there is no such directory" in capfd.readouterr().err
