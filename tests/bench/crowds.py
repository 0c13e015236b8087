"""Cold blobs through a mount: the first byte of one, and what very many at once cost."""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path

from tests.bench.children import run
from tests.bench.stage import FILLING, RAW, ROOT, Run, Sample, Stage
from tests.bench.supplies import GIANTS, distant, giants, small_names

STALLED = 90
CACHED = 10 << 20  # bytes of the blob that is read beside them

_CROWD = "tests.bench.crowd"
_FIRSTS = 5  # cold giants, one after the other
_ROUND_TRIPS = 4
_COMPUTING = 0.005  # seconds that come on top of them
_LEAST = 2 << 20  # bytes after which a reader has got on
_ROOM = 3  # giants in the cache
_PATIENCE = 60.0  # seconds until all of them have


@cache
def first_byte(*, far: bool) -> Run:
    """Stat, open and read the first 4 KiB of a cold blob, with a connection in the pool."""

    def measure(stage: Stage) -> Sample:
        names = (small_names(stage), giants(stage, "NONE"), _FIRSTS)
        address = distant(stage) if far else stage.address
        stage.clear()
        with stage.mount(stage.cold, address=address) as place:
            sample = stage.time(_CROWD, "first_byte", place.directory, *names)
        return place.sample(sample)

    return measure


@cache
def round_trips(*, far: bool) -> Run:
    """Four round trips and 5 ms: so long a first byte may take."""

    def measure(stage: Stage) -> Sample:
        address = distant(stage) if far else stage.address
        arguments = (address, ROOT, stage.digest, _ROUND_TRIPS, _COMPUTING)
        return stage.time(RAW, "round_trips", *arguments)

    return measure


@cache
def read_beside(stalled: int) -> Run:
    """Read a cached blob while so many readers of cold ones wait for a server that is stopped."""

    def measure(stage: Stage) -> Sample:
        cached = stage.once("beside", lambda path: path.write_text(_upload(stage))).read_text()
        names, count = giants(stage, "NONE"), stage.part(stalled) if stalled else 0
        stage.clear()
        with stage.mount(stage.cold) as place:
            arguments = (place.directory, cached, names, count, stage.server.pid)
            try:
                sample = stage.time(_CROWD, "beside_stalled", *arguments)
            finally:
                stage.server.signal(signal.SIGCONT)
        return place.sample(sample)

    return measure


def _upload(stage: Stage) -> str:
    path = Path(stage.directory, "beside-content")
    path.write_bytes(b"1" * CACHED)
    return stage.ask(FILLING, "packed", stage.root(ROOT), path, "NONE", 0)


@cache
def read_all(compression: str) -> Run:
    """Open and read very many cold blobs at once, until every reader has got on."""

    def measure(stage: Stage) -> Sample:
        names, count = giants(stage, compression), stage.part(GIANTS)
        stage.clear()
        cache, least = stage.cold, min(_LEAST, stage.size)
        with stage.mount(cache) as place:
            crowd = (place.directory, names, count, least, _PATIENCE, cache, _ROOM * stage.size)
            arguments = ("all_get_on", *map(str, crowd))
            output, _ = run(_CROWD, arguments, stage.directory / "child.log")
        stage.clear()
        found = json.loads(output)
        peak = place.daemon.peak if place.daemon else 0
        return Sample(seconds=found.pop("seconds"), peak=peak, details=found)

    return measure
