"""``cafsfs unmount``: also a dead or hung mount of ours, without ever looking at it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cafsfs.cli.completing import complete_mount
from cafsfs.cli.options import argument
from cafsfs.config.layers import toml_layers
from cafsfs.errors import MountError
from cafsfs.fuse import mounts


@click.command()
@click.argument("mountpoint", required=False, shell_complete=complete_mount)
@click.option("--lazy", is_flag=True, help="detach now; open files go on until they are closed")
@click.option("--force", is_flag=True, help="cut a hung mount: whatever waits on it fails at once")
@click.option(
    "--dead", is_flag=True, help="only what a killed daemon has left; nothing is fine, too"
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file that names the mountpoint",
)
def unmount(
    mountpoint: str | None, *, lazy: bool, force: bool, dead: bool, config: Path | None
) -> None:
    """Unmount what cafsfs has mounted on MOUNTPOINT."""
    files = toml_layers(config) if config is not None else []
    point = mounts.canonical(os.path.expanduser(argument(mountpoint, "mountpoint", files)))
    if dead:
        mounts.clear_dead(point)
        return
    mounted = mounts.find_mount(point)
    if mounted is None:
        raise MountError(f"nothing is mounted on `{point}`")
    if mounted.fstype != mounts.FSTYPE:
        raise MountError(
            f"`{point}` is a mount of type {mounted.fstype}, not one of cafsfs",
            hint=f"unmount it with: umount {point}",
        )
    if force:
        mounts.abort(mounted)
    mounts.detach(point, lazy=lazy or force)
