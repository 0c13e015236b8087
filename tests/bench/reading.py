"""Reads of what is cached: in a mount, in one of rclone, and of plain files, all by one reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import rclone
from tests.bench.stage import FILLING, PLAIN, Place, Run, Sample, Stage
from tests.bench.supplies import SMALL_BLOBS, SMALL_LENGTH, small_names

SMALL_READS = 2_000
RANDOM_READS = 20_000

Where = Callable[[Stage], AbstractContextManager[Place]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A verb of ``plain`` with its arguments, done some times in a row: the last time counts."""

    verb: str
    arguments: Callable[[Stage, Place], tuple[object, ...]]
    times: int = 1

    def at(self, where: Where) -> Run:
        """Do it there. A mount is a new one, so the kernel has no pages of it before."""

        def run(stage: Stage) -> Sample:
            with where(stage) as place:
                sample = self.read(stage, place)
            return place.sample(sample)

        return run

    def read(self, stage: Stage, place: Place) -> Sample:
        """Do it at a place that is there."""
        for _ in range(self.times):
            sample = stage.time(PLAIN, self.verb, *self.arguments(stage, place))
        return sample


def whole(*, times: int) -> Reading:
    """Read the big blob from its beginning to its end."""
    return Reading(
        verb="read", arguments=lambda stage, at: (_big(stage, at), stage.size), times=times
    )


def at_random() -> Reading:
    """Read pieces of 4 KiB of it."""
    return Reading(
        verb="read_at_random",
        arguments=lambda stage, at: (_big(stage, at), stage.size, stage.part(RANDOM_READS)),
    )


def each_small() -> Reading:
    """Open, read and close small blobs."""
    return Reading(
        verb="read_each",
        arguments=lambda stage, at: (at.small, small_names(stage), stage.part(SMALL_READS)),
    )


def stat_small(*, times: int) -> Reading:
    """Ask for the attributes of all of them."""
    return Reading(
        verb="stat_each",
        arguments=lambda stage, at: (at.small, small_names(stage), stage.part(SMALL_BLOBS)),
        times=times,
    )


def _big(stage: Stage, place: Place) -> Path:
    return place.directory / stage.digest


@contextmanager
def in_mount(stage: Stage) -> Iterator[Place]:
    """A fresh mount, whose cache has them all."""

    def warm(path: Path) -> None:
        stage.ask(FILLING, "many", path, stage.part(SMALL_BLOBS), SMALL_LENGTH)
        with stage.mount(path) as place:
            whole(times=1).read(stage, place)

    with stage.mount(stage.once("warm-cache", warm)) as place:
        yield place


@contextmanager
def in_rclone(stage: Stage) -> Iterator[Place]:
    """A fresh mount of rclone, whose cache has them all."""

    def warm(path: Path) -> None:
        with rclone.mounted(stage, path) as place:
            for reading in (whole(times=1), each_small()):
                reading.read(stage, place)

    with rclone.mounted(stage, stage.once("rclone-cache", warm)) as place:
        yield place


@contextmanager
def in_files(stage: Stage) -> Iterator[Place]:
    """The plain files, in the kernel's memory."""
    small_names(stage)
    place = Place(directory=stage.files, small=stage.files / "small")
    whole(times=1).read(stage, place)
    yield place
