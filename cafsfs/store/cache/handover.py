"""Claim a blob in a thread that is left to itself when the disk hangs, and nothing is left open."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

import trio

from cafsfs.store.cache.blob_files import Claimed, Found
from cafsfs.store.cache.cached_file import HUNG
from cafsfs.store.cache.partials import Following


async def hurry(claim: Callable[[], Claimed], limiter: trio.CapacityLimiter) -> Claimed:
    """Run ``claim`` in a thread, for ``HUNG`` seconds at most; raises what it does, OSError."""
    handover = _Handover()

    def work() -> None:
        handover.give(claim())

    try:
        with trio.move_on_after(HUNG):
            await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
            return handover.take()
    finally:
        handover.end()
    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


class _Handover:
    """From a thread to who waits for it, if he still does; else it is closed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._claimed: Claimed = None
        self._ended = False

    def give(self, claimed: Claimed) -> None:
        with self._lock:
            self._claimed = claimed
            if self._ended:
                self._close()

    def take(self) -> Claimed:
        claimed, self._claimed = self._claimed, None
        return claimed

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._close()

    def _close(self) -> None:
        match self.take():
            case Found(descriptor=descriptor):
                os.close(descriptor)
            case Following() as following:
                following.close()
            case (int(descriptor), Path() as path):
                with suppress(OSError):
                    if not os.fstat(descriptor).st_size:  # else it may be of use to somebody
                        path.unlink()
                os.close(descriptor)  # and so its lock is given up
