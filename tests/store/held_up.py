"""Hold up a thread in a function of ``os``, to look at what others do meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


class HeldUp:
    """The first call of a function waits; ``reached`` and ``go_on`` are for the event loop."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._released = threading.Event()

    async def reached(self) -> None:
        """Returns when a thread has come to the function."""
        assert await trio.to_thread.run_sync(self._arrived.wait, 5)

    def go_on(self) -> None:
        """Let the thread, and all that come later, pass."""
        self._released.set()

    def stop_here(self) -> None:
        self._arrived.set()
        self._released.wait(5)


@contextmanager
def held_up(function: str) -> Iterator[HeldUp]:
    """Hold up ``os.<function>`` until ``go_on``, at the latest until the end of the block."""
    original = getattr(os, function)
    held = HeldUp()

    def stopped(*arguments: Any, **options: Any) -> Any:
        held.stop_here()
        return original(*arguments, **options)

    setattr(os, function, stopped)
    try:
        yield held
    finally:
        held.go_on()
        setattr(os, function, original)
