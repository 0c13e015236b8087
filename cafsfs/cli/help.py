"""``cafsfs help``: the guides that ship in the package, and the help of commands."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem

from cafsfs.cli.completing import complete_words
from cafsfs.cli.guides import TOPICS, as_plain_text, read_guide, read_title
from cafsfs.cli.talk import emit
from cafsfs.client.groups import closest
from cafsfs.errors import UsageError


def _complete_topic(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    root = context.find_root().command
    commands = root.commands if isinstance(root, click.Group) else {}
    return complete_words([*TOPICS, *commands])(context, parameter, incomplete)


@click.command(name="help")
@click.argument("topic", nargs=-1, shell_complete=_complete_topic)
def help_(topic: tuple[str, ...]) -> None:
    """Show the guide TOPIC, or the help of a command.

    Without a TOPIC all of them are listed. On a terminal it is shown by a pager ($PAGER) where
    there is one.

    \b
    cafsfs help quickstart
    cafsfs help troubleshooting
    cafsfs help cache verify
    """
    context = click.get_current_context().find_root()
    assert isinstance(context.command, click.Group)
    text = _find(list(topic), context, context.command)
    if sys.stdout is not None and sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        emit(text)


def _find(words: list[str], context: click.Context, root: click.Group) -> str:
    if not words:
        return _contents(root)
    if len(words) == 1 and words[0] in TOPICS:
        return as_plain_text(read_guide(words[0], root))
    return _help_of_command(words, context, root)


def _contents(root: click.Group) -> str:
    guides = "".join(f"  {topic:16}{read_title(topic, root)}\n" for topic in TOPICS)
    commands = "".join(
        f"  {name:16}{each.get_short_help_str(80)}\n"
        for name, each in sorted(root.commands.items())
    )
    return f"Guides, shown by `cafsfs help TOPIC`:\n\n{guides}\nCommands:\n\n{commands}"


def _help_of_command(words: list[str], context: click.Context, root: click.Group) -> str:
    command: click.Command = root
    for word in words:
        found = command.commands.get(word) if isinstance(command, click.Group) else None
        if found is None:
            known = [*TOPICS, *root.commands]
            meant = closest(word, known)
            raise UsageError(
                f"there is no guide or command `{' '.join(words)}`",
                hint=f"did you mean `{meant}`?" if meant else "`cafsfs help` lists them",
            )
        command = found
        context = click.Context(command, context, info_name=word)
    return command.get_help(context) + "\n"
