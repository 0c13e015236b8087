"""Identical warnings: once, and then how often they came again."""

from __future__ import annotations

import logging

import pytest

from cafsfs.report.repeats import Repeats


def record(message: str, level: int = logging.WARNING, name: str = "cafsfs") -> logging.LogRecord:
    return logging.LogRecord(name, level, "file", 1, "%s", (message,), None)


def held_back(repeats: Repeats) -> bool:
    return repeats.pending


def said(records: list[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in records]


def test_a_warning_is_said_once_and_its_repeats_are_counted() -> None:
    repeats = Repeats()
    assert said(repeats.admit(record("down"), 0)) == ["down"]
    assert not held_back(repeats)
    for now in (1, 2, 3):
        assert repeats.admit(record("down"), now) == []
    assert held_back(repeats)
    assert repeats.due(9) == []
    assert said(repeats.due(10)) == ["down (repeated 3 times in 10 s)"]
    assert not held_back(repeats)


def test_who_goes_on_is_heard_ever_more_seldom_and_who_stops_is_forgotten() -> None:
    repeats = Repeats()
    repeats.admit(record("down"), 0)
    told = {}
    for now in range(1, 1000):
        if lines := said(repeats.admit(record("down"), now)):
            told[now] = lines
    assert list(told) == [10, 30, 70, 150, 310, 630, 950]
    assert told[30] == ["down (repeated 20 times in 20 s)"]
    assert said(repeats.due(2000)) == [f"down (repeated {999 - 949} times in 1050 s)"]
    assert repeats.due(3000) == []
    assert said(repeats.admit(record("down"), 3000)) == ["down"]


@pytest.mark.parametrize(
    "other", [record("up"), record("down", logging.ERROR), record("down", name="x")]
)
def test_others_are_not_held_back(other: logging.LogRecord) -> None:
    repeats = Repeats()
    repeats.admit(record("down"), 0)
    assert repeats.admit(other, 1) == [other]


def test_what_is_no_warning_always_passes() -> None:
    repeats = Repeats()
    line = record("pulled", logging.INFO)
    assert [repeats.admit(line, 0) for _ in range(3)] == [[line]] * 3


def test_at_the_end_all_is_told_and_nothing_twice() -> None:
    repeats = Repeats()
    for _ in range(2):
        repeats.admit(record("down"), 0)
    assert said(repeats.due(0.5, end=True)) == ["down (repeated once in 1 s)"]
    assert repeats.due(100, end=True) == []


def test_very_many_different_ones_take_bounded_memory_and_lose_no_repeat() -> None:
    repeats = Repeats()
    repeats.admit(record("first"), 0)
    repeats.admit(record("first"), 0)
    told = []
    for number in range(2000):
        told += said(repeats.admit(record(f"number {number}"), 1))
    assert told.count("first (repeated once in 1 s)") == 1
    assert len(told) == 2001
    assert len(repeats._said) == 1000
