"""Routing over any stores: each is asked by its own verbs what a server is asked by SIZE."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from cafsfs.digest import DIGEST_LENGTH, Digest
from cafsfs.store.contracts import ContentStore
from cafsfs.store.health import Site
from cafsfs.store.router import Place, Router
from cafsfs.store.routing import RoutingStore
from tests.store.scripted import ScriptedStore

MADE_UP = Digest(bytes(DIGEST_LENGTH))  # nobody knows content with this hash


class StoreSource:
    """SIZE is a stat, a greeting is a question for what nobody has."""

    protocol: str | None = None
    ranges = "untested"

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    def hung_up(self) -> bool:
        return self._store.hung_up if isinstance(self._store, ScriptedStore) else False

    async def measure(self, digest: Digest) -> int:
        stat = await self._store.stat(digest)
        return stat.packed_size or stat.size or 0

    async def greet(self) -> float:
        began = trio.current_time()
        await self._store.find_missing([MADE_UP])
        return trio.current_time() - began


def routed(
    *stores: ContentStore,
    sites: Sequence[Site] | None = None,
    nursery: trio.Nursery | None = None,
    fail_fast: bool = False,
    zone: str | None = None,
    replicas: int = 1,
    slow_rate: float = 0,
    crowded: Callable[[], bool] = lambda: False,
) -> RoutingStore:
    """A RoutingStore of ``stores``, which are called 0, 1, 2 …"""
    named = sites or [Site(name=str(number)) for number in range(len(stores))]
    places = [Place(site, StoreSource(store)) for site, store in zip(named, stores, strict=True)]
    router = Router(places, zone=zone, nursery=nursery, fail_fast=fail_fast)
    return RoutingStore(router, stores, replicas=replicas, slow_rate=slow_rate, crowded=crowded)
