"""``cafsfs cache verify``: is what is in the cache right?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cafsfs.cli.cache.opening import (
    WHY_STUCK,
    as_json_too,
    begin,
    only_directory,
    open_to_change,
    tell,
)
from cafsfs.cli.prefetch import parse_flag
from cafsfs.cli.progress import Progress
from cafsfs.cli.talk import blobs, complain, emit, run
from cafsfs.compose import open_cache
from cafsfs.config.options import CacheOptions
from cafsfs.config.values import parse_count
from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.store.cache import curation
from cafsfs.store.cache.curation import Verification


@click.command(short_help="Hash every blob, and tell which are wrong.")
@click.option("--repair", is_flag=True, help="discard what is wrong: it is pulled again when read")
@click.option("--jobs", metavar="N", help="cores to use  [default: all]")
@as_json_too
@only_directory
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
    options = begin(flags, config)
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
        complain(StoreError(f"{blobs(left)} could not be discarded", hint=WHY_STUCK))
    sys.exit(1)


async def _verify(
    options: CacheOptions, jobs: int | None, *, repair: bool
) -> tuple[Verification, set[Digest]]:
    """What was found, and what is pinned of that."""
    opening = open_to_change if repair else open_cache
    async with opening(options, "cafsfs cache verify") as opened:
        usage = opened.usage
        with Progress(usage.used if usage.complete else None) as progress:
            done = await curation.verify(opened, repair=repair, jobs=jobs, on_read=progress.advance)
        await tell(opened, done.discarded)
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
