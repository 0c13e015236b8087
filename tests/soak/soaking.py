"""The soak: a mount of several servers, readers, and one epoch of troubles after the other.

In each epoch one server is spared, so no read may fail. Then all are healed, and when the mount
knows it the readers pause, and what it holds is compared with what it held before. Now and then all
servers fail at once: then reads may fail, but not hang, and not with wrong bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.fuse.mounted import Mounted
from tests.fuse.processes import descriptors_of
from tests.fuse.serving import ROOT, Blob, BlobMaker
from tests.fuse.witness import Witness
from tests.soak.crowd import CrowdProcess, Report
from tests.soak.fleet import BLACKOUTS, TROUBLES, Node, Trouble
from tests.soak.verdict import Idle, Judge, Window
from tests.store.tmpfs import small_tmpfs

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
PACKED = ("none", "zstd", "zlib")
SIZES = (1, 4_000, 64_000, 300_000, 700_000, 2_000_000)
LARGE = 5_000_000  # bytes of blobs that are read before they are verified
CACHE = 12 << 20  # bytes of its disk: less than the blobs have, and less than --cache-size
OPTIONS = (
    *("--lookup-timeout", "15", "--read-timeout", "30", "--cache-size", "100M"),
    *("--connect-timeout", "1.5", "--answer-timeout", "4", "--progress-timeout", "3"),
    *("--verify-first", "4M"),
)
HEALED = 60.0  # seconds until the mount asks all servers again; it greets every 10 s at least
SETTLED = 60.0  # seconds until nothing is under way any more
_LOOK = 0.25  # seconds between two looks at something


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``seconds`` in all, in epochs of ``epoch`` seconds; ``crowds`` of ``threads`` readers."""

    seconds: float
    epoch: float
    seed: int
    crowds: int = 4
    threads: int = 4


class Soak:
    """Everything that takes part; ended by ``stack``."""

    def __init__(
        self, plan: Plan, directory: Path, stack: ExitStack, tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._tell = tell
        self._chance = Random(plan.seed)
        (directory / "content").mkdir()
        maker = BlobMaker(directory / "content", str(plan.seed))
        blobs = [maker.random(size) for size in SIZES * 4]
        blobs += [maker.text(size) for size in SIZES[3:]]
        large = [maker.random(LARGE), maker.text(LARGE)]
        blobs += large
        self._nodes = [
            Node(directory, host, blobs, how, stack)
            for host, how in zip(HOSTS, PACKED, strict=True)
        ]
        self.judge = Judge({each.hash for each in large})
        self._mount = self._mounted(directory, stack)
        self._crowds = self._gather(directory, blobs, stack)
        self._witness = stack.enter_context(Witness(self._mount, blobs[1]))
        self._began = self._told = time.monotonic()
        self._seen = Report()  # since the last line
        self._troubles: Counter[str] = Counter()

    def _mounted(self, directory: Path, stack: ExitStack) -> Mounted:
        cache = directory / "cache"
        try:
            stack.enter_context(small_tmpfs(cache, CACHE))
        except pytest.skip.Exception as error:
            self._tell(f"the cache's disk is not small: {error}")
        lines = ",".join(each.line.address for each in self._nodes)
        mount = Mounted(f"cafs://{lines}{ROOT}", directory, OPTIONS, cache=cache)
        mount.announce("^[^\n]* WARNING [^\n]*$")  # what such a day brings
        stack.callback(lambda: self.judge.violations.extend(mount.clear()))
        return mount

    def _gather(self, directory: Path, blobs: list[Blob], stack: ExitStack) -> list[CrowdProcess]:
        catalogue = directory / "catalogue"
        catalogue.write_text("".join(f"{each} {each.source}\n" for each in blobs))
        return [
            stack.enter_context(
                CrowdProcess(
                    self._mount.point,
                    catalogue,
                    threads=self._plan.threads,
                    seed=self._plan.seed + number,
                )
            )
            for number in range(self._plan.crowds)
        ]

    def run(self) -> None:
        """One epoch after the other, until the time is over or there is a violation."""
        end = self._began + self._plan.seconds
        while time.monotonic() < end and not self.judge.violations:
            self._epoch(min(self._plan.epoch, end - time.monotonic()))
            if self._chance.random() < 0.25:
                self._blackout()
            self._settle()
        self._line()

    # --- what happens

    def _epoch(self, seconds: float) -> None:
        """Troubles come and go, but never at one of the servers."""
        spared = self._chance.choice(self._nodes)
        suffering = [each for each in self._nodes if each is not spared]
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.judge.violations:
            node = self._chance.choice(suffering)
            if node.trouble is not None:
                self._heal(node)
            else:
                self._strike(node, self._chance.choice(TROUBLES))
            self._watch(min(left, self._chance.uniform(0.3, 4.0)))
        for each in self._nodes:
            self._heal(each)
        self._await_all_up()

    def _blackout(self) -> None:
        window = Window(time.monotonic())
        self.judge.blackouts.append(window)
        for each in self._nodes:
            self._strike(each, self._chance.choice(BLACKOUTS))
        self._watch(self._chance.uniform(1.0, 6.0))
        for each in self._nodes:
            self._heal(each)
        self._await_all_up()
        window.ended = time.monotonic()

    def _strike(self, node: Node, trouble: Trouble) -> None:
        if trouble.spoils:
            self.judge.spoilings.append(Window(time.monotonic()))
        self._troubles[trouble.name] += 1
        node.suffer(trouble, self._chance)

    def _heal(self, node: Node) -> None:
        node.heal()
        if not any(each.trouble and each.trouble.spoils for each in self._nodes):
            for window in self.judge.spoilings:
                window.ended = min(window.ended, time.monotonic())

    def _await_all_up(self) -> None:
        """A server that is well again is known to be so, before it is the only one that is."""

        def down() -> list[str]:
            return [each["name"] for each in self._mount.servers() if each["state"] == "down"]

        self._await(down, HEALED, "not asked again: {}")

    def _settle(self) -> None:
        """Nobody reads: what is held now?"""
        for each in self._crowds:
            each.pause()
        self._await(lambda: sum(self._reports()), SETTLED, "{} reads do not end")
        self._await(lambda: self.judge.gauges(self._mount.stats()), SETTLED, "{}")
        self._await(
            lambda: sum(each.line.counts()["stuck"] for each in self._nodes),
            SETTLED,
            "{} connections are kept that are of no use",
        )
        self._judge_rest()
        for each in self._crowds:
            each.go_on()

    def _judge_rest(self) -> None:
        found = list(descriptors_of(self._mount.daemon.pid).values())
        sockets = sum(each.startswith("socket:") for each in found)
        idle = Idle(
            memory=resident(self._mount.daemon.pid), files=len(found) - sockets, sockets=sockets
        )
        self.judge.rest(idle, servers=len(self._nodes))
        if errors := self._mount.counters()["handler_errors"]:
            self.judge.accuse(f"{errors} handlers have failed")

    # --- what is seen

    def _await(self, left: Callable[[], object], within: float, complaint: str) -> None:
        """Watch until nothing is left; it is a violation if that takes longer."""
        late = time.monotonic() + within
        while (what := left()) and not self.judge.violations:
            if time.monotonic() > late:
                self.judge.accuse(f"{complaint.format(what)} (after {within:g} s)")
            self._watch(_LOOK)

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            self._reports()
            self.judge.meanwhile(self._witness.worst())
            if not self._mount.daemon.runs:
                self.judge.accuse("the mount has ended")
                return
            if time.monotonic() - self._told > 60:
                self._line()

    def _reports(self) -> list[int]:
        """Hear the readers; how many of each crowd read now."""
        reading = []
        for each in self._crowds:
            report = each.report()
            self.judge.hear(report)
            self._seen.reads += report.reads
            self._seen.worst = max(self._seen.worst, report.worst, report.lasting)
            reading.append(report.reading)
        return reading

    def _line(self) -> None:
        self._told = time.monotonic()
        pulls = self._mount.counters()["pulls"]
        common = ", ".join(f"{count} {name}" for name, count in self._troubles.most_common())
        self._tell(
            f"{(self._told - self._began) / 60:.1f} min: {self._seen.reads} reads, the longest "
            f"{self._seen.worst:.1f} s; {pulls} pulls in all; {self.judge.forgiven} errors "
            f"forgiven; {resident(self._mount.daemon.pid) >> 20} MiB, "
            f"{len(descriptors_of(self._mount.daemon.pid))} descriptors; {common}"
        )
        self._seen = Report()
        self._troubles.clear()


def resident(pid: int) -> int:
    """VmRSS in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0
