"""What somebody elsewhere needs to find out what went wrong; pieces of text, without secrets."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cafsfs.control import ask
from cafsfs.errors import CafsError
from cafsfs.fuse.mounts import FSTYPE
from cafsfs.report.ours import DUMP, Found, socket_of

_LINES = 2000  # of a log
_PROGRAM = 5.0  # seconds that another program may take
# To the last @, and to the next blank or ": rather too much than too little.
_URL = re.compile(r"(https?://)(?:[^\s\"]*@)?([^\s/?#\",@]+)[^\s\"]*")
_HIDDEN = "[hidden]"


def hide_secrets(text: str, secrets: tuple[bytes, ...] = ()) -> str:
    """Text without ``secrets``, and of http URLs the host only: all else of one may be a secret."""
    for each in secrets:
        for form in {each.decode(errors="replace"), each.hex()}:
            text = text.replace(form, _HIDDEN)
    return _URL.sub(rf"\1\2/{_HIDDEN}", text)


def tell_versions() -> str:
    """Of cafsfs, of what it stands on, and of this machine."""
    told = {
        "cafsfs": version("cafsfs"),
        "python": sys.version,
        "packages": dict(_packages()),
        "kernel": " ".join(platform.uname()),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "fusermount3": said_by("fusermount3", "--version").strip(),
        "systemd": said_by("systemctl", "--version").partition("\n")[0],
    }
    return json.dumps(told, indent=2) + "\n"


def tell_environment() -> str:
    """The variables that configure cafsfs."""
    names = ("CAFSFS_", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "TMPDIR")
    found = sorted(each for each in os.environ.items() if each[0].upper().startswith(names))
    return "".join(f"{name}={value}\n" for name, value in found)


def tell_status(mounts: list[Found]) -> str:
    """All that mounts tell of themselves, and how those are that do not."""
    told = [
        {
            **each.status,
            "mountpoint": each.mountpoint,
            "uri": each.uri,
            "state": each.state.value,
            "pid": each.pid,
            "waiting_in_kernel": each.waiting,
        }
        for each in mounts
    ]
    return json.dumps(told, indent=2) + "\n"


def tell_mounts() -> str:
    """Lines of mountinfo, of ours."""
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if f" - {FSTYPE} " in line)


def tell_tasks(mount: Found) -> str:
    """Where each task of a mount is, by its own word."""
    assert mount.pid is not None
    path = socket_of(mount.pid)
    if path is None:
        return "it does not tell: it has no control socket that we could see\n"
    try:
        return str(ask(path, {"command": DUMP})["dump"])
    except (CafsError, KeyError) as error:
        return f"it does not tell: {error}\n"


def tell_process(mount: Found) -> str:
    """What the kernel says of a mount's process and its threads; also of one that hangs."""
    there = Path(f"/proc/{mount.pid}")
    command = there.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    pieces = [f"{command}\n", _read(there / "status"), _read(there / "limits")]
    for thread in sorted(there.glob("task/*")):
        said = (_read(thread / name).strip() for name in ("comm", "wchan", "syscall", "stack"))
        pieces.append(f"thread {thread.name}: {' | '.join(said)}\n")
    return "\n".join(pieces)


def tell_log(mount: Found) -> str:
    """The end of the file that a mount logs to, if it logs to one."""
    return "".join(said_by("tail", "-n", str(_LINES), str(each)) for each in _logs(mount))


def tell_journal() -> str:
    """What systemd has of our units: their state, and the end of their log."""
    units = ("cafsfs@*", "cafsfs-serve@*")
    watched = [word for unit in units for word in ("--unit", unit)]
    return "\n".join(
        (
            said_by("systemctl", "--no-pager", "--full", "status", *units),
            said_by("journalctl", "--no-pager", "--lines", str(_LINES), *watched),
        )
    )


def gathered(tell: Callable[[], str], secrets: tuple[bytes, ...]) -> bytes:
    """What a piece tells, fit to be shown; that it cannot be told is told, too."""
    try:
        text = tell()
    except Exception as error:  # a report with a gap is better than none
        text = f"this could not be told: {error!r}\n"
    return hide_secrets(text, secrets).encode(errors="replace")


def pieces_of(mounts: list[Found]) -> Mapping[str, Callable[[], str]]:
    """What tells each file of the report, by its name; without what the caller adds."""
    pieces: dict[str, Callable[[], str]] = {
        "versions.json": tell_versions,
        "environment.txt": tell_environment,
        "status.json": lambda: tell_status(mounts),
        "mountinfo.txt": tell_mounts,
        "journal.txt": tell_journal,
    }
    for each in mounts:
        if each.pid is not None:
            for name, tell in (("tasks", tell_tasks), ("process", tell_process), ("log", tell_log)):
                pieces[f"{each.pid}/{name}.txt"] = _of(tell, each)
    return pieces


def _of(tell: Callable[[Found], str], mount: Found) -> Callable[[], str]:
    return lambda: tell(mount)


def _packages() -> Iterator[tuple[str, str]]:
    for requirement in requires("cafsfs") or []:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _logs(mount: Found) -> Iterator[Path]:
    """Files that a process appends to: nothing but its log."""
    for number in os.listdir(f"/proc/{mount.pid}/fd"):
        with suppress(OSError, ValueError):  # closed meanwhile
            path = Path(os.readlink(f"/proc/{mount.pid}/fd/{number}"))
            about = Path(f"/proc/{mount.pid}/fdinfo/{number}").read_text()
            found = re.search(r"^flags:\s*([0-7]+)$", about, re.MULTILINE)
            if found and int(found[1], 8) & os.O_APPEND and path.is_file():
                yield path


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        return f"{path.name}: {error.strerror}"


def said_by(*command: str, patience: float = _PROGRAM) -> str:
    """What a program says, on both of its outputs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}\n"
    return done.stdout.decode(errors="replace")
