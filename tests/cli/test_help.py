"""``--help`` of every command teaches: what it does, what its arguments are, and an example."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest

from cafsfs.cli.app import cafsfs
from tests.cli.running import run


def commands(
    group: click.Group, above: click.Context | None = None
) -> Iterator[tuple[click.Context, click.Command]]:
    context = click.Context(group, above, info_name=group.name)
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, context)
        else:
            yield click.Context(command, context, info_name=name), command


COMMANDS = list(commands(cafsfs))


def test_the_commands_of_the_design() -> None:
    assert {context.command_path for context, _ in COMMANDS} == {
        *("cafsfs mount", "cafsfs unmount", "cafsfs serve", "cafsfs demo", "cafsfs config show"),
        *("cafsfs put", "cafsfs get", "cafsfs cat", "cafsfs check", "cafsfs stat"),
        *("cafsfs prefetch", "cafsfs cache status", "cafsfs cache ls", "cafsfs cache verify"),
        *("cafsfs cache gc", "cafsfs cache evict", "cafsfs cache pin", "cafsfs cache unpin"),
        *("cafsfs status", "cafsfs mounts", "cafsfs reload", "cafsfs dashboard"),
        *("cafsfs help", "cafsfs doctor", "cafsfs completion", "cafsfs bugreport"),
    }


@pytest.mark.parametrize(
    ("context", "command"), COMMANDS, ids=[context.command_path for context, _ in COMMANDS]
)
def test_help_teaches(context: click.Context, command: click.Command) -> None:
    text = command.get_help(context)
    opening = (command.help or "").splitlines()[0]
    assert opening.endswith(".")
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    for each in arguments:
        name = (each.metavar or each.name or "").strip("[…]").upper().removesuffix("S")
        assert name in text.partition("Options:")[0].partition("\n")[2].upper(), name
    if command.name != "unmount":
        assert f"\n  {context.command_path} " in text.replace("CAFSFS_CACHE_SIZE=5G ", "")
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name


@pytest.mark.parametrize(
    ("context", "command"), COMMANDS, ids=[context.command_path for context, _ in COMMANDS]
)
def test_the_list_of_commands_cuts_no_sentence_off(
    context: click.Context, command: click.Command
) -> None:
    assert not command.get_short_help_str(66).endswith("...")


def test_defaults_are_shown() -> None:
    text = " ".join(next(c.get_help(x) for x, c in COMMANDS if c.name == "mount").split())
    assert "what the cache may hold, in bytes or percent of its disk [default: 20G]" in text
    assert "debug, info, warning or error [default: info]" in text
    text = " ".join(next(c.get_help(x) for x, c in COMMANDS if c.name == "get").split())
    assert "debug, info, warning or error [default: error]" in text


def test_no_command_has_a_flag_that_says_nothing_to_it() -> None:
    flags = {c.name: {option.name for option in c.params} for _, c in COMMANDS}
    assert [name for name, each in flags.items() if "replicas" in each] == ["put", "show"]
    for name in ("mount", "get", "cat", "check", "stat", "prefetch", "pin"):
        assert flags[name] >= {"zone", "mirror", "secret_file", "auth"}
    assert flags["put"] >= {"zone", "secret_file", "auth"}
    assert not flags["put"] & {"mirror", "slow_rate"}


@pytest.mark.process
@pytest.mark.parametrize("words", [["--help"], ["-h"], ["put", "--help"], ["config", "show", "-h"]])
def test_help_is_output(words: list[str]) -> None:
    assert run(*words).ok().text.startswith("Usage: cafsfs ")


@pytest.mark.process
def test_the_version() -> None:
    assert run("--version").ok().text == f"cafsfs, version {version('cafsfs')}\n"
