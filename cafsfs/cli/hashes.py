"""Hashes that a command is given: as arguments, and in a file or from standard input."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from cafsfs.cli.completing import complete_file
from cafsfs.digest import Digest
from cafsfs.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

# As `b3sum` and `cafsfs put` write them: the hash alone, or with a name behind it. A backslash
# before it says that the name is escaped.
_LINE = re.compile(rb"\\?([0-9a-f]{64})(?:\s.*)?", re.DOTALL)


def with_hashes(function: F) -> F:
    """Add the arguments HASH… and ``--from`` (``source``), for ``given_digests``."""
    function = click.option(
        "--from",
        "source",
        metavar="FILE|-",
        shell_complete=complete_file,
        help='read hashes from FILE, or standard input: one a line, also as "<hash>  <path>"',
    )(function)
    return click.argument("hashes", nargs=-1, metavar="[HASH…]")(function)


def given_digests(hashes: tuple[str, ...], source: str | None) -> list[Digest]:
    """The blobs that are named, each once, in their order; raises UsageError."""
    digests = [Digest.parse(each) for each in hashes]
    if source is not None:
        digests += _read(source)
    elif not hashes:
        raise UsageError("no blob is named", hint="name hashes, or a file of them: --from FILE")
    return list(dict.fromkeys(digests))


def _read(source: str) -> list[Digest]:
    if source == "-":
        if sys.stdin is None:
            raise UsageError("cannot read standard input: it is closed")
        return _parse(sys.stdin.buffer, "standard input")
    try:
        with Path(source).open("rb") as lines:
            return _parse(lines, f"`{source}`")
    except OSError as error:
        raise UsageError(
            f"cannot read `{source}`: {error.strerror}", hint="name another file with --from"
        ) from None


def _parse(lines: Iterable[bytes], name: str) -> list[Digest]:
    """Blank lines and comments (#) are passed over."""
    digests = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise UsageError(
                f"line {number} of {name} does not begin with a hash",
                hint="a line is 64 lower-case hexadecimal digits, and may go on with a path",
            )
        digests.append(Digest(bytes.fromhex(found[1].decode())))
    return digests
