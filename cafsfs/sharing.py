"""What processes that share a cache tell each other, by the control sockets of live mounts."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from cafsfs.control import Handler, ask_all
from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.store.cache.disk_cache import DiskCache

CACHE_CHANGED = "cache-changed"
"""Command of the control socket: another process has changed ``digests`` (null: any) in the cache
whose directory has the device and inode ``cache``."""

WRITE_INDEX = "write-index"
"""Command of the control socket: write what is known of that ``cache`` to its index now."""

NAMED = 10_000  # blobs of which mounts are told by name; of more, that any have changed
_PATIENCE = 1.0  # seconds that mounts have to write their index before we read it


def tell_mounts(cache: DiskCache, digests: Collection[Digest] | None) -> None:
    """Tell live mounts on this cache which blobs (None: any) were changed; blocks up to 5 s."""
    names = None if digests is None else [each.hex for each in digests]
    if names is not None and len(names) > NAMED:
        names = None  # a request has a megabyte at most
    with suppress(StoreError):  # no runtime directory, so no mounts
        ask_all(
            {"command": CACHE_CHANGED, "cache": list(cache.premises.identity), "digests": names}
        )


def have_index_written(cache: DiskCache) -> None:
    """Have live mounts on this cache write to its index what they know; blocks up to 1 s."""
    with suppress(StoreError):  # no runtime directory, so no mounts
        ask_all(
            {"command": WRITE_INDEX, "cache": list(cache.premises.identity)}, deadline=_PATIENCE
        )


def handlers(cache: DiskCache, mountpoint: str) -> dict[str, Handler]:
    """What the mount there does when it is told, or asked, of its cache."""

    def concerns_us(request: dict[str, Any]) -> bool:
        return request.get("cache") == list(cache.premises.identity)

    async def cache_changed(request: dict[str, Any]) -> dict[str, object]:
        concerned = concerns_us(request)
        if concerned:
            digests = request.get("digests")
            await cache.look_again(None if digests is None else [Digest.parse(e) for e in digests])
        return {"concerned": concerned, "mountpoint": mountpoint}

    async def write_index(request: dict[str, Any]) -> dict[str, object]:
        if concerned := concerns_us(request):
            await cache.keeper.flush()
        return {"concerned": concerned, "mountpoint": mountpoint}

    return {CACHE_CHANGED: cache_changed, WRITE_INDEX: write_index}
