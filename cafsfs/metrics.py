"""What is counted. Plain numbers, so that counting never fails and costs nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Metrics:
    """Counters of one mount since it began; bytes where the name says so."""

    lookups: int = 0
    opens: int = 0
    reads: int = 0
    read_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    pulls: int = 0
    pull_errors: int = 0
    pulled_bytes: int = 0
    cache_discards: int = 0
    uncached: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    handler_errors: int = 0

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return asdict(self)
