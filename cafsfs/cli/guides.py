"""The guides that ship in the package, as text: generated parts filled in, notes for tests out.

A guide is reStructuredText, ``cafsfs/guide/TOPIC.rst``, that reads well as it is. A comment
``.. options: StoreOptions`` stands where the options of a group go, from ``config/`` and the
commands that take them, and ``.. metrics: all`` where those of ``report/families.py`` go. Other
comments are for tests (``.. test: ID`` names what proves a
sentence), and no reader sees them. Man pages are made of the same text (``manual.py``).
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import click

from cafsfs.cli.options import METAVARS
from cafsfs.config import options
from cafsfs.config.options import FOR_UPLOADS, IN_MOUNT_OPTIONS, IN_URI, flag, option_names
from cafsfs.config.values import Choice, parse_bool, parse_verify_first, plain
from cafsfs.errors import UsageError
from cafsfs.report.families import (
    FAMILIES,
    INFO,
    INFO_HELP,
    REQUEST_SECONDS,
    REQUEST_SECONDS_HELP,
    Kind,
)

# In the order in which somebody new would read them.
TOPICS = (
    *("quickstart", "configuration", "operating", "troubleshooting", "metrics"),
    *("semantics", "security", "library", "protocol"),
)
WIDTH = 79

# A comment begins with `.. word: `; what is indented below it belongs to it.
_COMMENT = re.compile(r"^( *)\.\. ([a-z]+): (.*)\n((?:\1 +\S.*\n)*)", re.MULTILINE)
_LITERAL = re.compile(r"``(.+?)``(?!`)", re.DOTALL)
# Their values differ between machines and users.
_DEFAULTS = {
    "memory": "256M, or a quarter of the control group's limit where that is less",
    "cache_dir": "~/.cache/cafsfs ($XDG_CACHE_HOME/cafsfs); for root /var/cache/cafsfs",
    "uid": "yours",
    "gid": "yours",
    "fsname": "the URI as given",
    "encryption": "required if there is a secret",
}


def read_guide(topic: str, root: click.Group) -> str:
    """A guide as reStructuredText; ``root`` is all of the command line. Raises UsageError."""
    if topic not in TOPICS:
        raise UsageError(
            f"there is no guide `{topic}`", hint="`cafsfs help` lists the guides and the commands"
        )
    source = files("cafsfs").joinpath("guide", f"{topic}.rst").read_text(encoding="utf-8")
    return _tidy(_COMMENT.sub(lambda found: _fill_in(found, root), source))


def read_title(topic: str, root: click.Group) -> str:
    """The first line of a guide: what it is about."""
    return read_guide(topic, root).partition("\n")[0]


def as_plain_text(guide: str) -> str:
    """A guide as a terminal shows it: without the marks that only a formatter needs."""
    text = _LITERAL.sub(lambda found: found[1] if "`" in found[1] else f"`{found[1]}`", guide)
    text = re.sub(r"(?<!:)::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r"^ *\.\. code-block:: \w+\n\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^( *):(\w+:)", r"\1\2", text, flags=re.MULTILINE)
    return text.replace("**", "")


def describe_options(group: type, root: click.Group) -> str:
    """A definition list of all options of a group: default, and where each can be given."""
    return "\n".join(
        _describe(name, each, group, root) for name, each in option_names(group).items()
    )


def describe_metrics() -> str:
    """A definition list of all metrics: as they are exposed, their kind, labels and help."""
    listed = [
        (each.name + ("_total" if each.kind is Kind.COUNTER else ""), each.kind.value, each.labels)
        for each in FAMILIES
    ]
    helps = [each.help for each in FAMILIES]
    listed.append((REQUEST_SECONDS, "histogram", ("operation", "result")))
    listed.append((f"{INFO}_info", "info", ("uri", "version")))
    return "\n".join(
        f"``{name}``\n"
        + textwrap.fill(
            f"{kind}{' by ' + ', '.join(labels) if labels else ''}. {text}.",
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
        )
        + "\n"
        for (name, kind, labels), text in zip(
            listed, [*helps, REQUEST_SECONDS_HELP, INFO_HELP], strict=True
        )
    )


def commands_with(name: str, group: type, root: click.Group) -> list[str]:
    """The commands that have the option as a flag; ``config show`` has all of them, and is not."""
    text = option_names(group)[name].metadata["help"]
    return [
        path
        for path, command in walk(root)
        for option in command.params
        if isinstance(option, click.Option)
        and option.name == name
        and (option.help or "").startswith(text)
        and path != "config show"
    ]


def walk(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command, and the words that call it, behind ``cafsfs``."""
    for name, command in sorted(group.commands.items()):
        path = f"{above} {name}".strip()
        if isinstance(command, click.Group):
            yield from walk(command, path)
        elif not command.hidden:
            yield path, command


def _fill_in(found: re.Match[str], root: click.Group) -> str:
    if found[2] == "metrics":
        return describe_metrics()
    if found[2] != "options":
        return ""
    listed = describe_options(getattr(options, found[3]), root)
    return textwrap.indent(listed, found[1])


def _tidy(text: str) -> str:
    """One empty line where comments have left several."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _describe(name: str, each: dataclasses.Field[Any], group: type, root: click.Group) -> str:
    parse = each.metadata["parse"]
    metavar = "" if parse is parse_bool else f" {METAVARS[parse]}"
    value = getattr(group(), name)
    default = _DEFAULTS.get(name) or ("none" if value in {None, ()} else plain(value, parse))
    if parse is parse_verify_first:
        default = plain(value, parse)
    key = name.replace("_", "-")
    commands = ", ".join(f"``{path}``" for path in commands_with(name, group, root))
    ways = [f"``{flag(name)}`` of {commands}"]
    if group in IN_MOUNT_OPTIONS and name not in FOR_UPLOADS:
        ways.append(f"``-o {key}``")
    if group in IN_URI:
        ways.append(f"``?{key}=`` in the URI")
    ways += [f"``CAFSFS_{name.upper()}``", f"``{key}`` in TOML"]
    text = re.sub(r"(https?://\S+)", r"``\1``", each.metadata["help"])
    if not isinstance(parse, Choice):  # whose words come first, and are not written in capitals
        text = text[:1].upper() + text[1:]
    lines = [
        f"{text}.",
        f"Default: {default}.",
        f"Given as {'; '.join(ways)}.",
    ]
    body = "\n".join(
        textwrap.fill(line, WIDTH - 4, break_on_hyphens=False, break_long_words=False)
        for line in lines
    )
    return f"``{flag(name)}{metavar}``\n{textwrap.indent(body, '    ')}\n"
