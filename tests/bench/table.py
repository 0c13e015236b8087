"""The results as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

from tests.bench.measure import Result, peak, readable
from tests.bench.rows import Unit
from tests.bench.stage import MIB

_HEAD = ("work", "ours", "peer", "ratio", "spread", "aim", "peak ours", "peak peer", "the peer")
_MARKS = {None: "", True: " ✓", False: " ✗"}
_LEFT = {0, 8}  # columns of words; the others are numbers


def render(results: Sequence[Result]) -> str:
    """A table with a line a result; rates in MiB/s where nothing else is said, peaks in MiB."""
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


def render_details(results: Sequence[Result]) -> str:
    """A line for each result of which more is known than the table shows."""
    return "\n".join(
        f"{each.row.work}: {', '.join(starmap(_detail, each.details.items()))}"
        for each in results
        if each.details
    )


def _cells(result: Result) -> tuple[str, ...]:
    row = result.row
    aim = "" if row.aim is None else f"≥ {row.aim:g}"
    if row.limit is not None:
        aim = f"≤ {row.limit:g} s"
    spread = result.spread
    ours, peers = (_mebibytes(peak(each)) for each in (result.ours, result.peer))
    if row.memory is not None:
        ours += f" ≤ {_mebibytes(row.memory)}"
    return (
        row.work,
        _figure(result.our_figure, row.unit),
        _figure(result.peer_figure, row.unit),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if spread is None else f"{spread[0]:.2f}–{spread[1]:.2f}",
        aim + _MARKS[result.reached],
        ours + _MARKS[result.fits],
        peers,
        row.peer_name,
    )


def _figure(figure: float | None, unit: Unit) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if unit is Unit.RATE else readable(figure, unit)


def _detail(name: str, value: float) -> str:
    """``resident later, bytes`` becomes ``resident later 37 MiB``."""
    what, _, unit = name.rpartition(", ")
    if unit == "bytes":
        return f"{what} {_mebibytes(int(value))} MiB"
    return f"{what} {value:.2f} s" if unit == "s" else f"{what} {value:.0f} {unit}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.0f}"
