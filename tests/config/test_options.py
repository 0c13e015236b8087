"""The options: their names, their defaults, and what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cafsfs.config.layers import (
    Layer,
    resolve,
)
from cafsfs.config.options import (
    ALL_OPTIONS,
    CacheOptions,
    default_cache_dir,
    option_names,
)
from cafsfs.config.values import (
    plain,
)
from cafsfs.store.cache.bounds import Amount, Bounds


@pytest.mark.parametrize("group", ALL_OPTIONS)
def test_every_default_can_be_written_as_text(group: type) -> None:
    for name, each in option_names(group).items():
        value = getattr(group(), name)
        parse = each.metadata["parse"]
        if value in {None, ()}:
            assert plain(value, parse) == "-"
        else:
            assert parse(plain(value, parse)) == value


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


def test_options_of_the_same_name_are_the_same_option() -> None:
    """A variable or a key of TOML means both."""
    seen: dict[str, tuple[object, object]] = {}
    for group in ALL_OPTIONS:
        for name, each in option_names(group).items():
            this = (each.metadata["parse"], getattr(group(), name))
            assert seen.setdefault(name, this) == this


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
