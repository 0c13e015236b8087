"""Ordinary files as sinks and sources of content."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG

import trio

from cafsfs.digest import Digest
from cafsfs.errors import CorruptBlob, StoreError
from cafsfs.packing import hash_file
from cafsfs.store.contracts import BlobStat, ContentStore


class FileSink:
    """Content written to a file that is open for writing.

    ``written`` (bytes, of this attempt) and ``progress`` (pieces, of all attempts) may be read from
    any thread. ``on_write`` is told the bytes of each piece, in the worker thread.
    """

    def __init__(
        self, descriptor: int, *, on_write: Callable[[int], object] = lambda _: None
    ) -> None:
        self._descriptor = descriptor
        self._on_write = on_write
        self.written = 0
        self.progress = 0

    def restart(self) -> None:
        if self.written:
            os.ftruncate(self._descriptor, 0)
        self.written = 0

    def write(self, data: bytes | memoryview, /) -> None:
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, self.written)
            self.written += count
            left = left[count:]
        self.progress += 1
        self._on_write(len(data))


class FileSource:
    """The content of a file, as it was when it was hashed.

    Raises StoreError, also from ``close`` on, for a file that cannot be read. A file that changes
    after it was hashed would be uploaded under a name that is not its own: reading it raises
    CorruptBlob then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._stamp = self._look()
                self.size = self._stamp[0]
                self.digest = hash_file(path)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StoreError(f"cannot read `{path}`: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._descriptor)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        try:
            count = os.preadv(self._descriptor, [buffer[: max(0, self.size - offset)]], offset)
        except OSError as error:
            raise StoreError(f"cannot read `{self._path}`: {error.strerror}") from error
        # Looked at after each piece, so that the last piece of a changed file is never sent.
        if self._look() != self._stamp:
            raise CorruptBlob(
                f"`{self._path}` changed while it was being uploaded",
                hint="upload it again when nothing writes to it",
            )
        return count

    def _look(self) -> tuple[int, int]:
        stat = os.fstat(self._descriptor)
        if not S_ISREG(stat.st_mode):
            raise StoreError(f"cannot read `{self._path}`: it is no regular file")
        return stat.st_size, stat.st_mtime_ns


async def pull_to_file(
    store: ContentStore,
    digest: Digest,
    path: Path,
    *,
    limiter: trio.CapacityLimiter,
    on_write: Callable[[int], object] = lambda _: None,
) -> BlobStat:
    """Pull a blob to ``path``; a reader of ``path`` sees the old file or all of the new one.

    Written to a temporary file beside ``path``, verified, then renamed. Makes missing parent
    directories. Raises what ``store.pull`` raises, and StoreError for a directory that cannot be
    written.
    """

    def prepare() -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    descriptor = -1
    try:
        descriptor = await trio.to_thread.run_sync(prepare, limiter=limiter)
        stat = await store.pull(digest, FileSink(descriptor, on_write=on_write))
        await trio.to_thread.run_sync(os.rename, temporary, path, limiter=limiter)
    except OSError as error:
        raise StoreError(f"cannot write `{path}`: {error.strerror}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
    return stat
