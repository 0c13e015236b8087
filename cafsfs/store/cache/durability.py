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


def syncfs(directory: Path) -> None:
    """Write everything of the filesystem that ``directory`` is on to its disk; blocks.

    Raises OSError. Since Linux 5.8 also for data that could not be written back since the last
    call (syncfs(2)). Python has no syncfs of its own.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)
