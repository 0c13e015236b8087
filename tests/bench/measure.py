"""Run a row, peer and ours in turn, and draw the conclusions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.rows import Row, Unit
from tests.bench.stage import Sample, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row and its samples; the n-th of ours came just after the n-th of the peer.

    ``amount``: how much was done in each, in the unit that rates are shown in.
    """

    row: Row
    amount: float
    ours: tuple[Sample, ...]
    peer: tuple[Sample, ...]

    @property
    def our_figure(self) -> float:
        """Our median, in the row's unit."""
        return _figure(self.row.unit, self.amount, self.ours)

    @property
    def peer_figure(self) -> float | None:
        """The peer's median, in the row's unit."""
        return _figure(self.row.unit, self.amount, self.peer) if self.peer else None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer we are."""
        return _median(self.peer) / _median(self.ours) if self.peer else None

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
        """Whether the aim at speed is reached, where there is one."""
        if self.row.limit is not None:
            return _median(self.ours) <= self.row.limit
        if self.row.aim is None or self.ratio is None:
            return None
        return self.ratio >= self.row.aim

    @property
    def fits(self) -> bool | None:
        """Whether the aim at memory is reached, where there is one."""
        if self.row.memory is None:
            return None
        return max(each.peak for each in self.ours) <= self.row.memory

    @property
    def details(self) -> dict[str, float]:
        """Medians of what else was measured of ours, by names that end with the unit."""
        return {
            name: statistics.median(each.details[name] for each in self.ours)
            for name in self.ours[0].details
        }

    def as_dict(self) -> dict[str, object]:
        """For ``--json``; times in seconds, peaks in bytes."""
        return {
            "row": self.row.name,
            "work": self.row.work,
            "peer_name": self.row.peer_name or None,
            "unit": self.row.unit.value,
            "ours": self.our_figure,
            "peer": self.peer_figure,
            "ratio": self.ratio,
            "spread": self.spread,
            "aim": self.row.aim,
            "limit": self.row.limit,
            "reached": self.reached,
            "memory": self.row.memory,
            "fits": self.fits,
            "details": self.details,
            "our_seconds": [each.seconds for each in self.ours],
            "peer_seconds": [each.seconds for each in self.peer],
            "our_peak": peak(self.ours),
            "peer_peak": peak(self.peer),
        }


def measure(row: Row, stage: Stage, runs: int, tell: Callable[[str], None]) -> Result:
    """Run ``row``; ``tell`` gets a line after each run."""
    ours: list[Sample] = []
    peer: list[Sample] = []
    amount = row.amount(stage)
    runs = 1 if row.once else runs
    for run in range(1, runs + 1):
        if row.peer is not None:
            peer.append(row.peer(stage))
        ours.append(row.ours(stage))
        last = [("peer", peer[-1:]), ("ours", ours[-1:])]
        figures = [
            f"{who} {readable(_figure(row.unit, amount, each), row.unit)}"
            for who, each in last
            if each
        ]
        tell(f"{row.name}: run {run} of {runs}: {', '.join(figures)}")
    return Result(row=row, amount=amount, ours=tuple(ours), peer=tuple(peer))


def readable(figure: float, unit: Unit) -> str:
    """A figure with its unit."""
    if unit is not Unit.SECONDS:
        return f"{figure:,.0f} {unit.value}"
    return f"{figure:.2f} s" if figure >= 1 else f"{figure * 1000:.1f} ms"


def peak(samples: Sequence[Sample]) -> int | None:
    """The most memory that a process had resident, in bytes."""
    return max((each.peak for each in samples), default=None)


def _figure(unit: Unit, amount: float, samples: Sequence[Sample]) -> float:
    return _median(samples) if unit is Unit.SECONDS else amount / _median(samples)


def _median(samples: Sequence[Sample]) -> float:
    return statistics.median(each.seconds for each in samples)
