"""All there is to know of a live mount, for people, scripts and the files below ``.cafsfs/``.

Everything comes from memory or from files of the kernel's that never wait, so it is told also while
readers wait for a server that is frozen. What each field says stands in ``guide/metrics.rst``; a
test holds the two together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import trio

from cafsfs.digest import Digest
from cafsfs.metrics import Metrics
from cafsfs.report.recent import RecentComplaints
from cafsfs.store.read_caching import InFlight, ReadCachingStore
from cafsfs.store.router import Outage, PlaceState

Number = int | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a mount is, and stays."""

    version: str
    uri: str
    mountpoint: str
    cache_directory: str


@dataclass(slots=True, kw_only=True)
class Parts:
    """What can be asked of the parts of a mount, at any time and without waiting."""

    servers: Callable[[], Sequence[PlaceState]] = list
    outage: Callable[[], Outage | None] = lambda: None
    memory: Callable[[], Mapping[str, int]] = dict
    kernel: Callable[[], Mapping[str, Number]] = dict
    filesystem: Callable[[], Mapping[str, int]] = dict
    openers: Callable[[], Mapping[Digest, Sequence[int]]] = dict


class Status:
    """Tells how a mount is. ``files`` render what is below ``.cafsfs/``."""

    def __init__(
        self,
        about: About,
        metrics: Metrics,
        store: ReadCachingStore,
        complaints: RecentComplaints,
        parts: Parts,
    ) -> None:
        self.about = about
        self.metrics = metrics
        self.store = store
        self.complaints = complaints
        self.parts = parts
        self._began, self.born = time.monotonic(), time.time()
        self._renderer = trio.CapacityLimiter(1)
        self.files: dict[str, Callable[[], Awaitable[bytes]]] = {
            "stats.json": lambda: self._render(self.stats()),
            "inflight": lambda: self._render(self.inflight()),
            "servers": lambda: self._render(self.servers()),
            "version": self._version,
        }

    @property
    def uptime(self) -> float:
        """Seconds since the mount began."""
        return time.monotonic() - self._began

    def stats(self) -> dict[str, object]:
        """All of it."""
        return {
            "version": self.about.version,
            "uri": self.about.uri,
            "mountpoint": self.about.mountpoint,
            "pid": os.getpid(),
            "started": _moment(self.born),
            "uptime_seconds": round(self.uptime, 3),
            "hit_rate": _rounded(self.metrics.hit_rate),
            "bytes": self._bytes(),
            "cache": self._cache(),
            "servers": {**self._outage(), "members": self.servers()},
            "pulls_in_flight": self.store.pulling,
            "inflight": self.inflight(),
            "requests": self._requests(),
            "memory": dict(self.parts.memory()),
            "kernel": dict(self.parts.kernel()),
            "filesystem": dict(self.parts.filesystem()),
            "counters": self.metrics.as_dict(),
            "last_errors": self._complaints(),
        }

    def summary(self) -> str:
        """How it is, in a line for a supervisor: hit rate, bytes, servers."""
        rate, servers = self.metrics.hit_rate, self.parts.servers()
        hits = "nothing opened yet" if rate is None else f"{rate:.0%} of opens from the cache"
        cached, pulled = self.store.usage.used, self.metrics.pulled_bytes
        up = sum(each.state == "up" for each in servers)
        where = f"{up} of {len(servers)} servers up" if servers else "a directory of this machine"
        return f"{hits}; {_mib(cached)} cached, {_mib(pulled)} pulled; {where}"

    def inflight(self) -> list[dict[str, object]]:
        """The pulls in flight, the oldest first."""
        openers = self.parts.openers()
        return [_pull(each, openers.get(each.digest, ())) for each in self.store.inflight()]

    def servers(self) -> list[dict[str, object]]:
        """The state of each server, in the order in which they were given."""
        return [asdict(each) for each in self.parts.servers()]

    async def _version(self) -> bytes:
        return f"{self.about.version}\n".encode()

    async def _render(self, value: object) -> bytes:
        """In a thread: of 256 pulls in flight it takes 2 ms."""
        return await trio.to_thread.run_sync(_as_json, value, limiter=self._renderer)

    def _bytes(self) -> dict[str, int]:
        counted = self.metrics
        return {
            "read": counted.read_bytes,
            "from_cache": counted.cached_bytes,
            "from_pulls": counted.read_bytes - counted.cached_bytes,
            "pulled": counted.pulled_bytes,
            "received": counted.received_bytes,
        }

    def _cache(self) -> dict[str, object]:
        usage = self.store.usage
        return {
            "directory": self.about.cache_directory,
            "bytes": usage.used,
            "bound_bytes": usage.bound,
            "fill": _rounded(usage.used / usage.bound if usage.bound else None),
            "blobs": usage.blobs,
            "partial_bytes": usage.partial,
            "evicted_open_bytes": usage.lingering,
            "room_bytes": usage.room,
            "complete": usage.complete,
            "trouble": usage.trouble,
        }

    def _outage(self) -> dict[str, object]:
        now = self.parts.outage()
        if now is None:
            return {"state": "online", "since": None, "reason": None}
        return {"state": "offline", "since": _moment(now.since), "reason": now.reason}

    def _requests(self) -> dict[str, object]:
        operation, seconds = self.metrics.requests.oldest() or (None, None)
        return {
            "waiting": len(self.metrics.requests.waiting),
            "oldest_operation": operation,
            "oldest_seconds": _rounded(seconds),
        }

    def _complaints(self) -> list[dict[str, object]]:
        return [
            {**asdict(each), "first": _moment(each.first), "last": _moment(each.last)}
            for each in self.complaints.latest()
        ]


def _pull(pull: InFlight, pids: Sequence[int]) -> dict[str, object]:
    return {
        "hash": pull.digest.hex,
        "bytes": pull.length,
        "size": pull.size,
        "age_seconds": round(pull.age, 3),
        "still_seconds": round(pull.still, 3),
        "rate": round(pull.length / pull.age) if pull.age else 0,
        "users": pull.users,
        "waiting": pull.waiting,
        "pids": sorted(set(pids)),
    }


def _as_json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
