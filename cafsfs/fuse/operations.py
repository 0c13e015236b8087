"""FUSE handlers: unwrap, one call into ``vfs/``, wrap; under one guard."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from cafsfs.errors import BlobNotFound, CafsError, NoSuchName, StaleInode
from cafsfs.fuse.errno_table import errno_of
from cafsfs.metrics import Metrics
from cafsfs.vfs.filesystem import ABSENT_FOR, FOREVER, Attributes, FileSystem
from cafsfs.vfs.names import parse_blob_name

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_BLOCK = 4096  # bytes; the unit of statfs
_FREE_INODES = 1 << 30
_TRACED = frozenset({"lookup", "open"})
_SLOW = 0.1  # seconds; of what takes no longer no span is made, but for those above
_NAME_MAX = 97  # 64 digits, a dot, an extension of 32


class _Absent(Exception):
    """There is no such name; the kernel may remember that for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


def guarded(
    handler: Callable[Concatenate[Operations, P], Awaitable[R]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
    """Let nothing but FUSEError leave a handler: anything else would end the process.

    What we raise on purpose becomes its errno and a line in the log, for the errno is all that a
    reader gets; what nobody expected becomes EIO and a traceback. Cancelled passes. How long it
    took, and what came of it, is counted.
    """
    name = handler.__name__.strip("_")

    @functools.wraps(handler)
    async def guard(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        number, result = self.began(name, args), "cancelled"
        try:
            answer = await handler(self, *args, **kwargs)
            result = "ok"
        except pyfuse3.FUSEError as error:
            result = _name_of(error.errno)
            raise
        except _Absent as absent:
            result = "ENOENT"
            return _absent(absent.seconds)  # type: ignore[return-value]  # only lookup raises it
        except CafsError as error:
            if not isinstance(error, NoSuchName | StaleInode):
                # Whoever unmounts knows that readers fail: no line of warning for each of them.
                level = logging.INFO if error is self.ending else logging.WARNING
                told = {"operation": name, "request": number, "error": type(error).__name__}
                log.log(level, "%s: %s", handler.__name__, error, extra={"fields": told})
            result = _name_of(errno_of(error))
            raise pyfuse3.FUSEError(errno_of(error)) from None
        except Exception:
            result = "EIO"
            self.metrics.handler_errors += 1
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        else:
            return answer
        finally:
            self.ended(number, name, result, args)
            self.answering.set()

    return guard


def _name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


class Operations(pyfuse3.Operations):
    """The handlers of one mount; FLUSH stays ENOSYS on purpose, it is never asked again then."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, filesystem: FileSystem, metrics: Metrics) -> None:
        super().__init__()
        self._fs = filesystem
        self.metrics = metrics
        self.answering = trio.Event()  # set from the first request on

    def began(self, name: str, args: Sequence[object]) -> int:
        """Count a request that has come; returns its number. Never raises."""
        try:
            number = self.metrics.requests.begin(name)
            if log.isEnabledFor(logging.DEBUG):
                log.debug(
                    "request %d: %s(%s)",
                    *(number, name, ", ".join(map(_told, args))),
                    extra={"fields": {"request": number, "operation": name}},
                )
        except Exception:  # what is counted is no reason for a read to fail
            return 0
        return number

    def ended(self, number: int, name: str, result: str, args: Sequence[Any]) -> None:
        """Count what became of it. Never raises."""
        try:
            seconds = self.metrics.requests.end(number, result)
        except Exception:
            self.metrics.handler_errors += 1
            return
        if self.metrics.trace is not None and (name in _TRACED or seconds > _SLOW):
            error = None if result in {"ok", "ENOENT"} else result
            self.metrics.traced(name, seconds, self._attributes(name, args), error)
        if log.isEnabledFor(logging.DEBUG):
            told = {"request": number, "operation": name, "result": result, "seconds": seconds}
            log.debug(
                "request %d: %s %s in %.6f s",
                *(number, name, result, seconds),
                extra={"fields": told},
            )

    def _attributes(self, name: str, args: Sequence[Any]) -> dict[str, str | int | None]:
        """What a span says of a request, by its arguments."""
        match name, args:
            case "lookup", (_, named, _):
                digest = parse_blob_name(named)
            case "open", (inode, *_):
                digest = self._fs.digest_of(inode)
            case "read", (handle, _, size):
                digest = self._fs.digest_of_open(handle)
                return {"hash": None if digest is None else digest.hex, "bytes": size}
            case _:
                digest = None
        return {"hash": None if digest is None else digest.hex}

    @property
    def ending(self) -> CafsError | None:
        """What all who wait are told once the filesystem goes away."""
        return self._fs.ending

    @guarded
    async def lookup(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        try:
            return self._entry(await self._fs.lookup(parent_inode, name))
        except NoSuchName:
            raise _Absent(FOREVER) from None
        except BlobNotFound:
            raise _Absent(ABSENT_FOR) from None

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        # Nobody waits for an answer, so not even FUSEError may leave this one.
        with contextlib.suppress(pyfuse3.FUSEError):
            await self._forget(inode_list)

    @guarded
    async def _forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self._fs.forget(inode, lookups)

    @guarded
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.getattr(inode))

    @guarded
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        handle, immutable = await self._fs.open(inode, ctx.pid)
        # Never direct_io for a blob: a reader that waits in it cannot be killed (tried).
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(handle), keep_cache=immutable, direct_io=not immutable
        )

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._fs.read(fh, off, size)  # type: ignore[return-value]  # any buffer does

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.release(fh)

    @guarded
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(await self._fs.opendir(inode))

    @guarded
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        for name, attributes, following in self._fs.readdir(fh, start_id):
            entry = self._entry(attributes)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, following):
                self._fs.passed_over(attributes.inode)
                return
            self._fs.listed(attributes.inode)

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.release(fh)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_blocks = space.total // _BLOCK
        data.f_bfree = data.f_bavail = (space.total - space.used) // _BLOCK
        # There is no such limit; but none free would be a full disk to whoever watches it.
        data.f_files = space.files + _FREE_INODES
        data.f_ffree = data.f_favail = _FREE_INODES
        data.f_namemax = _NAME_MAX
        return data

    @guarded
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        value = await self._fs.getxattr(inode, name)
        if value is None:
            # Never ENOSYS: the kernel would not ask again, for any file.
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @guarded
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        return []

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attributes.inode)
        entry.entry_timeout = FOREVER
        entry.attr_timeout = attributes.remember
        entry.st_mode = pyfuse3.ModeT(attributes.mode)
        entry.st_nlink = 1
        entry.st_uid = self._fs.options.uid
        entry.st_gid = self._fs.options.gid
        entry.st_size = attributes.size
        entry.st_blksize = _BLOCK
        entry.st_blocks = attributes.blocks
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.time_ns
        return entry


def _told(argument: object) -> str:
    """An argument of a handler, for the log."""
    if isinstance(argument, pyfuse3.RequestContext):
        return f"pid={argument.pid} uid={argument.uid}"
    return f"{argument!r:.200}"


def _absent(seconds: float) -> pyfuse3.EntryAttributes:
    """A negative answer that the kernel remembers: only inode 0 with a timeout is one."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = seconds
    return entry
