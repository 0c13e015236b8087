"""``-o``: what is ours, what is the kernel's, and what nobody knows."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.config.layers import (
    Layer,
)
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("", {}),
        (",,", {}),
        ("allow_other", {"allow_other": "true"}),
        ("allow-other", {"allow_other": "true"}),
        ("uid=5,gid=6", {"uid": "5", "gid": "6"}),
        ("cache-size=5G,cache_dir=/c", {"cache_size": "5G", "cache_dir": "/c"}),
        (r"fsname=a\,b,uid=1", {"fsname": "a,b", "uid": "1"}),
        (r"fsname=a\b,uid=1", {"fsname": r"a\b", "uid": "1"}),
        ("fsname=a\\", {"fsname": "a\\"}),
        ("fsname=a=b", {"fsname": "a=b"}),
        ("fsname=", {"fsname": ""}),
        ("uid=1,uid=2", {"uid": "2"}),
        ("mirror=http://a/{hash},mirror=b", {"mirror": "http://a/{hash} b"}),
        ("foreground", {"foreground": "true"}),
        ("log-level=debug,connections=9", {"log_level": "debug", "connections": "9"}),
        ("rw,_netdev,nofail,user,nosuid,nodev,suid,dev,exec,auto,noauto,defaults", {}),
        ("user=joe,comment=x,x-systemd.automount,x-anything=1,X-mount.mkdir", {}),
    ],
)
def test_our_options_are_taken_and_those_of_mount_are_let_pass(
    text: str, ours: dict[str, str]
) -> None:
    arguments = parse_mount_options([text])
    assert arguments.layer == Layer("-o", ours)
    assert arguments.kernel == ()


def test_some_options_are_the_kernels() -> None:
    arguments = parse_mount_options(["noexec,rw", "uid=1,noexec,noatime"])
    assert arguments.kernel == ("noexec", "noatime")
    assert arguments.layer.values == {"uid": "1"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("allow_otter", "did you mean `allow-other`?"),
        ("cachesize=1", "did you mean `cache-size`?"),
        ("listen=h:1", "`cafsfs config show` lists the options"),
        ("replicas=2", "`cafsfs config show` lists the options"),
    ],
)
def test_what_nobody_knows_is_refused_unless_it_does_not_matter(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=r"is not an option \(-o\)") as caught:
        parse_mount_options([text])
    assert caught.value.hint == hint
    assert parse_mount_options([text + ",uid=1"], sloppy=True).layer.values == {"uid": "1"}


@pytest.mark.parametrize("text", ["foreground=perhaps", "config=", "config=~nobody-of-this-name/x"])
def test_what_belongs_to_no_group_is_checked_at_once(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no value for --(foreground|config) \(-o\)"):
        parse_mount_options([text])


@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_text_of_o_is_taken_or_refused(texts: list[str]) -> None:
    parse_mount_options(texts, sloppy=True)
    with contextlib.suppress(UsageError):
        parse_mount_options(texts)
