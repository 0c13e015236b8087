"""From where options come, and which place wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafsfs.client.groups import NamedServer
from cafsfs.client.servers import Server
from cafsfs.config import layers as places
from cafsfs.config.layers import (
    Layer,
    environment_layer,
    explain,
    resolve,
    server_tables,
    toml_layers,
)
from cafsfs.config.options import (
    ALL_OPTIONS,
    CacheOptions,
    LogOptions,
    MountOptions,
    ServeOptions,
    StoreOptions,
    option_names,
)
from cafsfs.errors import UsageError
from cafsfs.store.cache.bounds import Amount


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
    monkeypatch.setattr(places, "SYSTEM_FILE", system)
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
    monkeypatch.setattr(places, "SYSTEM_FILE", home / "none.toml")
    assert toml_layers(None) == []
    monkeypatch.delenv("HOME")
    assert toml_layers(None) == []


def test_the_strongest_file_that_has_tables_has_all_of_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = written(home / ".config/cafsfs/config.toml", "connections = 1\n")
    system = written(home / "system.toml", '[[server]]\naddress = "a"\nzone = "eu"\n')
    monkeypatch.setattr(places, "SYSTEM_FILE", system)
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
