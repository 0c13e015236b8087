"""``cafsfs cache verify``: what it finds, and what it discards."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import ONE, Cache, lines
from tests.cli.running import ABSENT, end, start
from tests.fuse.processes import descriptors_of, eventually

pytestmark = pytest.mark.process


def test_verify_of_a_sound_cache(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("verify")
    assert (done.code, done.out) == (0, b"")
    assert done.err == "verified 3 blobs (585.9K): all are right\n"
    assert cache.json("verify", "--jobs", "1") == {"blobs": 3, "bytes": 600_000, "wrong": []}


def test_verify_finds_what_is_wrong_and_changes_nothing(cache: Cache, blobs: list[Digest]) -> None:
    cache.spoil(blobs[0])
    os.truncate(cache.path(blobs[1]), 1000)
    done = cache.run("verify")
    assert done.code == 1
    why = "the bytes are not those of its hash"
    assert done.text.splitlines() == [f"{each}  {why}" for each in sorted(blobs[:2])]
    assert "hint: discard them, " in done.err
    assert cache.has(blobs[0])
    assert cache.has(blobs[1])
    wrong = cache.json("verify")["wrong"]
    assert [each["hash"] for each in wrong] == [each.hex for each in sorted(blobs[:2])]
    assert not any(each["discarded"] for each in wrong)


def test_verify_repairs_and_a_pin_stays(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    cache.spoil(blobs[0])
    cache.spoil(blobs[2])
    done = cache.run("verify", "--repair")
    assert done.code == 1
    assert f"{blobs[0]}  the bytes are not those of its hash; discarded, its pin stays" in done.text
    assert f"{blobs[2]}  the bytes are not those of its hash; discarded\n" in done.text
    assert done.err == "verified 3 blobs (585.9K): 2 wrong, 2 discarded\n"
    assert [cache.has(each) for each in blobs] == [False, True, False]
    assert cache.run("verify").code == 0
    assert cache.run("ls", "--pinned").ok().text == f"{blobs[0]}  absent\n"
    assert cache.json("ls", "--pinned") == [{"hash": blobs[0].hex, "cached": False, "pinned": True}]
    cache.fill(ONE)
    assert cache.run("ls", "--pinned").ok().text == lines(blobs[0])
    assert cache.run("evict", blobs[0]).code == 1


def opened_by(process: subprocess.Popen[bytes]) -> set[str]:
    assert process.poll() is None, process.communicate()
    return set(descriptors_of(process.pid).values())


def test_verify_can_be_interrupted(cache: Cache, blobs: list[Digest]) -> None:
    cache.place(b"", ABSENT)
    os.truncate(cache.path(ABSENT), 64 << 30)  # sparse; some ten seconds at the least
    process = start(
        *("cache", "verify", "--repair", "--cache-dir", cache.directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    eventually(lambda: str(cache.path(ABSENT)) in opened_by(process), what="it reads the large one")
    assert end(process, signal.SIGINT) == 128 + signal.SIGINT
    assert process.communicate() == (b"", b"\n")
    assert cache.has(ABSENT)
    assert cache.json("status")["users"] == []


@pytest.mark.parametrize("jobs", ["0", "many", "-1"])
def test_jobs_are_a_number(cache: Cache, blobs: list[Digest], jobs: str) -> None:
    done = cache.run("verify", "--jobs", jobs)
    assert (done.code, done.complaint()) == (2, f"`{jobs}` is no value for --jobs")
    assert done.hint() == "it takes a whole number from 1 on"
