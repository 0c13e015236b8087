"""Our mounts, live and dead, without touching any: a stat of a hung one would hang us.

What is mounted stands in mountinfo; who is alive answers on its control socket; of the others, the
kernel tells which process holds the connection (fdinfo of /dev/fuse, since Linux 6.16).
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cafsfs.control import ask_all
from cafsfs.fuse.mounts import FSTYPE, Mount, list_mounts

STATUS = "status"
"""Command of the control socket: all there is to know of the mount, see ``status.py``."""

DUMP = "dump"
"""Command of the control socket: where each task is, and what the parts hold, as text ``dump``."""

_PATIENCE = 2.0  # seconds that a mount has to answer; it takes less than a hundredth
_CONNECTIONS = Path("/sys/fs/fuse/connections")


class State(enum.Enum):
    """How a mount is."""

    LIVE = "live"  # it answers
    SILENT = "silent"  # its process is there, and does not answer
    DEAD = "dead"  # there is no process any more
    UNKNOWN = "unknown"  # somebody else's, or the kernel does not tell
    HIDDEN = "hidden"  # it answers, and is not mounted where we look


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mount. ``waiting`` requests have no answer yet by the kernel's count, if that can be seen.

    ``status`` is what a live one tells.
    """

    mountpoint: str
    uri: str
    state: State
    pid: int | None = None
    waiting: int | None = None
    status: Mapping[str, Any] = field(default_factory=dict)


def find_ours(*, patience: float = _PATIENCE) -> list[Found]:
    """All mounts of cafsfs, in the order in which they were mounted, hidden ones last.

    Blocks for ``patience`` seconds at most. Raises StoreError as ``live_sockets`` does.
    """
    mounted = [each for each in list_mounts() if each.fstype == FSTYPE]
    told = ask_all({"command": STATUS}, deadline=patience).values()
    answers = {(each.get("mountpoint"), each["kernel"].get("minor")): each for each in told}
    found: list[Found] = []
    holders: Mapping[int, int] | None = None
    for mount in mounted:
        status = answers.pop((mount.point, mount.minor), None)
        if status is not None:
            found.append(_live(status, State.LIVE))
            continue
        if holders is None:
            holders = dict(_holders())
        found.append(_unheard(mount, holders))
    return found + [_live(status, State.HIDDEN) for status in answers.values()]


def _live(status: Mapping[str, Any], state: State) -> Found:
    return Found(
        mountpoint=status["mountpoint"],
        uri=status["uri"],
        state=state,
        pid=status["pid"],
        waiting=_waiting(status["kernel"].get("minor")),
        status=status,
    )


def _unheard(mount: Mount, holders: Mapping[int, int]) -> Found:
    pid = holders.get(mount.minor)
    state = State.UNKNOWN
    if pid is not None:
        state = State.SILENT
    elif -1 not in holders and os.geteuid() in {0, mount.owner}:
        state = State.DEAD
    return Found(
        mountpoint=mount.point,
        uri=mount.source,
        state=state,
        pid=pid,
        waiting=_waiting(mount.minor),
    )


def _holders() -> Iterator[tuple[int, int]]:
    """The process behind each connection; -1 if there is one that does not tell which it has."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended, or is not ours to look at
            for number in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{number}") == "/dev/fuse":
                    yield _connection(f"/proc/{name}/fdinfo/{number}"), int(name)


def _connection(path: str) -> int:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "fuse_connection":
            return int(value)
    return -1


def _waiting(minor: int | None) -> int | None:
    try:
        return int((_CONNECTIONS / str(minor) / "waiting").read_text())
    except (OSError, ValueError):  # no fusectl, or not ours
        return None
