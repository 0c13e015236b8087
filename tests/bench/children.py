"""Processes that do not outlive the bench, and tell their peak memory when they have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TREE = Path(__file__).parents[2]

# Whatever ends the bench, SIGKILL too, ends what it has started; the mount then unmounts itself.
_END_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")
_START_DEADLINE = 20.0  # seconds
_END_DEADLINE = 15.0  # seconds that SIGTERM has before SIGKILL comes
_POLL = 0.005  # seconds


class BenchError(Exception):
    """The bench cannot go on; the message says what a child said."""


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module."""
    return (sys.executable, "-m", module, *arguments)


class Child:
    """A command in a process of its own; to be ended by ``wait`` or ``end``.

    Its standard error goes to ``log``. In a session of its own, so that Ctrl-C reaches only the
    bench, which ends its children in order.
    """

    def __init__(self, command: Sequence[str], *, log: Path) -> None:
        self.name = " ".join(command[:4])  # with a module and its verb
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*_END_WITH_US, *command],
                cwd=TREE,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.peak = 0  # bytes resident at once, when it has ended

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its group."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal to it and its own children, if it runs."""
        if not self._reap():
            os.killpg(self.pid, number)

    def said(self) -> str:
        """What it has written to standard error so far."""
        return self._log.read_text(errors="replace")

    def await_line(self, mark: str) -> str:
        """The first line of its log with ``mark`` in it; raises BenchError."""
        return self.await_start(lambda: self._line_with(mark))

    def await_start(self, sign: Callable[[], T | None]) -> T:
        """What ``sign`` returns when it returns something; raises BenchError."""
        late = time.monotonic() + _START_DEADLINE
        while time.monotonic() < late and not self._reap():
            found = sign()
            if found is not None:
                return found
            time.sleep(_POLL)
        raise BenchError(f"{self.name} did not start:\n{self.said()}")

    def _line_with(self, mark: str) -> str | None:
        return next((line for line in self.said().splitlines() if mark in line), None)

    def wait(self) -> str:
        """Wait for its end; what it wrote to standard output. Raises BenchError if it failed."""
        assert self._process.stdout is not None
        output = self._process.stdout.read().decode()
        while not self._reap():
            time.sleep(_POLL)
        if self._process.returncode:
            raise BenchError(f"{self.name} failed:\n{self.said()}")
        return output.strip()

    def end(self) -> None:
        """SIGTERM, and SIGKILL for who does not mind it; nothing if it has ended."""
        late = time.monotonic() + _END_DEADLINE
        self.signal(signal.SIGTERM)  # its cp or dd too
        while not self._reap():
            if time.monotonic() >= late:
                self.signal(signal.SIGKILL)
            time.sleep(_POLL)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _reap(self) -> bool:
        if self._process.returncode is None:
            pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.peak = usage.ru_maxrss << 10
        return self._process.returncode is not None


def run(module: str, arguments: Sequence[str], log: Path) -> tuple[str, int]:
    """Run a module to its end: what it wrote, and its peak memory in bytes; raises BenchError."""
    child = Child(python(module, *arguments), log=log)
    try:
        return child.wait(), child.peak
    finally:
        child.end()
