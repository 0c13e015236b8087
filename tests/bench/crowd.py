"""A child of the bench: readers of cold blobs through a mount; prints seconds, or JSON.

Its threads may be blocked in reads when it has seen enough. They end with the process: a buffered
read can be killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PIECE = 1 << 20  # bytes that a reader reads at once
_FIRST = 4096  # bytes
_STEADY = 5  # reads of the cached blob, of which the median counts
_BLOCKED = 0.5  # seconds until readers that were let go are blocked in their reads
_POLL = 0.01  # seconds


def first_byte(directory: str, small: str, giants: str, count: str) -> float:
    """Seconds to stat, open and read the first 4 KiB of a cold giant; the median of several.

    Before each a small blob is read, so that there is a connection in the pool.
    """
    took = []
    for warm, cold in zip(_names(small, count), _names(giants, count), strict=False):
        Path(directory, warm).read_bytes()
        began = time.perf_counter()
        path = f"{directory}/{cold}"
        os.stat(path)
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, _FIRST)
        took.append(time.perf_counter() - began)
        os.close(descriptor)
    return statistics.median(took)


def beside_stalled(directory: str, cached: str, giants: str, count: str, server: str) -> float:
    """Seconds to read a cached blob while ``count`` readers wait for a server that is stopped.

    The kernel forgets the blob before each read; the median of some.
    """
    paths = [f"{directory}/{each}" for each in _names(giants, count)]
    _together(os.stat, paths)
    path = f"{directory}/{cached}"
    _read_again(path)
    if paths:
        os.kill(int(server), signal.SIGSTOP)
    for each in paths:
        threading.Thread(target=_read_on, args=(each, [0]), daemon=True).start()
    time.sleep(_BLOCKED if paths else 0)
    return statistics.median(_read_again(path) for _ in range(_STEADY))


def all_get_on(
    directory: str, giants: str, count: str, least: str, patience: str, cache: str, room: str
) -> str:
    """Seconds until each of ``count`` readers has got ``least`` bytes, and who never has.

    It is over, and counts as ``patience``, when that has passed, or when the filesystem of the
    cache has lost more than ``room`` bytes: what is open cannot be evicted.
    """
    names = _names(giants, count)
    counts = [[0] for _ in names]
    enough = shutil.disk_usage(cache).free - int(room)
    began = time.perf_counter()
    for name, read in zip(names, counts, strict=True):
        path = f"{directory}/{name}"
        threading.Thread(target=_read_on, args=(path, read), daemon=True).start()
    while True:
        seconds = time.perf_counter() - began
        waiting = sum(each[0] < int(least) for each in counts)
        given_up = seconds > float(patience) or shutil.disk_usage(cache).free < enough
        if not waiting or given_up:
            took = float(patience) if waiting else seconds
            return json.dumps({"seconds": took, "left behind, readers": waiting})
        time.sleep(_POLL)


def _names(path: str, count: str) -> list[str]:
    return Path(path).read_text().split()[: int(count)]


def _together(work: Callable[[str], object], items: Sequence[str]) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read_again(path: str) -> float:
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(_PIECE):
            pass
        return time.perf_counter() - began


def _read_on(path: str, count: list[int]) -> None:
    """Read a blob as it comes; ``count`` tells its bytes so far. An error ends that."""
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            count[0] += len(piece)


VERBS: dict[str, Callable[..., float | str]] = {
    each.__name__: each for each in (first_byte, beside_stalled, all_get_on)
}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]), flush=True)
    os._exit(0)  # whoever still reads is not waited for
