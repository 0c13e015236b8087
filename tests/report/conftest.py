"""A mount's parts, without a mount: what tells of them does not notice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cafsfs.metrics import Metrics
from cafsfs.report.recent import RecentComplaints
from cafsfs.report.status import About, Parts, Status
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.store.router import PlaceState
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches

ABOUT = About(
    version="1.2.3", uri="cafs://h/r", mountpoint="/mnt/cafs", cache_directory="/var/cache/cafsfs"
)
SERVER = PlaceState(
    name="h:2403",
    state="up",
    reason=None,
    down_for=None,
    quiet_for=3.5,
    zone="eu",
    priority=0,
    weight=1.0,
    seconds=0.002,
    rate=3e6,
    protocol="002",
    ranges="sound",
    requests=7,
    errors=1,
    wrong_hashes=0,
    left=0,
)


@dataclass
class Bench:
    """A status of a store over a scripted upstream."""

    status: Status
    store: ReadCachingStore
    upstream: ScriptedStore
    metrics: Metrics
    parts: Parts
    complaints: RecentComplaints


@pytest.fixture
def caches() -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def complaints() -> Iterator[RecentComplaints]:
    made = RecentComplaints(Metrics())
    logger = logging.getLogger("elsewhere")
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


@pytest.fixture
def bench(
    tmp_path: Path, caches: Caches, nursery: trio.Nursery, complaints: RecentComplaints
) -> Bench:
    metrics, upstream = complaints.metrics, ScriptedStore()
    cache = caches.open(tmp_path, 1000, metrics=metrics)
    store = ReadCachingStore(cache, upstream, nursery, metrics=metrics)
    parts = Parts(
        servers=lambda: [SERVER],
        memory=lambda: {"budget_bytes": 9, "held_bytes": 5, "pulls": 1, "waiting": 0},
        kernel=lambda: {
            "minor": 40,
            "parallel_lookups": True,
            "max_tasks": 1024,
            "max_background": 256,
            "read_ahead_kb": None,
        },
        filesystem=lambda: {"known_inodes": 2, "open_handles": 1},
    )
    status = Status(ABOUT, metrics, store, complaints, parts)
    return Bench(status, store, upstream, metrics, parts, complaints)
