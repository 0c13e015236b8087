"""What the commands of ``cafsfs cache`` begin and end with: options, the cache, mounts told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import click
import trio

from cafsfs.cli.hashes import given_digests
from cafsfs.cli.options import QUIET, layers, with_options
from cafsfs.cli.talk import complain
from cafsfs.compose import open_cache
from cafsfs.config.layers import resolve
from cafsfs.config.options import CacheOptions, LogOptions, option_names
from cafsfs.digest import Digest
from cafsfs.errors import CafsError, StoreError, UsageError
from cafsfs.report.logs import start_logging
from cafsfs.sharing import tell_mounts
from cafsfs.store.cache.disk_cache import DiskCache

PAGE = 1000  # blobs in memory at once
WHY_STUCK = "--log-level warning tells why"

ALL_BUT_DIRECTORY = frozenset(option_names(CacheOptions)) - {"cache_dir"}
only_directory = with_options(CacheOptions, LogOptions, defaults=QUIET, without=ALL_BUT_DIRECTORY)
as_json_too = click.option("--json", "as_json", is_flag=True, help="print JSON")


def begin(flags: Mapping[str, str | None], config: Path | None) -> CacheOptions:
    """Log as the flags and all other places say; returns what they say of the cache."""
    found = [*layers(flags, config), QUIET]
    start_logging(resolve(LogOptions, found))
    return resolve(CacheOptions, found)


async def tell(opened: DiskCache, digests: Collection[Digest] | None) -> None:
    """Live mounts are to know at once of what was changed."""
    if digests is None or digests:
        await trio.to_thread.run_sync(tell_mounts, opened, digests)


@asynccontextmanager
async def open_to_change(options: CacheOptions, what: str) -> AsyncIterator[DiskCache]:
    """As ``open_cache``; raises StoreError also where nothing can be written."""
    async with open_cache(options, what) as opened:
        if opened.read_only is not None:
            raise StoreError(f"cannot change the cache: {opened.read_only}")
        yield opened


def named(hashes: tuple[str, ...], source: str | None, *, everything: bool) -> list[Digest] | None:
    """The blobs that are named; None for ``--all``. Raises UsageError."""
    if not everything:
        return given_digests(hashes, source)
    if hashes or source is not None:
        raise UsageError("--all leaves nothing to be named", hint="name hashes, or pass --all")
    return None


def complain_of(digests: Iterable[Digest], why: str, *, hint: str) -> int:
    """A line for each, and one hint for all; returns how many they are."""
    listed = list(digests)
    for digest in listed:
        last = digest is listed[-1]
        complain(CafsError(f"{digest}: {why}", hint=hint if last else None))
    return len(listed)
