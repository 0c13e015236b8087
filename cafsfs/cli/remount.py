"""``mount -o remount``: nothing is mounted; the daemon of the mount is asked to change what it can.

The mount itself is never looked at, it may hang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cafsfs.control import ask_all
from cafsfs.errors import MountError
from cafsfs.fuse import mounts
from cafsfs.reloading import RELOAD


def remount(point: str, options: Mapping[str, str], kernel: Sequence[str] = ()) -> None:
    """Have ``options`` be in force there; raises MountError with those that cannot be.

    ``kernel``: options that only the kernel could change. mount(8) repeats those that are in force.
    """
    there = mounts.find_mount(point)
    if there is None or there.fstype != mounts.FSTYPE:
        raise MountError(
            f"cannot remount `{point}`: no mount of cafsfs is there", hint="leave out `remount`"
        )
    again = f"unmount it, and mount it again: cafsfs unmount {point}"
    answers = ask_all({"command": RELOAD, "mountpoint": point, "options": dict(options)})
    concerned = [each for each in answers.values() if each.get("concerned")]
    if not concerned:
        raise MountError(f"cannot remount `{point}`: its daemon does not answer", hint=again)
    fixed = [str(name).replace("_", "-") for each in concerned for name in each.get("fixed", [])]
    fixed += [each for each in kernel if each not in there.options]
    if fixed:
        raise MountError(
            f"cannot change while `{point}` is mounted: {', '.join(fixed)}", hint=again
        )
