"""``cafsfs config show``: each value, and which layer it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cafsfs.config.options import ALL_OPTIONS, option_names
from tests.cli.running import run

pytestmark = pytest.mark.process

OPTIONS = {name.replace("_", "-") for name in option_names(*ALL_OPTIONS)}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """Value and origin by name."""
    table = (line.split(maxsplit=2) for line in text.splitlines())
    return {name: (value, origin) for name, value, origin in table}


def test_every_option_is_shown_with_its_default() -> None:
    shown = rows(run("config", "show").ok().text)
    assert shown.keys() == OPTIONS
    assert {origin for _, origin in shown.values()} == {"default"}
    assert shown["cache-size"][0] == "20G"
    assert shown["listen"][0] == "127.0.0.1:2403"
    assert shown["allow-other"][0] == "false"
    assert shown["log-file"][0] == "-"
    assert shown["mirror"][0] == "-"
    assert shown["slow-rate"][0] == "128K"


def test_json_has_values_of_their_kind() -> None:
    shown = json.loads(run("config", "show", "--json", "--sync").ok().text)
    assert shown.keys() == OPTIONS
    assert shown["cache-size"] == {"value": 20 << 30, "origin": "default"}
    assert shown["sync"] == {"value": True, "origin": "flag"}
    assert shown["fsname"] == {"value": None, "origin": "default"}
    assert shown["cache-dir"]["value"].endswith("/cafsfs")
    assert shown["mirror"] == {"value": [], "origin": "default"}


def test_the_strongest_layer_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    names = ["connections", "connect-timeout", "answer-timeout", "progress-timeout", "uid"]
    file.write_text("".join(f"{name} = 5\n" for name in names))
    environment = {f"CAFSFS_{name.replace('-', '_').upper()}": "4" for name in names[:4]}
    command = ["config", "show", "--config", str(file), "--connections", "1"]
    command += ["-o", "connections=2,connect-timeout=2"]
    command += ["cafs://h/r?connections=3&connect_timeout=3&answer-timeout=3"]
    shown = rows(run(*command, env=environment).ok().text)
    assert [shown[name] for name in names] == [
        ("1", "flag"),
        ("2", "-o"),
        ("3", "URI"),
        ("4", "environment"),
        ("5", str(file)),
    ]
    assert shown["uri"] == (command[-1], "argument")


def test_the_users_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / ".config/cafsfs/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('cache-size = "5G"\nmountpoint = "/mnt/x"\n')
    shown = rows(run("config", "show", env={"HOME": str(tmp_path)}).ok().text)
    assert shown["cache-size"] == ("5G", str(file))
    assert shown["mountpoint"] == ("/mnt/x", str(file))


def test_a_uri_of_a_file_brings_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('uri = "cafs://h/r?connections=9"\nconnections = 5\n')
    for given in (["--config", str(file)], ["-o", f"config={file}"]):
        shown = rows(run("config", "show", *given).ok().text)
        assert shown["uri"] == ("cafs://h/r?connections=9", str(file))
        assert shown["connections"] == ("9", "URI")


def test_a_variable_without_a_value_says_nothing() -> None:
    shown = rows(run("config", "show", env={"CAFSFS_ALLOW_OTHER": ""}).ok().text)
    assert shown["allow-other"] == ("false", "default")


def test_a_file_in_a_home_that_is_closed_is_not_missed(open_directory: Path) -> None:
    home = open_directory / "home"
    home.mkdir(mode=0o700)
    run("config", "show", env={"HOME": str(home)}, nobody=True).ok()


TABLES = """
zone = "eu"
secret-file = "/etc/cafsfs/secret"
[[server]]
address = "a"
zone = "eu"
priority = 1
[[server]]
address = "[::1]:80"
weight = 0.5
"""


def servers(text: str) -> list[tuple[str, str]]:
    """What is shown of each server, and its origin."""
    lines = (line.split(maxsplit=2) for line in text.splitlines())
    return [(value, origin) for name, value, origin in lines if name == "server"]


def test_the_group_of_a_file_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(TABLES)
    for uri in ([], ["cafs:///r"]):
        done = run("config", "show", "--config", str(file), *uri).ok()
        assert servers(done.text) == [
            ("a:2403;zone=eu;priority=1", str(file)),
            ("[::1]:80;weight=0.5", str(file)),
        ]
        assert rows(done.text)["zone"] == ("eu", str(file))
        assert rows(done.text)["secret-file"] == ("/etc/cafsfs/secret", str(file))


def test_the_group_of_a_uri_is_shown_and_what_a_file_adds_to_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(TABLES)
    uri = "cafs://b,a;zone=us/r?zone=us"
    done = run("config", "show", "--config", str(file), uri).ok()
    assert servers(done.text) == [
        ("b:2403", "URI"),
        ("a:2403;zone=us;priority=1", f"URI, {file}"),
    ]
    assert rows(done.text)["zone"] == ("us", "URI")
    shown = json.loads(run("config", "show", "--json", "--config", str(file), uri).ok().text)
    assert shown["servers"] == {
        "origin": "URI",
        "value": [
            {"address": "b:2403", "zone": None, "priority": 0, "weight": 1.0, "origin": "URI"},
            {
                "address": "a:2403",
                "zone": "us",
                "priority": 1,
                "weight": 1.0,
                "origin": f"URI, {file}",
            },
        ],
    }


def test_a_directory_shows_no_servers(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(TABLES)
    assert servers(run("config", "show", "--config", str(file), "file:///srv/r").ok().text) == []


def test_mirrors_of_one_place_add_up(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('mirror = ["http://a/{hash}", "http://b/{hash}"]\n')
    some = ["http://a/{hash}", "http://b/{hash}"]
    for arguments in (
        ["--config", str(file)],
        [f"--mirror={some[0]}", f"--mirror={some[1]}"],
        [f"cafs://h/r?mirror={some[0]}&mirror={some[1]}"],
    ):
        shown = json.loads(run("config", "show", "--json", *arguments).ok().text)
        assert shown["mirror"]["value"] == some


def test_no_password_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('uri = "cafs://h/r?mirror=https://u:pw@m/{hash}"\n')
    for options in ([], ["--json"]):
        done = run("config", "show", "--config", str(file), *options).ok()
        assert "pw" not in done.text
        assert "https://m/{hash}" in done.text
