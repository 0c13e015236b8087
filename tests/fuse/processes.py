"""Other programs as a user runs them: started, watched, ended; never waited for without a bound.

A process that hangs in a mount is in state D: it cannot be killed, and whoever waits for its end
hangs with it. So the tests never touch a mount themselves: they start a program and watch its
pidfd for so long.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
CAFSFS = (sys.executable, "-m", "cafsfs")
# What is put before the command of a daemon: it gets SIGTERM if the tests themselves are killed.
LEASHED = ("setpriv", "--pdeathsig", "TERM")
PATIENCE = 30.0  # seconds for what should take none; two busy cores are slow at times
_DEATH = 5.0  # seconds that a killed process may take to go

# Evaluates an expression over its arguments `a`; prints its value, or the name of the errno.
_ATTEMPT = """
import errno, json, mmap, os, sys, time
a = sys.argv[2:]
try:
    print(json.dumps(eval(sys.argv[1])))
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""


class Hung(AssertionError):
    """A program did not end in time."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a program; ``seconds`` it took."""

    command: str
    code: int
    out: bytes
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out.decode()

    def ok(self) -> Self:
        """Itself, if the program succeeded."""
        assert self.code == 0, f"{self.command}: exit {self.code}\n{self.text}{self.err}"
        return self


class Process:
    """A program that runs, its output going to files; killed at the end of ``with``."""

    def __init__(
        self,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # closed in end()
        self._err = tempfile.TemporaryFile() if log is None else log.open("ab")  # noqa: SIM115
        self._began = time.monotonic()
        self.command = shlex.join(str(each) for each in command)
        self._popen = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=None if env is None else {**os.environ, **env},
            cwd=REPOSITORY if cwd is None else cwd,
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._popen.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def ended(self, within: float) -> bool:
        """Wait for its end, but not longer."""
        if self._popen.poll() is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(within * 1000)
        return self._popen.poll() is not None

    def finish(self, within: float = PATIENCE) -> Finished:
        """Its result; raises Hung after ``within`` seconds."""
        if not self.ended(within):
            state = process_state(self.pid)
            raise Hung(f"{self.command}: still in state {state} after {within:g} s")
        seconds = time.monotonic() - self._began
        self._out.seek(0)
        err = ""
        if self._err.readable():
            self._err.seek(0)
            err = self._err.read().decode(errors="replace")
        return Finished(self.command, self._popen.returncode, self._out.read(), err, seconds)

    def signal(self, number: signal.Signals) -> None:
        if self.runs:
            self._popen.send_signal(number)

    def end(self) -> None:
        """Kill it and all that it has started; what hangs in the kernel is left behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.ended(_DEATH)
        for each in (self._out, self._err):
            each.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def run(
    *command: str | Path,
    within: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run a program to its end; raises Hung after ``within`` seconds."""
    with Process(*command, env=env, cwd=cwd) as process:
        return process.finish(within)


def cafsfs(
    *arguments: str | Path, within: float = PATIENCE, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a command of ours."""
    return run(*CAFSFS, *arguments, within=within, env=env)


def attempting(expression: str, *arguments: str | Path) -> Process:
    """As ``attempt``, but don't wait for it."""
    return Process(sys.executable, "-I", "-S", "-c", _ATTEMPT, expression, *arguments)


def attempt(expression: str, *arguments: str | Path, within: float = PATIENCE) -> Any:
    """Evaluate a Python expression over arguments ``a`` elsewhere; the value or the errno's name.

    >>> attempt("os.stat(a[0]).st_size", "/no/such/file")
    'ENOENT'
    """
    with attempting(expression, *arguments) as process:
        return outcome(process, within)


def outcome(process: Process, within: float = PATIENCE) -> Any:
    """What an ``attempting`` process found."""
    return json.loads(process.finish(within).ok().out)


def eventually(condition: Callable[[], object], *, within: float = PATIENCE, what: str) -> float:
    """Look until it is true; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within:g} s: {what}"
        time.sleep(0.005)
    return time.monotonic() - began


def process_state(pid: int) -> str:
    """R, S, D, T, …; Z only if no thread is left either; "" if there is no such process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # The zombie of a process that still has threads is not dead: they hang in the kernel.
        return "D" if state == "Z" and len(os.listdir(f"/proc/{pid}/task")) > 1 else state
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Does it run? (Init may be slow to reap what is dead.)"""
    return process_state(pid) not in {"", "Z", "X"}


def pids_of(part: str) -> list[int]:
    """The living processes with ``part`` in their command lines."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes()
            if part.encode() in words and is_alive(int(name)):
                found.append(int(name))
    return found


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A directory that all tests of this machine have: a lock between them."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def memory_of_the_kernel(how: int) -> Iterator[None]:
    """Hold it, LOCK_SH, against tests that run beside this one and let it forget, LOCK_EX."""
    with opened(Path("/proc/sys/vm")) as lock:
        fcntl.flock(lock, how)
        yield


def descriptors_of(pid: int) -> dict[str, str]:
    """What a process has open, by number."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def forget_names() -> None:
    """Let the kernel forget what it remembers of names and inodes, as when memory is short."""
    with memory_of_the_kernel(fcntl.LOCK_EX):
        try:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        except OSError:
            pytest.skip("only root may, and not in every container")


def need(*programs: str) -> None:
    """Fail with what to install, rather than with a riddle."""
    for each in programs:
        assert shutil.which(each), f"`{each}` is not installed; .ci/bootstrap --fuse dev does it"
