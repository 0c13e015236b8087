"""BLAKE3, the hash that names content (protocol page, section 1).

One core hashes about 5.7 GiB/s from memory (design page, section 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from cafsfs.digest import Digest

_CHUNK: Final = 4 << 20  # bytes read at once
_LEAST: Final = 64 << 10  # also where the kernel says that a file is empty, as in /proc
# From this size (bytes) on two threads: 0.145 s a GiB from memory, one takes 0.175 (tried, on two
# cores); for a small file the threads would cost more than they bring.
_LARGE: Final = 16 << 20


class Hasher:
    """Hashes content piece by piece, on the calling thread and without the GIL."""

    def __init__(self) -> None:
        self._state = blake3()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash more bytes."""
        self._state.update(data)

    def digest(self) -> Digest:
        """Return the digest of all bytes so far; more may follow."""
        return Digest(self._state.digest())


def hash_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of ``data``."""
    return Digest(blake3(data).digest())


def hash_file(
    path_or_fd: str | os.PathLike[str] | int,
    *,
    threads: int | None = None,
    on_read: Callable[[int], object] = lambda _: None,
) -> Digest:
    """Return the digest of a whole file, given by its path or by an open descriptor.

    A path is mapped into memory and hashed on all cores, each at about 5.7 GiB/s as long as the
    file is in memory (design page, section 3). It is for files that nobody truncates meanwhile
    (that is SIGBUS), and not for a child forked from a process that has used it: the child has
    no threads to hash with and hangs (both tried).

    A descriptor is read from its beginning, on two cores if it is large, or on ``threads``: who
    hashes a file on each core wants one (a fifth faster then, tried). Its position stays as it
    was, truncation and forks do no harm. ``on_read`` is told of every piece read, in bytes; what
    it raises passes.

    Raises OSError when the file cannot be opened or read. Blocks: call it in a thread.
    """
    if isinstance(path_or_fd, int):
        return _hash_descriptor(path_or_fd, threads, on_read)
    return Digest(blake3(max_threads=blake3.AUTO).update_mmap(path_or_fd).digest())


def _hash_descriptor(fd: int, threads: int | None, on_read: Callable[[int], object]) -> Digest:
    size = os.fstat(fd).st_size
    state = blake3(max_threads=threads or (2 if size >= _LARGE else 1))
    buffer = memoryview(bytearray(max(_LEAST, min(_CHUNK, size))))
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        state.update(buffer[:count])
        offset += count
        on_read(count)
    return Digest(state.digest())
