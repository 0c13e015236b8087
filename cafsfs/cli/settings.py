"""``cafsfs config show``: each value, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cafsfs.cli.options import layers, with_options
from cafsfs.cli.talk import emit
from cafsfs.config import (
    ALL_OPTIONS,
    ARGUMENTS,
    Layer,
    Setting,
    explain,
    option_names,
    parse_mount_options,
    parse_path,
    parse_text,
    parse_uri,
    plain,
)
from cafsfs.store.cache.bounds import Amount


@click.group()
def config() -> None:
    """Show the configuration."""


@config.command()
@click.argument("uri", required=False)
@click.option("-o", "mount_options", multiple=True, metavar="OPTIONS", help="as for mount")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_options(*ALL_OPTIONS)
def show(
    uri: str | None,
    config: Path | None,
    *,
    mount_options: tuple[str, ...],
    as_json: bool,
    **flags: str | None,
) -> None:
    """Print every option, its value, and where the value came from.

    In the order of their strength: flags, -o, the keys of URI, CAFSFS_* variables, TOML
    (--config FILE, else ~/.config/cafsfs/config.toml and /etc/cafsfs/config.toml), defaults. An
    option has one name everywhere: --cache-size, CAFSFS_CACHE_SIZE, and in TOML or -o cache-size.

    \b
    CAFSFS_CACHE_SIZE=5G cafsfs config show
    cafsfs config show -o cache-size=5G 'cafs://127.0.0.1/data?connections=8'
    """
    arguments = parse_mount_options(mount_options)
    if config is None and "config" in arguments.layer.values:
        config = parse_path(arguments.layer.values["config"])
    found = layers(flags, config, arguments.layer)
    settings = _arguments(uri, found)
    if "uri" in settings:
        found.insert(2, parse_uri(settings["uri"].value).layer)
    for group in ALL_OPTIONS:
        settings |= explain(group, found)
    if as_json:
        values = {
            name.replace("_", "-"): {"value": _for_json(setting.value), "origin": setting.origin}
            for name, setting in settings.items()
        }
        emit(json.dumps(values, indent=2) + "\n")
    else:
        emit(_table(settings))


def _arguments(uri: str | None, found: list[Layer]) -> dict[str, Setting[Any]]:
    """The arguments of commands that stand in a TOML file, and the URI that was given."""
    given = [Layer("argument", {"uri": uri})] if uri is not None else []
    return {
        name: Setting(layer.values[name], layer.origin)
        for name in ARGUMENTS
        for layer in reversed([*given, *found])  # the last one wins: it is the strongest
        if name in layer.values
    }


def _table(settings: dict[str, Setting[Any]]) -> str:
    options = option_names(*ALL_OPTIONS)
    rows = [
        (
            name.replace("_", "-"),
            plain(
                setting.value, options[name].metadata["parse"] if name in options else parse_text
            ),
            setting.origin,
        )
        for name, setting in settings.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(
        f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}\n" for name, value, origin in rows
    )


def _for_json(value: object) -> object:
    if isinstance(value, Amount):
        return f"{value.share * 100:g}%" if value.share else value.bytes
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)
