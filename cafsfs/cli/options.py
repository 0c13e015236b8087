"""Options of ``config/`` as flags of a command, and the layers that they win over."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cafsfs.cli.completing import complete_value
from cafsfs.client.groups import parse_zone
from cafsfs.config.layers import Layer, environment_layer, explain, toml_layers
from cafsfs.config.options import flag, option_names
from cafsfs.config.values import (
    parse_age,
    parse_amount,
    parse_auth,
    parse_bool,
    parse_count,
    parse_encryption,
    parse_format,
    parse_id,
    parse_level,
    parse_listen,
    parse_mirrors,
    parse_path,
    parse_seconds,
    parse_size,
    parse_text,
    parse_textfile,
    parse_verify_first,
    plain,
)

F = TypeVar("F", bound=Callable[..., Any])

# What an option takes, by its parser.
METAVARS: Mapping[Callable[[str], object], str] = {
    parse_size: "SIZE",
    parse_amount: "SIZE|N%",
    parse_verify_first: "SIZE|always",
    parse_age: "AGE",
    parse_seconds: "SECONDS",
    parse_count: "N",
    parse_id: "ID",
    parse_level: "LEVEL",
    parse_format: "auto|human|json",
    parse_auth: "auto|required",
    parse_encryption: "optional|required",
    parse_zone: "NAME",
    parse_mirrors: "URL",
    parse_text: "TEXT",
    parse_path: "PATH",
    parse_listen: "HOST:PORT",
    parse_textfile: "PATH",
}


# The defaults of commands that do one thing and end: what went wrong is shown anyway, and the rest
# is for who asks.
QUIET = Layer("default", {"log_level": "error"})


def with_options(
    *groups: type, defaults: Layer | None = None, without: Collection[str] = ()
) -> Callable[[F], F]:
    """Add a flag for every option of ``groups``, and ``--config``.

    ``defaults`` are those of the command where they are not the options' own; for the help only.
    ``without`` names those that say nothing to the command, and get no flag.
    """
    settings = {
        name: setting
        for group in groups
        for name, setting in explain(group, [defaults] if defaults else []).items()
    }

    def decorate(function: F) -> F:
        for name, each in reversed(option_names(*groups).items()):
            if name in without:
                continue
            parse, text = each.metadata["parse"], each.metadata["help"]
            value = settings[name].value
            if value is not None and value is not False and value != ():
                text = f"{text}  [default: {plain(value, parse)}]"
            if parse is parse_bool:
                made = click.option(flag(name), name, flag_value="true", default=None, help=text)
            else:
                made = click.option(
                    flag(name),
                    name,
                    metavar=METAVARS[parse],
                    default=None,
                    multiple=parse is parse_mirrors,
                    callback=_together if parse is parse_mirrors else None,
                    help=text,
                    shell_complete=complete_value(parse),
                )
            function = made(function)
        return click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="TOML file with these options",
        )(function)

    return decorate


def _together(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Each ``--mirror`` names more of them."""
    return " ".join(values) if values else None


def flags_layer(flags: Mapping[str, str | None]) -> Layer:
    """The flags that were given."""
    return Layer("flag", {name: value for name, value in flags.items() if value is not None})


def layers(flags: Mapping[str, str | None], config: Path | None, *between: Layer) -> list[Layer]:
    """All layers of a command, the strongest first; ``between`` flags and environment."""
    return [
        flags_layer(flags),
        *between,
        environment_layer(os.environ),
        *toml_layers(config),
    ]


def argument(given: str | None, name: str, found: Sequence[Layer]) -> str:
    """A positional argument, or the key of that name in a TOML file."""
    if given is not None:
        return given
    for layer in found:
        if name in layer.values:
            return layer.values[name]
    raise click.UsageError(f"Missing argument '{name.upper()}'.", click.get_current_context())
