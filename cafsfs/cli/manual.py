"""The man pages cafsfs(1) and mount.cafsfs(8), as reStructuredText: of the guides, and of click.

``python -m cafsfs.cli.manual PAGE`` writes one to standard output, and docutils makes the page of
it: see ``make man``.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

import click

from cafsfs.cli.app import cafsfs
from cafsfs.cli.guides import TOPICS, read_guide, read_title, walk
from cafsfs.cli.talk import emit
from cafsfs.config.options import ALL_OPTIONS, option_names

_MARKS = re.compile(r"([*|\\]|_(?=\W|$)|<)")  # what would begin markup
_QUOTED = re.compile(r"(`[^`\n]+`)")


def main() -> None:
    """Entry point: the page that the first argument names."""
    emit(PAGES[sys.argv[1]]())


def write_cafsfs() -> str:
    """cafsfs(1): all commands and options, and how to run it."""
    return "\n".join(
        [
            _head("cafsfs", 1, "mount a CAFS blob store as a directory"),
            _titled("SYNOPSIS", _synopsis()),
            _titled("DESCRIPTION", _without_title(_sections("quickstart", "", "What you see"))),
            _titled("COMMANDS", "\n".join(_describe(path, each) for path, each in walk(cafsfs))),
            _titled("CONFIGURATION", _without_title(read_guide("configuration", cafsfs))),
            _titled("OPERATING", _without_title(read_guide("operating", cafsfs))),
            _titled("SECURITY", _without_title(read_guide("security", cafsfs))),
            _titled("EXIT STATUS", _EXIT_STATUS),
            _titled("FILES", _FILES),
            _titled("SEE ALSO", f"**mount.cafsfs**\\ (8); {_guides()}"),
        ]
    )


def write_mount_cafsfs() -> str:
    """mount.cafsfs(8): the helper of mount(8), and what it does not do."""
    options = _sections("configuration", "mount(8), fstab", "Options of the store")
    options += _sections("configuration", "Options of the cache", "Options of a mount")
    options += _sections("configuration", "Options of the log")
    return "\n".join(
        [
            _head("mount.cafsfs", 8, "mount a CAFS blob store, for mount(8) and fstab"),
            _titled("SYNOPSIS", _MOUNT_SYNOPSIS),
            _titled("DESCRIPTION", _body(_sections("operating", "fstab and mount units"))),
            _titled("OPTIONS", options),
            _titled(
                "WHAT ONLY THE SERVICE GIVES",
                _body(_sections("operating", "What only the service gives")),
            ),
            _titled("EXIT STATUS", _MOUNT_EXIT_STATUS),
            _titled("SEE ALSO", f"**cafsfs**\\ (1), **mount**\\ (8), **fstab**\\ (5); {_guides()}"),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "cafsfs.1": write_cafsfs,
    "mount.cafsfs.8": write_mount_cafsfs,
}

# Long options and paths do not hyphenate: adjusted to both margins, lines would gape.
_LEFT = ".. raw:: manpage\n\n   .ad l\n   .nh\n"
_MOUNT_SYNOPSIS = """
| **mount -t cafsfs** *URI* *DIRECTORY* [**-o** *OPTIONS*]
| **mount.cafsfs** *URI* *DIRECTORY* [**-sfnv**] [**-o** *OPTIONS*]
"""
_EXIT_STATUS = """
0
    Done; of ``check``: all blobs are there.

1
    Failed; of ``check`` and ``stat``: a blob is absent; of ``doctor``: something will not work.

2
    The call is wrong.

3
    Of ``check`` and ``stat``: no server could tell.
"""
_MOUNT_EXIT_STATUS = """
0
    Mounted.

1
    The call is wrong: an option that nobody knows, a URI that is none.

32
    The mount failed; standard error says why.
"""
_FILES = """
``/etc/cafsfs/config.toml``, ``~/.config/cafsfs/config.toml``
    Options for all commands; the user's are stronger.

``/etc/cafsfs/NAME.toml``
    What ``cafsfs@NAME.service`` mounts, or ``cafsfs-serve@NAME.service`` serves.

``/var/cache/cafsfs``, ``~/.cache/cafsfs``
    The cache, of root and of others.

``/run/cafsfs``, ``$XDG_RUNTIME_DIR/cafsfs``
    Control sockets of live mounts.
"""


def _head(name: str, section: int, what: str) -> str:
    line, under = "=" * len(name), "-" * len(what)
    about = f":Manual section: {section}\n:Manual group: cafsfs\n:Version: {version('cafsfs')}"
    return f"{line}\n{name}\n{line}\n\n{under}\n{what}\n{under}\n\n{about}\n\n{_LEFT}\n"


def _titled(title: str, body: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n{body.strip()}\n"


def _sections(topic: str, first: str, last: str | None = None) -> str:
    """The sections of a guide from ``first`` to ``last``; from its beginning if first is empty."""
    parts = re.split(r"^(?=.+\n-{4,}$)", read_guide(topic, cafsfs), flags=re.MULTILINE)
    titles = ["", *(each.partition("\n")[0] for each in parts[1:])]
    begin = titles.index(first)
    if not first:  # what stands before all sections, and the one that was asked for
        return parts[0] + (parts[titles.index(last)] if last else "")
    return "".join(parts[begin : titles.index(last or first) + 1])


def _without_title(guide: str) -> str:
    return guide.split("\n", 2)[2]


def _body(section: str) -> str:
    return section.split("\n", 2)[2]


def _guides() -> str:
    shown = [f"``cafsfs help {topic}`` ({read_title(topic, cafsfs)})" for topic in TOPICS]
    return "\n\n".join(shown)


def _synopsis() -> str:
    lines = []
    for path, command in walk(cafsfs):
        pieces = command.collect_usage_pieces(click.Context(command))
        words = " ".join(_escape(each) for each in pieces)
        lines.append(f"| **cafsfs {path}** {words}")
    return "\n".join(lines)


def _describe(path: str, command: click.Command) -> str:
    """A command: its help, and the options that are its own."""
    shared = option_names(*ALL_OPTIONS)
    options = [each for each in command.params if isinstance(each, click.Option)]
    own = [each for each in options if each.name not in shared and not each.hidden]
    others = [each.opts[0] for each in options if each.name in shared]
    title = f"cafsfs {path}"
    text = f"{title}\n{'-' * len(title)}\n\n{_as_text(command.help or '')}\n\n"
    text += "".join(f"{_terms(each)}\n    {_escape(each.help or '')}\n\n" for each in own)
    if others:
        listed = ", ".join(f"``{each}``" for each in others)
        text += f"And options that stand below CONFIGURATION: {listed}.\n"
    return text


def _terms(option: click.Option) -> str:
    metavar = "" if option.is_flag else f" {option.metavar or (option.name or '').upper()}"
    return ", ".join(f"``{each}{metavar}``" for each in option.opts)


def _as_text(help_: str) -> str:
    """The help of a command: paragraphs, and what click is told not to wrap as it is."""
    return "\n\n".join(_paragraphs(inspect.cleandoc(help_)))


def _paragraphs(text: str) -> Iterator[str]:
    for each in re.split(r"\n{2,}", text):
        if each.startswith("\b\n"):
            lines = "".join(f"    {line}\n" for line in each[2:].splitlines())
            yield f"::\n\n{lines}"
        else:
            yield _escape(" ".join(each.split()))


def _escape(text: str) -> str:
    """Plain text as reStructuredText: marks escaped, and what is quoted literal."""
    return "".join(
        f"`{piece}`" if _QUOTED.fullmatch(piece) else _MARKS.sub(r"\\\1", piece)
        for piece in _QUOTED.split(text)
    )


if __name__ == "__main__":
    main()
