"""The only place where objects are put together.

The stack of a mount, as it reads aloud: a ReadCachingStore of a DiskCache over a FallbackStore of,
for each server, a RetryingStore of an UnpackingStore of a RemoteStore. For ``file:///…`` the lower
half is an UnpackingStore of a LocalRoot.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import trio

from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Deadlines
from cafsfs.config import CacheOptions, MountOptions, ServeOptions, StoreOptions, StoreUri
from cafsfs.errors import StoreError
from cafsfs.metrics import Metrics
from cafsfs.packing import Compression
from cafsfs.server import CafsServer, Limits
from cafsfs.store.contracts import ContentStore
from cafsfs.store.disk_cache import DiskCache
from cafsfs.store.fallback import FallbackStore
from cafsfs.store.local_root import LocalRoot
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.store.retrying import RetryingStore
from cafsfs.store.unpacking import UnpackingStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions

VERSION = version("cafsfs")

_WORKERS = 4  # threads that hash, unpack and write; two cores are busy with two
# A connection that breaks in the middle is worth one more try at once; a server that is really
# down refuses the second, and the next server is asked.
_ATTEMPTS = 2
_SHARE = 0.4  # of a reader's patience that one of several servers may use up


@asynccontextmanager
async def open_store(
    uri: StoreUri,
    options: StoreOptions,
    *,
    compression: Compression = Compression.NONE,
    parking: trio.Nursery | None = None,
    deadlines: Deadlines | None = None,
) -> AsyncIterator[ContentStore]:
    """The content behind a URI; ``compression`` is for uploads. See RemoteStore on the rest.

    Raises StoreError for a directory that is not there.
    """
    limiter = trio.CapacityLimiter(_WORKERS)
    if uri.directory is not None:
        if not await trio.to_thread.run_sync(os.path.isdir, uri.directory, limiter=limiter):
            raise StoreError(
                f"there is no root `{uri.directory}`", hint=f"make it: mkdir -p {uri.directory}"
            )
        root = LocalRoot(uri.directory, limiter=limiter)
        yield UnpackingStore(root, limiter=limiter, compression=compression)
        return
    remotes = [
        RemoteStore(
            server,
            uri.root,
            connections=options.connections,
            parking=parking,
            deadlines=deadlines or _deadlines(options),
        )
        for server in uri.servers
    ]
    try:
        unpacked = [
            UnpackingStore(remote, limiter=limiter, compression=compression) for remote in remotes
        ]
        yield FallbackStore([RetryingStore(each, attempts=_ATTEMPTS) for each in unpacked])
    finally:
        for remote in remotes:
            remote.close()


def _deadlines(options: StoreOptions) -> Deadlines:
    return Deadlines(
        connect=options.connect_timeout,
        question=options.connect_timeout,
        answer=options.answer_timeout,
        progress=options.progress_timeout,
    )


def _mount_deadlines(plan: MountPlan) -> Deadlines:
    """Where there is another server, leave one early enough for a reader to see the other's answer.

    By default the deadlines for a server and for a reader are the same, and a reader who gave up
    at the very moment when the next server is asked would never be answered by it.
    """
    given = _deadlines(plan.store)
    if len(plan.uri.servers) < 2:
        return given
    lookup, read = plan.mount.lookup_timeout, plan.mount.read_timeout
    return Deadlines(
        connect=min(given.connect, lookup * _SHARE),
        question=min(given.question, lookup * _SHARE),
        answer=min(given.answer, read * _SHARE),
        progress=min(given.progress, read * _SHARE),
    )


def make_server(directory: Path, options: ServeOptions) -> CafsServer:
    """The embedded server over a directory of roots; raises StoreError."""
    limits = Limits(
        connections=options.max_connections,
        idle=options.idle_timeout,
        stall=options.stall_timeout,
        blob=options.max_blob,
        content=options.max_blob,
        grace=options.grace,
    )
    return CafsServer(directory, limits=limits, sync=options.sync)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """Everything that a mount needs to know. ``kernel_options`` go to the kernel as they are."""

    uri: StoreUri
    point: str
    store: StoreOptions
    cache: CacheOptions
    mount: MountOptions
    kernel_options: tuple[str, ...] = ()


async def run_mount(plan: MountPlan, ready: Callable[[], Awaitable[None]]) -> None:
    """Mount and serve until unmounted, or until SIGTERM or SIGINT; ``ready`` once it answers."""
    from cafsfs.fuse.session import Session  # noqa: PLC0415  # only a mount needs libfuse

    metrics = Metrics()
    cache = DiskCache(plan.cache.cache_dir, max_bytes=plan.cache.cache_size, metrics=metrics)
    async with (
        trio.open_nursery() as nursery,
        open_store(
            plan.uri, plan.store, parking=nursery, deadlines=_mount_deadlines(plan)
        ) as upstream,
    ):
        store = ReadCachingStore(cache, upstream, nursery, metrics=metrics)
        status = _Status(plan, metrics, store)
        filesystem = FileSystem(store, _vfs_options(plan), status.files, metrics)
        cache.on_change = filesystem.blocks_changed
        store.on_size_changed = filesystem.size_is_wrong
        session = Session(filesystem, plan.point, _fuse_options(plan), metrics)
        status.kernel = lambda: session.kernel_settings
        status.filesystem = filesystem.state
        nursery.start_soon(cache.look_again)
        await nursery.start(_stop_on_signal, session.stop)
        await session.run(ready)
        nursery.cancel_scope.cancel()


def _vfs_options(plan: MountPlan) -> VfsOptions:
    return VfsOptions(
        uid=plan.mount.uid,
        gid=plan.mount.gid,
        born_ns=time.time_ns(),
        lookup_deadline=plan.mount.lookup_timeout,
        read_patience=plan.mount.read_timeout,
    )


def _fuse_options(plan: MountPlan) -> list[str]:
    """Always read-only at the kernel: only then are all writes EROFS, for root too (tried)."""
    name = (plan.mount.fsname or plan.uri.text).replace("\\", "\\\\").replace(",", "\\,")
    options = ["ro", "nosuid", "nodev", "default_permissions", f"fsname={name}", "subtype=cafsfs"]
    if plan.mount.allow_other:
        options.append("allow_other")
    return [*options, *plan.kernel_options]


async def _stop_on_signal(
    stop: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            stop()


class _Status:
    """Renders the files below ``.cafsfs/``."""

    def __init__(self, plan: MountPlan, metrics: Metrics, store: ReadCachingStore) -> None:
        self._plan = plan
        self._metrics = metrics
        self._store = store
        self._began = time.monotonic()
        self.kernel: Callable[[], dict[str, int | bool | None]] = dict
        self.filesystem: Callable[[], dict[str, int]] = dict
        self.files: dict[str, Callable[[], bytes]] = {
            "stats.json": self._stats,
            "version": f"{VERSION}\n".encode,
        }

    def _stats(self) -> bytes:
        usage = self._store.usage
        stats = {
            "version": VERSION,
            "uri": self._plan.uri.text,
            "mountpoint": self._plan.point,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "cache": {
                "directory": str(self._plan.cache.cache_dir),
                "bytes": usage.used,
                "bound_bytes": usage.bound,
                "blobs": usage.blobs,
            },
            "pulls_in_flight": self._store.pulling,
            "kernel": self.kernel(),
            "filesystem": self.filesystem(),
            "counters": self._metrics.as_dict(),
        }
        return (json.dumps(stats, indent=2) + "\n").encode()
