"""Run each check in a process of its own, so that none can hang the doctor.

A stat of a hung filesystem cannot be interrupted, and a process with a thread in one does not even
end. So each check is forked, and one that is late is left behind. Forking is safe for who has no
threads and has not run Trio, and only for him.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from cafsfs.doctor.case import Case, Finding, Look, Verdict, broken
from cafsfs.errors import CafsError

_PIECE = 1 << 16  # bytes of one read


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table: what is looked at, and how many seconds that may take."""

    name: str
    look: Look
    patience: float = 5.0


def examine(checks: Sequence[Check], case: Case) -> dict[str, list[Finding]]:
    """What each check finds, by its name; side by side, and none for longer than its patience."""
    said = run_apart([(partial(_examine, each, case), each.patience) for each in checks])
    return {
        check.name: _late(check) if text is None else _findings(text)
        for check, text in zip(checks, said, strict=True)
    }


@dataclass(slots=True)
class _Child:
    """A forked process, what it has said, and whether it has come to its end."""

    pid: int
    pipe: int
    end: float
    said: bytes = b""
    ended: bool = False


def run_apart(jobs: Sequence[tuple[Callable[[], bytes], float]]) -> list[bytes | None]:
    """What each job returns, None of one that has not ended within its seconds; side by side.

    Jobs raise nothing.
    """
    began = time.monotonic()
    children = [_start(job, began + patience) for job, patience in jobs]
    with selectors.DefaultSelector() as waiting:
        for each in children:
            waiting.register(each.pipe, selectors.EVENT_READ, each)
        while left := [key.data for key in waiting.get_map().values()]:
            for each in left:
                if each.end <= time.monotonic():
                    waiting.unregister(each.pipe)
            nearest = min(each.end for each in left)
            for key, _ in waiting.select(max(0.0, nearest - time.monotonic())):
                piece = os.read(key.fd, _PIECE)
                key.data.said += piece
                if not piece:
                    key.data.ended = True
                    waiting.unregister(key.fd)
    return [_end(each) for each in children]


def _start(job: Callable[[], bytes], end: float) -> _Child:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return _Child(pid, read, end)
    try:
        with open(write, "wb") as pipe:
            pipe.write(job())
    finally:
        os._exit(0)  # whatever happened: two of us must not return


def _end(child: _Child) -> bytes | None:
    os.close(child.pipe)
    if child.ended:
        os.waitpid(child.pid, 0)
        return child.said
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)  # and not waited for: it may be stuck in the kernel
    return None


def _examine(check: Check, case: Case) -> bytes:
    found = [(each.verdict.value, each.text, each.fix) for each in _look(check, case)]
    return json.dumps(found).encode()


def _look(check: Check, case: Case) -> list[Finding]:
    try:
        return list(check.look(case))
    except CafsError as error:
        return [broken(str(error), error.hint or "see `cafsfs help troubleshooting`")]
    except Exception as error:  # a check that fails is a finding, not the end
        return [broken(f"`{check.name}` could not be looked at: {error!r}", "tell us: a bug")]


def _findings(text: bytes) -> list[Finding]:
    return [Finding(Verdict(verdict), said, fix) for verdict, said, fix in json.loads(text)]


def _late(check: Check) -> list[Finding]:
    return [
        broken(
            f"`{check.name}` was not seen within {check.patience:g} s",
            "a disk or a server hangs: `ps -eo pid,stat,wchan:32,args | grep ' D'` tells who waits",
        )
    ]
