"""Somebody who looks at a mount all the time: how long do `stat` and `df` take there?

A process of its own, for it must not hang the tests. It looks at names of a cached blob that the
kernel has not seen before, so that the daemon is asked each time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from itertools import count
from typing import Any

import trio

from tests.fuse.mounted import Mounted
from tests.fuse.processes import eventually
from tests.fuse.serving import Blob
from tests.obeying import Obeying, obey

_PAUSE = 0.02  # seconds between two looks


class Witness(Obeying):
    """Looks at ``cached`` in ``mount`` and at the mount itself, until the end of its ``with``."""

    def __init__(self, mount: Mounted, cached: Blob) -> None:
        super().__init__("tests.fuse.witness", str(mount.path(cached)), str(mount.point))

    def worst(self) -> float:
        """The longest look, in seconds, since this was asked last; one that still lasts too."""
        worst = 0.0

        def has_looked() -> bool:
            nonlocal worst
            said = self.ask()
            worst = max(worst, said["worst"])
            return bool(said["looks"])

        eventually(has_looked, what="a look at the mount ends")
        return worst


class _Looking:
    """Measures in a thread; ``tell`` may be called in any other."""

    def __init__(self, path: str, point: str) -> None:
        self._looks = self._next_look(path, point)
        self._lock = threading.Lock()
        self._worst = 0.0
        self._count = 0
        self._since: float | None = None  # the look that is under way has begun

    @staticmethod
    def _next_look(path: str, point: str) -> Any:
        for number in count():
            yield partial(os.stat, f"{path}.{number}")
            yield partial(os.statvfs, point)

    def look(self) -> None:
        """For ever."""
        for each in self._looks:
            began = self._since = time.monotonic()
            each()
            with self._lock:
                self._worst = max(self._worst, time.monotonic() - began)
                self._count += 1
                self._since = None
            time.sleep(_PAUSE)

    async def tell(self, _: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            lasting = 0.0 if self._since is None else time.monotonic() - self._since
            answer = {"worst": max(self._worst, lasting), "looks": self._count}
            self._worst, self._count = 0.0, 0
        await trio.lowlevel.checkpoint()
        return answer


def _main(path: str, point: str) -> None:
    looking = _Looking(path, point)
    threading.Thread(target=looking.look, daemon=True).start()
    trio.run(obey, {}, looking.tell)


if __name__ == "__main__":
    _main(*sys.argv[1:])
