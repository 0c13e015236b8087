"""One budget of memory over all pulls: who may have how much of it, and who waits.

A pull has a share. It takes buffers from it, and what its decoder keeps; leaving the share gives
all of it back. Two rules keep everybody going:

- Only two things wait, in order of arrival: the first buffer of a pull, and its decoder. A second
  buffer, or a larger one, is taken when it is there and done without when it is not. Whoever holds
  something already goes before those that hold nothing: it is they who give something back.
- Nobody waits for somebody who waits. A share that is alone, or whose fellows all wait like itself,
  gets what it asks for, even if that is more than the whole budget.

All methods belong to the event loop; none but ``acquire`` has a checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

DEFAULT: Final = 256 << 20  # bytes

LARGEST_PIECE: Final = 2 << 20  # bytes of a buffer; see pump.py
LEAST_PIECE: Final = 64 << 10

# Shares may be held for hours, by pulls on slow lines: who has waited so long is let in beyond the
# budget, up to an eighth of it. Readers have 30 s, servers close a connection that stands still
# after 60.
_PATIENCE = 5.0  # seconds

_OF_CGROUP = 4  # the default is at most this fraction of what our cgroup may use


class MemoryBudget:
    """``total`` bytes for the buffers and decoders of all pulls that have a share of it."""

    def __init__(self, total: int = DEFAULT) -> None:
        self.total = total
        self.held = 0
        self._shares: set[Share] = set()
        self._waiting: deque[_Request] = deque()

    def __repr__(self) -> str:
        return (
            f"<MemoryBudget {self.held} of {self.total} bytes, {len(self._shares)} shares,"
            f" {len(self._waiting)} waiting>"
        )

    def share(self) -> Share:
        """A share that holds nothing yet; to be entered and left by ``with``."""
        return Share(self)

    def state(self) -> dict[str, int]:
        """For statistics: its size and what of it is given out, in bytes, and to how many."""
        return {
            "budget_bytes": self.total,
            "held_bytes": self.held,
            "pulls": len(self._shares),
            "waiting": len(self._waiting),
        }

    @property
    def piece(self) -> int:
        """Bytes of a buffer, of two a pull, that leave as much for each other pull."""
        kept = sum(each.kept for each in self._shares)
        fair = max(1, (self.total - kept) // (2 * max(1, len(self._shares))))
        return min(LARGEST_PIECE, max(LEAST_PIECE, 1 << (fair.bit_length() - 1)))

    @property
    def waiting(self) -> bool:
        """Does anybody wait for memory?"""
        return bool(self._waiting)

    def resize(self, total: int) -> None:
        """From now on there are ``total`` bytes; what is given out stays so until it comes back."""
        self.total = total
        self._let_in()

    # --- for shares

    def _enter(self, share: Share) -> None:
        self._shares.add(share)

    def _leave(self, share: Share) -> None:
        self._shares.discard(share)
        self._give_back(share.held)

    def _give_back(self, count: int) -> None:
        self.held -= count
        self._let_in()

    def _has_room(self, count: int) -> bool:
        return not self._waiting and self.held + count <= self.total

    async def _wait(self, share: Share, count: int) -> None:
        request = _Request(share, count, late=trio.current_time() + _PATIENCE)
        self._waiting.append(request)
        try:
            self._let_in()
            with trio.move_on_at(request.late):
                await request.granted.wait()
            if not request.granted.is_set():
                self._let_in()
                await request.granted.wait()
        except BaseException:
            if request.granted.is_set():
                share.give_back(count)
            else:
                self._waiting.remove(request)
                self._let_in()
            raise

    def _let_in(self) -> None:
        """Grant what can be granted, in order; nobody overtakes who waits for room."""
        while (request := self._first()) is not None and self._may(request):
            self._waiting.remove(request)
            request.share.held += request.count
            self.held += request.count
            request.granted.set()

    def _first(self) -> _Request | None:
        holding = (each for each in self._waiting if each.share.held)
        return next(holding, self._waiting[0] if self._waiting else None)

    def _may(self, request: _Request) -> bool:
        beyond = self.held + request.count - self.total
        if beyond <= 0:
            return True
        if trio.current_time() >= request.late and beyond <= self.total // 8:
            return True
        waiting = {each.share for each in self._waiting}
        return all(each in waiting for each in self._shares if each.held)


@dataclass(slots=True, eq=False)
class _Request:
    share: Share
    count: int
    late: float
    granted: trio.Event = field(default_factory=trio.Event)


class Share:
    """What one pull may keep; ``held`` in bytes, of which ``kept`` are its decoder's."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held = 0
        self.kept = 0

    def __enter__(self) -> Self:
        self._budget._enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._budget._leave(self)
        self.held = self.kept = 0

    @property
    def piece(self) -> int:
        """Bytes that a buffer should have now: fewer, the more pulls there are."""
        return self._budget.piece

    def take(self, count: int) -> bool:
        """Take ``count`` bytes if they are there and nobody waits; False if not."""
        if not self._budget._has_room(count):
            return False
        self.held += count
        self._budget.held += count
        return True

    async def acquire(self, count: int) -> None:
        """Take ``count`` bytes, and wait for them; no checkpoint where ``take`` succeeds."""
        if not self.take(count):
            await self._budget._wait(self, count)

    def give_back(self, count: int) -> None:
        """Give back ``count`` bytes, whose memory the caller has freed."""
        self.held -= count
        self._budget._give_back(count)

    async def keep(self, count: int) -> None:
        """Have the share hold ``count`` bytes for a decoder, up to its end."""
        if count > self.kept:
            await self.acquire(count - self.kept)
            self.kept = count


def default_budget(
    *, groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int:
    """256 MiB, or a quarter of the memory that our control group may use where that is less."""
    return min([DEFAULT, *(limit // _OF_CGROUP for limit in _limits(groups, mounted))])


def _limits(groups: Path, mounted: Path) -> Iterator[int]:
    """The limits of our cgroup and all above it, in bytes, of version 2 and 1."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no control groups here
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _walk(mounted, path, ("memory.max", "memory.high"))
        elif "memory" in controllers.split(","):
            yield from _walk(mounted / "memory", path, ("memory.limit_in_bytes",))


def _walk(root: Path, path: str, names: tuple[str, ...]) -> Iterator[int]:
    # A container may see the path that its group has outside; the root is its own group then.
    group = root / path.strip("/")
    for directory in (group, *group.parents):
        for name in names:
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():  # or it is "max"
                yield int(text)
        if directory == root:
            break
