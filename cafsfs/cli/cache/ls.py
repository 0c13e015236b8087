"""``cafsfs cache ls``: the blobs in the cache, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from cafsfs.cli.cache.opening import PAGE, as_json_too, begin, only_directory
from cafsfs.cli.talk import emit, moment, readable, run
from cafsfs.compose import open_cache
from cafsfs.config.options import CacheOptions
from cafsfs.digest import Digest
from cafsfs.store.cache import curation
from cafsfs.store.cache.index import Entry


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


@click.command(short_help="List the blobs in the cache.")
@click.option("--long", is_flag=True, help="sizes, times, pins and sources, too")
@click.option("--pinned", is_flag=True, help="only what is pinned")
@as_json_too
@only_directory
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
    options = begin(flags, config)
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
            for first in range(0, len(pins), PAGE):
                page = pins[first : first + PAGE]
                found = await opened.in_thread(lambda: [index.get(each) for each in page])  # noqa: B023
                write([_Row(*each, True) for each in zip(page, found, strict=True)])
            return
        marked = set(pins)
        last: Digest | None = None
        while entries := await opened.in_thread(lambda: index.entries(last, PAGE)):  # noqa: B023
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
