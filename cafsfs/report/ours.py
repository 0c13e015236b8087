"""Our mounts, live and dead, without touching any: a stat of a hung one would hang us.

What is mounted stands in mountinfo; who is alive answers on its control socket, wherever that is: a
session, cron and root each have a runtime directory of their own. Of the others, the kernel tells
which process holds the connection (fdinfo of /dev/fuse, since Linux 6.16).
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cafsfs.control import ask_all, live_sockets
from cafsfs.fuse.mounts import FSTYPE, Mount, list_mounts

STATUS = "status"
"""Command of the control socket: all there is to know of the mount, see ``status.py``."""

DUMP = "dump"
"""Command of the control socket: where each task is, and what the parts hold, as text ``dump``."""

_PATIENCE = 2.0  # seconds that a mount has to answer; it takes less than a hundredth
_QUESTION = {"command": STATUS}
_Place = tuple[str, int]  # mount point and minor number
_CONNECTIONS = Path("/sys/fs/fuse/connections")


class State(enum.Enum):
    """How a mount is."""

    LIVE = "live"  # it answers
    SILENT = "silent"  # its process is there, and does not answer
    DEAD = "dead"  # there is no process any more
    FOREIGN = "foreign"  # somebody else's
    UNKNOWN = "unknown"  # the kernel does not tell whether there is a process
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


def find_on(point: str) -> Found | None:
    """The mount on top of those on ``point``; a hidden one where none is mounted. As find_ours."""
    there = find_ours(point)
    mounted = [each for each in there if each.state is not State.HIDDEN]
    return next(reversed(mounted or there), None)


def find_ours(point: str | None = None, *, patience: float = _PATIENCE) -> list[Found]:
    """All mounts of cafsfs, in the order in which they were mounted, hidden ones last.

    Or those on ``point`` alone.

    Blocks for ``patience`` seconds at most; for twice as long, where some are silent here and some
    elsewhere. Raises StoreError as ``live_sockets`` does.
    """
    mounted = [
        each for each in list_mounts() if each.fstype == FSTYPE and point in {None, each.point}
    ]
    answers = _by_place(ask_all(_QUESTION, deadline=patience), point)
    holders: list[tuple[int, int]] = []
    if unheard := {(each.point, each.minor) for each in mounted} - answers.keys():
        holders = list(_holders())
        minors = {-1, *(minor for _, minor in unheard)}
        pids = {pid for minor, pid in holders if minor in minors}
        sockets = set(filter(None, map(socket_of, pids)))
        told = ask_all(_QUESTION, deadline=patience, paths=sockets.difference(live_sockets()))
        answers |= {place: it for place, it in _by_place(told, point).items() if place in unheard}
    found: list[Found] = []
    for mount in mounted:
        status = answers.pop((mount.point, mount.minor), None)
        if status is None:
            found.append(_unheard(mount, dict(holders)))
        else:
            found.append(_live(status, State.LIVE))
    return found + [_live(status, State.HIDDEN) for status in answers.values()]


def socket_of(pid: int) -> Path | None:
    """The control socket of a process, by its descriptors; None if it has none, or is not ours."""
    held = set()
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                held.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape").splitlines():
            *_, inode, path = line.split(maxsplit=7)
            # It got its name when it listened, see ``control.py``: the kernel has the former one.
            if f"socket:[{inode}]" in held and path.endswith(f"/{pid}.new"):
                return Path(path).with_suffix(".sock")
    return None


def _by_place(
    answers: Mapping[Path, Mapping[str, Any]], point: str | None
) -> dict[_Place, Mapping[str, Any]]:
    return {
        (it["mountpoint"], it["kernel"].get("minor")): it
        for it in answers.values()
        if point in {None, it["mountpoint"]}
    }


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
    elif os.geteuid() not in {0, mount.owner}:
        state = State.FOREIGN
    elif -1 not in holders:
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
