"""Servers as URIs and TOML tables name them, and what becomes of both together."""

from __future__ import annotations

import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.client.groups import (
    NamedServer,
    complete,
    describe,
    parse_hosts,
    parse_priority,
    parse_tables,
    parse_weight,
    parse_zone,
)
from cafsfs.client.servers import Member, Server
from cafsfs.errors import UsageError

A = Server("a")

labels = st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
hosts = (
    labels
    | st.ip_addresses().map(str)
    | st.ip_addresses(v=6).map(lambda address: f"{str(address).partition('%')[0]}%eth0")
)
servers = st.builds(Server, hosts, st.integers(1, 65535))
zones = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
priorities = st.integers(0, 999_999)
weights = st.floats(0.001, 1000) | st.integers(1, 1000).map(float)
named = st.builds(
    NamedServer,
    servers,
    st.none() | zones,
    st.none() | priorities,
    st.none() | weights,
)
members = st.builds(Member, servers, st.none() | zones, priorities, weights)


# --- the host list of a URI


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A", [NamedServer(A)]),
        ("a;zone=eu", [NamedServer(A, "eu")]),
        ("a;zone=eu;priority=1", [NamedServer(A, "eu", 1)]),
        ("a;weight=0.5;priority=0", [NamedServer(A, None, 0, 0.5)]),
        ("a;zone=eu%2Dwest", [NamedServer(A, "eu-west")]),
        ("b:80;zone=us,a", [NamedServer(Server("b", 80), "us"), NamedServer(A)]),
        ("[::1]:80;zone=x", [NamedServer(Server("::1", 80), "x")]),
        ("a,[::1];weight=2", [NamedServer(A), NamedServer(Server("::1"), None, None, 2.0)]),
        ("[fe80::1%25eth0]", [NamedServer(Server("fe80::1%eth0"))]),
        ("[fe80::1%eth0]", [NamedServer(Server("fe80::1%eth0"))]),
        ("a;zone=eu,A:2403;zone=eu", [NamedServer(A, "eu")]),
    ],
)
def test_the_host_list_of_a_uri(text: str, found: list[NamedServer]) -> None:
    assert list(parse_hosts(text)) == found


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a,,b", "`` is not a server", "a server is"),
        ("a;zoen=eu", "`zoen` is not an attribute of a server (URI)", "did you mean `zone`?"),
        ("a;rack=4", "`rack` is not an attribute of a server", "zone, priority and weight"),
        ("a;b", "`b` is not an attribute of a server (URI)", "servers are separated by commas"),
        ("a;", "`` is not an attribute of a server (URI)", "separated by commas"),
        ("a,zone=eu", "`zone=eu` is not a server", "after a `;`, as in cafs://a;zone=eu"),
        ("a;zone=", "`` is no zone of a server (URI)", "it takes a name of up to 64 letters"),
        ("a;zone=eu:2403", "`eu:2403` is no zone", "a port stands before the first `;`"),
        ("a;priority=-1", "`-1` is no priority of a server (URI)", "it takes a whole number"),
        ("a;priority=1.5", "`1.5` is no priority", "a whole number from 0, the first"),
        ("a;weight=0", "`0` is no weight of a server (URI)", "from 0.001 to 1000"),
        ("a;zone=x;zone=x", "`a:2403` has two of `zone` (URI)", "leave one"),
        ("a;zone=x,b,a;zone=y", "`a:2403` is named twice, with different attributes (URI)", "once"),
        ("a,A;priority=0", "`a:2403` is named twice, with different attributes (URI)", "once"),
        ("a;zone=x:y]", "`x:y]` is no zone", "a port stands before"),
    ],
)
def test_what_a_host_list_may_not_say(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hosts(text)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


@given(st.lists(named, min_size=1, max_size=5, unique_by=lambda each: each.server))
def test_a_host_list_says_what_was_read_from_it(group: list[NamedServer]) -> None:
    text = ",".join(map(str, group))
    assert list(parse_hosts(text)) == group
    assert ",".join(map(str, parse_hosts(text))) == text


@given(st.text(st.sampled_from("ab:;,=[]%.1zoneprityw") | st.characters(), max_size=40))
def test_any_host_list_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        found = parse_hosts(text)
        again = ",".join(map(str, found))
        assert parse_hosts(again) == found
        assert ",".join(map(str, parse_hosts(again))) == again


@pytest.mark.parametrize(
    "text", ["", "1e3", "inf", "nan", "-1", "1001", "0.0001", "1_0", "٣", " 1"]
)
def test_what_is_no_weight(text: str) -> None:
    with pytest.raises(ValueError, match="as in 2 or"):
        parse_weight(text)


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1.0", "1000000", "٣"])
def test_what_is_no_priority(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number"):
        parse_priority(text)


@pytest.mark.parametrize("text", ["", "a b", "a,b", "a;b", "ä", "z" * 65, "a=b", "a\n"])
def test_what_is_no_zone(text: str) -> None:
    with pytest.raises(ValueError, match="a name"):
        parse_zone(text)


# --- [[server]]


def tables(text: str) -> tuple[NamedServer, ...]:
    return parse_tables(tomllib.loads(text).get("server", []), "x.toml", {"cache_size", "zone"})


def test_tables_are_servers() -> None:
    text = """
        [[server]]
        address = "a"
        [[server]]
        address = "[::1]:80"
        zone = "eu"
        priority = 3
        weight = 0.25
        [[server]]
        address = "b"
        priority = "4"
        weight = 2
    """
    assert tables(text) == (
        NamedServer(A),
        NamedServer(Server("::1", 80), "eu", 3, 0.25),
        NamedServer(Server("b"), None, 4, 2.0),
    )
    assert tables("") == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[server]\naddress="a"', "`server` is no list of tables", "write [[server]], with two"),
        ('server="a:2403"', "`server` is no list of tables", "write [[server]]"),
        ('server=["a:2403"]', "`server` is no list of tables", "a table for each server"),
        ('[[server]]\nzone="eu"', "a [[server]] has no address", 'address = "host:2403"'),
        ('[[server]]\nadress="a"', "`adress` is not an attribute", "did you mean `address`?"),
        ('[[server]]\nhost="a"', "`host` is not an attribute", "zone, priority and weight"),
        (
            '[[server]]\naddress="a"\ncache-size="5G"',
            "`cache-size` is not an attribute of a server",
            "an option stands above the first [[server]]",
        ),
        ("[[server]]\naddress=5", "`5` is no address of a server", "it takes text in quotes"),
        ('[[server]]\naddress=["a"]', "`['a']` is no address", "it takes text in quotes"),
        ('[[server]]\naddress="a"\nzone=true', "`true` is no zone", "it takes text in quotes"),
        ('[[server]]\naddress="a"\npriority=true', "`true` is no priority", "it takes a number"),
        ('[[server]]\naddress="a"\npriority=1.5', "`1.5` is no priority", "a whole number"),
        ('[[server]]\naddress="a"\nweight=inf', "`inf` is no weight", "from 0.001 to 1000"),
        ('[[server]]\naddress="a"\nweight=[1]', "`[1]` is no weight", "it takes a number"),
        ('[[server]]\naddress="a:x"', "`x` is not a port", "1 to 65535"),
        ('[[server]]\naddress="a;zone=eu"', "`a;zone=eu` is not a server", "a table of its own"),
        (
            '[[server]]\naddress="a"\n[[server]]\naddress="A:2403"\nzone="eu"',
            "`a:2403` is named twice, with different attributes",
            "name it once",
        ),
    ],
)
def test_what_tables_may_not_say(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        tables(text)
    assert message in str(caught.value)
    assert str(caught.value).endswith("(x.toml)")
    assert hint in (caught.value.hint or "")


# --- both


def test_a_table_says_what_the_uri_does_not() -> None:
    said = parse_hosts("a;zone=us,b;priority=0,c")
    known = tables("""
        [[server]]
        address = "A:2403"
        zone = "eu"
        weight = 2
        [[server]]
        address = "b"
        priority = 7
        [[server]]
        address = "d"
    """)
    assert complete(said, known) == (
        Member(Server("a"), "us", 0, 2.0),
        Member(Server("b"), None, 0, 1.0),
        Member(Server("c")),
    )
    assert [each.server.host for each in complete(known, known)] == ["a", "b", "d"]


@given(st.lists(members, max_size=5, unique_by=lambda each: each.server))
def test_members_are_described_as_a_uri_would_name_them(group: list[Member]) -> None:
    for each in group:
        assert complete(parse_hosts(describe(each)), ()) == (each,)
