"""A mount under test: its daemon, its log, and how to be rid of it whatever state it is in."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.processes import (
    CAFSFS,
    LEASHED,
    PATIENCE,
    Process,
    attempt,
    eventually,
    is_alive,
    run,
)
from tests.fuse.serving import Blob

FSTYPE = "fuse.cafsfs"
CONNECTIONS = Path("/sys/fs/fuse/connections")
_END = 10.0  # seconds that a daemon may take to end

_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>[A-Z]+) ")
_HARMLESS = {"DEBUG", "INFO"}


def mount_lines(*, pid: int | None = None) -> list[tuple[str, int, str, str]]:
    """Mount point, minor number, type and source of each mount that a process sees."""
    found = []
    text = Path(f"/proc/{pid or 'self'}/mountinfo").read_text()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point, (major_minor, *_) = before.split()[4], before.split()[2:]
        fstype, source, *_ = after.split()
        found.append((point, int(major_minor.split(":")[1]), fstype, source))
    return found


# A line that was judged when it came first; this one comes seconds later, perhaps in another test.
_REPEATED = r"\(repeated (once|\d+ times) in \d+ s\)$"


class Mounted:
    """A mount by a ``--foreground`` daemon, whose log is watched.

    ``program`` replaces ``cafsfs``.
    """

    def __init__(
        self,
        uri: str,
        home: Path,
        options: Iterable[str | Path] = (),
        *,
        cache: Path | None = None,
        program: tuple[str, ...] = CAFSFS,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.point = home / "mnt"
        self.cache = home / "cache" if cache is None else cache
        self.log = home / "mount.log"
        self.log.touch()
        self._announced: list[str] = []
        self._read = self._began = self.log.stat().st_size  # of the log: judged; of former mounts
        if str(self.point) not in {each[0] for each in mount_lines()}:
            self.point.mkdir(exist_ok=True)
        self.daemon = Process(
            *LEASHED,
            *program,
            *("mount", "--foreground", "--cache-dir", self.cache, *options, uri, self.point),
            log=self.log,
            env=env,
        )
        try:
            eventually(self._settled, what="the mount has started")
            assert self.daemon.runs, f"the mount has failed:\n{self.log.read_text()}"
            self.minor = self._minor()
        except BaseException:
            self.clear()
            raise

    def _settled(self) -> bool:
        said = self.log.read_bytes()[self._began :]
        return not self.daemon.runs or re.search(rb"\bmounted \w+:", said) is not None

    def _minor(self) -> int:
        lines = mount_lines(pid=self.daemon.pid)
        return next(minor for point, minor, _, _ in lines if point == str(self.point))

    # --- what is in it

    def path(self, blob: object, extension: str = "") -> Path:
        return self.point / f"{blob}{extension}"

    def stats(self) -> dict[str, Any]:
        text = run("cat", self.point / ".cafsfs/stats.json").ok().out
        stats: dict[str, Any] = json.loads(text)
        return stats

    def counters(self) -> dict[str, int]:
        counters: dict[str, int] = self.stats()["counters"]
        return counters

    def servers(self) -> list[dict[str, Any]]:
        """What is known of each."""
        text = run("cat", self.point / ".cafsfs/servers").ok().out
        states: list[dict[str, Any]] = json.loads(text)
        return states

    # --- its log

    def announce(self, pattern: str) -> None:
        """A warning or error that matches is meant to come in this test."""
        self._announced.append(pattern)

    def logged(self, pattern: str, *, times: int = 1) -> str:
        """The log, when that has come so often: the daemon writes it in a thread of its own."""
        found = lambda: len(re.findall(pattern, self.log.read_text())) >= times  # noqa: E731
        eventually(found, what=f"`{pattern}` in the log")
        return self.log.read_text()

    def judge_log(self) -> list[str]:
        """The warnings, errors and tracebacks since the last call that nobody has announced."""
        text = self.log.read_bytes()[self._read :].decode()
        self._read += len(text.encode())
        announced, self._announced = self._announced, []
        return [
            record
            for record in _records(text)
            if not any(re.search(pattern, record) for pattern in [*announced, _REPEATED])
        ]

    # --- its end

    def is_mounted(self) -> bool:
        return any(each[0] == str(self.point) for each in mount_lines())

    @property
    def waiting(self) -> int:
        """Requests that the kernel has not got an answer to."""
        return int(self.connection("waiting").read_text())

    def connection(self, name: str) -> Path:
        """A file that the kernel has for this mount, where there is a fusectl filesystem."""
        if not any(each[2] == "fusectl" for each in mount_lines()):
            pytest.skip("there is no fusectl filesystem, and it cannot be mounted here")
        return CONNECTIONS / str(self.minor) / name

    def has_ended(self, within: float = _END) -> bool:
        """Is everything gone, daemon and mount, within so many seconds?"""
        self.daemon.ended(within)
        return not self.daemon.runs and not self.is_mounted()

    def stop(self) -> None:
        """End it as a supervisor does; it must end cleanly."""
        self.daemon.signal(signal.SIGTERM)
        assert self.has_ended(), f"the mount did not end:\n{self.log.read_text()}"
        code = self.daemon.finish().code
        assert code == 0, f"the mount ended with {code}:\n{self.log.read_text()}"

    def clear(self) -> list[str]:
        """Leave nothing, whatever state it is in; returns what was wrong."""
        wrong = []
        self.daemon.signal(signal.SIGCONT)
        self.daemon.signal(signal.SIGTERM)
        if not self.daemon.ended(_END):
            wrong.append(f"the daemon of {self.point} did not end on SIGTERM")
        clear_mount(self.point)
        self.daemon.end()
        if is_alive(self.daemon.pid):
            wrong.append(f"the daemon of {self.point} cannot be killed")
        return [*wrong, *self.judge_log()]


def learn_size(mount: Mounted, server: BadServerProcess, blob: Blob) -> None:
    """Let a mount know the size of a blob, and have little else of it.

    A look at a header is not thrown away, the next pull may go on with it: so it is cut off. What
    came with the header (6 KB) may have been received before, and is not lost by that.
    """
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == blob.size
    server.hang_up(reset=True)


def clear_mount(point: Path) -> None:
    """Cut and detach all that is mounted there; raises AssertionError if that fails."""
    deadline = time.monotonic() + PATIENCE
    while found := [each for each in mount_lines() if each[0] == str(point)]:
        assert time.monotonic() < deadline, f"cannot unmount {point}"
        with suppress(OSError):
            (CONNECTIONS / str(found[-1][1]) / "abort").write_text("1")
        if os.geteuid() == 0:
            run("umount", "-f", point)  # aborts, where there is no fusectl
        run("fusermount3", "-uz", point)


def remove_tree(directory: Path) -> None:
    """Remove a scratch directory, but never walk into a mount."""
    left = [each[0] for each in mount_lines() if each[0].startswith(f"{directory}/")]
    for point in left:
        clear_mount(Path(point))

    def removed() -> bool:
        with suppress(OSError):  # a daemon that has just unmounted may be writing its index yet
            shutil.rmtree(directory)
        return not directory.exists()

    eventually(removed, what=f"{directory} is removed")
    assert not left, f"left mounted: {left}"


def _records(text: str) -> list[str]:
    """The records of a log that are no mere information; also what no logger has written.

    Further lines belong to an error, as its traceback; after anything else they stand alone.
    """
    records: list[str] = []
    level = ""
    for line in text.splitlines():
        head = _RECORD.match(line)
        if head is None and level == "ERROR":
            records[-1] += "\n" + line
            continue
        level = head["level"] if head else "none"
        if level not in _HARMLESS:
            records.append(line)
    return records
