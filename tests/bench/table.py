"""The results as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.measure import MIB, Result, peak

_HEAD = ("work", "ours", "peer", "ratio", "spread", "aim", "peak ours", "peak peer", "the peer")
_LEFT = {0, 8}  # columns of words; the others are numbers


def render(results: Sequence[Result]) -> str:
    """A table with a line a result; rates in MiB/s, peaks in MiB."""
    lines = [_HEAD, *map(_cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    lines.insert(1, tuple("─" * width for width in widths))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(result: Result) -> tuple[str, ...]:
    aim = "" if result.row.aim is None else f"≥ {result.row.aim:g}"
    if result.reached is not None:
        aim += " ✓" if result.reached else " ✗"
    spread = result.spread
    return (
        result.row.work,
        f"{result.our_rate:,.0f}",
        "" if result.peer_rate is None else f"{result.peer_rate:,.0f}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if spread is None else f"{spread[0]:.2f}–{spread[1]:.2f}",
        aim,
        *(_mebibytes(peak(each)) for each in (result.ours, result.peer)),
        result.row.peer_name,
    )


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.0f}"
