"""A child of the bench: mounts over a cache as people do, and asks; prints JSON.

Seconds count from the start of the command. Memory is what the daemon has resident.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.children import TREE

_CAFSFS = (sys.executable, "-m", "cafsfs")
_END_DEADLINE = 60.0  # seconds for a daemon to write its index
_REBUILD_DEADLINE = 1800.0  # seconds
_POLL = 0.05  # seconds; a look at stats.json takes less than a thousandth

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    """A mount made by ``cafsfs mount``, not in the foreground. ``began``: of ``perf_counter``."""

    point: Path
    began: float

    @property
    def age(self) -> float:
        """Seconds since the start of the command."""
        return time.perf_counter() - self.began

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.point / ".cafsfs" / "stats.json").read_bytes())
        return found

    def memory(self, when: str) -> Figures:
        """What is resident now, and what was at most, in bytes."""
        lines = Path(f"/proc/{self.stats()['pid']}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        resident, peak = (int(fields[each].split()[0]) << 10 for each in ("VmRSS", "VmHWM"))
        return {f"resident {when}, bytes": resident, "peak": peak}

    def processor(self) -> float:
        """Seconds that the daemon has computed."""
        stat = Path(f"/proc/{self.stats()['pid']}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def answer(cache: str, uri: str, point: str, blob: str, content: str, settle: str) -> Figures:
    """Until the first blob was read; then its memory, and that ``settle`` seconds later.

    ``blob`` is a name, or empty: then the mount has no blobs, and stats.json is read.
    """
    with _mounted(cache, uri, point) as mount:
        figures = _ask(mount, blob, content)
        time.sleep(float(settle))
        return figures | mount.memory("later")


def rebuild(cache: str, uri: str, point: str, blob: str, content: str, settle: str) -> Figures:
    """The same without the index, which is gone; and until it is complete again."""
    for suffix in ("", "-wal", "-shm"):
        Path(cache, f"index.sqlite{suffix}").unlink(missing_ok=True)
    with _mounted(cache, uri, point) as mount:
        figures = _ask(mount, blob, content)
        while not mount.stats()["cache"]["complete"]:
            if mount.age > _REBUILD_DEADLINE:
                sys.exit(f"the index was not complete after {mount.age:.0f} s")
            time.sleep(_POLL)
        figures |= {"complete, s": mount.age, "computed for it, s": mount.processor()}
        figures |= mount.memory("when complete")
        time.sleep(float(settle))
        return figures | mount.memory("later")


def _ask(mount: _Mount, blob: str, content: str) -> Figures:
    figures = {"command returned, s": mount.age}
    if blob:
        path = mount.point / blob
        size = path.stat().st_size
        if (path.read_bytes().hex(), 2 * size) != (content, len(content)):
            sys.exit(f"`{path}` is not what it should be")
    else:
        mount.stats()
    return figures | {"seconds": mount.age} | mount.memory("at the answer")


@contextmanager
def _mounted(cache: str, uri: str, point: str) -> Iterator[_Mount]:
    """A mount on the directory; ended, with its daemon, whatever happens."""
    log = Path(f"{point}.log")
    command = ("mount", "--log-file", str(log), "--cache-dir", cache, uri, point)
    mount = _Mount(point=Path(point), began=time.perf_counter())
    daemon = -1
    try:
        subprocess.run([*_CAFSFS, *command], cwd=TREE, check=True, stdout=subprocess.DEVNULL)
        daemon = os.pidfd_open(mount.stats()["pid"])
        yield mount
    finally:
        subprocess.run([*_CAFSFS, "unmount", point], cwd=TREE, check=False)
        if daemon >= 0 and not select.select([daemon], [], [], _END_DEADLINE)[0]:
            signal.pidfd_send_signal(daemon, signal.SIGKILL)


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: unmounting is not to be interrupted
    sys.exit("terminated")


VERBS: dict[str, Callable[..., Figures]] = {"answer": answer, "rebuild": rebuild}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
