"""``cafsfs config show``: each value, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cafsfs.cli.options import layers, with_options
from cafsfs.config import (
    ALL_OPTIONS,
    explain,
    parse_mount_options,
    parse_path,
    parse_uri,
)


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
    (--config FILE, else ~/.config/cafsfs/config.toml and /etc/cafsfs/config.toml), defaults.
    """
    arguments = parse_mount_options(mount_options)
    if config is None and "config" in arguments.layer.values:
        config = parse_path(arguments.layer.values["config"])
    between = [arguments.layer]
    if uri is not None:
        between.append(parse_uri(uri).layer)
    found = layers(flags, config, *between)
    settings = {
        name.replace("_", "-"): setting
        for group in ALL_OPTIONS
        for name, setting in explain(group, found).items()
    }
    if as_json:
        values = {
            name: {"value": _plain(setting.value), "origin": setting.origin}
            for name, setting in settings.items()
        }
        click.echo(json.dumps(values, indent=2))
        return
    for name, setting in settings.items():
        click.echo(f"{name:18} {_plain(setting.value)!s:28} {setting.origin}")


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float) else str(value)
