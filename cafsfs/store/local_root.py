"""Packed blobs in a directory, as a CAFS server keeps them: ``<root>/blobs/ab/cd/<hash>``.

The layout is the deployed server's (protocol page, section 5), so that this store can be pointed
at an existing directory and the other way round. That server may rename a recompressed file over
a blob at any time; an open body goes on reading the file that it opened.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, RangeError, StoreError
from cafsfs.packing import HEADER_LENGTH, Header, UnpackLimits, VerifyingUnpacker
from cafsfs.store.contracts import PackedBody, PackedSource, PackedStat, PackedStore
from cafsfs.store.files import FileSink
from cafsfs.store.pump import pump

T = TypeVar("T")

_HEAD = 64 << 10  # bytes; a blob up to this is read in the hop that opens it
_START = 4 << 10  # bytes read of a larger one: little to keep where a thousand clients are slow


def blob_path(directory: Path, digest: Digest) -> Path:
    """Where a blob stands below the directory that holds ``ab/cd/``."""
    return directory / digest.hex[:2] / digest.hex[2:4] / digest.hex


def is_blob(path: Path | str) -> bool:
    """Is there a file? Unlike ``Path.is_file`` of newer Pythons raises OSError if none can tell."""
    try:
        return S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


class FileBody:
    """Packed bytes of an open file; a server may hand ``descriptor`` to sendfile instead.

    ``head`` holds the first bytes, read already; ``whole`` says that these are all.
    """

    def __init__(
        self, descriptor: int, offset: int, length: int, limiter: trio.CapacityLimiter
    ) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.length: int = length
        start = length if length <= _HEAD else _START
        self.head = memoryview(os.pread(descriptor, start, offset))
        self.whole = len(self.head) == length
        self._done = 0
        self._limiter = limiter

    async def readinto(self, buffer: memoryview) -> int:
        view = buffer[: self.length - self._done]
        if self._done < len(self.head):
            await trio.lowlevel.checkpoint()
            piece = self.head[self._done : self._done + len(view)]
            view[: len(piece)] = piece
            count = len(piece)
        else:
            count = await trio.to_thread.run_sync(self._read, view, limiter=self._limiter)
        self._done += count
        return count

    def _read(self, view: memoryview) -> int:
        try:
            count = os.preadv(self.descriptor, [view], self.offset + self._done)
        except OSError as error:
            raise StoreError(f"cannot read a stored blob: {error.strerror}") from error
        if view and not count:
            raise StoreError("a stored blob became shorter while it was being read")
        return count


class LocalRoot(PackedStore):
    """One root of a directory of roots.

    What is deposited is verified first: wrong content raises CorruptBlob and nothing is stored.
    With ``sync`` the data of a blob is on the disk before its name is.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limiter: trio.CapacityLimiter,
        limits: UnpackLimits | None = None,
        sync: bool = False,
    ) -> None:
        self.name = str(directory)
        self._directory = directory
        self._prefix = f"{directory / 'blobs'}/"
        self._limiter = limiter
        self._limits = limits or UnpackLimits()
        self._sync = sync

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        def look() -> set[Digest]:
            return {each for each in digests if not self.has(each)}

        return await self.in_thread(look)

    async def inspect(self, digest: Digest) -> PackedStat:
        return await self.in_thread(lambda: self.measure(digest))

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        body = await self.in_thread(lambda: self.open_body(digest, offset, length))
        try:
            yield body
        finally:
            os.close(body.descriptor)

    async def deposit(self, digest: Digest, source: PackedSource) -> None:
        path = Path(self._path(digest))
        body = source()
        # The name that deployed servers give their temporary files, so that whatever cleans up
        # after them cleans up after us (protocol page, section 3.5).
        temporary = path.with_name(f"{path.name}_blob{secrets.token_hex(3)}")
        descriptor = await self.in_thread(lambda: self._create(temporary))
        try:
            sink = FileSink(descriptor)
            unpacker = VerifyingUnpacker(
                digest, None, packed_length=body.length, limits=self._limits
            )

            def take(piece: memoryview) -> None:
                unpacker.feed(piece)
                sink.write(piece)

            async def write(piece: memoryview) -> None:
                await self.in_thread(lambda: take(piece))

            def commit() -> None:
                unpacker.finish()
                if self._sync:
                    os.fdatasync(descriptor)
                temporary.rename(path)

            await pump(body.readinto, write, length=body.length)
            await self.in_thread(commit)
        finally:
            os.close(descriptor)
            with suppress(OSError):  # renamed, mostly
                temporary.unlink()

    # --- without a hop: for whoever does several things in one; these block and raise OSError

    def has(self, digest: Digest) -> bool:
        """Is the blob there?"""
        return is_blob(self._path(digest))

    def measure(self, digest: Digest) -> PackedStat:
        """The packed length and the header; raises BlobNotFound, CorruptBlob."""
        descriptor = self._open(digest)
        try:
            length = os.fstat(descriptor).st_size
            return PackedStat(length, Header.parse(os.pread(descriptor, HEADER_LENGTH, 0)))
        finally:
            os.close(descriptor)

    def open_body(self, digest: Digest, offset: int, length: int | None) -> FileBody:
        """A body as ``fetch`` gives it; the caller closes its descriptor.

        Raises BlobNotFound, RangeError.
        """
        descriptor = self._open(digest)
        try:
            whole = os.fstat(descriptor).st_size
            count = whole - offset if length is None else length
            if offset > whole or offset + count > whole:
                raise RangeError(f"{count} bytes at {offset} lie outside the {whole} of {digest}")
            return FileBody(descriptor, offset, count, self._limiter)
        except BaseException:
            os.close(descriptor)
            raise

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, in one hop; an OSError becomes a StoreError."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> StoreError:
        """Say whose error it is, and what helps."""
        hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
        return StoreError(f"`{self.name}`: {error.strerror}", hint=hint)

    def _path(self, digest: Digest) -> str:
        # As blob_path has it; that takes ten times as long, and opening a file not much longer.
        name = digest.hex
        return f"{self._prefix}{name[:2]}/{name[2:4]}/{name}"

    def _open(self, digest: Digest) -> int:
        try:
            return os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFound(digest) from None

    def _create(self, path: Path) -> int:
        if not self._directory.is_dir():
            raise StoreError(
                f"there is no root `{self._directory}`",
                hint=f"make it first: mkdir {self._directory}",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
            raise StoreError(f"`{self.name}`: {error.strerror}", hint=hint) from error
