"""The only place where objects are put together.

The stack of a mount, as it reads aloud: a ReadCachingStore of a DiskCache over a SeededStore of
a seed and a RoutingStore (``client/network.py``) of, for each server, a RetryingStore of an
UnpackingStore of a RemoteStore. For ``file:///…`` the lower half is an UnpackingStore of a
LocalRoot; without ``--cache-seed`` there is no seed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from cafsfs.client.credentials import Credentials
from cafsfs.client.network import WORKERS, Network, NetworkOptions
from cafsfs.client.servers import Deadlines
from cafsfs.config.options import CacheOptions, ServeOptions, StoreOptions
from cafsfs.config.uri import StoreUri
from cafsfs.digest import Digest
from cafsfs.duties import commands, obey_commands, obey_signals, stop_on_signal
from cafsfs.errors import StoreError, UsageError
from cafsfs.metrics import Metrics
from cafsfs.packing import Compression
from cafsfs.reloading import MountPlan, Reloading, Reread
from cafsfs.report.dump import describe
from cafsfs.report.publishing import metrics_page, publish_metrics
from cafsfs.report.recent import remembered_complaints
from cafsfs.report.status import About, Parts, Status
from cafsfs.report.tracing import tracing
from cafsfs.secret import find_secret
from cafsfs.server import CafsServer, Gate, Limits
from cafsfs.sharing import have_index_written
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.premises import is_cache
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.content_directory import open_seed
from cafsfs.store.contracts import ContentStore
from cafsfs.store.gathering import GatheringStore
from cafsfs.store.local_root import LocalRoot
from cafsfs.store.pacing import PacingStore
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.store.router import Outage, PlaceState
from cafsfs.store.routing import RoutingStore
from cafsfs.store.seeded import SeededStore
from cafsfs.store.switching import Succession, SwitchingStore
from cafsfs.store.unpacking import UnpackingStore
from cafsfs.store.watched import WatchedStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions

log = logging.getLogger(__name__)

# A connection that breaks in the middle is worth one more try at once; a server that is really
# down refuses the second, and the next server is asked.
_ATTEMPTS = 2
_RESERVE = 252  # connections to a server beyond the usual, for readers of large blobs who wait
_OWN = "authenticated"  # below the cache directory; holds caches, see own_cache
_OWN_LENGTH = 32  # hexadecimal digits


@asynccontextmanager
async def open_store(
    uri: StoreUri,
    options: StoreOptions,
    *,
    compression: Compression = Compression.NONE,
    replicas: int = 1,
    parking: trio.Nursery | None = None,
    reserve: int = 0,
    deadlines: Deadlines | None = None,
    budget: MemoryBudget | None = None,
) -> AsyncIterator[ContentStore]:
    """The content behind a URI; ``compression`` and ``replicas`` are for uploads.

    ``budget`` is the one of other stores, where there are any that pull at the same time.
    With ``parking``, as a mount wants it, it fails at once while no server can be reached; see
    RemoteStore on the rest. Raises StoreError for a directory that is not there, UsageError for a
    secret that cannot be used.
    """
    limiter = trio.CapacityLimiter(WORKERS)
    budget = budget or MemoryBudget(options.memory)
    if uri.directory is not None:
        if _demands_authentication(options):
            raise UsageError(
                f"`{uri.shown}` has no server that could authenticate itself",
                hint="leave out `auth=required`: what stands there is read as a file",
            )
        if not await trio.to_thread.run_sync(os.path.isdir, uri.directory, limiter=limiter):
            raise StoreError(
                f"there is no root `{uri.directory}`", hint=f"make it: mkdir -p {uri.directory}"
            )
        root = LocalRoot(uri.directory, limiter=limiter)
        yield UnpackingStore(root, limiter=limiter, compression=compression, budget=budget)
        return
    credentials = await trio.to_thread.run_sync(_credentials, options, limiter=limiter)
    network = Network(
        uri.members,
        uri.root,
        mirrors=options.mirror,
        options=NetworkOptions(
            connections=options.connections,
            reserve=reserve,
            attempts=_ATTEMPTS,
            deadlines=deadlines or options.deadlines,
            credentials=credentials,
            zone=options.zone,
            slow_rate=options.slow_rate,
        ),
        limiter=limiter,
        budget=budget,
        parking=parking,
    )
    async with network:
        yield network.store(compression=compression, replicas=replicas)


def outage(store: ContentStore) -> Outage | None:
    """The outage of a store that ``open_store`` has made, if no server can be reached now."""
    return store.router.outage if isinstance(store, RoutingStore) else None


def server_states(store: ContentStore) -> list[PlaceState]:
    """What is known of each server of a store that ``open_store`` has made; none of a directory."""
    return store.router.states() if isinstance(store, RoutingStore) else []


def server_pools(store: ContentStore) -> list[object]:
    """What has a connection to each server, to be shown by its repr; none of a directory."""
    if not isinstance(store, RoutingStore):
        return [store]
    return [each.source for each in store.router.places]


def _credentials(options: StoreOptions) -> Credentials:
    return Credentials(
        secret=find_secret(options.secret_file), required=_demands_authentication(options)
    )


def _demands_authentication(options: StoreOptions) -> bool:
    return options.auth == "required"


def own_cache(uri: StoreUri, store: StoreOptions, cache: CacheOptions) -> CacheOptions:
    """The cache of who demands authentication: it has a directory of its own for each URI.

    One cache directory is one domain of trust. Below the shared one, whoever mounts without
    authentication would read what was pulled with it, and the other way round. Which options a URI
    has makes no difference: its servers count, in any order, and its root.
    """
    if not (uri.members and _demands_authentication(store)):
        return cache
    named = "\n".join([*sorted(map(str, uri.servers)), uri.root])
    name = hashlib.sha256(named.encode()).hexdigest()[:_OWN_LENGTH]
    directory = cache.cache_dir / _OWN / name
    log.info("what was pulled with authentication is cached in %s", directory)
    return replace(cache, cache_dir=directory)


def make_server(directory: Path, options: ServeOptions) -> CafsServer:
    """The embedded server over a directory of roots; raises StoreError, UsageError."""
    secret = find_secret(options.secret_file)
    if secret is None and options.encryption is not None:
        raise UsageError(
            f"encryption is {options.encryption}, and there is no secret",
            hint="name the file that holds it: --secret-file FILE",
        )
    limits = Limits(
        connections=options.max_connections,
        idle=options.idle_timeout,
        stall=options.stall_timeout,
        blob=options.max_blob,
        content=options.max_blob,
        grace=options.grace,
    )
    gate = Gate(secret=secret, required=options.encryption != "optional")
    return CafsServer(directory, limits=limits, gate=gate, sync=options.sync)


def _with_own_cache(plan: MountPlan) -> MountPlan:
    return replace(plan, cache=own_cache(plan.uri, plan.store, plan.cache))


async def run_mount(
    plan: MountPlan,
    ready: Callable[[Callable[[], str]], Awaitable[None]],
    stopping: Callable[[], None],
    *,
    reread: Reread,
    reloading: Callable[[bool], None],
) -> None:
    """Mount and serve until unmounted, or until SIGTERM or SIGINT; ``stopping`` at such a signal.

    ``ready`` once it answers, with what tells in a line how it is; it may take as long as it likes.
    SIGHUP has the plan read again by ``reread``; ``reloading`` is told when that begins and ends.
    """
    from cafsfs.fuse.session import Session  # noqa: PLC0415  # only a mount needs libfuse

    plan = _with_own_cache(plan)
    metrics, budget = Metrics(), MemoryBudget(plan.store.memory)
    async with (
        tracing(plan.point) as metrics.trace,
        remembered_complaints(metrics) as complaints,
        open_disk_cache(
            plan.cache.cache_dir,
            bounds=plan.cache.bounds,
            metrics=metrics,
            what=f"mount on {plan.point}",
        ) as cache,
        trio.open_nursery() as nursery,
    ):
        network = Succession(nursery)
        await network.begin(_open_network(plan, budget))
        store = ReadCachingStore(
            cache,
            with_seed(network.store, plan.cache, budget),
            nursery,
            finish_pulls=plan.mount.finish_pulls,
            verify_first=plan.mount.verify_first,
            metrics=metrics,
        )
        parts = _parts(network.store, budget)
        status = Status(_about(plan), metrics, store, complaints, parts)
        filesystem = FileSystem(store, _vfs_options(plan), _files(status), metrics)
        _keep_told(filesystem, cache, store, parts)
        session = Session(filesystem, plan.point, _fuse_options(plan), metrics)
        parts.kernel = lambda: session.kernel_settings
        changing = Reloading(
            plan,
            lambda options: _with_own_cache(reread(options)),
            cache=cache,
            store=store,
            filesystem=filesystem,
            budget=budget,
            renew=lambda plan: network.renew(_open_network(plan, budget)),
        )
        tell = partial(describe, status, lambda: server_pools(network.store.current))
        await publish_metrics(nursery, plan.mount, status)
        await nursery.start(stop_on_signal, stopping, session.stop)
        await nursery.start(obey_signals, partial(_reload, changing, reloading), tell)
        await obey_commands(nursery, commands(changing, cache, status, tell))
        await session.run(partial(ready, status.summary))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_network(plan: MountPlan, budget: MemoryBudget) -> AsyncIterator[ContentStore]:
    """The content behind the URI of a mount; raises as ``open_store`` does, in groups."""
    async with trio.open_nursery() as parking:
        async with open_store(
            plan.uri,
            plan.store,
            parking=parking,
            reserve=_RESERVE,
            deadlines=plan.deadlines,
            budget=budget,
        ) as store:
            yield store
        parking.cancel_scope.cancel()


async def _reload(changing: Reloading, reloading: Callable[[bool], None]) -> None:
    reloading(True)
    await changing.on_signal()
    reloading(False)


def with_seed(
    store: ContentStore, options: CacheOptions, budget: MemoryBudget | None = None
) -> ContentStore:
    """``store`` behind the read-only tier of ``--cache-seed``; raises StoreError."""
    if options.cache_seed is None:
        return store
    limiter = trio.CapacityLimiter(WORKERS)
    seed = open_seed(options.cache_seed, limiter=limiter, budget=budget)
    return SeededStore(seed, store)


@asynccontextmanager
async def open_cache(options: CacheOptions, what: str) -> AsyncIterator[DiskCache]:
    """The cache of the options, for a command: nothing is done in it but what the caller does.

    Mounts that use it have written to its index what they know. ``what`` is shown to who asks who
    uses it. Raises StoreError where there is no cache, and makes none.
    """
    if not await trio.to_thread.run_sync(is_cache, options.cache_dir):
        raise StoreError(
            f"there is no cache in `{options.cache_dir}`", hint="name it with --cache-dir"
        )
    async with open_disk_cache(
        options.cache_dir, bounds=options.bounds, what=what, keep=False
    ) as cache:
        await trio.to_thread.run_sync(have_index_written, cache)
        yield cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetching:
    """What fills a cache: ``store.fetch`` pulls; ``upstream`` is what it pulls from.

    ``is_cut_off`` tells whether no server can be reached at the moment.
    """

    cache: DiskCache
    store: ReadCachingStore
    upstream: ContentStore
    is_cut_off: Callable[[], bool]


@asynccontextmanager
async def open_prefetching(
    uri: StoreUri,
    store: StoreOptions,
    cache: CacheOptions,
    *,
    rate: float | None = None,
    on_write: Callable[[Digest, int], object] = lambda _digest, _end: None,
) -> AsyncIterator[Prefetching]:
    """A cache that is filled in the background: mounts that pull at the same time go first.

    ``rate``: bytes per second from the servers, a seed is not held up. ``on_write``: see
    WatchedStore. Blobs that are fetched beyond ``connections`` at a time come in batches.
    """
    cache = own_cache(uri, store, cache)
    budget = MemoryBudget(store.memory)
    async with (
        open_disk_cache(
            cache.cache_dir, bounds=cache.bounds, what="cafsfs prefetch", background=True
        ) as disk,
        trio.open_nursery() as nursery,
        open_store(uri, store, parking=nursery, budget=budget) as network,
    ):
        source: ContentStore = PacingStore(network, rate=rate, give_way=disk.gives_way)
        if uri.servers:  # of a directory, a batch would come no sooner
            source = GatheringStore(source, nursery, at_once=store.connections)
        upstream = WatchedStore(with_seed(source, cache, budget), on_write)
        yield Prefetching(
            cache=disk,
            store=ReadCachingStore(disk, upstream, nursery),
            upstream=upstream,
            is_cut_off=lambda: outage(network) is not None,
        )
        nursery.cancel_scope.cancel()


def _about(plan: MountPlan) -> About:
    from importlib.metadata import version  # noqa: PLC0415  # slow to import; only a mount asks

    return About(
        version=version("cafsfs"),
        uri=plan.uri.shown,
        mountpoint=plan.point,
        cache_directory=str(plan.cache.cache_dir),
    )


def _files(status: Status) -> dict[str, Callable[[], Awaitable[bytes]]]:
    return {**status.files, "metrics": metrics_page(status)}


def _keep_told(
    filesystem: FileSystem, cache: DiskCache, store: ReadCachingStore, parts: Parts
) -> None:
    cache.on_change = filesystem.blocks_changed
    store.on_size_changed = filesystem.size_is_wrong
    store.on_unverified = filesystem.content_is_unverified
    parts.filesystem, parts.openers = filesystem.state, filesystem.openers


def _parts(network: SwitchingStore, budget: MemoryBudget) -> Parts:
    return Parts(
        servers=lambda: server_states(network.current),
        outage=lambda: outage(network.current),
        memory=budget.state,
    )


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
    name = (plan.mount.fsname or plan.uri.shown).replace("\\", "\\\\").replace(",", "\\,")
    options = ["ro", "nosuid", "nodev", "default_permissions", f"fsname={name}", "subtype=cafsfs"]
    if plan.mount.allow_other:
        options.append("allow_other")
    return [*options, *plan.kernel_options]
