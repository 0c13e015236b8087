"""Servers with the same content, each behind a line that can fail, and what can go wrong there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fault_proxy import Ending, Fault, FaultProxyProcess, Phase
from tests.fuse.serving import Blob, Roots, Served

_PHASES = (Phase.CONNECT, Phase.GREETING, Phase.ANSWER, Phase.BODY)
_HEADER = 16  # bytes; what it says of a length is not to be changed: see corrupt_line


class Node:
    """A server, its copy of the content, and the line to it; ended by the stack."""

    def __init__(
        self, directory: Path, host: str, blobs: list[Blob], how: str, stack: ExitStack
    ) -> None:
        self.name = host
        self.trouble: Trouble | None = None
        self.blobs = blobs
        self.roots = Roots(directory / f"roots-{host}")
        self._packed: dict[Blob, bytes] = {}
        for each in blobs:
            self._packed[each] = self.roots.file(self.roots.put(each, how)).read_bytes()
        self._touched: set[Blob] = set()
        log = directory / f"serve-{host}.log"
        self.served = stack.enter_context(Served(self.roots, log, host=host))
        self.line = stack.enter_context(FaultProxyProcess(self.served.address, host=host))

    def suffer(self, trouble: Trouble, chance: Random) -> None:
        """Let something go wrong; nothing else is wrong yet."""
        self.trouble = trouble
        trouble.strike(self, chance)

    def heal(self) -> None:
        """Whatever was wrong is so no more; connections that are lost remain so."""
        self.trouble = None
        self.line.thaw()
        self.line.mend()
        self.served.thaw()
        if not self.served.runs:
            self.served.start()
        for each in self._touched:
            self._replace(each, self._packed[each])
        self._touched.clear()

    def spoil(self, blob: Blob, at: int) -> None:
        """Flip one byte of a blob in the store."""
        packed = bytearray(self._packed[blob])
        packed[at] ^= 0xFF
        self._replace(blob, bytes(packed))

    def lose(self, blob: Blob) -> None:
        """Remove a blob from the store."""
        self._touched.add(blob)
        self.roots.file(blob).unlink()

    def length(self, blob: Blob) -> int:
        return len(self._packed[blob])

    def _replace(self, blob: Blob, packed: bytes) -> None:
        """By a rename, as servers do it."""
        self._touched = self._touched | {blob}
        beside = self.roots.file(blob).with_suffix(".new")
        beside.write_bytes(packed)
        beside.rename(self.roots.file(blob))


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that goes wrong with a node; ``spoils``: its bytes may be wrong."""

    name: str
    strike: Callable[[Node, Random], object]
    spoils: bool = False


def _line(node: Node, chance: Random, then: Ending) -> None:
    after = chance.choice([0, 1, 100_000])
    times = chance.choice([1, 5, None])
    node.line.fault(chance.choice(_PHASES), Fault(after=after, then=then), times=times)


def _stall(node: Node, chance: Random) -> None:
    _line(node, chance, "stall")


def _swallow(node: Node, chance: Random) -> None:
    _line(node, chance, "black-hole")


def _close(node: Node, chance: Random) -> None:
    _line(node, chance, "close")


def _reset(node: Node, chance: Random) -> None:
    _line(node, chance, "reset")


def _refuse(node: Node, chance: Random) -> None:
    node.line.fault(Phase.CONNECT, Fault(then="refuse"))
    node.line.hang_up(reset=True)


def _vanish(node: Node, chance: Random) -> None:
    _line(node, chance, "vanish")


def _drip(node: Node, chance: Random) -> None:
    drip = chance.choice([(1, 1.0), (100, 0.05), (20_000, 0.2)])
    node.line.fault(chance.choice(_PHASES[1:]), Fault(drip=drip))


def _delay(node: Node, chance: Random) -> None:
    node.line.fault(chance.choice(_PHASES), Fault(delay=chance.choice([0.1, 0.5, 3.0])))


def _corrupt_line(node: Node, chance: Random) -> None:
    """Content only: a size that was given out cannot be taken back, and its readers get EIO."""
    at = _HEADER + chance.randrange(50_000)
    node.line.fault(Phase.BODY, Fault(spoil=at, every=chance.choice([None, 300_000])))


def _corrupt_store(node: Node, chance: Random) -> None:
    for each in chance.sample(node.blobs, len(node.blobs) // 2):
        node.spoil(each, chance.randrange(_HEADER, node.length(each)))


def _lose(node: Node, chance: Random) -> None:
    for each in chance.sample(node.blobs, len(node.blobs) // 2):
        node.lose(each)


def _restart(node: Node, chance: Random) -> None:
    node.served.kill()
    node.served.start()


TROUBLES = (
    Trouble("killed", lambda node, _: node.served.kill()),
    Trouble("restarted", _restart),
    Trouble("frozen", lambda node, _: node.served.freeze()),
    Trouble("line frozen", lambda node, _: node.line.freeze()),
    Trouble("line stalls", _stall),
    Trouble("line is a black hole", _swallow),
    Trouble("line closes", _close),
    Trouble("line resets", _reset),
    Trouble("refused", _refuse),
    Trouble("vanished", _vanish),
    Trouble("line drips", _drip),
    Trouble("line is late", _delay),
    Trouble("line corrupts", _corrupt_line, spoils=True),
    Trouble("store corrupted", _corrupt_store, spoils=True),
    Trouble("blobs lost", _lose),
)
# What keeps everybody from a server.
BLACKOUTS = tuple(each for each in TROUBLES if each.name in {"killed", "frozen", "refused"})
