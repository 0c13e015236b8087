"""The units that ship are units, and call commands that there are."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from cafsfs.cli.app import cafsfs

UNITS = sorted((Path(__file__).parent.parent / "systemd").iterdir())


def read(unit: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd minds the case
    parser.read_string(unit.read_text())
    return parser


def test_there_are_a_mount_a_server_and_an_example() -> None:
    names = {unit.name for unit in UNITS}
    assert {"cafsfs@.service", "cafsfs-serve@.service", "mnt-cafs.mount"} <= names


@pytest.mark.process
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    # What it executes is not installed here: verify with a program that is.
    text = unit.read_text().replace("/usr/local/bin/cafsfs", sys.executable)
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=str)
def test_the_command_of_a_service_is_one_of_ours(unit: Path) -> None:
    service = read(unit)["Service"]
    program, command, *flags = shlex.split(service["ExecStart"])
    assert program == "/usr/local/bin/cafsfs"
    shown = CliRunner().invoke(cafsfs, [command, "--help"]).output
    assert all(flag in shown for flag in flags if flag.startswith("--"))
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"


def test_the_mount_service_stays_visible_on_the_host() -> None:
    """Each of these gives a service a mount namespace of its own (tried, see issue 6)."""
    service = read(Path(UNITS[0].parent, "cafsfs@.service"))["Service"]
    private = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ReadWritePaths"}
    assert not private & set(service)
