"""``cafsfs check`` and ``stat``: what a store has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cafsfs.cli.options import QUIET, with_options
from cafsfs.cli.talk import complain, emit, run
from cafsfs.cli.target import Target, find_quietly
from cafsfs.client.client import full_stats
from cafsfs.compose import open_store
from cafsfs.config.options import FOR_UPLOADS, LogOptions, StoreOptions
from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CafsError, UsageError
from cafsfs.store.contracts import BlobStat

_ABSENT = 1
_NOBODY_COULD_TELL = 3

_Found = dict[Digest, BlobStat | CafsError]


@click.command()
@click.argument("uri")
@click.argument("hashes", nargs=-1, required=True, metavar="HASH…")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_options(StoreOptions, LogOptions, defaults=QUIET, without=FOR_UPLOADS)
def check(
    uri: str, hashes: tuple[str, ...], config: Path | None, *, as_json: bool, **flags: str | None
) -> None:
    """Tell which of the blobs the store at URI has.

    Prints a line "<hash>  present" or "<hash>  absent" for each. Exit code 0 if all are there, 1
    if any is absent, 3 if no server could tell of one. A server has no blob of a root that it
    lacks.

    A blob is present if any server has it, and absent if all have said that they have not: of one
    that nobody has, while a server cannot be asked, nothing is said but that (exit code 3).

    \b
    cafsfs check cafs://127.0.0.1/data HASH && echo it is there
    """
    digests = [Digest.parse(each) for each in hashes]
    target = find_quietly(uri, config, flags)
    try:
        unseen, trouble = run(lambda: _find_unseen(target, digests))
    except UsageError:
        raise
    except CafsError as error:
        unseen, trouble = set(digests), error
    told = [each for each in digests if trouble is None or each not in unseen]
    if as_json and told:
        found = [{"hash": each.hex, "present": each not in unseen} for each in told]
        emit(json.dumps(found) + "\n")
    elif told:
        emit("".join(f"{each}  {'absent' if each in unseen else 'present'}\n" for each in told))
    if trouble is not None and unseen:
        complain(trouble)
        sys.exit(_NOBODY_COULD_TELL)
    sys.exit(_ABSENT if unseen else 0)


async def _find_unseen(
    target: Target, digests: list[Digest]
) -> tuple[set[Digest], CafsError | None]:
    async with open_store(target.uri, target.store) as store:
        return await store.find_unseen(digests)


@click.command(short_help="Show sizes and compression of blobs at URI.")
@click.argument("uri")
@click.argument("hashes", nargs=-1, required=True, metavar="HASH…")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_options(StoreOptions, LogOptions, defaults=QUIET, without=FOR_UPLOADS)
def stat(
    uri: str, hashes: tuple[str, ...], config: Path | None, *, as_json: bool, **flags: str | None
) -> None:
    """Show content size, packed size (both in bytes), compression and source of blobs at URI.

    The source is the server that told; of several, one of this --zone is asked first. Exit code 1
    if any is absent, 3 if no server could tell of one.

    \b
    cafsfs stat cafs://127.0.0.1/data HASH
    cafsfs stat --json cafs://127.0.0.1/data HASH HASH
    """
    digests = [Digest.parse(each) for each in hashes]
    target = find_quietly(uri, config, flags)
    try:
        found = run(lambda: _stat(target, digests))
    except UsageError:
        raise
    except CafsError as error:
        complain(error)
        sys.exit(_NOBODY_COULD_TELL)
    unknown = {each: it for each, it in found.items() if _is_trouble(it)}
    known = [each for each in digests if each not in unknown]
    if as_json and known:
        emit(json.dumps([_as_json(each, found[each]) for each in known]) + "\n")
    elif known:
        emit("".join(_as_line(each, found[each]) + "\n" for each in known))
    for trouble in {str(each): each for each in unknown.values()}.values():
        if isinstance(trouble, CafsError):
            complain(trouble)
    if unknown:
        sys.exit(_NOBODY_COULD_TELL)
    sys.exit(_ABSENT if any(isinstance(each, BlobNotFound) for each in found.values()) else 0)


async def _stat(target: Target, digests: list[Digest]) -> _Found:
    async with open_store(target.uri, target.store) as store:
        found, failures = await full_stats(store, digests)
    return {**found, **failures}


def _is_trouble(found: BlobStat | CafsError) -> bool:
    return isinstance(found, CafsError) and not isinstance(found, BlobNotFound)


def _as_json(digest: Digest, found: BlobStat | CafsError) -> dict[str, object]:
    if isinstance(found, CafsError):
        return {"hash": digest.hex, "present": False}
    return {
        "hash": digest.hex,
        "present": True,
        "size": found.size,
        "packed_size": found.packed_size,
        "compression": _compression(found),
        "source": found.source,
    }


def _as_line(digest: Digest, found: BlobStat | CafsError) -> str:
    if isinstance(found, CafsError):
        return f"{digest}  absent"
    packed = f"packed={found.packed_size}  compression={_compression(found)}"
    return f"{digest}  size={found.size}  {packed}  source={found.source}"


def _compression(found: BlobStat) -> str | None:
    return None if found.compression is None else found.compression.name.lower()
