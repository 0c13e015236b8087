"""Options: every parser, every layer and its strength, URIs, TOML, and -o."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs import config
from cafsfs.client.groups import NamedServer, describe
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.servers import Member, Server
from cafsfs.config import (
    ALL_OPTIONS,
    CacheOptions,
    Layer,
    LogOptions,
    MountOptions,
    ServeOptions,
    StoreOptions,
    default_cache_dir,
    environment_layer,
    explain,
    option_names,
    parse_age,
    parse_amount,
    parse_auth,
    parse_bool,
    parse_count,
    parse_encryption,
    parse_id,
    parse_level,
    parse_listen,
    parse_mirrors,
    parse_mount_options,
    parse_path,
    parse_seconds,
    parse_size,
    parse_text,
    parse_uri,
    parse_verify_first,
    plain,
    resolve,
    server_tables,
    toml_layers,
)
from cafsfs.errors import UsageError
from cafsfs.store.cache.bounds import Amount, Bounds

Parse = Callable[[str], Any]


# --- parsers


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "0", 0),
        (parse_size, "1", 1),
        (parse_size, "1K", 1 << 10),
        (parse_size, "1k", 1 << 10),
        (parse_size, "20G", 20 << 30),
        (parse_size, "20GB", 20 << 30),
        (parse_size, "20GiB", 20 << 30),
        (parse_size, " 2 M ", 2 << 20),
        (parse_size, "1.5T", 3 << 39),
        (parse_size, "0.1K", 102),
        (parse_size, "512B", 512),
        (parse_size, "9007199254740993", 9007199254740993),  # more than a float holds
        (parse_amount, "20G", Amount(20 << 30)),
        (parse_amount, "0", Amount(0)),
        (parse_amount, "10%", Amount(share=0.1)),
        (parse_amount, " 2.5 % ", Amount(share=0.025)),
        (parse_amount, "0%", Amount(share=0.0)),
        (parse_amount, "100%", Amount(share=1.0)),
        (parse_age, "90", 90.0),
        (parse_age, "90s", 90.0),
        (parse_age, "1.5h", 5400.0),
        (parse_age, "2m", 120.0),
        (parse_age, "30d", 30 * 86400.0),
        (parse_age, "1W", 7 * 86400.0),
        (parse_seconds, "5", 5),
        (parse_seconds, "0.25", 0.25),
        (parse_seconds, "30s", 30),
        (parse_count, "1", 1),
        (parse_count, "007", 7),
        (parse_id, "0", 0),
        (parse_id, "4294967294", (1 << 32) - 2),
        (parse_bool, "true", True),
        (parse_bool, "YES", True),
        (parse_bool, "on", True),
        (parse_bool, "1", True),
        (parse_bool, "", True),
        (parse_bool, "false", False),
        (parse_bool, "No", False),
        (parse_bool, "off", False),
        (parse_bool, "0", False),
        (parse_level, "DEBUG", "debug"),
        (parse_auth, "Required", "required"),
        (parse_encryption, "Optional", "optional"),
        (parse_encryption, "required", "required"),
        (
            parse_mirrors,
            " http://h/{hash}  https://g/x/{hash} ",
            (MirrorTemplate.parse("http://h/{hash}"), MirrorTemplate.parse("https://g/x/{hash}")),
        ),
        (
            parse_mirrors,
            "http://h/{hash} http://h/{hash}",
            (MirrorTemplate.parse("http://h/{hash}"),),
        ),
        (parse_text, "a b", "a b"),
        (parse_path, "/a/b", Path("/a/b")),
        (parse_path, "~root/x", Path("~root/x").expanduser()),
        (parse_listen, "127.0.0.1:80", Server("127.0.0.1", 80)),
        (parse_listen, "localhost", Server("localhost", 2403)),
        (parse_listen, "127.0.0.1:0", Server("127.0.0.1", 0)),
        (parse_listen, "[::1]:0", Server("::1", 0)),
        (parse_listen, "[::1]:80", Server("::1", 80)),
    ],
)
def test_what_parsers_take(parse: Parse, text: str, value: object) -> None:
    assert parse(text) == value
    assert type(parse(text)) in {type(value), float}


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (parse_size, ["", "K", "-1", "1e3", "1 2", "20X", "5iB", "1.K", ".5K", "9" * 400, "٣K"]),
        (
            parse_amount,
            ["", "%", "-1%", "101%", "inf%", "10%%", "10%K", "1e3", "20X", "ten%"],
        ),
        (parse_age, ["", "s", "d", "0", "0d", "-1d", "nan", "inf", "nand", "1y", "1e12", "five"]),
        (parse_seconds, ["", "s", "0", "-1", "nan", "inf", "1e9", "5m", "five"]),
        (parse_count, ["", "0", "-1", "+1", "1.0", "ten", "٣", "9" * 5000]),
        (parse_id, ["", "-1", "root", "4294967295", "4294967296", "٣"]),
        (parse_bool, ["yess", "2", "none", " "]),
        (parse_level, ["", "verbose", "warn"]),
        (parse_auth, ["", "optional", "none"]),
        (parse_encryption, ["", "auto", "none"]),
        (parse_mirrors, ["", "  "]),
        (parse_text, ["", "a\0b"]),
        (parse_path, ["", "a\0b", "~nobody-of-this-name/x"]),
        (parse_listen, ["", ":80", "2403", "host:", "host:99999", "::1", "[::1", ":0", "a:b:0"]),
    ],
)
def test_what_parsers_refuse_completes_a_sentence(parse: Parse, texts: list[str]) -> None:
    """The hint says "it takes …", so the error must not begin another sentence."""
    for text in texts:
        with pytest.raises(ValueError, match=r"^(a|one|some|the|true|HOST)\b") as caught:
            parse(text)
        assert "\n" not in str(caught.value)


def test_no_number_is_no_percentage() -> None:
    with pytest.raises(ValueError, match="a percentage from 0% to 100%"):
        parse_amount("nan%")


@pytest.mark.parametrize("group", ALL_OPTIONS)
def test_every_default_can_be_written_as_text(group: type) -> None:
    for name, each in option_names(group).items():
        value = getattr(group(), name)
        parse = each.metadata["parse"]
        if value in {None, ()}:
            assert plain(value, parse) == "-"
        else:
            assert parse(plain(value, parse)) == value


@given(st.integers(0, 1 << 50), st.integers(0, 10_000))
def test_amounts_are_shown_as_they_are_written(size: int, share: int) -> None:
    for amount in (Amount(size), Amount(share=share / 10_000)):
        shown = parse_amount(plain(amount, parse_amount))
        assert shown.bytes == amount.bytes
        assert shown.share == pytest.approx(amount.share)


def test_what_a_cache_may_hold() -> None:
    assert CacheOptions().bounds == Bounds(size=Amount(20 << 30), free=Amount(share=0.05))
    values = {
        "cache_size": "10%",
        "cache_free": "5G",
        "cache_files": "1000",
        "cache_ttl": "30d",
        "cache_tti": "12h",
    }
    assert resolve(CacheOptions, [Layer("flag", values)]).bounds == Bounds(
        size=Amount(share=0.1),
        free=Amount(5 << 30),
        files=1000,
        ttl=30 * 86400.0,
        tti=12 * 3600.0,
    )


@given(st.integers(0, 1 << 50))
def test_sizes_are_shown_as_they_are_written(size: int) -> None:
    assert parse_size(plain(size, parse_size)) == size


def test_sizes_are_shown_with_their_unit() -> None:
    assert [plain(each, parse_size) for each in (0, 1000, 1024, 20 << 30, 3 << 39)] == [
        *("0", "1000", "1K", "20G", "1536G")
    ]


def test_what_is_verified_first_is_shown_as_it_is_written() -> None:
    for text in ("64M", "always", "0"):
        assert plain(parse_verify_first(text), parse_verify_first) == text
    with pytest.raises(ValueError, match="or `always`"):
        parse_verify_first("never")


def test_options_of_the_same_name_are_the_same_option() -> None:
    """A variable or a key of TOML means both."""
    seen: dict[str, tuple[object, object]] = {}
    for group in ALL_OPTIONS:
        for name, each in option_names(group).items():
            this = (each.metadata["parse"], getattr(group(), name))
            assert seen.setdefault(name, this) == this


def test_a_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_path("x") == tmp_path / "x"
    monkeypatch.setenv("HOME", "/home/of")
    assert parse_path("~/x") == Path("/home/of/x")


@pytest.mark.parametrize(
    ("user", "environment", "wanted"),
    [
        (0, {"HOME": "/root", "XDG_CACHE_HOME": "/x"}, "/var/cache/cafsfs"),
        (1000, {}, "/var/cache/cafsfs"),
        (1000, {"HOME": "/home/of"}, "/home/of/.cache/cafsfs"),
        (1000, {"HOME": "/home/of", "XDG_CACHE_HOME": ""}, "/home/of/.cache/cafsfs"),
        (1000, {"HOME": "/home/of", "XDG_CACHE_HOME": "/x"}, "/x/cafsfs"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], wanted: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == Path(wanted)
    assert CacheOptions().cache_dir == Path(wanted)


# --- layers


def test_the_first_layer_that_has_a_value_wins_and_is_named() -> None:
    layers = [
        Layer("flag", {"cache_size": "1K"}),
        Layer("-o", {"cache_size": "2K", "cache_dir": "/o"}),
        Layer("environment", {"cache_dir": "/e"}),
    ]
    found = explain(CacheOptions, layers)
    assert (found["cache_size"].value, found["cache_size"].origin) == (Amount(1024), "flag")
    assert (found["cache_dir"].value, found["cache_dir"].origin) == (Path("/o"), "-o")
    assert explain(CacheOptions, [])["cache_size"].origin == "default"
    assert resolve(CacheOptions, layers) == CacheOptions(
        cache_size=Amount(1024), cache_dir=Path("/o")
    )


def test_values_of_other_groups_are_left_alone() -> None:
    assert resolve(LogOptions, [Layer("flag", {"cache_size": "nonsense"})]) == LogOptions()


def test_a_bad_value_says_whose_it_is_and_what_is_taken() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(CacheOptions, [Layer("/etc/x.toml", {"cache_size": "big"})])
    assert str(caught.value) == "`big` is no value for --cache-size (/etc/x.toml)"
    assert caught.value.hint == (
        "it takes a number of bytes, or one with K, M, G or T behind it, as in 20G, "
        "or a percentage, as in 10%"
    )


def test_a_weaker_bad_value_is_not_looked_at() -> None:
    layers = [Layer("flag", {"cache_size": "1K"}), Layer("environment", {"cache_size": "big"})]
    assert resolve(CacheOptions, layers).cache_size == Amount(1024)


@pytest.mark.parametrize("name", list(option_names(*ALL_OPTIONS)))
def test_every_option_has_its_variable(name: str) -> None:
    variable = "CAFSFS_" + name.upper()
    assert environment_layer({variable: "5"}).values == {name: "5"}
    assert environment_layer({variable: ""}).values == {}  # as good as none


def test_other_variables_are_left_alone() -> None:
    assert environment_layer({"CAFSFS_NONSENSE": "1", "CACHE_SIZE": "1"}).values == {}


# --- TOML


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/cafsfs").mkdir(parents=True)
    return tmp_path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_toml_has_options_with_either_sign_and_the_arguments_of_commands(tmp_path: Path) -> None:
    file = written(
        tmp_path / "c.toml",
        'cache-size = "5G"\nconnect_timeout = 0.5\nconnections = 3\nallow-other = true\n'
        'sync = false\nuri = "cafs://h/r"\nmountpoint = "/mnt"\ndirectory = "/srv"\n',
    )
    (layer,) = toml_layers(file)
    assert layer.origin == str(file)
    assert resolve(CacheOptions, [layer]).cache_size == Amount(5 << 30)
    assert resolve(StoreOptions, [layer]) == StoreOptions(connect_timeout=0.5, connections=3)
    assert resolve(MountOptions, [layer]).allow_other
    assert not resolve(ServeOptions, [layer]).sync
    assert layer.values["uri"] == "cafs://h/r"


def test_the_users_file_wins_over_the_systems(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = written(home / ".config/cafsfs/config.toml", "connections = 1\n")
    system = written(home / "system.toml", "connections = 2\ngrace = 3\n")
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    layers = toml_layers(None)
    assert [each.origin for each in layers] == [str(user), str(system)]
    assert resolve(StoreOptions, layers).connections == 1
    assert resolve(ServeOptions, layers).grace == 3


def test_a_file_that_is_given_is_the_only_one(home: Path) -> None:
    written(home / ".config/cafsfs/config.toml", "connections = 1\n")
    given = written(home / "given.toml", "grace = 3\n")
    assert [each.origin for each in toml_layers(given)] == [str(given)]


def test_files_that_are_not_there_are_not_missed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", home / "none.toml")
    assert toml_layers(None) == []
    monkeypatch.delenv("HOME")
    assert toml_layers(None) == []


def test_the_strongest_file_that_has_tables_has_all_of_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = written(home / ".config/cafsfs/config.toml", "connections = 1\n")
    system = written(home / "system.toml", '[[server]]\naddress = "a"\nzone = "eu"\n')
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    found = server_tables(toml_layers(None))
    assert (found.origin, found.servers) == (str(system), (NamedServer(Server("a"), "eu"),))
    written(user, '[[server]]\naddress = "b"\n')
    found = server_tables(toml_layers(None))
    assert (found.origin, found.servers) == (str(user), (NamedServer(Server("b")),))
    written(user, "server = []\n")
    assert server_tables(toml_layers(None)).origin == str(system)
    assert server_tables([]).servers == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[[servers]]\naddress = "a"', "`servers` is not an option", "mean `[[server]]`?"),
        ("[[server]]\nport = 1", "`port` is not an attribute of a server", "zone, priority and"),
        ('[server]\naddress = "a"', "`server` is no list of tables", "[[server]], with two"),
        (
            '[[server]]\naddress = "a"\nuri = "cafs:///r"',
            "`uri` is not an attribute of a server",
            "above the first [[server]]",
        ),
        ("cache-sise = 1", "`cache-sise` is not an option", "did you mean `cache-size`?"),
        ("[mount]\nuid = 1", "`mount` is not an option", "`cafsfs config show` lists"),
        ("frobnicate = 1", "`frobnicate` is not an option", "`cafsfs config show` lists"),
        ("cache-size = 20G", "is not TOML", "stand in quotes"),
        ("\x00", "is not TOML", "stand in quotes"),
    ],
)
def test_what_toml_may_not_hold(tmp_path: Path, text: str, message: str, hint: str) -> None:
    file = written(tmp_path / "c.toml", text)
    with pytest.raises(UsageError, match=message) as caught:
        toml_layers(file)
    assert str(file) in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_file_that_is_given_must_be_there_and_be_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read `.*none.toml`: No such file"):
        toml_layers(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'fsname = "\xe4"\n')
    with pytest.raises(UsageError, match="is not TOML"):
        toml_layers(tmp_path / "latin.toml")


def test_a_value_of_a_wrong_kind_is_a_wrong_value(tmp_path: Path) -> None:
    layers = toml_layers(written(tmp_path / "c.toml", 'connections = ["1"]\n'))
    with pytest.raises(UsageError, match=r"is no value for --connections"):
        resolve(StoreOptions, layers)


# --- URIs


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


# --- mount -o


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
