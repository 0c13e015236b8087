"""What of a disk survives a power cut: the boot that wrote it, and ``syncfs``."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Identifies this boot of the machine; differs after every start of the kernel (random(4))."""
    return _BOOT_ID.read_text().strip()


def since_boot() -> float:
    """Seconds on a clock that all processes of this boot share and that nobody sets."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def syncfs(descriptor: int) -> None:
    """Write everything of the filesystem that the open file is on to its disk; blocks.

    Raises OSError, since Linux 5.8 also for data that could not be written back (syncfs(2)): once
    per descriptor, and only for what failed since it was opened. So who wants to know whether his
    data is on the disk opens one before he writes, and keeps it. Python has no syncfs of its own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
