"""What is counted. Plain numbers, so that counting never fails and costs next to nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from time import perf_counter

Trace = Callable[[str, float, Mapping[str, "str | int"], "str | None"], None]
"""Told of what has ended: its name, how many seconds it took, its attributes, and its error."""

# Seconds; from what memory answers (25 µs) to the patience of a reader (30 s).
BUCKETS = (0.00005, 0.0001, 0.00025, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Histogram:
    """Durations: how many were up to each of BUCKETS, and longer; ``seconds`` in all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0


class Requests:
    """Requests of the kernel: those that wait, and how long others took, by operation and result.

    A result is ``ok``, ``cancelled`` or the name of an errno. Both methods together take about
    1 µs, of the 25 to 40 that a request costs.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[str, float]] = {}
        self.taken: dict[tuple[str, str], Histogram] = {}
        self._last = 0

    def begin(self, operation: str) -> int:
        """A request has come; returns the number that it has from now on."""
        self._last = number = self._last + 1
        self.waiting[number] = (operation, perf_counter())
        return number

    def end(self, number: int, result: str) -> float:
        """It was answered; returns how many seconds that took."""
        operation, began = self.waiting.pop(number)
        seconds = perf_counter() - began
        histogram = self.taken.get((operation, result))
        if histogram is None:
            histogram = self.taken[operation, result] = Histogram()
        histogram.counts[bisect_left(BUCKETS, seconds)] += 1
        histogram.seconds += seconds
        return seconds

    def copy(self) -> Requests:
        """They as they are now, which requests that come or end do not change."""
        copied = Requests()
        copied.waiting = dict(self.waiting)
        copied.taken = {
            key: Histogram(each.counts.copy(), each.seconds) for key, each in self.taken.items()
        }
        return copied

    def oldest(self) -> tuple[str, float] | None:
        """Operation and age, in seconds, of the request that has waited longest."""
        if not self.waiting:
            return None
        operation, began = next(iter(self.waiting.values()))
        return operation, perf_counter() - began


@dataclass(slots=True)
class Metrics:
    """Counters of one mount since it began; bytes where the name says so.

    ``read_bytes`` were given to readers, ``cached_bytes`` of them from blobs that were in the cache
    when they were opened. ``pulled_bytes`` is content, ``received_bytes`` what came for it, packed.
    """

    lookups: int = 0
    opens: int = 0
    reads: int = 0
    read_bytes: int = 0
    cached_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    pulls: int = 0
    pull_errors: int = 0
    pulled_bytes: int = 0
    received_bytes: int = 0
    cache_discards: int = 0
    uncached: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    handler_errors: int = 0
    log_errors: int = 0
    log_warnings: int = 0
    requests: Requests = field(default_factory=Requests, repr=False)
    trace: Trace | None = field(default=None, repr=False)

    def traced(
        self,
        name: str,
        seconds: float,
        attributes: Mapping[str, str | int | None],
        error: str | None = None,
    ) -> None:
        """Tell of what has ended, if somebody wants to know. Never raises."""
        if self.trace is None:
            return
        known = {key: value for key, value in attributes.items() if value is not None}
        with suppress(Exception):  # it is no reason for a read to fail
            self.trace(name, seconds, known, error)

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in named if isinstance(value, int)}

    @property
    def hit_rate(self) -> float | None:
        """Which part of the blobs that were opened were in the cache; None before the first."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else None
