"""The directory of a cache: who may use it, who does, and the disk that it is on."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cafsfs.errors import StoreError
from cafsfs.store.cache import partials
from cafsfs.store.cache.durability import since_boot

MEMORY = frozenset({"tmpfs", "ramfs"})
_PARTIALS = "partial"
_INDEX = "index.sqlite"
_TRIES = 5  # to enter, between looks of others that take microseconds
_LOOSE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Session:
    """A process that uses a cache. ``bound``: bytes, if it keeps the cache within its bounds."""

    pid: int
    what: str
    bound: int | None = None


class Premises:
    """A cache's directory, made if it is missing, and private to its owner.

    Raises StoreError for one that cannot be used, or that others can write to: what stands under
    a hash is served as its content to everybody who mounts with it. ``read_only`` tells why
    nothing can be written, or is None.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs"
        self.partials = directory / _PARTIALS
        self.index = directory / _INDEX
        self._sessions = directory / "sessions"
        self.read_only: str | None = None
        for each in (directory, self.blobs, self.partials, self._sessions):
            self._prepare(each)
        found = directory.stat()
        self.identity = found.st_dev, found.st_ino  # by whatever path it is called
        self.fstype = find_fstype(found.st_dev)
        self.in_memory = self.fstype in MEMORY
        self._session: tuple[int, Path] | None = None
        self._foreground = self._open_foreground()
        # Opened before anything is written, and kept: see ``syncfs``.
        self.opened_at = since_boot()
        self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._pulls = False

    def make(self, directory: Path) -> None:
        """Make a directory of the cache, and those above it that somebody has removed.

        One by one: ``mkdir`` with parents gives those the umask's mode, and others may write.
        """
        if not directory.is_dir():
            if directory != self.directory:
                self.make(directory.parent)
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)

    def measure(self) -> tuple[int, int]:
        """Bytes of the disk, and those of them that an ordinary user may still write."""
        disk = os.statvfs(self.directory)
        return disk.f_frsize * disk.f_blocks, disk.f_frsize * disk.f_bavail

    # --- who uses it

    def enter(self, session: Session) -> None:
        """Note that this process uses the cache."""
        if self.read_only is not None:
            return
        with suppress(OSError):  # a cache that has no room for this can be read all the same
            for _ in range(_TRIES):
                path = self._sessions / f"{session.pid}.{secrets.token_hex(4)}"
                if (descriptor := _lock(path, os.O_CREAT | os.O_EXCL)) is not None:
                    self._session = descriptor, path
                    os.write(descriptor, json.dumps(asdict(session)).encode())
                    return
                # Who looks for dead sessions was quicker, and took it for one; or nothing can be
                # locked here.
                path.unlink(missing_ok=True)

    def restate(self, bound: int) -> None:
        """Tell the others another bound than at the beginning, if we told them one."""
        if self._session is None:
            return
        descriptor, _ = self._session
        with suppress(OSError, ValueError, TypeError):  # as in ``enter``
            told = Session(**json.loads(os.pread(descriptor, 1 << 16, 0)))
            if told.bound is not None:
                said = json.dumps(asdict(replace(told, bound=bound))).encode()
                os.ftruncate(descriptor, os.pwrite(descriptor, said, 0))

    def dead_sessions(self) -> list[tuple[int, Path]]:
        """Sessions that ended without ``leave``: the index may lack what they knew last.

        Locked by us; to be given to ``forget`` when all files have been looked at, else to
        ``os.close``.
        """
        dead = []
        for path in self._all_sessions():
            with suppress(OSError):  # just being removed
                if (descriptor := _lock(path)) is not None:
                    dead.append((descriptor, path))
        return dead

    def others(self) -> list[Session]:
        """The other processes that use the cache now."""
        found = []
        for path in self._all_sessions():
            if self._session is not None and path == self._session[1]:
                continue
            with suppress(OSError, ValueError, TypeError):  # ended, or just being written
                if (descriptor := _lock(path)) is None:
                    found.append(Session(**json.loads(path.read_bytes())))
                else:
                    os.close(descriptor)
        return found

    def largest_bound(self) -> int | None:
        """Bytes that the cache may hold by the word of others that keep it in bounds now."""
        return max((each.bound for each in self.others() if each.bound is not None), default=None)

    def leave(self) -> None:
        """All that this process knows is in the index."""
        if self._session is not None:
            self.forget(*self._session)
            self._session = None

    def forget(self, descriptor: int, path: Path) -> None:
        """Nothing is left to do for a session."""
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)

    def close(self) -> None:
        """Close all descriptors. A session that was not left counts as one that died."""
        if self._session is not None:
            os.close(self._session[0])
            self._session = None
        for descriptor in (self._foreground, self.descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._foreground = self.descriptor = -1

    # --- prefetching gives way

    def pull_in_foreground(self, *, pulls: bool) -> None:
        """Tell the others that somebody waits for a pull of this process, or that nobody does."""
        if pulls is self._pulls or self._foreground < 0:
            return
        self._pulls = pulls
        with suppress(OSError):  # then prefetching does not give way
            if pulls:
                partials.lock_range(self._foreground)
            else:
                partials.unlock_range(self._foreground)

    def in_foreground(self) -> bool:
        """Does somebody wait for a pull of another process?"""
        return self._foreground >= 0 and partials.is_range_locked(self._foreground)

    # ---

    def _all_sessions(self) -> list[Path]:
        with suppress(OSError):  # a cache that can only be read may have no such directory
            return list(self._sessions.iterdir())
        return []

    def _prepare(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as error:
            if self.read_only is not None and isinstance(error, FileNotFoundError):
                return  # not even that is there; nothing is cached then
            if directory == self.directory or not self.directory.is_dir():
                raise _unusable(directory, error.strerror or str(error)) from error
            self.read_only = f"{error.strerror} in `{self.directory}`"
            return
        if found.st_mode & _LOOSE:
            raise StoreError(
                f"others can write to the cache `{directory}`, and what they write would be read",
                hint=f"keep them out: chmod go-w {directory}",
            )
        if found.st_uid not in {0, os.geteuid()}:
            raise StoreError(
                f"the cache `{directory}` belongs to user {found.st_uid}, who decides what is "
                "read from it",
                hint="name a directory of your own with --cache-dir",
            )
        if not os.access(directory, os.W_OK):
            self.read_only = f"`{directory}` cannot be written"

    def _open_foreground(self) -> int:
        path = self.directory / "foreground"
        with suppress(OSError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return -1


def is_cache(directory: Path) -> bool:
    """Has a cache been made there? A store has ``blobs`` too, and must not be taken for one."""
    return any(os.path.lexists(directory / each) for each in (_PARTIALS, _INDEX))


def _unusable(directory: Path, reason: str) -> StoreError:
    return StoreError(
        f"cannot use `{directory}` as a cache: {reason}",
        hint="name another directory with --cache-dir",
    )


def _lock(path: Path, flags: int = 0) -> int | None:
    """Open and lock a file; None if somebody else has locked it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def find_fstype(device: int) -> str:
    """The type of a filesystem. By mountinfo: Python has no statfs that tells types."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == wanted:
            return after.split(" ")[0]
    return ""
