"""``python -m tests.bench``: measure, and print one table (or JSON) on standard output."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from cafsfs.config.values import parse_count, parse_seconds, parse_size
from tests.bench import rclone
from tests.bench.children import BenchError
from tests.bench.machine import describe, filesystem_of
from tests.bench.measure import Result, measure
from tests.bench.rows import ROWS, Row
from tests.bench.stage import MIB, Stage, work_directory
from tests.bench.table import render, render_details

_NOTES = """\
Rates in MiB/s where nothing else is said, medians; spread: lowest and highest ratio of two runs in
turn. A ratio is one of speed, also where seconds are shown. Peak memory in MiB, of the client, of
the daemon where a mount is read, or of the server where raw clients pull; the asyncio client maps
the file that it uploads into memory. What is compressed are random words. A load above 0.5 before
the start makes ratios doubtful."""


def main() -> int:
    """Run the bench; the exit code."""
    options = _parse_arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_once)
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    try:
        return _bench(options, _with_peers(rows))
    except BenchError as error:
        _tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("stopped; nothing is left behind")
        return 130


def _with_peers(rows: Sequence[Row]) -> list[Row]:
    """The rows, without the peer that this machine lacks."""
    if rclone.is_installed() or not any(row.needs_rclone for row in rows):
        return list(rows)
    _tell("rclone is missing: its rows have no ratio; install it, as in `apt-get install rclone`")
    return [replace(row, peer=None) if row.needs_rclone else row for row in rows]


def _bench(options: argparse.Namespace, rows: Sequence[Row]) -> int:
    load = os.getloadavg()[0]
    many = options.blobs if any(row.many for row in rows) else 0
    with work_directory(options.dir, options.size, many) as directory:
        place = f"{filesystem_of(directory)} ({directory.parent})"
        stage = Stage(
            directory,
            options.size,
            blobs=options.blobs,
            settle=options.settle,
            share=options.share,
        )
        with stage.serving():
            results = [measure(row, stage, options.runs, _tell) for row in rows]
    if options.json:
        print(json.dumps(_as_json(options, place, load, results), indent=2))
        return 0
    print(describe())
    print(
        f"A blob of {_readable(options.size)}, many are {options.blobs:,}, runs: {options.runs}; "
        f"everything is on {place}; "
        f"load before the start {load:.1f}."
    )
    details = "\n\n".join(filter(None, [render(results), render_details(results), _NOTES]))
    print(f"\n{details}")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--runs", type=parse_count, default=3, metavar="N", help="runs of each row (3)"
    )
    parser.add_argument(
        "--size", type=parse_size, default=1 << 30, help="bytes of the big blob (1G)"
    )
    parser.add_argument(
        "--blobs",
        type=parse_count,
        default=1_000_000,
        metavar="N",
        help="tiny blobs of a cache of many (1000000)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        metavar="PART",
        help="of all else that there are many of, measure with this part (1)",
    )
    parser.add_argument(
        "--settle",
        type=parse_seconds,
        default=10.0,
        metavar="SECONDS",
        help="after these the memory of a mount over them is looked at again (10)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="where everything is; else /dev/shm if it has the room, else the temporary directory",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="ROW",
        help=f"this row only; may be repeated: {', '.join(names)}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def _as_json(
    options: argparse.Namespace, place: str, load: float, results: Sequence[Result]
) -> dict[str, object]:
    return {
        "machine": describe(),
        "place": place,
        "load": load,
        "size": options.size,
        "blobs": options.blobs,
        "share": options.share,
        "runs": options.runs,
        "rows": [each.as_dict() for each in results],
    }


def _readable(size: int) -> str:
    return f"{size / (1 << 30):g} GiB" if size >= 1 << 30 else f"{size / MIB:g} MiB"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _leave_once(number: int, frame: FrameType | None) -> None:
    """Leave by way of all ``finally``; whoever is impatient must not interrupt that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
