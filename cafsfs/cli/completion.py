"""``cafsfs completion``: what a shell needs to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cafsfs.cli.talk import emit
from cafsfs.errors import StoreError

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print what completes our commands in SHELL: bash, zsh or fish.

    `make install` puts it where shells look. By hand:

    \b
    cafsfs completion bash >~/.local/share/bash-completion/completions/cafsfs
    cafsfs completion zsh >"${fpath[1]}/_cafsfs"
    cafsfs completion fish >~/.config/fish/completions/cafsfs.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise StoreError(f"this version of click completes nothing in {shell}")
    root = click.get_current_context().find_root().command
    emit(made(root, {}, "cafsfs", "_CAFSFS_COMPLETE").source())
