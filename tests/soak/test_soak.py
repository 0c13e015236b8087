"""The soak runs, says how it went and leaves nothing; and what it judges, it judges rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuse.processes import run
from tests.soak.crowd import Incident, Report
from tests.soak.verdict import BOUND, MEANWHILE, Idle, Judge, Window

SMALL, LARGE = "small", "large"
MIB = 1 << 20


def incident(what: str, *, how: str = "read_whole", blob: str = SMALL, at: float = 100) -> Report:
    return Report(incidents=[Incident(what, how, blob, at, at + 1)])


@pytest.fixture
def judge() -> Judge:
    return Judge({LARGE})


@pytest.mark.fuse
def test_a_short_soak(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tests.soak", "--minutes", "0.1", "--seed", "1")
    done = run(*command, within=110, env={"TMPDIR": str(tmp_path)}).ok()
    first, *lines, last = done.text.splitlines()
    assert first == "soaking for 0.1 min with --seed 1"
    assert any("reads, the longest" in each for each in lines)
    assert last == "verdict: all held"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["wrong", "EIO", "ETIMEDOUT", "ENOENT", "cp ended with 1"])
def test_nothing_is_forgiven_while_a_good_server_can_be_reached(judge: Judge, what: str) -> None:
    judge.hear(incident(what))
    assert len(judge.violations) == 1
    assert what in judge.violations[0]


@pytest.mark.parametrize(
    ("what", "forgiven"),
    [("EIO", True), ("cp ended with 1", True), ("ENOENT", False), ("wrong", False)],
)
def test_without_a_server_reads_may_fail(judge: Judge, what: str, forgiven: bool) -> None:
    judge.blackouts.append(Window(90, 95))
    judge.hear(incident(what))
    judge.hear(incident(what, at=200))
    assert judge.forgiven == forgiven
    assert len(judge.violations) == 2 - forgiven


@pytest.mark.parametrize("what", ["EIO", "wrong"])
@pytest.mark.parametrize("how", ["read_whole", "read_piece", "copy"])
@pytest.mark.parametrize("blob", [SMALL, LARGE])
def test_of_spoilt_bytes_only_who_streams_may_see_some(
    judge: Judge, what: str, how: str, blob: str
) -> None:
    judge.spoilings.append(Window(50))
    judge.hear(incident(what, how=how, blob=blob))
    assert judge.forgiven == (blob == LARGE and (what == "EIO" or how == "read_piece"))
    assert len(judge.violations) == 1 - judge.forgiven


def test_nobody_may_wait_for_long(judge: Judge) -> None:
    judge.hear(Report(worst=BOUND - 1, lasting=BOUND - 1))
    judge.meanwhile(MEANWHILE - 1)
    assert judge.violations == []
    judge.hear(Report(worst=BOUND + 1))
    judge.hear(Report(lasting=BOUND + 1))
    judge.meanwhile(MEANWHILE + 1)
    assert len(judge.violations) == 3


def test_gauges_go_back_to_zero(judge: Judge) -> None:
    stats = {
        "pulls_in_flight": 0,
        "filesystem": {"open_handles": 0},
        "memory": {"held_bytes": 0, "pulls": 0, "waiting": 0},
    }
    assert judge.gauges(stats) == []
    stats["memory"]["held_bytes"] = 1  # type: ignore[index]
    assert judge.gauges({**stats, "pulls_in_flight": 2}) == [
        "pulls_in_flight is 2",
        "held_bytes is 1",
    ]


@pytest.mark.parametrize(
    ("idle", "complaint"),
    [
        (Idle(memory=140 * MIB, files=20, sockets=24), None),
        (Idle(memory=160 * MIB, files=20, sockets=24), "memory has grown from 100 to 160 MiB"),
        (Idle(memory=100 * MIB, files=21, sockets=24), "descriptors have grown from 20 to 21"),
        (Idle(memory=100 * MIB, files=20, sockets=40), "40 sockets are open, nobody reads"),
    ],
)
def test_what_is_held_does_not_grow(judge: Judge, idle: Idle, complaint: str | None) -> None:
    judge.rest(Idle(memory=100 * MIB, files=20, sockets=8), servers=3)
    judge.rest(idle, servers=3)
    assert judge.violations == ([complaint] if complaint else [])
