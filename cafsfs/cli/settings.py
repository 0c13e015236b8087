"""``cafsfs config show``: each value, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cafsfs.cli.options import layers, with_options
from cafsfs.cli.talk import emit
from cafsfs.cli.target import find_target
from cafsfs.client.groups import complete, describe
from cafsfs.client.servers import Member
from cafsfs.config.layers import ARGUMENTS, Layer, Setting, explain, server_tables
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.config.options import ALL_OPTIONS, option_names
from cafsfs.config.uri import StoreUri
from cafsfs.config.values import parse_path, parse_text, plain
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
    With URI, or [[server]] tables in TOML, it prints the servers, too.

    \b
    CAFSFS_CACHE_SIZE=5G cafsfs config show
    cafsfs config show -o cache-size=5G 'cafs://127.0.0.1/data?connections=8'
    """
    arguments = parse_mount_options(mount_options)
    if config is None and "config" in arguments.layer.values:
        config = parse_path(arguments.layer.values["config"])
    found: Sequence[Layer] = layers(flags, config, arguments.layer)
    settings = _arguments(uri, found)
    tables = server_tables(found)
    servers = [Setting(each, tables.origin) for each in complete(tables.servers, ())]
    if "uri" in settings:
        target = find_target(settings["uri"].value, config, flags, arguments.layer)
        settings["uri"] = Setting(target.uri.shown, settings["uri"].origin)
        servers = _servers(target.uri, tables)
        found = target.layers
    options: dict[str, Setting[Any]] = {}
    for group in ALL_OPTIONS:
        options |= explain(group, found)
    if as_json:
        values = {
            **_values_for_json(settings),
            **_servers_for_json(servers),
            **_values_for_json(options),
        }
        emit(json.dumps(values, indent=2) + "\n")
    else:
        rows = [("server", describe(each.value), each.origin) for each in servers]
        emit(_table([*_rows(settings), *rows, *_rows(options)]))


def _servers(uri: StoreUri, tables: Layer) -> list[Setting[Member]]:
    """The group of a URI, and who says so: a table adds what the URI does not say."""
    if not uri.named:
        return [Setting(each, tables.origin) for each in uri.members]
    alone = complete(uri.named, ())
    return [
        Setting(member, "URI" if member == said else f"URI, {tables.origin}")
        for member, said in zip(uri.members, alone, strict=True)
    ]


def _servers_for_json(servers: list[Setting[Member]]) -> dict[str, object]:
    if not servers:
        return {}
    values = [
        {
            "address": str(each.value.server),
            "zone": each.value.zone,
            "priority": each.value.priority,
            "weight": each.value.weight,
            "origin": each.origin,
        }
        for each in servers
    ]
    return {"servers": {"value": values, "origin": servers[0].origin.partition(",")[0]}}


def _arguments(uri: str | None, found: Sequence[Layer]) -> dict[str, Setting[Any]]:
    """The arguments of commands that stand in a TOML file, and the URI that was given."""
    given = [Layer("argument", {"uri": uri})] if uri is not None else []
    return {
        name: Setting(layer.values[name], layer.origin)
        for name in ARGUMENTS
        for layer in reversed([*given, *found])  # the last one wins: it is the strongest
        if name in layer.values
    }


def _rows(settings: dict[str, Setting[Any]]) -> list[tuple[str, str, str]]:
    options = option_names(*ALL_OPTIONS)
    return [
        (
            name.replace("_", "-"),
            plain(
                setting.value, options[name].metadata["parse"] if name in options else parse_text
            ),
            setting.origin,
        )
        for name, setting in settings.items()
    ]


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(
        f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}\n" for name, value, origin in rows
    )


def _values_for_json(settings: dict[str, Setting[Any]]) -> dict[str, object]:
    return {
        name.replace("_", "-"): {"value": _for_json(setting.value), "origin": setting.origin}
        for name, setting in settings.items()
    }


def _for_json(value: object) -> object:
    if isinstance(value, Amount):
        return f"{value.share * 100:g}%" if value.share else value.bytes
    if isinstance(value, tuple):
        return list(map(str, value))
    return value if value is None or isinstance(value, bool | int | float) else str(value)
