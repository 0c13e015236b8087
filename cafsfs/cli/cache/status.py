"""``cafsfs cache status``: how full it is, and who uses it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cafsfs.cli.cache.opening import as_json_too, begin, only_directory
from cafsfs.cli.talk import blobs, emit, readable, run
from cafsfs.compose import open_cache
from cafsfs.config.options import CacheOptions
from cafsfs.store.cache import curation
from cafsfs.store.cache.curation import Survey


@click.command()
@as_json_too
@only_directory
def status(config: Path | None, *, as_json: bool, **flags: str | None) -> None:
    """Show how full the cache is, and who uses it.

    \b
    cafsfs cache status
    cafsfs cache status --json | jq .bytes
    """
    options = begin(flags, config)
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
