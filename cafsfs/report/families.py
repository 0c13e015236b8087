"""Each metric of a mount: its name, its help, and where its numbers come from.

Names end in their unit, as OpenMetrics has it; a counter is exposed with ``_total`` behind that.
All have a label ``mountpoint``, so that several mounts of a machine can be in one place. A test
holds this table together with ``guide/metrics.rst`` and the dashboard.
"""

from __future__ import annotations

import enum
import os
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cafsfs.metrics import Metrics
from cafsfs.report.status import Status
from cafsfs.store.cache.bounds import CacheUsage
from cafsfs.store.read_caching import InFlight
from cafsfs.store.router import PlaceState

Sample = tuple[tuple[str, ...], float]
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATES = ("up", "suspect", "down")


class Kind(enum.Enum):
    """What kind of metric it is, in the words of OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. ``samples`` are label values and a number each, for the ``labels``."""

    name: str
    kind: Kind
    help: str
    samples: Callable[[Seen], Iterable[Sample]]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A mount at one moment: what all metrics of a page are taken from. Nothing changes it."""

    counted: Metrics
    usage: CacheUsage
    servers: Sequence[PlaceState]
    pulls: Sequence[InFlight]
    memory: Mapping[str, int]
    filesystem: Mapping[str, int]
    online: bool
    born: float


def look(status: Status) -> Seen:
    """The mount as it is now; on the event loop."""
    parts, counted = status.parts, status.metrics
    return Seen(
        counted=replace(counted, requests=counted.requests.copy()),
        usage=status.store.usage,
        servers=parts.servers(),
        pulls=status.store.inflight(),
        memory=parts.memory(),
        filesystem=parts.filesystem(),
        online=parts.outage() is None,
        born=status.born,
    )


def _one(value: float) -> list[Sample]:
    return [((), value)]


def _counter(name: str, help: str, of: Callable[[Metrics], int]) -> Family:  # noqa: A002
    return Family(name, Kind.COUNTER, help, lambda seen: _one(of(seen.counted)))


def _gauge(name: str, help: str, of: Callable[[Seen], float]) -> Family:  # noqa: A002
    return Family(name, Kind.GAUGE, help, lambda seen: _one(of(seen)))


def _of_servers(
    name: str,
    kind: Kind,
    help: str,  # noqa: A002
    of: Callable[[PlaceState], float | None],
) -> Family:
    def samples(seen: Seen) -> Iterable[Sample]:
        told = ((each.name, of(each)) for each in seen.servers)
        return [((name,), value) for name, value in told if value is not None]

    return Family(name, kind, help, samples, ("server",))


def _states(seen: Seen) -> Iterable[Sample]:
    return [
        ((each.name, state), float(each.state == state))
        for each in seen.servers
        for state in _STATES
    ]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _oldest(seen: Seen) -> float:
    oldest = seen.counted.requests.oldest()
    return 0.0 if oldest is None else oldest[1]


REQUEST_SECONDS = "cafsfs_request_duration_seconds"
"""The histogram; its samples are in ``Metrics.requests``."""
REQUEST_SECONDS_HELP = "How long requests of the kernel took, by operation and result"
INFO = "cafsfs_build"
INFO_HELP = "Version of cafsfs, and what is mounted"

FAMILIES: tuple[Family, ...] = (
    # --- what readers do
    _counter("cafsfs_lookups", "Names that the kernel has asked for", lambda c: c.lookups),
    _counter("cafsfs_opens", "Blobs that were opened", lambda c: c.opens),
    _counter("cafsfs_reads", "Reads of blobs by the kernel", lambda c: c.reads),
    Family(
        "cafsfs_read_bytes",
        Kind.COUNTER,
        "Bytes of blobs given to the kernel, by where they were when the blob was opened",
        lambda s: [
            (("cache",), s.counted.cached_bytes),
            (("pull",), s.counted.read_bytes - s.counted.cached_bytes),
        ],
        ("source",),
    ),
    _gauge(
        "cafsfs_requests_waiting",
        "Requests of the kernel that are not answered yet",
        lambda s: len(s.counted.requests.waiting),
    ),
    _gauge("cafsfs_request_oldest_seconds", "How long the oldest of them has waited", _oldest),
    _gauge(
        "cafsfs_known_inodes", "Blobs that the kernel knows", lambda s: s.filesystem["known_inodes"]
    ),
    _gauge(
        "cafsfs_open_handles", "Files and directories open", lambda s: s.filesystem["open_handles"]
    ),
    # --- the cache
    _counter(
        "cafsfs_cache_hits", "Blobs that were in the cache when opened", lambda c: c.cache_hits
    ),
    _counter("cafsfs_cache_misses", "Blobs that had to be pulled", lambda c: c.cache_misses),
    _counter(
        "cafsfs_cache_discards",
        "Cached files that proved wrong, and were thrown away",
        lambda c: c.cache_discards,
    ),
    _counter(
        "cafsfs_uncached", "Blobs that were served without being cached", lambda c: c.uncached
    ),
    _counter("cafsfs_evictions", "Blobs evicted from the cache", lambda c: c.evictions),
    _counter("cafsfs_evicted_bytes", "Bytes evicted from the cache", lambda c: c.evicted_bytes),
    _gauge("cafsfs_cache_bytes", "What the cache holds", lambda s: s.usage.used),
    _gauge("cafsfs_cache_bound_bytes", "What the cache may hold", lambda s: s.usage.bound),
    _gauge("cafsfs_cache_blobs", "Blobs in the cache", lambda s: s.usage.blobs),
    _gauge("cafsfs_cache_partial_bytes", "Bytes of blobs in flight", lambda s: s.usage.partial),
    _gauge(
        "cafsfs_cache_evicted_open_bytes",
        "Bytes of evicted blobs that somebody has open",
        lambda s: s.usage.lingering,
    ),
    Family(
        "cafsfs_cache_room_bytes",
        Kind.GAUGE,
        "What its disk has for more, beyond what is to be left free",
        lambda s: [] if s.usage.room is None else _one(s.usage.room),
    ),
    _gauge(
        "cafsfs_cache_trouble",
        "1 while the cache is bypassed or not written to",
        lambda s: s.usage.trouble is not None,
    ),
    # --- pulls
    _counter("cafsfs_pulls", "Pulls that were begun", lambda c: c.pulls),
    _counter("cafsfs_pull_errors", "Pulls that have failed", lambda c: c.pull_errors),
    _counter("cafsfs_pulled_bytes", "Content of finished pulls", lambda c: c.pulled_bytes),
    _counter("cafsfs_received_bytes", "What came for it, packed", lambda c: c.received_bytes),
    _gauge("cafsfs_pulls_in_flight", "Pulls that go on now", lambda s: len(s.pulls)),
    _gauge(
        "cafsfs_in_flight_bytes",
        "What has come of them so far",
        lambda s: sum(each.length for each in s.pulls),
    ),
    _gauge(
        "cafsfs_pull_oldest_seconds",
        "Age of the oldest of them",
        lambda s: max((each.age for each in s.pulls), default=0.0),
    ),
    _gauge(
        "cafsfs_pull_still_seconds",
        "How long the one that has stood still longest has not moved",
        lambda s: max((each.still for each in s.pulls), default=0.0),
    ),
    # --- servers
    _gauge("cafsfs_online", "0 while no server can be reached", lambda s: s.online),
    Family(
        "cafsfs_server_state",
        Kind.GAUGE,
        "1 for the state that a server is in, of up, suspect and down",
        _states,
        ("server", "state"),
    ),
    _of_servers(
        "cafsfs_server_round_trip_seconds",
        Kind.GAUGE,
        "Time of a round trip to a server, averaged",
        lambda each: each.seconds,
    ),
    _of_servers(
        "cafsfs_server_rate_bytes",
        Kind.GAUGE,
        "Bytes a second of large blobs from a server, averaged",
        lambda each: each.rate,
    ),
    _of_servers(
        "cafsfs_server_requests",
        Kind.COUNTER,
        "What a server was asked",
        lambda each: each.requests,
    ),
    _of_servers(
        "cafsfs_server_errors", Kind.COUNTER, "Requests that a server failed", lambda e: e.errors
    ),
    _of_servers(
        "cafsfs_server_wrong_hashes",
        Kind.COUNTER,
        "Blobs of which a server had wrong bytes",
        lambda each: each.wrong_hashes,
    ),
    _of_servers(
        "cafsfs_server_left",
        Kind.COUNTER,
        "Pulls that have left a slow server for another",
        lambda each: each.left,
    ),
    # --- the process
    _counter(
        "cafsfs_handler_errors",
        "Requests that met a bug: the log has it",
        lambda c: c.handler_errors,
    ),
    Family(
        "cafsfs_log_messages",
        Kind.COUNTER,
        "Lines of the log, by level: warning and error",
        lambda s: [
            (("warning",), s.counted.log_warnings),
            (("error",), s.counted.log_errors),
        ],
        ("level",),
    ),
    Family(
        "cafsfs_memory_bytes",
        Kind.GAUGE,
        "Memory for pulls: budget is what they may have, held what they have",
        lambda s: [
            (("budget",), s.memory["budget_bytes"]),
            (("held",), s.memory["held_bytes"]),
        ],
        ("kind",),
    ),
    _gauge("cafsfs_resident_memory_bytes", "Memory of the process", lambda _: _resident()),
    Family(
        "cafsfs_processor_seconds",
        Kind.COUNTER,
        "Processor time of the process",
        lambda _: _one(_processor()),
    ),
    _gauge(
        "cafsfs_open_descriptors",
        "File descriptors of the process",
        lambda _: len(os.listdir("/proc/self/fd")),
    ),
    _gauge("cafsfs_start_time_seconds", "When the mount began, since 1970", lambda s: s.born),
)
