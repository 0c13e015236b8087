"""Pulls and uploads: by a client, ours or the peer's, and out of a mount.

What makes a run makes it once, here and in its neighbours: rows that do the same share it.
"""

from __future__ import annotations

from functools import cache

from tests.bench.children import BenchError
from tests.bench.stage import OURS, PLAIN, ROOT, Run, Sample, Stage
from tests.bench.supplies import distant, packed, sealed, small_names, stored, words

BATCH = 2_000

_UPLOADS = "uploads"


@cache
def pull(module: str, compression: str = "NONE") -> Run:
    """Pull the blob that is stored in this way to a new file."""

    def run(stage: Stage) -> Sample:
        root, digest = packed(stage, compression)
        stage.clear()
        sample = stage.time(module, "pull", root, stage.address, digest, stage.target)
        stage.check_target(digest)
        return sample

    return run


def pull_encrypted(stage: Stage) -> Sample:
    """Pull the blob from a server that encrypts everything."""
    address, secret = sealed(stage)
    stage.clear()
    sample = stage.time(OURS, "pull", ROOT, address, stage.digest, stage.target, secret)
    stage.check_target(stage.digest)
    return sample


@cache
def put(module: str, compression: str = "NONE") -> Run:
    """Upload a file that the server does not have."""

    def run(stage: Stage) -> Sample:
        plain = compression == "NONE"
        path, digest = (stage.blob, stage.digest) if plain else words(stage)
        upload = stored(stage, _UPLOADS, digest)
        upload.unlink(missing_ok=True)
        sample = stage.time(module, "put", _UPLOADS, stage.address, path, compression)
        if not upload.is_file():
            raise BenchError(f"{module} says that it has uploaded what the server does not have")
        upload.unlink()
        return sample

    return run


@cache
def pull_batch(module: str, *, far: bool) -> Run:
    """Pull many small blobs, from the server or over the long line."""

    def run(stage: Stage) -> Sample:
        address = distant(stage) if far else stage.address
        names, count = small_names(stage), stage.part(BATCH)
        stage.clear()
        stage.targets.mkdir()
        sample = stage.time(module, "pull_batch", ROOT, address, names, stage.targets, count)
        if len(list(stage.targets.iterdir())) != count:
            raise BenchError(f"{module} has not pulled the {count} blobs that it was asked for")
        return sample

    return run


def straight(stage: Stage) -> Sample:
    """Unpack, hash and write a ZSTD blob in one thread, without a server."""
    root, digest = packed(stage, "ZSTD")
    stage.clear()
    sample = stage.time(PLAIN, "straight", stored(stage, root, digest), stage.target)
    stage.check_target(digest)
    return sample


def copy_cold(stage: Stage) -> Sample:
    """``cp`` of the blob from a mount whose cache is empty."""
    stage.clear()
    sample = _out_of_mount(stage, "cp", "{path}", str(stage.target))
    stage.check_target(stage.digest)
    return sample


def dd_cold(stage: Stage) -> Sample:
    """``dd`` of it, to nowhere."""
    stage.clear()
    return _out_of_mount(stage, "dd", "if={path}", "of=/dev/null", "bs=1M")


def _out_of_mount(stage: Stage, *tool: str) -> Sample:
    with stage.mount(stage.cold) as place:
        path = place.directory / stage.digest
        sample = stage.time(PLAIN, "tool", *(each.format(path=path) for each in tool))
    return place.sample(sample)


def write_target(stage: Stage) -> Sample:
    """Write as many bytes to where copies go."""
    stage.clear()
    return stage.time(PLAIN, "write", stage.target, stage.size)


def loopback(stage: Stage) -> Sample:
    """Send as many bytes through a socket."""
    return stage.time(PLAIN, "loopback", stage.size)


def blake(stage: Stage) -> Sample:
    """Hash as many bytes on one core."""
    return stage.time(PLAIN, "blake", stage.size)
