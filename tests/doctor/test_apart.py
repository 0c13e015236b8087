"""Checks run in processes of their own: none hangs the others, and none is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.doctor.apart import Check, examine
from cafsfs.doctor.case import Case, Finding, Verdict, advice, broken, fine
from cafsfs.doctor.examination import CHECKS
from cafsfs.errors import StoreError

pytestmark = pytest.mark.process


def look_around(_case: Case) -> Iterator[Finding]:
    yield fine("ü")
    yield advice(f"pid {os.getpid()}", "do\nthis")
    yield broken("x" * 5000, "that")


def look_for_ever(_case: Case) -> Iterator[Finding]:
    yield fine("never told")
    time.sleep(600)


def stumble(_case: Case) -> Iterator[Finding]:
    raise ZeroDivisionError("by hand")


def refuse(_case: Case) -> Iterator[Finding]:
    raise StoreError("the directory is a trap", hint="step back")


def test_findings_come_back_as_they_are() -> None:
    (found,) = examine([Check("a", look_around)], Case()).values()
    assert [each.verdict for each in found] == [Verdict.FINE, Verdict.ADVICE, Verdict.BROKEN]
    assert found[0] == fine("ü")
    assert found[1] != advice(f"pid {os.getpid()}", "do\nthis")
    assert found[2] == broken("x" * 5000, "that")


def test_one_that_hangs_holds_nobody_up(no_descriptor_left: None) -> None:
    began = time.monotonic()
    checks = [Check("a", look_for_ever, 0.5), Check("b", look_around), Check("c", look_for_ever, 1)]
    found = examine(checks, Case())
    assert time.monotonic() - began < 3
    assert list(found) == ["a", "b", "c"]
    assert found["a"][0].text == "`a` was not seen within 0.5 s"
    assert len(found["b"]) == 3
    assert found["c"][0].verdict is Verdict.BROKEN


def test_one_that_fails_is_a_finding() -> None:
    found = examine([Check("a", stumble), Check("b", refuse)], Case())
    assert "ZeroDivisionError('by hand')" in found["a"][0].text
    assert found["b"] == [broken("the directory is a trap", "step back")]


def test_every_check_has_a_name_and_a_deadline() -> None:
    assert len({each.name for each in CHECKS}) == len({each.look for each in CHECKS}) == len(CHECKS)
    assert all(0 < each.patience <= 20 for each in CHECKS)
    assert all(each.look.__doc__ for each in CHECKS)


def test_all_looks_of_the_house_are_in_the_table() -> None:
    house = Path(__file__).parent.parent.parent / "cafsfs/doctor"
    text = "".join(each.read_text() for each in house.glob("*.py"))
    names = {each.look.__name__ for each in CHECKS}
    assert {
        line[4:].partition("(")[0] for line in text.splitlines() if "def look_" in line
    } == names
