"""Who else on this machine has to do with mounts: updatedb, mount(8), systemd, other mounts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cafsfs.doctor.case import Case, Finding, advice, broken, fine
from cafsfs.fuse.mounts import FSTYPE
from cafsfs.report.ours import State, find_ours

_UNITS = (
    *("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system"),
    *("/usr/lib/systemd/system", "/lib/systemd/system"),
)
_HELPERS = ("/sbin/mount.cafsfs", "/usr/sbin/mount.cafsfs")
_SYSTEMCTL = 3.0  # seconds that systemctl may take


def look_at_updatedb(case: Case) -> Iterator[Finding]:
    """Updatedb, which walks every filesystem each night, leaves mounts of ours alone."""
    text = case.read("/etc/updatedb.conf")
    if text is None:
        return
    types = _setting(text, "PRUNEFS")
    pruned = {each.lower() for each in types or ()}
    paths = _setting(text, "PRUNEPATHS") or ()
    point = case.mount.mountpoint if case.mount else None
    if FSTYPE in pruned or (point and any(Path(point).is_relative_to(each) for each in paths)):
        yield fine("updatedb passes mounts of cafsfs over")
        return
    fix = rf"""printf '\nPRUNEFS = "{FSTYPE}"\n' >>/etc/updatedb.conf"""
    if types is not None:
        fix = f"sed -i 's/^ *PRUNEFS *= *\"/&{FSTYPE} /' /etc/updatedb.conf"
    yield advice("updatedb walks the listings of mounts every night", f"as root: {fix}")


def look_at_helper(case: Case) -> Iterator[Finding]:
    """mount(8) finds its helper, if fstab has a mount of ours."""
    lines = (line.split() for line in (case.read("/etc/fstab") or "").splitlines())
    points = [
        words[1] for words in lines if len(words) > 2 and words[2] in {"cafsfs", "fuse.cafsfs"}
    ]
    if not points:
        return
    if any(os.path.lexists(case.file(each)) for each in _HELPERS):
        yield fine("mount(8) finds its helper")
    else:
        yield broken(
            f"fstab has {points[0]}, and mount(8) does not find mount.cafsfs",
            "as root: make install; or ln -s $(command -v mount.cafsfs) /usr/sbin/",
        )


def look_at_units(case: Case) -> Iterator[Finding]:
    """Each mount or server that is configured in /etc/cafsfs has its unit, and that is enabled.

    Or its socket is, by which systemd starts it.
    """
    for path in sorted(case.file("/etc/cafsfs").glob("*.toml")):
        try:
            keys = tomllib.loads(path.read_text()).keys()
        except (OSError, ValueError):
            continue  # not for us; who starts it is told
        name = next((_TEMPLATES[key] for key in _TEMPLATES if key in keys), None)
        if name is not None:
            yield from _look_at_unit(case, name, path.stem)


_TEMPLATES = {"mountpoint": "cafsfs", "directory": "cafsfs-serve"}


def _look_at_unit(case: Case, name: str, instance: str) -> Iterator[Finding]:
    unit = f"{name}@{instance}.service"
    places = [case.file(each) for each in _UNITS]
    if not any(os.path.lexists(each / f"{name}@.service") for each in places):
        yield advice(
            f"/etc/cafsfs/{instance}.toml is there, and {name}@.service is not installed",
            "as root, in the source of cafsfs: make install",
        )
    elif not any(True for each in places for _ in each.glob(f"*.wants/{name}@{instance}.*")):
        yield advice(f"{unit} does not start at boot", f"as root: systemctl enable --now {unit}")
    else:
        yield fine(f"{unit} starts at boot")


def look_at_failed_units(case: Case) -> Iterator[Finding]:
    """No unit of ours has failed, by systemd's word."""
    if not case.file("/run/systemd/system").is_dir():
        return
    command = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "cafsfs*"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSTEMCTL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield advice(f"systemd cannot be asked: {error}", "systemctl status")
        return
    failed = re.findall(r"^(\S+)", done.stdout, re.MULTILINE)
    for unit in failed:
        yield broken(
            f"{unit} has failed",
            f"journalctl -u {unit} -n 50 tells why; then: systemctl reset-failed {unit} && "
            f"systemctl restart {unit}",
        )
    if not failed:
        yield fine("no unit of cafsfs has failed")


def look_at_mounts(case: Case) -> Iterator[Finding]:
    """Our mounts are alive: the one that is examined, or all if no store was named."""
    if case.uri is not None and case.mount is None:
        return
    for each in [case.mount] if case.mount else find_ours():
        point, shown = each.mountpoint, shlex.quote(each.mountpoint)
        if each.state is State.DEAD:
            yield broken(
                f"the mount on `{point}` is dead: its process has gone",
                f"cafsfs unmount {shown}; or mount there again, which clears it",
            )
        elif each.state is State.SILENT:
            # Or it has its socket elsewhere ($CAFSFS_RUNTIME_DIR); who asks for it, knows.
            verdict = broken if case.mount or each.waiting else advice
            yield verdict(
                f"process {each.pid} of the mount on `{point}` does not answer",
                f"cafsfs unmount --force {shown}, and mount again; before that, "
                f"`cafsfs bugreport {shown}` for who is to find out why",
            )
        elif each.state is State.LIVE:
            yield fine(f"the mount on {point} answers")


def _setting(text: str, name: str) -> list[str] | None:
    """The words of a setting of updatedb.conf(5); None if it is not set. The last one counts."""
    found = re.findall(rf'^\s*{name}\s*=\s*"([^"]*)"', text, re.MULTILINE)
    return found[-1].split() if found else None
