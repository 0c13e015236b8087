"""A progress bar of bytes, beside which lines can be said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm

_BAR_DELAY = 0.5  # seconds; what is done sooner needs no progress bar


class Progress:
    """A progress bar of bytes on a terminal; nothing elsewhere, and nothing for short work."""

    def __init__(self, total: int | None) -> None:
        self._lock = Lock()  # tqdm's own is for the terminal, not for the count
        self._bar = _bar(total) if os.isatty(2) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """So many bytes were just moved, or were in vain; from any thread."""
        if self._bar is not None:
            with self._lock:
                self._bar.update(count)

    def describe(self, text: str, total: int | None) -> None:
        """What stands before the bar, and the bytes that are now thought to be all."""
        if self._bar is not None:
            with self._lock:
                self._bar.total = total
                self._bar.set_description_str(text, refresh=False)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Make room for a line. Not tqdm's own way: it would show a bar before its time."""
        bar = self._bar
        if bar is None or bar.last_print_t == bar.start_t:
            yield
            return
        bar.clear()
        yield
        bar.refresh()


def _bar(total: int | None) -> tqdm[NoReturn]:
    from tqdm import tqdm  # noqa: PLC0415  # to import it is a tenth of the start of a command

    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, delay=_BAR_DELAY)
