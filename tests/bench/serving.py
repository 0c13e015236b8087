"""The server under clients that do nothing but pull."""

from __future__ import annotations

from functools import cache

from tests.bench.stage import RAW, ROOT, Run, Sample, Stage

SLOW = 900  # connections; the server takes a thousand


@cache
def pulled_by(clients: int) -> Run:
    """As many bytes as the big blob has, shared among so many clients."""

    def measure(stage: Stage) -> Sample:
        return _observed(stage, "pull", clients)

    return measure


def pulled_beside_slow(stage: Stage) -> Sample:
    """The same by one, while very many are idle or read nothing."""
    return _observed(stage, "pull_beside", stage.part(SLOW))


def _observed(stage: Stage, verb: str, count: int) -> Sample:
    with stage.serve() as (server, address):
        sample = stage.time(RAW, verb, address, ROOT, stage.digest, stage.size, count)
    return Sample(seconds=sample.seconds, peak=server.peak)
