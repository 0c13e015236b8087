"""Where options are given, and which place wins: flags, ``-o``, URI, environment, TOML, default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cafsfs.client.groups import NamedServer, closest, parse_tables
from cafsfs.config.options import ALL_OPTIONS, flag, option_names
from cafsfs.errors import UsageError

T = TypeVar("T")

SYSTEM_FILE = Path("/etc/cafsfs/config.toml")
# What a TOML file may hold beside options: the arguments of the commands that it configures.
ARGUMENTS = ("uri", "mountpoint", "directory")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that come from one place; keys with ``_``, values as text.

    ``servers`` are those that have a table in a TOML file.
    """

    origin: str
    values: Mapping[str, str]
    servers: tuple[NamedServer, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and where it came from."""

    value: T
    origin: str


def resolve(group: type[T], layers: Sequence[Layer]) -> T:
    """One group of options from ``layers``, the first that has a value winning."""
    settings = explain(group, layers)
    return group(**{name: setting.value for name, setting in settings.items()})


def explain(group: type, layers: Sequence[Layer]) -> dict[str, Setting[Any]]:
    """The value and the origin of every option of a group; raises UsageError for a bad value."""
    defaults = group()
    settings: dict[str, Setting[Any]] = {}
    for name, each in option_names(group).items():
        settings[name] = Setting(getattr(defaults, name), "default")
        for layer in layers:
            if name not in layer.values:
                continue
            value = parse_value(each.metadata["parse"], name, layer.values[name], layer.origin)
            settings[name] = Setting(value, layer.origin)
            break
    return settings


def parse_value(parse: Callable[[str], object], name: str, text: str, origin: str) -> object:
    """Read what an option was given; raises UsageError."""
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(
            f"`{text}` is no value for {flag(name)} ({origin})", hint=f"it takes {error}"
        ) from None


def gathered(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What one place gives: of several values the last one wins, but mirrors add up."""
    values: dict[str, str] = {}
    for name, value in pairs:
        several = name == "mirror" and name in values
        values[name] = f"{values[name]} {value}" if several else value
    return values


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """``CAFSFS_CACHE_SIZE`` and its like; other ``CAFSFS_*`` variables are left alone."""
    names = option_names(*ALL_OPTIONS)
    values = {}
    for name in names:
        value = environ.get("CAFSFS_" + name.upper())
        if value:  # an empty variable is as good as none
            values[name] = value
    return Layer("environment", values)


def toml_layers(given: Path | None) -> list[Layer]:
    """The file given by ``--config``, else those that there are of the user's and the system's."""
    if given is not None:
        return [_read_toml(given)]
    home = Path(os.environ["HOME"]) / ".config/cafsfs/config.toml" if "HOME" in os.environ else None
    files = [home, SYSTEM_FILE]
    # Not Path.is_file: it raises where a directory on the way may not be searched.
    return [_read_toml(each) for each in files if each is not None and os.path.isfile(each)]


def _read_toml(path: Path) -> Layer:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read `{path}`: {error.strerror}", hint="name another file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` is not TOML: {error}",
            hint='text and sizes stand in quotes, as in cache-size = "20G"',
        ) from None
    known = {*option_names(*ALL_OPTIONS), *ARGUMENTS}
    servers = parse_tables(read.pop("server", []), str(path), known)
    values = {}
    for key, value in read.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown_option(key, sorted([*known, "[[server]]"]), str(path))
        if name == "mirror" and isinstance(value, list):
            value = " ".join(map(str, value))  # noqa: PLW2901
        values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return Layer(str(path), values, servers)


def server_tables(layers: Sequence[Layer]) -> Layer:
    """The strongest layer that has tables of servers; one without any, if none has."""
    return next((each for each in layers if each.servers), Layer("default", {}))


def unknown_option(key: str, known: Sequence[str], origin: str) -> UsageError:
    """The error for a key that is no option; names the one that was probably meant."""
    meant = closest(key.replace("-", "_"), known)
    return UsageError(
        f"`{key}` is not an option ({origin})",
        hint=f"did you mean `{meant.replace('_', '-')}`?"
        if meant
        else "`cafsfs config show` lists the options",
    )
