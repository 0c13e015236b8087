"""Run each check in a process of its own, so that none can hang the doctor.

A stat of a hung filesystem cannot be interrupted, and a process with a thread in one does not even
end. So each check is forked, and one that is late is left behind. Forking is safe for who has no
threads and has not run Trio, and only for him.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cafsfs.doctor.case import Case, Finding, Look, Verdict, broken
from cafsfs.errors import CafsError

_PIECE = 1 << 16  # bytes; all that a check says fits into its pipe


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table: what is looked at, and how many seconds that may take."""

    name: str
    look: Look
    patience: float = 5.0


def examine(checks: Sequence[Check], case: Case) -> dict[str, list[Finding]]:
    """What each check finds, by its name; side by side, and none for longer than its patience."""
    began = time.monotonic()
    children = [(each, *_start(each, case)) for each in checks]
    return {
        check.name: _hear(check, pid, pipe, began + check.patience) for check, pid, pipe in children
    }


def _start(check: Check, case: Case) -> tuple[int, int]:
    """Fork; the child's pid, and where it says what it finds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.close(read)
        said = [(each.verdict.value, each.text, each.fix) for each in _look(check, case)]
        os.write(write, json.dumps(said).encode())
    finally:
        os._exit(0)  # whatever happened: two of us must not return


def _look(check: Check, case: Case) -> list[Finding]:
    try:
        return list(check.look(case))
    except CafsError as error:
        return [broken(str(error), error.hint or "see `cafsfs help troubleshooting`")]
    except Exception as error:  # a check that fails is a finding, not the end
        return [broken(f"`{check.name}` could not be looked at: {error!r}", "tell us: a bug")]


def _hear(check: Check, pid: int, pipe: int, end: float) -> list[Finding]:
    said = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        piece = os.read(pipe, _PIECE) if ready else b""
        if not piece:
            break
        said += piece
    os.close(pipe)
    if ready:
        os.waitpid(pid, 0)
        return [Finding(Verdict(verdict), text, fix) for verdict, text, fix in json.loads(said)]
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # and not waited for: it may be stuck in the kernel
    return [
        broken(
            f"`{check.name}` was not seen within {check.patience:g} s",
            "a disk or a server hangs: `ps -eo pid,stat,wchan:32,args | grep ' D'` tells who waits",
        )
    ]
