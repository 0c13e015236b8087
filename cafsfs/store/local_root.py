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
_HOLD = 1.0  # seconds that an upload collects bytes before it writes them


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
        self.sync = sync

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
        body = source()
        start = memoryview(bytearray(_HEAD if body.length is None else min(_HEAD, body.length)))
        filled = 0
        while filled < len(start) and (count := await body.readinto(start[filled:])):
            filled += count
        deposit = _Deposit(self, digest, body.length)
        if filled < len(start) or filled == body.length:
            await self.in_thread(lambda: deposit.store_all(start[:filled]))
            return

        async def write(piece: memoryview) -> None:
            await self.in_thread(lambda: deposit.take(piece))

        try:
            await write(start)
            length = None if body.length is None else body.length - filled
            await pump(body.readinto, write, length=length, hold=_HOLD)
            await self.in_thread(deposit.commit)
        finally:
            deposit.close()

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

    def create_beside(self, digest: Digest) -> tuple[int, str, str]:
        """A new file next to a blob: its descriptor, its path, and the path of the blob.

        Makes missing directories, but no root. Raises StoreError if that is missing.
        """
        path = self._path(digest)
        # The name that deployed servers give their temporary files, so that whatever cleans up
        # after them cleans up after us (protocol page, section 3.5).
        temporary = f"{path}_blob{secrets.token_hex(3)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(temporary, flags, 0o644), temporary, path
        except FileNotFoundError:
            if not self._directory.is_dir():
                raise StoreError(
                    f"there is no root `{self._directory}`",
                    hint=f"make it first: mkdir {self._directory}",
                ) from None
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(temporary, flags, 0o644), temporary, path

    def unpacker(self, digest: Digest, length: int | None) -> VerifyingUnpacker:
        """Verifies a packed blob of ``length`` bytes; keeps nothing of it."""
        return VerifyingUnpacker(digest, None, packed_length=length, limits=self._limits)


class _Deposit:
    """One blob on its way into a root; all methods but ``close`` run in worker threads."""

    def __init__(self, root: LocalRoot, digest: Digest, length: int | None) -> None:
        self._root = root
        self._digest = digest
        self._unpacker = root.unpacker(digest, length)
        self._sink: FileSink | None = None
        self._descriptor = -1
        self._temporary = self._path = ""

    def store_all(self, blob: memoryview) -> None:
        """A small blob in one go: nothing is created for what is wrong."""
        self._unpacker.feed(blob)
        self._unpacker.finish()
        try:
            self._write(blob)
            self._name()
        finally:
            self.close()

    def take(self, piece: memoryview) -> None:
        self._unpacker.feed(piece)
        self._write(piece)

    def commit(self) -> None:
        self._unpacker.finish()
        self._name()

    def _write(self, piece: memoryview) -> None:
        if self._sink is None:
            created = self._root.create_beside(self._digest)
            self._descriptor, self._temporary, self._path = created
            self._sink = FileSink(self._descriptor)
        self._sink.write(piece)

    def _name(self) -> None:
        if self._root.sync:
            os.fdatasync(self._descriptor)
        os.rename(self._temporary, self._path)
        self._temporary = ""

    def close(self) -> None:
        """Leave nothing open, and nothing that has no name of its own."""
        if self._sink is None:
            return
        os.close(self._descriptor)
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)
