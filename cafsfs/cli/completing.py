"""What shells offer for values that click knows nothing of: paths, words, our mounts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from cafsfs.config.values import Choice, parse_path, parse_verify_first
from cafsfs.fuse.mounts import FSTYPE, list_mounts

Completing = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_value(parse: Callable[[str], object]) -> Completing | None:
    """What completes the values that ``parse`` reads; None if they cannot be foreseen."""
    if isinstance(parse, Choice):
        return complete_words(parse.words)
    if parse is parse_verify_first:
        return complete_words(["always"])
    return complete_file if parse is parse_path else None


def complete_words(words: Collection[str]) -> Completing:
    """One of some words."""

    def complete(
        _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(each) for each in words if each.startswith(incomplete)]

    return complete


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A path; the shell knows how."""
    return [CompletionItem(incomplete, type="file")]


def complete_directory(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A directory; the shell knows how."""
    return [CompletionItem(incomplete, type="dir")]


def complete_mount(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A mount point of ours; from mountinfo, so that a hung one hangs no shell."""
    points: list[str] = []
    with suppress(OSError):
        points = [each.point for each in list_mounts() if each.fstype == FSTYPE]
    return [CompletionItem(each) for each in points if each.startswith(incomplete)]
