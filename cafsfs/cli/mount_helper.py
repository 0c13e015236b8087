"""``mount.cafsfs``: what mount(8) calls for ``-t cafsfs``, as ``SPEC DIR [-sfnv] [-o OPTIONS]``.

It says the same thing in the words of ``cafsfs mount``. Exit codes are mount(8)'s: 0 done, 1 wrong
call, 32 the mount failed.
"""

from __future__ import annotations

import sys

from cafsfs.cli.app import invoke
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.errors import UsageError

_WRONG_CALL = 1
_MOUNT_FAILED = 32
_USAGE = "usage: mount.cafsfs URI DIRECTORY [-sfnv] [-o OPTIONS]"


def main() -> None:
    """Entry point of ``mount.cafsfs``."""
    sys.exit(mount(sys.argv[1:]))


def mount(arguments: list[str]) -> int:
    """Do what mount(8) asks; the exit code that it expects."""
    try:
        words, flags, options = _take_apart(arguments)
        sloppy = "s" in flags
        parsed = parse_mount_options(options, sloppy=sloppy)
    except UsageError as error:
        print(f"mount.cafsfs: {error}\n\nhint: {error.hint or _USAGE}", file=sys.stderr)
        return _WRONG_CALL
    if "f" in flags:  # fake: everything but the mount
        return 0
    ours = [f"{name}={value}".replace(",", "\\,") for name, value in parsed.layer.values.items()]
    # An -o each, for a value may end with a backslash. With --, a SPEC that begins with a dash is
    # no option.
    asked = [*ours, *parsed.kernel, *(["remount"] if parsed.remount else [])]
    given = [word for each in asked for word in ("-o", each)]
    code = invoke(["mount", *given, "--", *words])
    return {0: 0, 2: _WRONG_CALL}.get(code, _MOUNT_FAILED)


def _take_apart(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """Words, single-letter flags and the values of -o, in whatever order they come."""
    words: list[str] = []
    flags = ""
    options: list[str] = []
    rest = iter(arguments)
    for each in rest:
        if each == "-o":
            options.append(next(rest, ""))
        elif each.startswith("-o"):
            options.append(each[2:])
        elif each.startswith("-") and set(each[1:]) <= set("sfnv") and each != "-":
            flags += each[1:]
        elif each in {"-t", "-N"}:  # the type, and a namespace that mount(8) has entered already
            next(rest, "")
        elif each.startswith("-"):
            raise UsageError(f"unknown option `{each}`", hint=_USAGE)
        else:
            words.append(each)
    if len(words) != 2:
        raise UsageError("it takes a URI and a directory", hint=_USAGE)
    return words, flags, options
