"""What a machine of these tests is made of: a small Debian with systemd, and cafsfs installed.

The Debian is made once by debootstrap, 45 s, and kept in ``.systemd/`` of the checkout (`make
clean` removes it); cafsfs is installed over it by `make install`, 16 s, whenever it has changed.
Test runs that go on at the same time wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fuse.processes import REPOSITORY

KEPT = REPOSITORY / ".systemd"
_PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,fuse3,python3,mount"
_DEADLINE = 400.0  # seconds for either step, on a slow network and two busy cores
# What would touch the machine around this one, or wait for hardware that it has not.
_MASKED = """
    systemd-sysctl systemd-modules-load systemd-random-seed systemd-remount-fs systemd-timesyncd
    systemd-binfmt systemd-udevd systemd-udev-trigger systemd-hwdb-update e2scrub_reap
    getty@tty1 console-getty kmod-static-nodes
"""
_USER = 1000


class CannotBuild(Exception):
    """No machine here; says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Directories to be laid over each other, and what of the outside a machine needs."""

    debian: Path
    installed: Path
    python: str  # the prefix of an interpreter that Debian has not; "" if it has


def build_tree() -> Tree:
    """Make what is missing; raises CannotBuild."""
    if os.geteuid() != 0:
        raise CannotBuild("only root can make a machine")
    for program in ("debootstrap", "unshare", "nsenter", "make"):
        if shutil.which(program) is None:
            raise CannotBuild(f"`{program}` is not installed")
    with _lock():
        debian = KEPT / "debian"
        _keep(debian, f"{_release()} {_PACKAGES}", _make_debian)
        installed = KEPT / "installed"
        _keep(installed, _state_of_the_checkout(), _install)
    python = "" if sys.base_prefix == "/usr" else sys.base_prefix
    return Tree(debian, installed, python)


@contextmanager
def _lock() -> Iterator[None]:
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep(directory: Path, stamp: str, make: Callable[[Path], None]) -> None:
    """Make it again if it is not what the stamp says; an interrupted run leaves no stamp."""
    written = directory.with_suffix(".stamp")
    with suppress(FileNotFoundError):
        if written.read_text() == stamp:
            return
        written.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    make(directory)
    written.write_text(stamp)


def _release() -> str:
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)', _text("/etc/os-release"), re.MULTILINE)
    if found is None:
        raise CannotBuild("this is no release of Debian or Ubuntu")
    return found[1]


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _mirror() -> str:
    """Where this machine has its packages from."""
    fields = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    with suppress(OSError):
        done = subprocess.run(fields, capture_output=True, text=True, check=False, timeout=60)
        for each in done.stdout.splitlines():
            if re.search(r"/(debian|ubuntu)/?$", each):
                return each
    return "http://deb.debian.org/debian"


def _make_debian(directory: Path) -> None:
    release = _release()
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release]
    _call([*command, str(directory), _mirror()], f"debootstrap of {release}")
    for each in _MASKED.split():
        unit = directory / "etc/systemd/system" / f"{each}.service"
        unit.symlink_to("/dev/null")
    (directory / "var/log/journal").mkdir(exist_ok=True)
    (directory / "etc/fuse.conf").write_text("user_allow_other\n")
    for file, line in (
        ("passwd", f"joe:x:{_USER}:{_USER}::/home/joe:/bin/sh"),
        ("group", f"joe:x:{_USER}:"),
        ("shadow", "joe:*:19000:0:99999:7:::"),
    ):
        with (directory / "etc" / file).open("a") as database:
            database.write(line + "\n")
    home = directory / "home/joe"
    home.mkdir()
    os.chown(home, _USER, _USER)


def _state_of_the_checkout() -> str:
    """Changes whenever one of the files that `make install` reads does."""
    state = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    for name in ("pyproject.toml", "README.md", "Makefile", ".ci", "systemd", "cafsfs"):
        path = REPOSITORY / name
        files = (
            [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        )
        for each in files:
            if "__pycache__" not in each.parts:
                state.update(f"\0{each}\0".encode() + each.read_bytes())
    return state.hexdigest()


def _install(directory: Path) -> None:
    python = getattr(sys, "_base_executable", sys.executable)
    command = ["make", "install", f"DESTDIR={directory}", f"PYTHON={python}"]
    _call(command, "make install")


def _call(command: list[str], what: str) -> None:
    with (KEPT / "log").open("w+") as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                timeout=_DEADLINE,
                check=False,
            )
            how = f"failed with {done.returncode}"
        except subprocess.TimeoutExpired:
            how = f"took longer than {_DEADLINE:g} s"
        else:
            if done.returncode == 0:
                return
        log.seek(0)
        raise CannotBuild(f"{what} {how}: {log.read()[-500:]}")
