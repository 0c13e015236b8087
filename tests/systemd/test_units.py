"""The units as files: systemd finds nothing wrong with them, and they give away little."""

from __future__ import annotations

import re

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

UNITS = "/usr/local/lib/systemd/system"
EXAMPLES = "/usr/local/share/doc/cafsfs/examples"


@pytest.mark.parametrize(
    "unit",
    [
        f"{UNITS}/cafsfs@.service",
        f"{UNITS}/cafsfs-serve@.service",
        f"{UNITS}/cafsfs-serve@.socket",
        f"{EXAMPLES}/mnt-cafs.mount",
        f"{EXAMPLES}/mnt-cafs.automount",
    ],
)
def test_systemd_finds_nothing_wrong(machine: Machine, unit: str) -> None:
    done = machine.run("systemd-analyze", "--man=no", "verify", unit).ok()
    assert "cafs" not in done.err, done.err


def test_systemd_finds_nothing_wrong_with_the_unit_of_a_user(machine: Machine) -> None:
    machine.systemctl("start", "user@1000.service").ok()
    unit = "/usr/local/lib/systemd/user/cafsfs@.service"
    done = machine.as_user("systemd-analyze", "--user", "--man=no", "verify", unit).ok()
    assert "cafs" not in done.err, done.err


@pytest.mark.parametrize(
    ("unit", "at_most"), [("cafsfs@.service", 4.4), ("cafsfs-serve@.service", 1.3)]
)
def test_what_systemd_thinks_of_the_hardening(machine: Machine, unit: str, at_most: float) -> None:
    """0 is a service that can do nothing, 10 one that can do all; a guide states these."""
    done = machine.run("systemd-analyze", "security", "--offline=true", f"{UNITS}/{unit}").ok()
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.text)
    assert found
    assert float(found[1]) <= at_most
