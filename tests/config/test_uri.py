"""URIs of stores: what is taken, what is refused, what is shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.client.groups import NamedServer, describe
from cafsfs.client.servers import Member, Server
from cafsfs.config.layers import (
    Layer,
    resolve,
)
from cafsfs.config.options import (
    MountOptions,
)
from cafsfs.config.uri import parse_uri
from cafsfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "servers", "root"),
    [
        ("cafs://h/r", [Server("h")], "/r"),
        ("cafs://h:80/r", [Server("h", 80)], "/r"),
        ("cafs://h:80,g/r/s", [Server("h", 80), Server("g")], "/r/s"),
        ("cafs://10.0.0.2:80,10.0.0.1/r", [Server("10.0.0.2", 80), Server("10.0.0.1")], "/r"),
        ("cafs://h,h,h:2403/r", [Server("h")], "/r"),
        ("cafs://[::1]/r", [Server("::1")], "/r"),
        ("cafs://[::1]:80,h/r", [Server("::1", 80), Server("h")], "/r"),
        ("CAFS://h/r", [Server("h")], "/r"),
        ("cafs://h/a%20b%23%C3%A4", [Server("h")], "/a b#ä"),
        ("cafs://h/a+b", [Server("h")], "/a+b"),
        ("cafs://h/r/", [Server("h")], "/r/"),
        ("cafs://h/" + "r" * 254, [Server("h")], "/" + "r" * 254),
        ("cafs://h;zone=eu,[::1]:80;weight=2/r", [Server("h"), Server("::1", 80)], "/r"),
        ("cafs://h/my root", [Server("h")], "/my root"),
    ],
)
def test_uris_of_servers(text: str, servers: list[Server], root: str) -> None:
    uri = parse_uri(text)
    assert list(uri.servers) == servers
    assert uri.root == root
    assert uri.text == text
    assert uri.directory is None
    assert uri.layer.values == {}


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ("file:///srv/roots/r", "/srv/roots/r"),
        ("file://localhost/srv/r", "/srv/r"),
        ("file:/srv/r", "/srv/r"),
        ("file:///a%20b", "/a b"),
        ("file:///srv/r?cache-size=1K", "/srv/r"),
    ],
)
def test_uris_of_directories(text: str, directory: str) -> None:
    uri = parse_uri(text)
    assert uri.directory == Path(directory)
    assert uri.servers == ()


def test_the_keys_of_a_uri_are_options() -> None:
    uri = parse_uri("cafs://h/r?connections=8&cache-dir=/a+b%26c&allow_other&fsname=x%3Dy&")
    assert uri.layer == Layer(
        "URI",
        {"connections": "8", "cache_dir": "/a+b&c", "allow_other": "", "fsname": "x=y"},
    )
    assert resolve(MountOptions, [uri.layer]).allow_other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the URI of a store"),
        ("/srv/r", "is not the URI of a store"),
        ("h/r", "is not the URI of a store"),
        ("http://h/r", "is not the URI of a store"),
        ("cafs:h/r", "names no server"),
        ("cafs:///r", "names no server"),
        ("cafs://h", "names no root"),
        ("cafs://h/", "names no root"),
        ("cafs://h//", "names no root"),
        ("file:///", "names no root"),
        ("file://", "names no root"),
        ("cafs://h,,g/r", "`` is not a server"),
        ("cafs://h:x/r", "`x` is not a port"),
        ("cafs://h:0/r", "`0` is not a port"),
        ("cafs://h:65536/r", "`65536` is not a port"),
        ("cafs://::1/r", "`::1` is not a server"),
        ("cafs://[::1/r", "`\\[::1` is not a server"),
        ("cafs:///", "names no root"),
        ("cafs:/r", "names no server"),
        ("cafs://h/r\n", "^'cafs://h/r\\\\n' is not a URI"),
        ("cafs://h\t/r", "is not a URI"),
        ("cafs://h;zone/r", "`` is no zone of a server \\(URI\\)"),
        ("cafs://h;zoen=eu/r", "`zoen` is not an attribute of a server"),
        ("cafs://h;zone=eu,h/r", "`h:2403` is named twice"),
        ("cafs://me@h/r", "names a user"),
        ("cafs://h/r#s", "has a `#`"),
        ("cafs://h/%ff", "is not a URI"),
        ("cafs://h/\udcff", "is not UTF-8"),
        ("cafs://h/" + "r" * 255, "more than 255 bytes"),
        ("cafs://h/" + "%C3%A4" * 128, "more than 255 bytes"),
        ("file://srv/r", "names a host"),
        ("file:srv/r", "is a relative path"),
        ("cafs://h/r?conections=1", "`conections` is not an option \\(URI\\)"),
        ("cafs://h/r?log-level=debug", "`log-level` is not an option \\(URI\\)"),
        ("cafs://h/r?=1", "`` is not an option \\(URI\\)"),
    ],
)
def test_every_refusal_of_a_uri_has_a_hint(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_uri(text)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_servers_of_a_uri_have_a_place_in_its_group() -> None:
    uri = parse_uri("cafs://a;zone=eu;priority=1,b:80;weight=2/r?zone=eu")
    assert uri.members == (Member(Server("a"), "eu", 1), Member(Server("b", 80), weight=2.0))
    assert uri.servers == (Server("a"), Server("b", 80))
    assert uri.layer.values == {"zone": "eu"}


members = st.builds(
    Member,
    st.builds(Server, st.sampled_from(["a", "b.example", "10.0.0.1", "::1"]), st.integers(1, 9)),
    st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    st.integers(0, 999_999),
    st.floats(0.001, 1000),
)
roots = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50).filter(
    lambda root: root.strip("/") != ""
)


@given(
    group=st.lists(members, min_size=1, max_size=4, unique_by=lambda each: each.server),
    root=roots,
    zone=st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_a_uri_says_what_it_was_made_from(group: list[Member], root: str, zone: str) -> None:
    text = f"cafs://{','.join(map(describe, group))}/{quote(root)}?zone={quote(zone, safe='')}"
    uri = parse_uri(text)
    assert list(uri.members) == group
    assert uri.root == f"/{root}"
    assert uri.layer.values == {"zone": zone}
    assert parse_uri(f"cafs://{','.join(map(str, uri.named))}/x").members == uri.members


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cafs://h/r?mirror=https://u:pw@m/{hash}&uid=1", "cafs://h/r?mirror=…&uid=1"),
        ("cafs://h/r?uid=1&mirror=https://u:pw%40m/{hash}", "cafs://h/r?uid=1&mirror=…"),
        ("cafs://h/r?mirror=https://m/{hash}?sig=pw", "cafs://h/r?mirror=…"),
        ("cafs://h/r?mirror=https://m/{hash}%3Fsig%3Dpw", "cafs://h/r?mirror=…"),
        ("cafs://h/r?mirror=https://m/{hash}", "cafs://h/r?mirror=https://m/{hash}"),
        ("cafs://h/a@b", "cafs://h/a@b"),
    ],
)
def test_a_uri_is_shown_without_passwords(text: str, shown: str) -> None:
    assert parse_uri(text).shown == shown


@pytest.mark.parametrize(
    "text",
    [
        "cafs://me:pw@h/r",
        "cafs://h?mirror=https://u:pw@m/{hash}",
        "cafs://h/r?mirror=https://u:pw@m/{hash}#x",
        "cafs:///r?mirror=https://u:pw@m/{hash}",
        "cafs://h/%ff?mirror=https://u:pw@m/{hash}",
        "http://h/r?mirror=https://u:pw@m/{hash}",
        "cafs://h/\n?mirror=https://u:pw@m/{hash}",
        "file:r?mirror=https://u:pw@m/{hash}",
        "cafs://h/r?miror=https://u:pw@m/{hash}",
    ],
)
def test_a_uri_is_refused_without_passwords(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(text)
    assert "pw" not in f"{caught.value} {caught.value.hint}"


TABLES = (NamedServer(Server("a"), "eu", 1), NamedServer(Server("c"), "us"))


def test_a_uri_that_names_servers_has_exactly_those() -> None:
    """Whatever stands in /etc: who names one host talks to no other."""
    assert parse_uri("cafs://b/r", TABLES).members == (Member(Server("b")),)
    assert parse_uri("cafs://b,A;zone=x/r", TABLES).members == (
        Member(Server("b")),
        Member(Server("a"), "x", 1),
    )


def test_a_uri_without_servers_has_those_of_the_tables() -> None:
    uri = parse_uri("cafs:///r?connections=2", TABLES)
    assert uri.members == (Member(Server("a"), "eu", 1), Member(Server("c"), "us"))
    assert (uri.named, uri.root, uri.layer.values) == ((), "/r", {"connections": "2"})


def test_a_directory_has_no_servers_whatever_the_tables() -> None:
    assert parse_uri("file:///srv/r", TABLES).members == ()


@pytest.mark.parametrize("text", ["cafs:///r", "cafs:/r", "cafs:r"])
def test_without_servers_the_hint_tells_of_tables(text: str) -> None:
    with pytest.raises(UsageError, match="names no server") as caught:
        parse_uri(text)
    assert "[[server]] tables" in (caught.value.hint or "")


def test_what_a_shell_leaves_of_a_uri_without_quotes() -> None:
    with pytest.raises(UsageError, match="names no root") as caught:
        parse_uri("cafs://a")
    assert "a URI with a `;` or `&` stands in quotes" in (caught.value.hint or "")


@given(st.text(max_size=50) | st.text(max_size=40).map("cafs://h".__add__))
def test_any_text_is_a_uri_or_a_usage_error(text: str) -> None:
    for each in (text, "cafs://" + text, "file:///" + text):
        try:
            uri = parse_uri(each)
        except UsageError:
            continue
        assert bool(uri.servers) != (uri.directory is not None)
