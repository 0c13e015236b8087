"""Can the cache directory be used, has it room, and is it on a disk that does it good?"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from cafsfs.doctor.case import Case, Finding, advice, broken, fine
from cafsfs.store.cache.index import works_on
from cafsfs.store.cache.premises import MEMORY, find_fstype

_LOOSE = stat.S_IWGRP | stat.S_IWOTH
_ELSEWHERE = "name another directory with --cache-dir"


def look_at_cache_rights(case: Case) -> Iterator[Finding]:
    """The cache directory is ours and private, or can be made."""
    directory = case.cache.cache_dir
    shown = shlex.quote(str(directory))
    standing = _standing(directory)
    found = standing.stat()
    if not stat.S_ISDIR(found.st_mode):
        yield broken(f"`{standing}` is not a directory", _ELSEWHERE)
    elif standing != directory:
        if os.access(standing, os.W_OK | os.X_OK):
            yield fine(f"the cache {directory} can be made")
        else:
            fix = f"as root: install -d -m 700 -o {case.uid} {shown}; or {_ELSEWHERE}"
            yield broken(f"the cache `{directory}` cannot be made in `{standing}`", fix)
    elif found.st_mode & _LOOSE:
        yield broken(f"others can write to the cache `{directory}`", f"chmod go-w {shown}")
    elif found.st_uid not in {0, case.uid}:
        yield broken(f"the cache `{directory}` belongs to user {found.st_uid}", _ELSEWHERE)
    elif not os.access(directory, os.W_OK | os.X_OK):
        yield advice(
            f"the cache `{directory}` can only be read, so nothing new is cached",
            f"as root: chown {case.uid} {shown}; is its disk read-only? or {_ELSEWHERE}",
        )
    else:
        yield fine(f"the cache {directory} is ours, and private")


def look_at_cache_room(case: Case) -> Iterator[Finding]:
    """The disk has room for what the cache may hold."""
    directory = case.cache.cache_dir
    disk = os.statvfs(_standing(directory))
    total, free = disk.f_frsize * disk.f_blocks, disk.f_frsize * disk.f_bavail
    bound, left = case.cache.cache_size.of(total), case.cache.cache_free.of(total)
    if free <= left:
        yield advice(
            f"{_gib(free)} are free on the disk of the cache, and --cache-free keeps {_gib(left)}: "
            "what is read is evicted again",
            f"make room on the disk of {directory}, or {_ELSEWHERE}",
        )
    elif bound > total:
        yield advice(
            f"--cache-size is {_gib(bound)}, and its whole disk has {_gib(total)}",
            "say what it may have of it, as in --cache-size 80%",
        )
    elif disk.f_files and not disk.f_favail:
        yield advice(
            "the disk of the cache has no inodes left, so nothing new is cached",
            f"`df -i {shlex.quote(str(directory))}` shows it; remove files, or {_ELSEWHERE}",
        )
    else:
        yield fine(f"the disk of the cache has {_gib(free)} free")


def look_at_cache_disk(case: Case) -> Iterator[Finding]:
    """The cache outlives a reboot, and its index a mount."""
    kind = find_fstype(_standing(case.cache.cache_dir).stat().st_dev)
    local = "--cache-dir on a local disk"
    if kind in MEMORY:
        yield advice(f"the cache is on {kind}: it takes memory, and a reboot empties it", local)
    elif not works_on(kind):
        yield advice(
            f"the cache is on {kind}, where its index cannot be kept: what is cached is hashed "
            "again after each mount",
            local,
        )
    else:
        yield fine(f"the cache is on {kind or 'a filesystem without a name'}")


def look_at_seed(case: Case) -> Iterator[Finding]:
    """The second tier can be read."""
    seed = case.cache.cache_seed
    if seed is None:
        return
    try:
        with os.scandir(seed / "blobs"):
            yield fine(f"the seed {seed} can be read")
    except OSError as error:
        yield broken(
            f"the seed `{seed}` has no `blobs` that can be read: {error.strerror}",
            "name a cache, or a store's own directory, with --cache-seed",
        )


def _standing(path: Path) -> Path:
    """The path, or the nearest one above it that is there."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
