"""``cafsfs cache pin`` and ``unpin``: what is to stay."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cafsfs.cli.cache.opening import (
    ALL_BUT_DIRECTORY,
    as_json_too,
    begin,
    complain_of,
    named,
    only_directory,
    open_to_change,
    tell,
)
from cafsfs.cli.hashes import given_digests, with_hashes
from cafsfs.cli.options import QUIET, with_options
from cafsfs.cli.prefetch import fill, make_order, report
from cafsfs.cli.talk import blobs, emit, run
from cafsfs.config.options import FOR_UPLOADS, CacheOptions, LogOptions, StoreOptions
from cafsfs.digest import Digest
from cafsfs.store.cache import curation

# Pins may not exceed the size.
_NOT_FOR_PINS = ALL_BUT_DIRECTORY - {"cache_size"} | FOR_UPLOADS


@click.command()
@with_hashes
@as_json_too
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
    options = begin(flags, config)
    absent = run(lambda: _pin(options, digests))
    if as_json:
        pinned = [each.hex for each in digests if each not in absent]
        emit(json.dumps({"pinned": pinned, "absent": [each.hex for each in absent]}) + "\n")
    click.echo(f"pinned {blobs(len(digests) - len(absent))}", err=True)
    hint = "pull it: cafsfs cache pin --pull URI HASH"
    if complain_of(absent, "it is not cached", hint=hint):
        sys.exit(1)


async def _pin(options: CacheOptions, digests: list[Digest]) -> list[Digest]:
    """Returns those that are not cached."""
    async with open_to_change(options, "cafsfs cache pin") as opened:
        await curation.complete(opened)  # else not all that is pinned would be counted
        absent = await curation.pin(opened, digests)
        await tell(opened, digests)
    return [each for each in digests if each in absent]


@click.command()
@with_hashes
@as_json_too
@click.option("--all", "everything", is_flag=True, help="unpin all that is pinned")
@only_directory
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
    digests = named(hashes, source, everything=everything)
    options = begin(flags, config)
    count, idle = run(lambda: _unpin(options, digests))
    if as_json:
        emit(json.dumps({"unpinned": count, "not_pinned": idle}) + "\n")
    said = f"unpinned {blobs(count)}"
    click.echo(said + (f", {idle} not pinned" if idle else ""), err=True)


async def _unpin(options: CacheOptions, digests: list[Digest] | None) -> tuple[int, int]:
    """Returns how many were unpinned, and how many had not been pinned."""
    async with open_to_change(options, "cafsfs cache unpin") as opened:
        if digests is None:
            await curation.complete(opened)
            digests = await opened.in_thread(opened.ledger.index.pins)
        idle = await curation.unpin(opened, digests)
        await tell(opened, digests)
    return len(digests) - len(idle), len(idle)
