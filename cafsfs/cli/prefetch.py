"""``cafsfs prefetch``: fill the cache before somebody waits for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import trio

from cafsfs.cli.hashes import given_digests, with_hashes
from cafsfs.cli.options import QUIET, with_options
from cafsfs.cli.progress import Progress
from cafsfs.cli.talk import blobs, complain, emit, readable, run
from cafsfs.cli.target import find_quietly
from cafsfs.compose import (
    Prefetching,
    open_cache,
    open_prefetching,
    open_store,
    own_cache,
    with_seed,
)
from cafsfs.config.layers import explain
from cafsfs.config.options import FOR_UPLOADS, CacheOptions, LogOptions, StoreOptions
from cafsfs.config.uri import StoreUri
from cafsfs.config.values import parse_count, parse_size
from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError, StoreError, Unavailable, Unreachable, UsageError
from cafsfs.sharing import tell_mounts
from cafsfs.store.cache import curation
from cafsfs.store.cache.premises import is_cache
from cafsfs.store.contracts import BlobStat

_JOBS = 4
# Small blobs on their way at once, for they come in batches; twice as many gain little. Who waits
# for one that we have begun with waits for those before it, too.
_MANY = 64
_SMALL = 256 << 10  # bytes
_PINNED_AT_ONCE = 64  # blobs; each time all pins are counted
_ASKED_AT_ONCE = 1000  # blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be in the cache. ``rate``: bytes per second, None does not limit."""

    uri: StoreUri
    store: StoreOptions
    cache: CacheOptions
    digests: list[Digest]
    jobs: int = _JOBS
    rate: int | None = None
    pin: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of it: blobs, bytes that were pulled, and why some are not in the cache."""

    wanted: int
    pulled: int = 0
    bytes: int = 0
    cached: int = 0
    failed: dict[Digest, str] = field(default_factory=dict)
    absent: int = 0  # of those that failed


@click.command(short_help="Fill the cache with blobs from URI.")
@click.argument("uri")
@with_hashes
@click.option("--jobs", metavar="N", help="pulls at the same time  [default: 4]")
@click.option("--limit", metavar="SIZE/s", help="bytes per second from the servers, as in 20M/s")
@click.option("--check", is_flag=True, help="pull nothing: tell what is not cached")
@click.option("--pin", is_flag=True, help="pin the blobs: they are never evicted")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_options(CacheOptions, StoreOptions, LogOptions, defaults=QUIET, without=FOR_UPLOADS)
def prefetch(
    uri: str,
    hashes: tuple[str, ...],
    source: str | None,
    config: Path | None,
    *,
    jobs: str | None,
    limit: str | None,
    check: bool,
    pin: bool,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Fill the cache with the blobs HASH… from the store at URI.

    What is cached already is passed over, so that it can be stopped and started again. Reads of
    mounts on the same cache go first. Servers of this --zone are asked first, HTTP mirrors
    (--mirror) last. Prints the hashes of the blobs that could not be had, which
    --from takes again; with --json a summary. Exit code 1 if there is any.

    With --check it pulls nothing, and prints "<hash>  remote" or "<hash>  absent" for each blob
    that is not cached; exit code 1 if there is any.

    \b
    cafsfs prefetch cafs://127.0.0.1/data HASH HASH
    cafsfs prefetch cafs://127.0.0.1/data --from SUMS > failed
    cafsfs put cafs://127.0.0.1/data DIR | cafsfs prefetch cafs://127.0.0.1/data --from - --pin
    """
    order = make_order(
        uri,
        config,
        flags,
        digests=given_digests(hashes, source),
        jobs=_JOBS if jobs is None else parse_flag("--jobs", jobs, parse_count),
        rate=None if limit is None else parse_flag("--limit", limit, _parse_rate),
        pin=pin,
    )
    if check:
        sys.exit(_check(order, as_json=as_json))
    sys.exit(report(order, run(lambda: fill(order)), as_json=as_json))


def make_order(
    uri: str,
    config: Path | None,
    flags: dict[str, str | None],
    *,
    digests: list[Digest],
    jobs: int = _JOBS,
    rate: int | None = None,
    pin: bool,
) -> Order:
    """From what the user has written; starts logging."""
    target = find_quietly(uri, config, flags)
    store = target.store
    if explain(StoreOptions, target.layers)["connections"].origin == "default":
        store = replace(store, connections=jobs)
    cache = target.resolve(CacheOptions)
    return Order(
        uri=target.uri, store=store, cache=cache, digests=digests, jobs=jobs, rate=rate, pin=pin
    )


def parse_flag(flag: str, text: str, parse: Callable[[str], int]) -> int:
    """The value of a flag that no other layer has; raises UsageError."""
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"`{text}` is no value for {flag}", hint=f"it takes {error}") from None


def _parse_rate(text: str) -> int:
    try:
        rate = parse_size(text.removesuffix("/s"))
    except ValueError:
        rate = 0
    if rate == 0:
        raise ValueError("bytes per second, or K, M or G of them, as in 20M/s")
    return rate


def report(order: Order, outcome: Outcome, *, as_json: bool) -> int:
    """Say what became of it; returns the exit code."""
    if as_json:
        summary = {
            "pulled": outcome.pulled,
            "bytes": outcome.bytes,
            "cached": outcome.cached,
            "failed": {digest.hex: why for digest, why in outcome.failed.items()},
        }
        emit(json.dumps(summary, indent=2) + "\n")
    else:
        emit("".join(f"{digest}\n" for digest in outcome.failed))
    said = f"pulled {blobs(outcome.pulled, outcome.bytes)}"
    if outcome.cached:
        said += f", {outcome.cached} cached before"
    click.echo(said + (", all pinned" if order.pin and not outcome.failed else ""), err=True)
    if not outcome.failed:
        return 0
    hint = "standard output has their hashes, for --from to try them again"
    if order.uri.servers and outcome.absent == outcome.wanted:
        hint = (
            f"is `{order.uri.root}` the right root? a server says the same of a root that it does "
            "not have"
        )
    complain(CafsError(f"failed {len(outcome.failed)} of {outcome.wanted}", hint=hint))
    return 1


# --- --check


def _check(order: Order, *, as_json: bool) -> int:
    places = run(lambda: _find_places(order))
    if as_json:
        found = [{"hash": each.hex, "place": places.get(each, "cache")} for each in order.digests]
        emit(json.dumps(found) + "\n")
    else:
        emit("".join(f"{digest}  {place}\n" for digest, place in places.items()))
    return 1 if places else 0


async def _find_places(order: Order) -> dict[Digest, str]:
    """Where the blobs are that are not cached: ``remote``, or ``absent``."""
    missing = set(order.digests)
    own = own_cache(order.uri, order.store, order.cache)
    if is_cache(own.cache_dir):  # else one would be made
        async with open_cache(own, "cafsfs prefetch --check") as cache:
            missing = await cache.find_missing(order.digests)
    absent: set[Digest] = set()
    waiting = [each for each in order.digests if each in missing]
    if waiting:
        async with open_store(order.uri, order.store) as network:
            store = with_seed(network, order.cache)
            for first in range(0, len(waiting), _ASKED_AT_ONCE):
                absent |= await store.find_missing(waiting[first : first + _ASKED_AT_ONCE])
    return {each: "absent" if each in absent else "remote" for each in waiting}


# --- pulling


async def fill(order: Order) -> Outcome:
    """Have the blobs in the cache; raises StoreError for a cache that cannot be filled.

    Says of each failure when it happens why.
    """
    with Progress(None) as progress:
        watch = _Watch(progress)
        async with open_prefetching(
            order.uri, order.store, order.cache, rate=order.rate, on_write=watch.wrote
        ) as prefetching:
            return await _Filling(order, prefetching, watch).run()


class _Watch:
    """A progress bar over blobs whose sizes nobody knows before they are there."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: dict[Digest, int] = {}  # bytes of blobs on their way
        self._wanted = 0
        self._done = 0
        self._done_bytes = 0

    def begin(self, wanted: int) -> None:
        """So many blobs are to be pulled."""
        self._wanted = wanted
        self._describe()

    def wrote(self, digest: Digest, end: int) -> None:
        """A pull has got so far; from any thread. A second try shows what is new."""
        shown = self._shown.get(digest, 0)
        if end > shown:
            self._shown[digest] = end
            self._progress.advance(end - shown)

    def came(self, digest: Digest, size: int) -> None:
        """A blob is there, whoever has pulled it."""
        self._progress.advance(size - self._shown.pop(digest, 0))
        self._done += 1
        self._done_bytes += size
        self._describe()

    def failed(self, digest: Digest, error: CafsError) -> None:
        """What has come of a blob was in vain."""
        self._progress.advance(-self._shown.pop(digest, 0))
        self._wanted -= 1
        self._describe()
        self.say(CafsError(f"{digest}: {_why(error)}"))

    def say(self, error: CafsError) -> None:
        with self._progress.aside():
            complain(error)

    def _describe(self) -> None:
        # To ask for all the sizes first would take as long as pulling small blobs, and of many
        # only unpacking tells it. So those that are left are taken to be as large as those that
        # came, on the average; until the first has come there is neither a bar nor a time left.
        total = None
        if self._done:
            total = round(self._done_bytes * self._wanted / self._done)
        self._progress.describe(f"{self._done}/{self._wanted} blobs", total)


def _at_least(stat: BlobStat) -> int:
    """Bytes of content, as far as can be told before it is there."""
    if stat.size is not None:
        return stat.size
    # What cannot be compressed grows by a header and a little more; the rest gets smaller.
    return max(0, int((stat.packed_size or 0) * 0.95) - 64)


def _why(error: CafsError) -> str:
    return "not found" if isinstance(error, BlobNotFound) else str(error)


class _Window:
    """How many blobs may be on their way at once: ``jobs``, and more where they prove small.

    Nobody knows their sizes before: each small one that comes lets one more go, a large one brings
    it back to ``jobs``. So it does where a mount wants the line for itself. ``rate`` (bytes per
    second): of small ones no more are begun than come within a second.
    """

    def __init__(self, jobs: int, *, rate: int | None, in_foreground: Callable[[], bool]) -> None:
        self._jobs = jobs
        self._rate = math.inf if rate is None else rate
        self._in_foreground = in_foreground
        self._size = jobs
        self._under_way = 0
        self._left = trio.Event()

    async def enter(self) -> None:
        """Wait until one more may go."""
        await trio.lowlevel.checkpoint()
        while self._under_way >= self._size:
            self._left = trio.Event()
            await self._left.wait()
        self._under_way += 1

    def leave(self, size: int | None) -> None:
        """One has come, of ``size`` bytes, or failed."""
        self._under_way -= 1
        self._left.set()
        if size is None:
            return
        if size > _SMALL or self._in_foreground():
            self._size = self._jobs
        elif self._size < _MANY and self._size * size < self._rate:
            self._size += 1


class _Filling:
    """One run."""

    def __init__(self, order: Order, prefetching: Prefetching, watch: _Watch) -> None:
        self._order = order
        self._cache = prefetching.cache
        self._prefetching = prefetching
        self._watch = watch
        self._outcome = Outcome(wanted=len(order.digests))
        self._came: list[Digest] = []
        self._to_pin: list[Digest] = []
        self._bound = 0  # bytes
        self._cut_off: CafsError | None = None  # then only a seed can have something
        self._full: CafsError | None = None

    async def run(self) -> Outcome:
        if self._cache.read_only is not None:
            raise StoreError(
                f"cannot fill the cache: {self._cache.read_only}",
                hint="name another directory with --cache-dir",
            )
        self._bound = await self._cache.in_thread(lambda: curation.bound_in_force(self._cache))
        doubtful = await curation.find_doubtful(self._cache, self._order.digests)
        missing = [each for each in self._order.digests if each in doubtful]
        cached = [each for each in self._order.digests if each not in doubtful]
        self._outcome.cached = len(cached)
        if self._order.pin:
            await self._refuse_too_many_pins(missing)
            await self._pin(cached)
        self._watch.begin(len(missing))
        waiting = iter(missing)
        window = _Window(
            self._order.jobs,
            rate=self._order.rate,
            in_foreground=self._cache.premises.in_foreground,
        )
        async with trio.open_nursery() as nursery:
            await window.enter()
            while not self._is_in_vain() and (digest := next(waiting, None)) is not None:
                nursery.start_soon(self._bring, digest, window)
                await window.enter()
        if (reason := self._full or self._cut_off) is not None:
            self._watch.say(reason)
            self._outcome.failed |= dict.fromkeys(waiting, f"not tried: {reason}")
        await self._pin(self._to_pin)
        await self._look_what_stayed(cached)
        await trio.to_thread.run_sync(tell_mounts, self._cache, self._came)
        return self._outcome

    def _is_in_vain(self) -> bool:
        if self._outcome.bytes > self._bound:  # what comes now evicts what we have brought
            self._full = StoreError(
                f"the cache may hold {readable(self._bound)}, and that much was pulled",
                hint="raise --cache-size, or prefetch less",
            )
        cut_off = self._cut_off is not None and self._order.cache.cache_seed is None
        return cut_off or self._full is not None

    async def _bring(self, digest: Digest, window: _Window) -> None:
        size: int | None = None
        try:
            size = await self._prefetching.store.fetch(digest)
        except CafsError as error:
            # Ctrl-C may strike in the very task that pulls: then this is no failure.
            await trio.lowlevel.checkpoint_if_cancelled()
            self._fail(digest, error)
            return
        finally:
            window.leave(size)
        self._watch.came(digest, size)
        self._outcome.pulled += 1
        self._outcome.bytes += size
        self._came.append(digest)
        if self._order.pin:
            self._to_pin.append(digest)
            if len(self._to_pin) >= _PINNED_AT_ONCE:
                batch, self._to_pin = self._to_pin, []
                await self._pin(batch)

    def _fail(self, digest: Digest, error: CafsError) -> None:
        self._outcome.failed[digest] = _why(error)
        self._outcome.absent += isinstance(error, BlobNotFound)
        if isinstance(error, Unavailable) and self._prefetching.is_cut_off():
            # Said once, at the end: why nobody is there. Who was refused for it may come first.
            if self._cut_off is None or isinstance(error, Unreachable):
                self._cut_off = error
        else:
            self._watch.failed(digest, error)

    async def _look_what_stayed(self, cached: list[Digest]) -> None:
        """What the cache has no room for was pulled in vain."""
        with suppress(StoreError):  # an index that cannot be asked now: it is done later
            await curation.apply_bounds(self._cache)
        gone = await self._cache.find_missing([*cached, *self._came])
        for digest in [each for each in [*cached, *self._came] if each in gone]:
            if digest not in self._outcome.failed:
                reason = self._cache.trouble or "the cache had no room for it, or has evicted it"
                self._outcome.failed[digest] = reason
        if gone and self._full is None:
            self._watch.say(
                StoreError(
                    f"{blobs(len(gone))} did not stay in the cache",
                    hint="raise --cache-size, or prefetch less",
                )
            )

    # --- pins

    async def _pin(self, digests: list[Digest]) -> None:
        """Raises StoreError where the bound would be exceeded."""
        if not digests or not self._order.pin:
            return
        for digest in await curation.pin(self._cache, digests):
            self._outcome.failed[digest] = "it was evicted before it could be pinned"

    async def _refuse_too_many_pins(self, missing: list[Digest]) -> None:
        """Before anything is pulled, as far as servers tell sizes; raises StoreError."""
        sizes: dict[Digest, int] = {}

        def told(digest: Digest, stat: BlobStat) -> None:
            sizes[digest] = _at_least(stat)

        await self._prefetching.upstream.stat_many(missing, told)  # of others the pull will tell
        coming = sum(sizes.values())
        await curation.refuse_too_many_pins(self._cache, self._order.digests, coming=coming)
