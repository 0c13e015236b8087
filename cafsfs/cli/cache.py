"""``cafsfs cache``: what is in the cache, is it right, and what is to stay; mounted or not."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import click
import trio

from cafsfs.cli.hashes import given_digests, with_hashes
from cafsfs.cli.options import QUIET, layers, with_options
from cafsfs.cli.prefetch import fill, make_order, parse_flag, report
from cafsfs.cli.progress import Progress
from cafsfs.cli.talk import blobs, complain, emit, moment, readable, run
from cafsfs.compose import open_cache
from cafsfs.config.layers import Layer, explain, resolve
from cafsfs.config.options import FOR_UPLOADS, CacheOptions, LogOptions, StoreOptions, option_names
from cafsfs.config.values import parse_count
from cafsfs.digest import Digest
from cafsfs.errors import CafsError, StoreError, UsageError
from cafsfs.report.logs import start_logging
from cafsfs.sharing import tell_mounts
from cafsfs.store.cache import curation
from cafsfs.store.cache.bounds import Amount, Bounds
from cafsfs.store.cache.curation import Removed, Survey, Verification
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.cache.index import Entry

_PAGE = 1000  # blobs in memory at once
_NAMED = 10_000  # blobs that are remembered to be told to mounts by name

_ALL_BUT_DIRECTORY = frozenset(option_names(CacheOptions)) - {"cache_dir"}
_only_directory = with_options(CacheOptions, LogOptions, defaults=QUIET, without=_ALL_BUT_DIRECTORY)
_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON")


_WHY_STUCK = "--log-level warning tells why"
# Pins may not exceed the size.
_NOT_FOR_PINS = _ALL_BUT_DIRECTORY - {"cache_size"} | FOR_UPLOADS


class _Row(NamedTuple):
    """A line of a listing; without an entry it is the pin of a blob that is not cached."""

    digest: Digest
    entry: Entry | None
    pinned: bool

    @property
    def mark(self) -> str:
        if self.entry is None:
            return "  absent"
        return "" if self.entry.verified else "  unverified"


@click.group()
def cache() -> None:
    """Look after the cache, mounted or not.

    \b
    cafsfs cache status
    cafsfs cache verify --repair
    cafsfs cache pin --from SUMS
    """


def _options(flags: dict[str, str | None], config: Path | None) -> tuple[CacheOptions, list[Layer]]:
    found = [*layers(flags, config), QUIET]
    start_logging(resolve(LogOptions, found))
    return resolve(CacheOptions, found), found


async def _tell(opened: DiskCache, digests: Collection[Digest] | None) -> None:
    """Live mounts are to know at once of what was changed."""
    if digests is None or digests:
        await trio.to_thread.run_sync(tell_mounts, opened, digests)


@asynccontextmanager
async def _open_to_change(options: CacheOptions, what: str) -> AsyncIterator[DiskCache]:
    async with open_cache(options, what) as opened:
        if opened.read_only is not None:
            raise StoreError(f"cannot change the cache: {opened.read_only}")
        yield opened


# --- status


@cache.command()
@_as_json
@_only_directory
def status(config: Path | None, *, as_json: bool, **flags: str | None) -> None:
    """Show how full the cache is, and who uses it.

    \b
    cafsfs cache status
    cafsfs cache status --json | jq .bytes
    """
    options, _ = _options(flags, config)
    found = run(lambda: _survey(options))
    if as_json:
        emit(json.dumps(_status_for_json(options, found), indent=2) + "\n")
    else:
        rows = _status_rows(options, found)
        width = max(len(name) for name, _ in rows)
        emit("".join(f"{name:{width}}  {value}\n" for name, value in rows))


async def _survey(options: CacheOptions) -> Survey:
    async with open_cache(options, "cafsfs cache status") as opened:
        return await curation.survey(opened)


def _status_for_json(options: CacheOptions, found: Survey) -> dict[str, object]:
    return {
        "directory": str(options.cache_dir),
        "bytes": found.usage.used,
        "blobs": found.usage.blobs,
        "bound_bytes": found.usage.bound,
        "live_bound_bytes": found.largest_bound,
        "pinned_bytes": found.pinned_bytes,
        "pinned_blobs": found.pinned_blobs,
        "partial_bytes": found.partial,
        "debris_bytes": found.debris,
        "disk_bytes": found.disk_total,
        "disk_free_bytes": found.disk_free,
        "complete": found.usage.complete,
        "read_only": found.usage.trouble,
        "users": [
            {"pid": each.pid, "what": each.what, "bound_bytes": each.bound} for each in found.users
        ],
    }


def _status_rows(options: CacheOptions, found: Survey) -> list[tuple[str, str]]:
    bound = f"{readable(found.usage.bound)} as configured here"
    if found.largest_bound is not None:
        bound = f"{readable(found.largest_bound)} by who keeps it now, {bound}"
    partial = readable(found.partial)
    if found.debris:
        partial += f", and {readable(found.debris)} left by dead processes"
    index = "complete"
    if not found.usage.complete:
        index = "not complete: a mount completes it, or `cafsfs cache gc`"
    return [
        ("directory", str(options.cache_dir)),
        ("cached", blobs(found.usage.blobs, found.usage.used)),
        ("bound", bound),
        ("pinned", blobs(found.pinned_blobs, found.pinned_bytes)),
        ("in flight", partial),
        ("disk", f"{readable(found.disk_free)} free of {readable(found.disk_total)}"),
        ("index", index),
        *([("read-only", found.usage.trouble)] if found.usage.trouble else []),
        *[("used by", f"{each.pid}: {each.what}") for each in found.users],
    ]


# --- ls


@cache.command(short_help="List the blobs in the cache.")
@click.option("--long", is_flag=True, help="sizes, times, pins and sources, too")
@click.option("--pinned", is_flag=True, help="only what is pinned")
@_as_json
@_only_directory
def ls(
    config: Path | None, *, long: bool, pinned: bool, as_json: bool, **flags: str | None
) -> None:
    """List the blobs in the cache, a line each, in the order of their hashes.

    "unverified" stands behind those whose content nobody has compared with the hash yet: it will
    be before they are read. With --pinned, "absent" stands behind what will be pinned when it
    comes.

    With --long a line tells hash, size, when it was used last, pulled, and verified, whether it is
    pinned, and where it came from; "-" is unknown. JSON tells it all, with sizes in bytes.

    \b
    cafsfs cache ls --long
    cafsfs cache ls --pinned > PINS
    """
    options, _ = _options(flags, config)
    if not as_json:
        write = _write_long if long else _write_short
        run(lambda: _list(options, write, only_pinned=pinned))
        return
    array = _JsonArray()
    run(lambda: _list(options, array.write, only_pinned=pinned))
    array.end()


async def _list(
    options: CacheOptions, write: Callable[[list[_Row]], None], *, only_pinned: bool
) -> None:
    """Page by page: nobody needs a million of them in memory."""
    async with open_cache(options, "cafsfs cache ls") as opened:
        await curation.complete(opened)
        index = opened.ledger.index
        pins = await opened.in_thread(index.pins)
        if only_pinned:
            for first in range(0, len(pins), _PAGE):
                page = pins[first : first + _PAGE]
                found = await opened.in_thread(lambda: [index.get(each) for each in page])  # noqa: B023
                write([_Row(*each, True) for each in zip(page, found, strict=True)])
            return
        marked = set(pins)
        last: Digest | None = None
        while entries := await opened.in_thread(lambda: index.entries(last, _PAGE)):  # noqa: B023
            last = entries[-1].digest
            write([_Row(each.digest, each, each.digest in marked) for each in entries])


def _write_short(rows: list[_Row]) -> None:
    emit("".join(f"{row.digest}{row.mark}\n" for row in rows))


def _write_long(rows: list[_Row]) -> None:
    emit("".join(map(_long_line, rows)))


def _long_line(row: _Row) -> str:
    entry = row.entry or Entry(digest=row.digest, size=0, pulled=0, used=0)
    words = (
        row.digest.hex,
        f"{readable(entry.size) if row.entry else 'absent':>7}",
        f"{_when(entry.used) or '-':20}",
        f"{_when(entry.pulled) or '-':20}",
        f"{_when(entry.verified) or row.mark.strip():20}",
        "pinned" if row.pinned else "-     ",
        entry.source or "-",
    )
    return "  ".join(words) + "\n"


class _JsonArray:
    """Written as it comes."""

    def __init__(self) -> None:
        self._opening = "[\n"

    def write(self, rows: list[_Row]) -> None:
        text = ""
        for row in rows:
            text += self._opening + json.dumps(_for_json(row))
            self._opening = ",\n"
        emit(text)

    def end(self) -> None:
        emit("[]\n" if self._opening == "[\n" else "\n]\n")


def _for_json(row: _Row) -> dict[str, object]:
    entry = row.entry
    if entry is None:
        return {"hash": row.digest.hex, "cached": False, "pinned": row.pinned}
    return {
        "hash": row.digest.hex,
        "cached": True,
        "size": entry.size,
        "used": _when(entry.used),
        "pulled": _when(entry.pulled),
        "verified": _when(entry.verified),
        "pinned": row.pinned,
        "source": entry.source,
        "packed_size": entry.packed_size,
        "compression": entry.compression,
    }


def _when(seconds: float) -> str | None:
    return moment(seconds) if seconds > 0 else None


# --- verify


@cache.command(short_help="Hash every blob, and tell which are wrong.")
@click.option("--repair", is_flag=True, help="discard what is wrong: it is pulled again when read")
@click.option("--jobs", metavar="N", help="cores to use  [default: all]")
@_as_json
@_only_directory
def verify(
    config: Path | None, *, repair: bool, jobs: str | None, as_json: bool, **flags: str | None
) -> None:
    """Hash every blob in the cache, and tell which are not what they should be.

    Prints a line "<hash>  <why>" for each that is wrong. Exit code 1 if there is any, whether it
    was discarded or not.

    \b
    cafsfs cache verify
    cafsfs cache verify --repair
    """
    options, _ = _options(flags, config)
    workers = None if jobs is None else parse_flag("--jobs", jobs, parse_count)
    done, pins = run(lambda: _verify(options, workers, repair=repair))
    if as_json:
        emit(json.dumps(_verification_for_json(done, pins), indent=2) + "\n")
    else:
        for digest, why in sorted(done.wrong.items()):
            emit(f"{digest}  {why}{_fate(digest, done, pins)}\n")
    said = f"verified {blobs(done.blobs, done.bytes)}"
    if not done.wrong:
        click.echo(f"{said}: all are right", err=True)
        return
    click.echo(f"{said}: {len(done.wrong)} wrong, {len(done.discarded)} discarded", err=True)
    left = len(done.wrong.keys() - done.discarded)
    hint = (
        "discard them, and they are pulled again when they are read: cafsfs cache verify --repair"
    )
    if left and not repair:
        complain(StoreError(f"the cache has {blobs(left)} with wrong content", hint=hint))
    elif left:
        complain(StoreError(f"{blobs(left)} could not be discarded", hint=_WHY_STUCK))
    sys.exit(1)


async def _verify(
    options: CacheOptions, jobs: int | None, *, repair: bool
) -> tuple[Verification, set[Digest]]:
    """What was found, and what is pinned of that."""
    opening = _open_to_change if repair else open_cache
    async with opening(options, "cafsfs cache verify") as opened:
        usage = opened.usage
        with Progress(usage.used if usage.complete else None) as progress:
            done = await curation.verify(opened, repair=repair, jobs=jobs, on_read=progress.advance)
        await _tell(opened, done.discarded)
        pins = await opened.in_thread(lambda: set(opened.ledger.index.pins()))
    return done, pins & done.wrong.keys()


def _fate(digest: Digest, done: Verification, pins: set[Digest]) -> str:
    if digest not in done.discarded:
        return ""
    return "; discarded" + (", its pin stays" if digest in pins else "")


def _verification_for_json(done: Verification, pins: set[Digest]) -> dict[str, object]:
    return {
        "blobs": done.blobs,
        "bytes": done.bytes,
        "wrong": [
            {
                "hash": digest.hex,
                "why": why,
                "discarded": digest in done.discarded,
                "pinned": digest in pins,
            }
            for digest, why in sorted(done.wrong.items())
        ],
    }


# --- gc


@cache.command()
@_as_json
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
    options, found = _options(flags, config)
    given = {name for name, each in explain(CacheOptions, found).items() if each.origin == "flag"}
    done = run(lambda: _collect(options, given))
    if as_json:
        emit(json.dumps(done, indent=2) + "\n")
    said = [f"evicted {blobs(done['evicted'], done['bytes'])}"]
    if done["debris_bytes"]:
        said.append(f"cleared {readable(done['debris_bytes'])} left by dead processes")
    said.append(f"{blobs(done['cached_blobs'], done['cached_bytes'])} in the cache")
    click.echo(", ".join(said), err=True)


async def _collect(options: CacheOptions, given: Collection[str]) -> dict[str, int]:
    async with _open_to_change(options, "cafsfs cache gc") as opened:
        before = await curation.survey(opened)
        opened.bounds = _bounds_beside(options.bounds, given, before)
        gone: list[Digest] = []
        opened.on_change = lambda digest: gone.append(digest) if len(gone) <= _NAMED else None
        await curation.complete(opened, in_any_case=True)
        evicted = await curation.apply_bounds(opened)
        await _tell(opened, gone if len(gone) <= _NAMED else None)
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


# --- evict


@cache.command()
@with_hashes
@click.option("--all", "everything", is_flag=True, help="evict all blobs that are not pinned")
@_as_json
@_only_directory
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
    digests = _named(hashes, source, everything=everything)
    options, _ = _options(flags, config)
    done = run(lambda: _evict(options, digests))
    if as_json:
        emit(json.dumps(done.for_json(), indent=2) + "\n")
    said = [f"evicted {blobs(done.evicted, done.bytes)}"]
    if done.absent:
        said.append(f"{len(done.absent)} not cached")
    if everything and done.pinned:
        said.append(f"{len(done.pinned)} pinned")
    click.echo(", ".join(said), err=True)
    failed = _complain_of(done.stuck, "it cannot be removed", hint=_WHY_STUCK)
    if not everything:
        failed += _complain_of(
            done.pinned, "it is pinned", hint="unpin it first: cafsfs cache unpin HASH"
        )
    sys.exit(1 if failed else 0)


async def _evict(options: CacheOptions, digests: list[Digest] | None) -> _Evicted:
    done = _Evicted()
    async with _open_to_change(options, "cafsfs cache evict") as opened:
        if digests is None:
            await curation.complete(opened)
            index = opened.ledger.index
            last: Digest | None = None
            while entries := await opened.in_thread(lambda: index.entries(last, _PAGE)):  # noqa: B023
                last = entries[-1].digest
                done.add(await curation.evict(opened, [each.digest for each in entries]))
            done.absent.clear()  # gone without us
        else:
            for first in range(0, len(digests), _PAGE):
                done.add(await curation.evict(opened, digests[first : first + _PAGE]))
        await _tell(opened, done.names)
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
            if len(self.names) > _NAMED:
                self.names = None

    def for_json(self) -> dict[str, object]:
        return {
            "evicted": self.evicted,
            "bytes": self.bytes,
            "pinned": [each.hex for each in self.pinned],
            "absent": [each.hex for each in self.absent],
            "failed": [each.hex for each in self.stuck],
        }


# --- pin and unpin


@cache.command()
@with_hashes
@_as_json
@click.option("--pull", "uri", metavar="URI", help="pull what is not cached from the store at URI")
@with_options(CacheOptions, StoreOptions, LogOptions, defaults=QUIET, without=_NOT_FOR_PINS)
def pin(
    hashes: tuple[str, ...],
    source: str | None,
    config: Path | None,
    *,
    uri: str | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Never evict the blobs HASH…, also after a restart.

    Refused if more would be pinned than the cache may hold. What is not cached cannot be pinned,
    unless --pull says where to pull it from; exit code 1 if that is so for any, the others are
    pinned.

    `cafsfs cache ls --pinned` lists the pins.

    \b
    cafsfs cache pin HASH HASH
    cafsfs cache pin --from SUMS --pull cafs://127.0.0.1/data
    """
    digests = given_digests(hashes, source)
    if uri is not None:
        order = make_order(uri, config, flags, digests=digests, pin=True)
        sys.exit(report(order, run(lambda: fill(order)), as_json=as_json))
    options, _ = _options(flags, config)
    absent = run(lambda: _pin(options, digests))
    if as_json:
        pinned = [each.hex for each in digests if each not in absent]
        emit(json.dumps({"pinned": pinned, "absent": [each.hex for each in absent]}) + "\n")
    click.echo(f"pinned {blobs(len(digests) - len(absent))}", err=True)
    hint = "pull it: cafsfs cache pin --pull URI HASH"
    if _complain_of(absent, "it is not cached", hint=hint):
        sys.exit(1)


async def _pin(options: CacheOptions, digests: list[Digest]) -> list[Digest]:
    """Returns those that are not cached."""
    async with _open_to_change(options, "cafsfs cache pin") as opened:
        await curation.complete(opened)  # else not all that is pinned would be counted
        absent = await curation.pin(opened, digests)
        await _tell(opened, digests)
    return [each for each in digests if each in absent]


@cache.command()
@with_hashes
@_as_json
@click.option("--all", "everything", is_flag=True, help="unpin all that is pinned")
@_only_directory
def unpin(
    hashes: tuple[str, ...],
    source: str | None,
    config: Path | None,
    *,
    everything: bool,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Let the blobs HASH… be evicted again. What is not pinned is no error.

    \b
    cafsfs cache unpin HASH
    cafsfs cache ls --pinned | cafsfs cache unpin --from -
    """
    digests = _named(hashes, source, everything=everything)
    options, _ = _options(flags, config)
    count, idle = run(lambda: _unpin(options, digests))
    if as_json:
        emit(json.dumps({"unpinned": count, "not_pinned": idle}) + "\n")
    said = f"unpinned {blobs(count)}"
    click.echo(said + (f", {idle} not pinned" if idle else ""), err=True)


async def _unpin(options: CacheOptions, digests: list[Digest] | None) -> tuple[int, int]:
    """Returns how many were unpinned, and how many had not been pinned."""
    async with _open_to_change(options, "cafsfs cache unpin") as opened:
        if digests is None:
            await curation.complete(opened)
            digests = await opened.in_thread(opened.ledger.index.pins)
        idle = await curation.unpin(opened, digests)
        await _tell(opened, digests)
    return len(digests) - len(idle), len(idle)


# ---


def _named(hashes: tuple[str, ...], source: str | None, *, everything: bool) -> list[Digest] | None:
    """The blobs that are named; None for ``--all``. Raises UsageError."""
    if not everything:
        return given_digests(hashes, source)
    if hashes or source is not None:
        raise UsageError("--all leaves nothing to be named", hint="name hashes, or pass --all")
    return None


def _complain_of(digests: Iterable[Digest], why: str, *, hint: str) -> int:
    """A line for each, and one hint for all; returns how many they are."""
    listed = list(digests)
    for digest in listed:
        last = digest is listed[-1]
        complain(CafsError(f"{digest}: {why}", hint=hint if last else None))
    return len(listed)
