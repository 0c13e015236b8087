"""Run a row, peer and ours in turn, and draw the conclusions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.rows import Row
from tests.bench.stage import Sample, Stage

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row and its samples; the n-th of ours came just after the n-th of the peer."""

    row: Row
    size: int
    ours: tuple[Sample, ...]
    peer: tuple[Sample, ...]

    @property
    def our_rate(self) -> float:
        """Our median, in MiB a second."""
        return _rate(self.size, self.ours)

    @property
    def peer_rate(self) -> float | None:
        """The peer's median, in MiB a second."""
        return _rate(self.size, self.peer) if self.peer else None

    @property
    def ratio(self) -> float | None:
        """How many times the peer's rate ours is."""
        return self.our_rate / self.peer_rate if self.peer_rate else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest ratio of two runs in turn: how far to trust the median."""
        if not self.peer:
            return None
        pairs = [
            theirs.seconds / ours.seconds for ours, theirs in zip(self.ours, self.peer, strict=True)
        ]
        return min(pairs), max(pairs)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached, where there is one."""
        if self.row.aim is None or self.ratio is None:
            return None
        return self.ratio >= self.row.aim

    def as_dict(self) -> dict[str, object]:
        """For ``--json``; rates in MiB/s, times in seconds, peaks in bytes."""
        return {
            "row": self.row.name,
            "work": self.row.work,
            "peer_name": self.row.peer_name or None,
            "bytes": self.size,
            "ours": self.our_rate,
            "peer": self.peer_rate,
            "ratio": self.ratio,
            "spread": self.spread,
            "aim": self.row.aim,
            "reached": self.reached,
            "our_seconds": [each.seconds for each in self.ours],
            "peer_seconds": [each.seconds for each in self.peer],
            "our_peak": peak(self.ours),
            "peer_peak": peak(self.peer),
        }


def measure(row: Row, stage: Stage, runs: int, tell: Callable[[str], None]) -> Result:
    """Run ``row``; ``tell`` gets a line after each run."""
    ours: list[Sample] = []
    peer: list[Sample] = []
    for run in range(1, runs + 1):
        if row.peer is not None:
            peer.append(row.peer(stage))
        ours.append(row.ours(stage))
        last = [("peer", peer[-1:]), ("ours", ours[-1:])]
        rates = [f"{who} {_rate(stage.size, each):,.0f} MiB/s" for who, each in last if each]
        tell(f"{row.name}: run {run} of {runs}: {', '.join(rates)}")
    return Result(row=row, size=stage.size, ours=tuple(ours), peer=tuple(peer))


def peak(samples: Sequence[Sample]) -> int | None:
    """The most memory that a process had resident, in bytes."""
    return max((each.peak for each in samples), default=None)


def _rate(size: int, samples: Sequence[Sample]) -> float:
    return size / MIB / statistics.median(each.seconds for each in samples)
