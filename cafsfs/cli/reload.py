"""``cafsfs reload``: what can change of a mount while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from cafsfs.cli.talk import emit
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.config.options import flag
from cafsfs.control import ask
from cafsfs.errors import MountError, Unavailable
from cafsfs.fuse import mounts
from cafsfs.reloading import RELOAD
from cafsfs.report.ours import State, find_ours, socket_of

_PATIENCE = 30.0  # seconds; the files of its configuration may be on a slow disk


@click.command(name="reload")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="as of `cafsfs mount -o`")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def reload_(mountpoint: str, options: tuple[str, ...], *, as_json: bool) -> None:
    """Have the mount on MOUNTPOINT read its configuration again.

    As SIGHUP does. Servers, limits, deadlines and the log's level change at once; pulls that are
    under way end where they began. What else has changed is named, and stays as it was. OPTIONS win
    over all others from now on, until it is unmounted.

    \b
    cafsfs reload /mnt/cafs
    cafsfs reload /mnt/cafs -o log_level=debug,cache_size=50G
    """
    asked = parse_mount_options(options).layer.values
    answer = request_reload(mounts.canonical(mountpoint), asked)
    if as_json:
        told = {"changed": answer["changed"], "fixed": answer["fixed"]}
        emit(json.dumps(told, indent=2) + "\n")
        return
    for line in describe(answer):
        emit(f"{line}\n")


def request_reload(point: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Have the mount at ``point`` changed; returns what was, and what could not be.

    Raises StoreError with what the mount says if it will not, MountError where none answers.
    """
    here = [each for each in find_ours(point) if each.state is State.LIVE]
    path = socket_of(here[-1].pid or 0) if here else None
    if path is None:
        raise MountError(
            f"no mount of ours answers for `{point}`", hint="`cafsfs mounts` lists them all"
        )
    request = {"command": RELOAD, "mountpoint": point, "options": dict(options)}
    try:
        return ask(path, request, deadline=_PATIENCE)
    except Unavailable as error:
        raise MountError(f"the mount on `{point}` was not reloaded: {error}") from error


def describe(answer: Mapping[str, Any]) -> list[str]:
    """What a mount has answered, a line an option."""
    changed, fixed = answer["changed"].items(), answer["fixed"].items()
    lines = [f"{flag(name)}: {old} -> {new}" for name, (old, new) in changed]
    lines += [f"{flag(name)}: not while it is mounted, {reason}" for name, reason in fixed]
    return lines or ["nothing has changed"]
