"""Values of options: what parsers take, what they refuse, and how values are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.servers import Server
from cafsfs.config import values
from cafsfs.config.values import (
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
    parse_path,
    parse_seconds,
    parse_size,
    parse_text,
    parse_verify_first,
    plain,
)
from cafsfs.store.cache.bounds import Amount

Parse = Callable[[str], Any]


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


@given(st.integers(0, 1 << 50), st.integers(0, 10_000))
def test_amounts_are_shown_as_they_are_written(size: int, share: int) -> None:
    for amount in (Amount(size), Amount(share=share / 10_000)):
        shown = parse_amount(plain(amount, parse_amount))
        assert shown.bytes == amount.bytes
        assert shown.share == pytest.approx(amount.share)


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


def test_a_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of where the process began: a mount in the background goes to the root."""
    values._began_in.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert parse_path("x") == tmp_path / "x"
    monkeypatch.chdir("/")
    assert parse_path("x") == tmp_path / "x"
    values._began_in.cache_clear()
    monkeypatch.setenv("HOME", "/home/of")
    assert parse_path("~/x") == Path("/home/of/x")
