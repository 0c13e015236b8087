"""Which store a command is about: its URI, and the options of all layers that go with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cafsfs.cli.options import QUIET, argument, flags_layer
from cafsfs.config.layers import Layer, environment_layer, resolve, server_tables, toml_layers
from cafsfs.config.options import LogOptions, StoreOptions
from cafsfs.config.uri import StoreUri, parse_uri
from cafsfs.report.logs import start_logging

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A store, and the layers of a command, the strongest first; those of the URI among them."""

    uri: StoreUri
    layers: tuple[Layer, ...]

    def resolve(self, group: type[T]) -> T:
        """Options of a group; raises UsageError."""
        return resolve(group, self.layers)

    @property
    def store(self) -> StoreOptions:
        """How to talk to it."""
        return self.resolve(StoreOptions)


def find_target(
    uri: str | None, config: Path | None, flags: Mapping[str, str | None], *between: Layer
) -> Target:
    """Take the URI that was given, else that of a TOML file; the only way from words to servers.

    ``between`` are layers that are weaker than flags, and stronger than the URI. Raises UsageError.
    """
    files = toml_layers(config)
    parsed = parse_uri(argument(uri, "uri", files), server_tables(files).servers)
    environment = environment_layer(os.environ)
    return Target(parsed, (flags_layer(flags), *between, parsed.layer, environment, *files))


def find_quietly(uri: str, config: Path | None, flags: Mapping[str, str | None]) -> Target:
    """For a command that does one thing and ends; starts logging."""
    found = find_target(uri, config, flags)
    target = Target(found.uri, (*found.layers, QUIET))
    start_logging(target.resolve(LogOptions))
    return target
