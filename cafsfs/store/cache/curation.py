"""What a user orders of a cache: pin, unpin, evict, verify.

All of it works while mounts use the cache; who orders tells them what was changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import trio

from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.packing import hash_file
from cafsfs.store.cache import partials
from cafsfs.store.cache.blob_files import PINNED, is_marked
from cafsfs.store.cache.bounds import CacheUsage
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Changes
from cafsfs.store.cache.premises import Session
from cafsfs.store.cache.upkeep import Evicted, Upkeep, blob_files

log = logging.getLogger(__name__)

_UNPINNED = 0o600
# What a worker takes at once: a hop for each small blob would cost more than hashing it.
_BATCH = 1000  # blobs
_BATCH_BYTES = 32 << 20


async def pin(cache: DiskCache, digests: Collection[Digest]) -> set[Digest]:
    """Never evict these blobs; returns those that are not cached, and so are not pinned.

    Marked by the mode of the file, so that it outlives the index. Raises StoreError if what is
    pinned would exceed the bound of the cache: then nothing was pinned.
    """
    index = cache.ledger.index

    def mark() -> set[Digest]:
        sizes = _refuse_too_many(cache, digests)
        for each in sizes:
            with suppress(FileNotFoundError):
                cache.path(each).chmod(PINNED)
        index.pin(list(sizes))
        # Who evicted one of them at this very moment had not seen the mark.
        absent = {each for each in set(digests) if _size(cache.path(each)) is None}
        if evicted := absent & sizes.keys():  # a pin of old stays, and waits for its blob
            index.unpin(evicted)
        return absent

    await cache.keeper.flush()
    return await cache.in_thread(mark)


async def refuse_too_many_pins(
    cache: DiskCache, digests: Collection[Digest], *, coming: int
) -> None:
    """Raises StoreError as ``pin`` does; ``coming`` bytes of ``digests`` are not there yet."""
    await cache.keeper.flush()
    await cache.in_thread(lambda: _refuse_too_many(cache, digests, coming))


def _refuse_too_many(
    cache: DiskCache, digests: Collection[Digest], coming: int = 0
) -> dict[Digest, int]:
    """The sizes of those that are cached and not pinned yet; raises StoreError."""
    index = cache.ledger.index
    wanted = set(digests) - set(index.pins())
    sizes = {each: size for each in wanted if (size := _size(cache.path(each))) is not None}
    bound = bound_in_force(cache)
    total = index.pinned_bytes() + sum(sizes.values()) + coming
    if total > bound:
        raise StoreError(
            f"{'at least ' if coming else ''}{total} bytes would be pinned, and the cache may hold "
            f"{bound}",
            hint="raise --cache-size, or unpin something",
        )
    return sizes


def bound_in_force(cache: DiskCache) -> int:
    """Bytes that it may hold, by the word of those who keep it now, else by ours; blocks."""
    return cache.premises.largest_bound() or cache.bounds.size.of(cache.disk[0])


async def unpin(cache: DiskCache, digests: Collection[Digest]) -> set[Digest]:
    """Let these blobs be evicted again; returns those that were not pinned."""
    index = cache.ledger.index

    def unmark() -> set[Digest]:
        was = set(index.pins())
        for each in digests:
            with suppress(FileNotFoundError):
                cache.path(each).chmod(_UNPINNED)
        index.unpin(digests)
        return set(digests) - was

    return await cache.in_thread(unmark)


@dataclass(slots=True)
class Removed:
    """What was evicted by order: sizes in bytes; and what was left, and why."""

    gone: dict[Digest, int] = field(default_factory=dict)
    pinned: set[Digest] = field(default_factory=set)
    absent: set[Digest] = field(default_factory=set)
    stuck: set[Digest] = field(default_factory=set)


async def evict(cache: DiskCache, digests: Collection[Digest]) -> Removed:
    """Remove blobs, but none that is pinned. Who reads one now reads it to its end."""

    def pinned() -> set[Digest]:
        pins = set(cache.ledger.index.pins())
        return {each for each in digests if each in pins or _is_pinned(cache.path(each))}

    removed = Removed(pinned=await cache.in_thread(pinned))
    free = [each for each in digests if each not in removed.pinned]
    removed.gone = await cache.remove(free, pinned=False)
    left = set(free) - removed.gone.keys()
    removed.stuck = await cache.in_thread(
        lambda: {e for e in left if os.path.lexists(cache.path(e))}
    )
    removed.absent = left - removed.stuck
    await cache.keeper.flush()
    return removed


@dataclass(slots=True)
class Verification:
    """What was read, in blobs and bytes, and what was wrong with some of them."""

    blobs: int = 0
    bytes: int = 0
    wrong: dict[Digest, str] = field(default_factory=dict)
    discarded: set[Digest] = field(default_factory=set)


async def verify(
    cache: DiskCache,
    *,
    repair: bool = False,
    jobs: int | None = None,
    on_read: Callable[[int], object] = lambda _: None,
) -> Verification:
    """Hash every blob, on ``jobs`` (all) cores; with ``repair`` discard what is wrong.

    ``on_read`` is told of the bytes read, from several threads. What is right is trusted from now
    on. A blob that is evicted meanwhile is no error.
    """
    done = Verification()
    workers = jobs or len(os.sched_getaffinity(0))
    hashing = trio.CapacityLimiter(workers)
    walking = trio.CapacityLimiter(1)
    batches = _batches(cache.premises.blobs)

    unread: set[Digest] = set()

    def check(batch: list[Path]) -> tuple[Changes, dict[Digest, str], int]:
        return _check(cache, batch, on_read, unread)

    async def work() -> None:
        while batch := await trio.to_thread.run_sync(next, batches, None, limiter=walking):
            right, wrong, size = await trio.to_thread.run_sync(check, batch, limiter=hashing)
            await cache.in_thread(lambda: cache.ledger.index.apply(right))  # noqa: B023
            done.blobs += len(right.entries) + len(wrong)
            done.bytes += size
            done.wrong |= wrong
            if repair and (doomed := [each for each in wrong if each not in unread]):
                done.discarded |= (await cache.remove(doomed)).keys()

    await cache.keeper.flush()
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)
    await cache.keeper.flush()
    return done


def _batches(blobs: Path) -> Iterator[list[Path]]:
    """All blobs: many small ones at once, or one large one."""
    batch: list[Path] = []
    size = 0
    for path, stat in blob_files(blobs):
        batch.append(path)
        size += stat.st_size
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(
    cache: DiskCache, batch: list[Path], on_read: Callable[[int], object], unread: set[Digest]
) -> tuple[Changes, dict[Digest, str], int]:
    """What the index should know of those that are right, what is wrong with others, and bytes.

    Those that could not even be opened are added to ``unread``.
    """
    right = Changes()
    wrong: dict[Digest, str] = {}
    total = 0
    ends = Digest.parse(batch[0].name), Digest.parse(batch[-1].name)
    known = cache.ledger.index.between(*ends)  # at once: a look for each took as long as hashing

    def on_piece(count: int) -> None:
        trio.from_thread.check_cancelled()
        on_read(count)

    for path in batch:
        digest = Digest.parse(path.name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # evicted meanwhile
        except OSError as error:
            wrong[digest] = f"cannot be opened: {error.strerror}"
            unread.add(digest)  # it may be right
            continue
        try:
            found = os.fstat(descriptor)
            total += found.st_size
            if hash_file(descriptor, threads=1, on_read=on_piece) != digest:
                wrong[digest] = "the bytes are not those of its hash"
            elif os.fstat(descriptor).st_nlink:
                right.entries[digest] = cache.entry_again(digest, found, known.get(digest))
        except OSError as error:
            wrong[digest] = f"cannot be read: {error.strerror}"
        finally:
            os.close(descriptor)
    return right, wrong, total


# --- the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A cache as it is, and who uses it; sizes in bytes.

    ``partial`` is in flight, ``debris`` what dead processes have left of that. ``largest_bound``
    is what the cache may hold by the word of those who keep it in bounds now.
    """

    usage: CacheUsage
    disk_total: int
    disk_free: int
    pinned_blobs: int
    pinned_bytes: int
    partial: int
    debris: int
    largest_bound: int | None
    users: list[Session]


async def survey(cache: DiskCache) -> Survey:
    """Look at everything but the files of the blobs; changes nothing. Raises StoreError."""
    await cache.keeper.flush()

    def look() -> Survey:
        disk_total, disk_free = cache.premises.measure()
        partial, debris = partials.measure(cache.premises.partials)
        return Survey(
            usage=usage,
            disk_total=disk_total,
            disk_free=disk_free,
            pinned_blobs=len(cache.ledger.index.pins()),
            pinned_bytes=cache.ledger.index.pinned_bytes(),
            partial=partial,
            debris=debris,
            largest_bound=cache.premises.largest_bound(),
            users=cache.premises.others(),
        )

    usage = cache.usage
    return await cache.in_thread(look)


async def complete(cache: DiskCache, *, in_any_case: bool = False) -> None:
    """Make the index agree with the files where it may not; raises StoreError."""
    premises = cache.premises
    dead = await cache.in_thread(premises.dead_sessions)
    try:
        if dead or in_any_case or not cache.ledger.complete:
            await _upkeep(cache).adopt()
            while dead:
                premises.forget(*dead.pop())
    finally:
        for descriptor, _ in dead:
            os.close(descriptor)


async def apply_bounds(cache: DiskCache) -> Evicted:
    """Evict now what its bounds demand, and clear debris; raises StoreError."""
    return await _upkeep(cache).round()


async def find_doubtful(cache: DiskCache, digests: Collection[Digest]) -> set[Digest]:
    """Which of ``digests`` are not cached, or would be hashed before they are served."""

    def is_doubtful(digest: Digest) -> bool:
        try:
            stat = cache.path(digest).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        entry = cache.ledger.find(digest)
        return entry is None or not cache.trust.covers(entry, stat)

    asked = iter(digests)
    doubtful: set[Digest] = set()
    while batch := list(islice(asked, _BATCH)):
        doubtful |= await cache.in_thread(lambda: set(filter(is_doubtful, batch)))
    return doubtful


def _upkeep(cache: DiskCache) -> Upkeep:
    assert isinstance(cache.keeper, Upkeep)  # as open_disk_cache makes it
    return cache.keeper


def _is_pinned(path: Path) -> bool:
    """Is the file marked as pinned, whatever the index says?"""
    with suppress(OSError):
        return is_marked(path.lstat())
    return False


def _size(path: Path) -> int | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        return path.lstat().st_size
    return None
