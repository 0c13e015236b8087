"""What is mounted where, and how to mount and unmount, without ever touching a mount.

A stat of a hung mount hangs, and the process that does it cannot be killed. So everything here
reads ``/proc/self/mountinfo`` and talks to ``fusermount3``; it never looks at a mount point that is
ours, but lets a child look that may hang.

A mount is dead if the process behind it has gone without unmounting: whatever is asked of it fails
with ENOTCONN. It stays until somebody mounts there again, so that a mirror job sees an error and
not an empty directory: root mounts beneath it and then takes it away (since Linux 6.5); where that
cannot be, it goes some milliseconds before the new mount comes.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cafsfs.errors import MountError

FSTYPE = "fuse.cafsfs"
_HELPER_DEADLINE = 20.0  # seconds that fusermount3 may take
_DEAD_DEADLINE = 2.0  # seconds; a dead mount says so at once
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8  # umount2(2)
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # system calls, by these numbers on every architecture but alpha
_AT_FDCWD, _CLONE, _EMPTY_PATH, _BENEATH = -100, 0x1, 0x4, 0x200  # what <linux/mount.h> has of them
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MOST_LINKS = 40  # in one path, as in the kernel


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. ``minor`` names the connection in /sys/fs/fuse/connections.

    ``owner`` is the user who has mounted it, if it is one of FUSE. ``options``, of the mount and of
    its filesystem, do not make it another one.
    """

    point: str
    minor: int
    fstype: str
    source: str
    owner: int | None = None
    options: frozenset[str] = field(default=frozenset(), compare=False)


def list_mounts() -> list[Mount]:
    """All mounts of this mount namespace, the latest last."""
    mounts = []
    # As bytes: a name may hold what only Python takes for the end of a line.
    for line in map(os.fsdecode, Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        minor = int(fields[2].partition(":")[2])
        own = rest[2] if len(rest) > 2 else ""
        owner = re.search(r"(?:^|,)user_id=(\d+)", own)
        mounts.append(
            Mount(
                point=_unescape(fields[4]),
                minor=minor,
                fstype=rest[0],
                source=_unescape(rest[1]),
                owner=int(owner[1]) if owner else None,
                options=frozenset(f"{fields[5]},{own}".split(",")),
            )
        )
    return mounts


def find_mount(point: str) -> Mount | None:
    """What is mounted on top at ``point`` (see ``canonical``), or None."""
    return next((each for each in reversed(list_mounts()) if each.point == point), None)


def canonical(path: str) -> str:
    """The path of a mount point as mountinfo has it; looks at its parents only, not at itself.

    Symbolic links are followed by readlink alone: it asks a filesystem only about what is a link.
    """
    absolute = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        parent, name = os.path.split(absolute)
        if not name:
            break
        parent = os.path.realpath(parent)
        absolute = os.path.join(parent, name)
        try:
            absolute = os.path.normpath(os.path.join(parent, os.readlink(absolute)))
        except OSError:
            break
    return absolute


def attach(point: str, options: Sequence[str]) -> int:
    """Mount and return the descriptor of the session; raises MountError with the reason.

    fusermount3 does it for root and for ordinary users alike: one way, with its messages. A dead
    mount of ours makes way for the new one.
    """
    if is_dead(point):
        descriptor = _replace(point, options)
        if descriptor is not None:
            return descriptor
        clear_dead(point)
    return _attach(point, options)


def _replace(point: str, options: Sequence[str]) -> int | None:
    """Mount beneath the one dead mount there, and take that away; None where that cannot be.

    Not for several on top of each other: all but the topmost would stay.
    """
    alone = [each.point for each in list_mounts() if each.fstype == FSTYPE].count(point) == 1
    if os.geteuid() != 0 or not alone:
        return None
    elsewhere = tempfile.mkdtemp(prefix="cafsfs-mount-")
    try:
        descriptor = _attach(elsewhere, options)
        moved = _copy_beneath(elsewhere, point)
        _unmount(elsewhere, _MNT_DETACH)
    finally:
        with suppress(OSError):
            os.rmdir(elsewhere)  # not more: it may be a mount that nobody answers for
    if moved and _unmount(point, _MNT_DETACH) == 0:
        return descriptor
    os.close(descriptor)
    return None


def _copy_beneath(source: str, point: str) -> bool:
    """Have what is mounted at ``source`` also be beneath what is mounted at ``point``."""
    libc = ctypes.CDLL(None)
    tree = libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _CLONE | os.O_CLOEXEC)
    if tree < 0:
        return False
    try:
        to = _AT_FDCWD, os.fsencode(point)
        return bool(libc.syscall(_MOVE_MOUNT, tree, b"", *to, _EMPTY_PATH | _BENEATH) == 0)
    finally:
        os.close(tree)


def _attach(point: str, options: Sequence[str]) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = ["fusermount3", "-o", ",".join(options), "--", point]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
        said = _run(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(_HELPER_DEADLINE)
        descriptor = _receive_descriptor(ours)
    if descriptor is None:
        raise MountError(
            f"cannot mount on `{point}`: {said or 'fusermount3 gave no descriptor'}",
            hint=_mount_hint(said),
        )
    return descriptor


def clear_dead(point: str) -> None:
    """Take away what killed daemons of ours have left; what is not ours is not touched."""
    while is_dead(point):
        detach(point, lazy=True)  # there may be another one below


def is_dead(point: str) -> bool:
    """Is a mount of ours there whose process has gone? Not if it hangs: it may come back."""
    there = find_mount(point)
    if there is None or there.fstype != FSTYPE:
        return False
    _, said = ask(point, _DEAD_DEADLINE)
    return os.strerror(errno.ENOTCONN).encode() in said


def probe(point: str) -> list[str]:
    """A command that asks the mount for something; in a process of its own, that may hang."""
    return ["stat", "--file-system", "--format=%T", "--", point]


def ask(point: str, deadline: float) -> tuple[int | None, bytes]:
    """Exit status (None: it hangs) and complaint of a child that asks the mount in our place.

    A child that hangs is left behind: it waits in the kernel, and so would we for its end.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            probe(point),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
        )
        end = time.monotonic() + deadline
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        if child.returncode is None:
            child.kill()
        said.seek(0)
        return child.returncode, said.read()


def detach(point: str, *, lazy: bool) -> None:
    """Unmount what is mounted there; raises MountError with what fusermount3 said.

    Both ends of a mount may do this at the same time, and the second to come finds nothing: fine.
    """
    before = find_mount(point)
    if before is None:
        return
    said = _run(["fusermount3", "-u", *(["-z"] if lazy else []), "--", point])
    if said and find_mount(point) == before:
        hint = None
        if "busy" in said.lower():
            hint = f"a process uses it (`fuser -vm {point}` tells which); or pass --lazy or --force"
        raise MountError(f"cannot unmount `{point}`: {said}", hint=hint)


def abort(mount: Mount) -> None:
    """Cut the kernel's connection: everything that waits fails at once.

    By the connection's abort file, or without a fusectl filesystem by umount2(2) with MNT_FORCE,
    which root may. Raises MountError where this user may not.
    """
    path = _CONNECTIONS / str(mount.minor) / "abort"
    try:
        path.write_text("1")
    except FileNotFoundError:
        if any(_CONNECTIONS.iterdir()) or os.path.ismount(_CONNECTIONS):
            return  # the connection is dead already: nothing waits on it
        failure = _unmount(mount.point, _MNT_FORCE)  # aborts a FUSE connection before it unmounts
        if failure not in {0, errno.EBUSY}:  # busy: aborted, and still to be detached
            raise MountError(
                f"cannot abort `{mount.point}`: {os.strerror(failure)}",
                hint=f"as root, mount -t fusectl fusectl {_CONNECTIONS}; then try again",
            ) from None
    except OSError as error:
        raise MountError(f"cannot abort `{mount.point}`: {error.strerror}") from error


def _unmount(point: str, how: int) -> int:
    """umount2(2), which root may; returns errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), how | _UMOUNT_NOFOLLOW) == 0:
        return 0
    return ctypes.get_errno()


def set_read_ahead(minor: int, kilobytes: int) -> None:
    """Let the kernel read ahead that far on this mount; root only, else OSError."""
    _read_ahead(minor).write_text(str(kilobytes))


def set_max_background(minor: int, count: int) -> None:
    """Let the kernel have so many page-cache requests under way; for who mounted, else OSError."""
    directory = _CONNECTIONS / str(minor)
    (directory / "max_background").write_text(str(count))
    (directory / "congestion_threshold").write_text(str(count * 3 // 4))


def kernel_settings(minor: int) -> dict[str, int | None]:
    """What the kernel does for a mount; None where it cannot be read (no fusectl, a container)."""
    return {
        "max_background": _number(_CONNECTIONS / str(minor) / "max_background"),
        "read_ahead_kb": _number(_read_ahead(minor)),
    }


def _read_ahead(minor: int) -> Path:
    return Path(f"/sys/class/bdi/0:{minor}/read_ahead_kb")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _run(
    command: list[str], *, env: dict[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> str:
    """Run fusermount3; what it complained about, or "" if it succeeded."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=pass_fds,
            timeout=_HELPER_DEADLINE,
            check=False,
        )
    except FileNotFoundError:
        raise MountError(
            "fusermount3 is not installed", hint="install it: apt-get install fuse3"
        ) from None
    except subprocess.TimeoutExpired:
        raise MountError(f"fusermount3 did not finish within {_HELPER_DEADLINE:g} s") from None
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().replace("fusermount3: ", "")
    return said.replace("\n", "; ") or f"fusermount3 failed with status {done.returncode}"


def _receive_descriptor(sock: socket.socket) -> int | None:
    space = socket.CMSG_SPACE(array.array("i").itemsize)
    try:
        _, ancillary, _, _ = sock.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return int.from_bytes(data[: array.array("i").itemsize], sys.byteorder)
    return None


def _mount_hint(said: str) -> str | None:
    if "user_allow_other" in said:
        return "add a line `user_allow_other` to /etc/fuse.conf, or mount without allow_other"
    if "/dev/fuse" in said or "fuse device" in said:
        return "load the kernel module (modprobe fuse); in a container, pass it: --device /dev/fuse"
    if "Permission denied" in said or "not permitted" in said:
        return "the directory must be yours and writable; in a container, add CAP_SYS_ADMIN"
    if "not connected" in said:
        return "a dead mount is in the way; clear it: cafsfs unmount --lazy MOUNTPOINT"
    return None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
