"""What is done to whole caches: one of very many tiny blobs, and one of a few large ones."""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

from tests.bench.children import run
from tests.bench.filling import TINY, content
from tests.bench.stage import FILLING, OURS, PLAIN, Sample, Stage

MOUNTED = "tests.bench.mounted"

_PIECES = 4  # large blobs
_PASSES = 5  # over the large ones: one of a GiB takes 0.1 s


def mount_many(stage: Stage) -> Sample:
    """``cafsfs mount`` over many blobs: until one of them was looked at and read."""
    return _mounted(stage, "answer", _many(stage), blob=0)


def mount_empty(stage: Stage) -> Sample:
    """The same over an empty cache: until stats.json was read."""
    stage.clear()
    return _mounted(stage, "answer", stage.cold, blob=None)


def mount_without_index(stage: Stage) -> Sample:
    """The same as ``mount_many`` when the index is gone. It leaves a complete one."""
    return _mounted(stage, "rebuild", _many(stage), blob=0)


def list_many(stage: Stage) -> Sample:
    """``ls -f`` of ``blake3/`` of a fresh mount over many blobs."""
    with stage.mount(_many(stage)) as place:
        sample = stage.time(PLAIN, "count", stage.blobs, "ls -f", place.directory / "blake3")
    return place.sample(sample)


def find_many(stage: Stage) -> Sample:
    """``find`` of the same files in the directory of the cache."""
    return stage.time(PLAIN, "count", stage.blobs, "find -H", _many(stage) / "blobs")


def verify_many(stage: Stage) -> Sample:
    """Verify many blobs, and note each in the index."""
    return stage.time(OURS, "verify", _many(stage), stage.blobs, 1)


def verify_large(stage: Stage) -> Sample:
    """Verify a few large blobs, together as large as the big one."""
    return stage.time(OURS, "verify", _large(stage), _PIECES, _PASSES)


def blake_large(stage: Stage) -> Sample:
    """Read and hash the same files on as many threads, and no more than that."""
    return stage.time(PLAIN, "blake_files_on_all_cores", _large(stage) / "blobs", _PASSES)


def blake_on_all_cores(stage: Stage) -> Sample:
    """BLAKE3 of as many bytes in memory, on as many threads."""
    return stage.time(PLAIN, "blake_on_all_cores", stage.size, _PASSES)


def _many(stage: Stage) -> Path:
    return stage.once(
        "many-cache", lambda path: stage.ask(FILLING, "many", path, stage.blobs, TINY)
    )


def _large(stage: Stage) -> Path:
    return stage.once(
        "large-cache", lambda path: stage.ask(FILLING, "large", path, stage.blob, _PIECES)
    )


def _mounted(stage: Stage, verb: str, cache: Path, *, blob: int | None) -> Sample:
    """``blob``: the number of the one that is read."""
    held = b"" if blob is None else content(blob)
    name = "" if blob is None else blake3(held).hexdigest()
    settle = 0.0 if blob is None else stage.settle
    with stage.mount_point() as point:
        arguments = (verb, str(cache), stage.uri, str(point), name, held.hex(), str(settle))
        figures = json.loads(run(MOUNTED, arguments, stage.directory / "child.log")[0])
    seconds, peak = figures.pop("seconds"), figures.pop("peak")
    return Sample(seconds=seconds, peak=peak, details=figures)
