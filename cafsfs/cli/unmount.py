"""``cafsfs unmount``: also a dead or hung mount of ours, without ever looking at it."""

from __future__ import annotations

import click

from cafsfs.errors import MountError
from cafsfs.fuse import mounts


@click.command()
@click.argument("mountpoint")
@click.option("--lazy", is_flag=True, help="detach now; open files go on until they are closed")
@click.option("--force", is_flag=True, help="cut a hung mount: whatever waits on it fails at once")
def unmount(mountpoint: str, *, lazy: bool, force: bool) -> None:
    """Unmount what cafsfs has mounted on MOUNTPOINT."""
    point = mounts.canonical(mountpoint)
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
