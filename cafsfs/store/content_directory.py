"""Read content that another cache of ours, or a store, has on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, StoreError
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.cache.premises import is_cache
from cafsfs.store.contracts import BlobStat, ContentSink, ContentSource, ContentStore
from cafsfs.store.files import copy_content
from cafsfs.store.local_root import LocalRoot, blob_path, is_blob
from cafsfs.store.unpacking import UnpackingStore

T = TypeVar("T")

_CHEAP = 256 << 10  # bytes; a pull of that costs about a hop, and shows a truncated file

# O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_seed(
    directory: Path, *, limiter: trio.CapacityLimiter, budget: MemoryBudget | None = None
) -> ContentStore:
    """A cache of another mount, or a store directory of packed blobs.

    ``budget`` is for unpacking, see UnpackingStore.

    Raises StoreError for what is neither; blocks for a look at the disk.
    """
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        raise StoreError(f"cannot read the seed `{directory}`: {error.strerror}") from error
    if is_cache(directory):
        return ContentDirectory(directory, limiter=limiter)
    if "blobs" in names:
        root = LocalRoot(directory, limiter=limiter)
        return UnpackingStore(root, limiter=limiter, budget=budget)
    raise StoreError(
        f"`{directory}` is neither a cache nor a store",
        hint="a cache holds `blobs` and `partial` or `index.sqlite`, a store holds `blobs` alone",
    )


class ContentDirectory(ContentStore):
    """Content below ``<directory>/blobs/ab/cd/``, as a cache keeps it; nothing is ever written.

    What is pulled is verified: CorruptBlob where it differs. Its owner may evict a blob at any
    time; one that is open can be read to its end.
    """

    def __init__(self, directory: Path, *, limiter: trio.CapacityLimiter) -> None:
        self._name = str(directory)
        self._blobs = directory / "blobs"
        self._limiter = limiter

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        def look() -> set[Digest]:
            return {each for each in digests if not is_blob(blob_path(self._blobs, each))}

        return await self._in_thread(look)

    async def stat(self, digest: Digest) -> BlobStat:
        def look() -> int:
            file = self._open(digest)
            file.close()
            return file.size

        size = await self._in_thread(look)
        return BlobStat(size=size if size > _CHEAP else None, source=self._name)

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        file = await self._in_thread(lambda: self._open(digest))
        try:
            found = await copy_content(file, sink, self._limiter)
        finally:
            file.close()
        if found != digest:
            raise CorruptBlob(f"{self._name} has wrong bytes of {digest}")
        return BlobStat(size=file.size, source=self._name, verified_at=int(time.time()))

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:  # noqa: ARG002  # never
        await trio.lowlevel.checkpoint()
        raise StoreError(
            f"cannot store {digest} in `{self._name}`: it is only read here",
            hint="put it on a server",
        )

    def _open(self, digest: Digest) -> _File:
        try:
            return _File(blob_path(self._blobs, digest), self._name)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFound(digest) from None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise StoreError(f"cannot read `{self._name}`: {error.strerror}") from error


class _File:
    """An open blob, up to the size that it had when it was opened."""

    settled = False

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._descriptor = _open_quietly(path)
        try:
            stat = os.fstat(self._descriptor)
            if not S_ISREG(stat.st_mode):
                raise FileNotFoundError  # as find_missing sees it
        except BaseException:
            self.close()
            raise
        self.size: int = stat.st_size

    def close(self) -> None:
        os.close(self._descriptor)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [buffer[: max(0, self.size - offset)]], offset)
        except OSError as error:
            raise StoreError(f"cannot read `{self._name}`: {error.strerror}") from error


def _open_quietly(path: Path) -> int:
    """Without a trace in the access time, where the file is ours."""
    try:
        return os.open(path, _FLAGS | os.O_NOATIME)
    except PermissionError:  # EPERM: it is another user's
        return os.open(path, _FLAGS)
