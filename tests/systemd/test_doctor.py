"""What ``make install`` brings beside units, and ``cafsfs doctor`` where units fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.systemd.machine import Machine
from tests.systemd.service import Service

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

SHARE = "/usr/local/share"


def findings(machine: Machine, check: str) -> list[dict[str, Any]]:
    done = machine.run("cafsfs", "doctor", "--json")
    return [each for each in json.loads(done.text)["findings"] if each["check"] == check]


@pytest.mark.parametrize(
    "file",
    [
        "man/man1/cafsfs.1",
        "man/man8/mount.cafsfs.8",
        "bash-completion/completions/cafsfs",
        "zsh/site-functions/_cafsfs",
        "fish/vendor_completions.d/cafsfs.fish",
    ],
)
def test_man_pages_and_completion_are_installed(machine: Machine, file: str) -> None:
    assert "cafsfs" in machine.run("cat", f"{SHARE}/{file}").ok().text


def test_a_guide_is_shown_where_it_is_installed(machine: Machine) -> None:
    assert machine.run("cafsfs", "help", "troubleshooting").ok().text.startswith("Troubleshooting")


def test_a_unit_that_fails_is_found_and_its_fix_brings_it_back(
    service: Callable[..., Service], machine: Machine
) -> None:
    failing = service("failing", 'cache-size = "much"')
    assert machine.systemctl("start", failing.unit).code != 0
    found = findings(machine, "failed units")
    assert [each["verdict"] for each in found] == ["broken"]
    assert found[0]["finding"] == f"{failing.unit} has failed"
    machine.run("sed", "-i", "s/much/1G/", "/etc/cafsfs/failing.toml").ok()
    machine.run("sh", "-c", found[0]["fix"].partition("then: ")[2]).ok()
    assert [each["verdict"] for each in findings(machine, "failed units")] == ["fine"]


def test_a_unit_that_is_not_enabled_is_found_and_its_fix_enables_it(
    service: Callable[..., Service], machine: Machine
) -> None:
    made = service("sleeping")
    text = f"{made.unit} does not start at boot"
    found = [each for each in findings(machine, "units") if each["finding"] == text]
    assert [each["verdict"] for each in found] == ["advice"]
    machine.run("sh", "-c", found[0]["fix"].partition("as root: ")[2]).ok()
    assert f"{made.unit} starts at boot" in [e["finding"] for e in findings(machine, "units")]
    machine.systemctl("disable", made.unit).ok()
