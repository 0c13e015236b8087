"""``cafsfs cache gc`` and ``evict``: what has to go."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from cafsfs.cli.cache.opening import (
    PAGE,
    WHY_STUCK,
    as_json_too,
    begin,
    complain_of,
    named,
    only_directory,
    open_to_change,
    tell,
)
from cafsfs.cli.hashes import with_hashes
from cafsfs.cli.options import QUIET, with_options
from cafsfs.cli.talk import blobs, emit, readable, run
from cafsfs.config.options import CacheOptions, LogOptions
from cafsfs.digest import Digest
from cafsfs.sharing import NAMED
from cafsfs.store.cache import curation
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.curation import Removed, Survey


@click.command()
@as_json_too
@with_options(CacheOptions, LogOptions, defaults=QUIET, without={"cache_seed"})
def gc(config: Path | None, *, as_json: bool, **flags: str | None) -> None:
    """Clear up, and bring the cache within its bounds now.

    Removes what killed processes have left, makes the index agree with the files, and evicts what
    the bounds demand, least recently used first. A mount that uses the cache keeps it within its
    own bounds all the time: where those are wider, they hold here, unless a flag says otherwise.

    \b
    cafsfs cache gc
    cafsfs cache gc --cache-size 5G
    cafsfs cache gc --cache-tti 30d
    """
    options = begin(flags, config)
    given = {name for name, value in flags.items() if value is not None}
    done = run(lambda: _collect(options, given))
    if as_json:
        emit(json.dumps(done, indent=2) + "\n")
    said = [f"evicted {blobs(done['evicted'], done['bytes'])}"]
    if done["debris_bytes"]:
        said.append(f"cleared {readable(done['debris_bytes'])} left by dead processes")
    said.append(f"{blobs(done['cached_blobs'], done['cached_bytes'])} in the cache")
    click.echo(", ".join(said), err=True)


async def _collect(options: CacheOptions, given: Collection[str]) -> dict[str, int]:
    async with open_to_change(options, "cafsfs cache gc") as opened:
        before = await curation.survey(opened)
        opened.bounds = _bounds_beside(options.bounds, given, before)
        gone: list[Digest] = []
        opened.on_change = lambda digest: gone.append(digest) if len(gone) <= NAMED else None
        await curation.complete(opened, in_any_case=True)
        evicted = await curation.apply_bounds(opened)
        await tell(opened, gone if len(gone) <= NAMED else None)
        after = opened.usage
    return {
        "evicted": evicted.blobs,
        "bytes": evicted.bytes,
        "debris_bytes": before.debris,
        "cached_blobs": after.blobs,
        "cached_bytes": after.used,
    }


def _bounds_beside(bounds: Bounds, given: Collection[str], found: Survey) -> Bounds:
    """``bounds``, but where a flag does not say so no narrower than those of who keeps it now."""
    if found.largest_bound is None:
        return bounds
    if "cache_size" not in given and found.largest_bound > bounds.size.of(found.disk_total):
        bounds = replace(bounds, size=Amount(found.largest_bound))
    if "cache_free" not in given:  # how much it leaves free itself we do not know
        bounds = replace(bounds, free=Amount())
    return bounds


@click.command()
@with_hashes
@click.option("--all", "everything", is_flag=True, help="evict all blobs that are not pinned")
@as_json_too
@only_directory
def evict(
    hashes: tuple[str, ...],
    source: str | None,
    config: Path | None,
    *,
    everything: bool,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Remove the blobs HASH… from the cache. Who reads one now reads it to its end.

    Pinned ones stay; exit code 1 if one of them was named. What is not cached is no error.

    \b
    cafsfs cache evict HASH HASH
    cafsfs cache evict --all
    """
    digests = named(hashes, source, everything=everything)
    options = begin(flags, config)
    done = run(lambda: _evict(options, digests))
    if as_json:
        emit(json.dumps(done.for_json(), indent=2) + "\n")
    said = [f"evicted {blobs(done.evicted, done.bytes)}"]
    if done.absent:
        said.append(f"{len(done.absent)} not cached")
    if everything and done.pinned:
        said.append(f"{len(done.pinned)} pinned")
    click.echo(", ".join(said), err=True)
    failed = complain_of(done.stuck, "it cannot be removed", hint=WHY_STUCK)
    if not everything:
        failed += complain_of(
            done.pinned, "it is pinned", hint="unpin it first: cafsfs cache unpin HASH"
        )
    sys.exit(1 if failed else 0)


async def _evict(options: CacheOptions, digests: list[Digest] | None) -> _Evicted:
    done = _Evicted()
    async with open_to_change(options, "cafsfs cache evict") as opened:
        if digests is None:
            await curation.complete(opened)
            index = opened.ledger.index
            last: Digest | None = None
            while entries := await opened.in_thread(lambda: index.entries(last, PAGE)):  # noqa: B023
                last = entries[-1].digest
                done.add(await curation.evict(opened, [each.digest for each in entries]))
            done.absent.clear()  # gone without us
        else:
            for first in range(0, len(digests), PAGE):
                done.add(await curation.evict(opened, digests[first : first + PAGE]))
        await tell(opened, done.names)
    return done


@dataclass(slots=True)
class _Evicted:
    """What became of many, batch by batch; ``names`` is None where they are too many."""

    evicted: int = 0
    bytes: int = 0
    names: list[Digest] | None = field(default_factory=list)
    pinned: list[Digest] = field(default_factory=list)
    absent: list[Digest] = field(default_factory=list)
    stuck: list[Digest] = field(default_factory=list)

    def add(self, removed: Removed) -> None:
        self.evicted += len(removed.gone)
        self.bytes += sum(removed.gone.values())
        self.pinned += sorted(removed.pinned)
        self.absent += sorted(removed.absent)
        self.stuck += sorted(removed.stuck)
        if self.names is not None:
            self.names += removed.gone
            if len(self.names) > NAMED:
                self.names = None

    def for_json(self) -> dict[str, object]:
        return {
            "evicted": self.evicted,
            "bytes": self.bytes,
            "pinned": [each.hex for each in self.pinned],
            "absent": [each.hex for each in self.absent],
            "failed": [each.hex for each in self.stuck],
        }
