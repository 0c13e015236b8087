"""``cafsfs cache``: what it shows and what it changes, with and without a live mount."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from tests.cli.caches import Cache, content_of
from tests.cli.running import ABSENT, CAFSFS, PATIENCE, Serving, end, start
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, descriptors_of, eventually
from tests.fuse.processes import run as program
from tests.store.tmpfs import small_tmpfs

pytestmark = pytest.mark.process

ONE, TWO, THREE = content_of(100_000, 1), content_of(200_000, 2), content_of(300_000, 3)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def blobs(cache: Cache) -> list[Digest]:
    return cache.fill(ONE, TWO, THREE)


def lines(*digests: Digest) -> str:
    return "".join(f"{each}\n" for each in digests)


# --- what every command does


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["ls"], ["verify"], ["gc"], ["evict", "--all"], ["unpin", "--all"]),
        *(["evict", ABSENT], ["pin", ABSENT], ["verify", "--repair"], ["ls", "--json"]),
    ],
    ids=str,
)
def test_no_command_makes_a_cache(cache: Cache, words: list[Any]) -> None:
    done = cache.run(*words)
    assert done.code == 1
    assert done.complaint() == f"there is no cache in `{cache.directory}`"
    assert done.hint() == "name it with --cache-dir"
    assert not cache.directory.exists()


def test_a_store_is_not_taken_for_a_cache(tmp_path: Path, server: Serving) -> None:
    digest = server.put(tmp_path, b"packed, so it is not what its name says")
    done = Cache(server.data).run("verify", "--repair")
    assert done.code == 1
    assert done.complaint() == f"there is no cache in `{server.data}`"
    assert server.path_of(digest).exists()


@pytest.mark.parametrize("command", ["evict", "pin", "unpin"])
def test_what_may_be_named(cache: Cache, blobs: list[Digest], tmp_path: Path, command: str) -> None:
    done = cache.run(command)
    assert (done.code, done.complaint()) == (2, "no blob is named")
    done = cache.run(command, "beef")
    assert (done.code, done.complaint()) == (2, "`beef` is not a hash")
    done = cache.run(command, "--from", tmp_path / "none")
    assert done.code == 2
    assert done.complaint() == f"cannot read `{tmp_path / 'none'}`: No such file or directory"
    (tmp_path / "list").write_text(f"# of mine\n\n{blobs[0]}  name\n{blobs[0].hex[:-1]}\n")
    done = cache.run(command, "--from", tmp_path / "list")
    assert done.code == 2
    assert done.complaint() == f"line 4 of `{tmp_path / 'list'}` does not begin with a hash"
    assert cache.run("ls").ok().text == lines(*sorted(blobs))


def test_all_leaves_nothing_to_be_named(cache: Cache, blobs: list[Digest]) -> None:
    for command in ("evict", "unpin"):
        done = cache.run(command, "--all", blobs[0])
        assert (done.code, done.complaint()) == (2, "--all leaves nothing to be named")


def test_where_it_can_only_be_read(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", 4 << 20) as point:
        cache = Cache(point / "cache")
        [digest] = cache.fill(ONE)
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        assert "read-only" in cache.run("status").ok().text
        assert cache.run("ls").ok().text == f"{digest}  unverified\n"  # it has no index
        assert cache.run("verify").code == 0
        for words in (["evict", digest], ["pin", digest], ["unpin", digest], ["gc"]):
            done = cache.run(*words)
            assert done.code == 1
            assert done.complaint().startswith("cannot change the cache: ")
        assert cache.run("verify", "--repair").code == 1
        assert cache.has(digest)


# --- status


def test_status_for_people(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    rows = [line.split("  ", 1) for line in cache.run("status").ok().text.splitlines()]
    found = {name.strip(): value.strip() for name, value in rows}
    assert found["directory"] == str(cache.directory)
    assert found["cached"] == "3 blobs (585.9K)"
    assert found["bound"] == "20.0G as configured here"
    assert found["pinned"] == "1 blob (97.7K)"
    assert found["in flight"] == "0"
    assert " free of " in found["disk"]
    assert "read-only" not in found
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in _status(cache)}
    assert len(starts) == 1, "the values are aligned"


def _status(cache: Cache) -> list[str]:
    return cache.run("status").ok().text.splitlines()


def test_status_for_scripts(cache: Cache, blobs: list[Digest]) -> None:
    found = cache.json("status", env={"CAFSFS_CACHE_SIZE": "1M"})
    assert found["bytes"] == 600_000
    assert found["blobs"] == 3
    assert found["bound_bytes"] == 1 << 20
    assert found["live_bound_bytes"] is None
    assert found["read_only"] is None
    assert found["users"] == []
    assert 0 < found["disk_free_bytes"] < found["disk_bytes"]


def test_status_tells_who_uses_it(cache: Cache, blobs: list[Digest]) -> None:
    with cache.opened(size=5 << 20):
        found = cache.json("status")
        text = cache.run("status").ok().text
    assert found["users"] == [{"pid": os.getpid(), "what": "a test", "bound_bytes": 5 << 20}]
    assert found["live_bound_bytes"] == 5 << 20
    assert f"used by    {os.getpid()}: a test\n" in text
    assert "5.0M by who keeps it now, 20.0G as configured here" in text


def test_status_tells_what_is_in_flight_and_removes_nothing(
    cache: Cache, blobs: list[Digest]
) -> None:
    (cache.directory / "partial" / ("ab" * 32)).write_bytes(b"left by the dead")
    with cache.opened(keep=False) as opened:
        partial = opened.call(opened.cache.claim, ABSENT)
        partial.write(bytes(5000))
        found = cache.json("status")
        opened.call(opened.cache.discard, partial)
    assert (found["partial_bytes"], found["debris_bytes"]) == (5000, 16)
    assert len(cache.partial) == 1


def test_status_of_an_index_that_is_not_complete(cache: Cache) -> None:
    cache.place(ONE)
    assert cache.json("status")["complete"] is False
    assert "not complete: " in cache.run("status").ok().text
    cache.run("gc")
    assert cache.json("status")["complete"] is True


# --- ls


def test_ls(cache: Cache, blobs: list[Digest]) -> None:
    assert cache.run("ls").ok().text == lines(*sorted(blobs))


def test_ls_of_an_empty_cache(cache: Cache) -> None:
    cache.fill()
    assert cache.run("ls").ok().text == ""
    assert cache.json("ls") == []


def test_ls_marks_what_was_never_verified(cache: Cache, blobs: list[Digest]) -> None:
    placed = cache.place(b"copied here by hand")
    cache.run("gc")
    assert f"{placed}  unverified\n" in cache.run("ls").ok().text
    assert f"{blobs[0]}\n" in cache.run("ls").text
    [found] = [each for each in cache.json("ls") if each["hash"] == placed.hex]
    assert found["verified"] is None
    assert "unverified" in cache.run("ls", "--long").text
    cache.run("verify")
    assert f"{placed}\n" in cache.run("ls").ok().text


def test_ls_tells_all_there_is(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[1])
    found = {each["hash"]: each for each in cache.json("ls")}
    assert {each: found[each.hex]["size"] for each in blobs} == dict(
        zip(blobs, (100_000, 200_000, 300_000), strict=True)
    )
    assert [found[each.hex]["pinned"] for each in blobs] == [False, True, False]
    for name in ("used", "pulled", "verified"):
        told = datetime.fromisoformat(found[blobs[0].hex][name])
        assert abs(told.timestamp() - time.time()) < 60
    [line] = [each for each in cache.run("ls", "--long").text.splitlines() if blobs[1].hex in each]
    assert line.split()[1] == "195.3K"
    assert "pinned" in line.split()


def test_ls_adopts_what_the_index_lacks(cache: Cache, blobs: list[Digest]) -> None:
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert cache.run("ls").ok().text == "".join(f"{each}  unverified\n" for each in sorted(blobs))


def test_ls_of_thousands(cache: Cache) -> None:
    digests = sorted(cache.place(b"%d" % number) for number in range(3456))
    cache.run("pin", digests[0])
    assert [line[:64] for line in cache.run("ls").ok().text.splitlines()] == list(map(str, digests))
    found = cache.json("ls")
    assert [each["hash"] for each in found] == list(map(str, digests))
    assert [each["pinned"] for each in found[:2]] == [True, False]


def test_a_reader_of_ls_may_leave(cache: Cache) -> None:
    for number in range(3000):
        cache.place(b"%d" % number)
    directory = ["--cache-dir", str(cache.directory)]
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 2', "sh", *CAFSFS, "cache", "ls", *directory],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")
    assert cache.json("status")["users"] == []


# --- verify


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


# --- gc


def test_gc_within_the_bounds_evicts_nothing(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("gc")
    assert (done.code, done.out) == (0, b"")
    assert done.err == "evicted 0 blobs, 3 blobs (585.9K) in the cache\n"


def test_gc_evicts_what_was_used_least_recently(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.json("gc", "--cache-size", "550000", "--cache-free", "0")
    assert done == {
        "evicted": 1,
        "bytes": 100_000,
        "debris_bytes": 0,
        "cached_blobs": 2,
        "cached_bytes": 500_000,
    }
    assert [cache.has(each) for each in blobs] == [False, True, True]


def test_gc_by_number_and_by_age(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[1])
    assert cache.json("gc", "--cache-files", "2")["evicted"] >= 1
    time.sleep(0.01)
    assert cache.json("gc", "--cache-tti", "0.001")["cached_blobs"] == 1
    assert [cache.has(each) for each in blobs] == [False, True, False]


def test_gc_clears_debris(cache: Cache, blobs: list[Digest]) -> None:
    (cache.directory / "partial" / ABSENT.hex).write_bytes(bytes(5000))
    done = cache.run("gc")
    assert "cleared 4.9K left by dead processes" in done.err
    assert cache.partial == []


def test_gc_makes_the_index_agree_with_the_files(cache: Cache, blobs: list[Digest]) -> None:
    cache.path(blobs[0]).unlink()
    placed = cache.place(b"copied here by hand")
    assert cache.json("gc")["cached_bytes"] == 500_000 + 19
    assert {each["hash"] for each in cache.json("ls")} == {
        *(each.hex for each in blobs[1:]),
        placed.hex,
    }


def test_gc_keeps_to_the_wider_bound_of_a_mount(cache: Cache, blobs: list[Digest]) -> None:
    small = {"CAFSFS_CACHE_SIZE": "100K", "CAFSFS_CACHE_FREE": "100%"}
    with cache.opened(size=1 << 20):
        assert cache.json("gc", env=small)["evicted"] == 0
        assert cache.json("gc", "--cache-size", "550000", env=small)["evicted"] == 1
    assert cache.json("gc", env=small)["evicted"] == 2


# --- evict


def test_evict(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("evict", blobs[0], blobs[2], blobs[0], ABSENT)
    assert (done.code, done.out) == (0, b"")
    assert done.err == "evicted 2 blobs (390.6K), 1 not cached\n"
    assert cache.run("ls").ok().text == lines(blobs[1])
    assert cache.json("status")["bytes"] == 200_000
    assert cache.run("evict", blobs[0]).code == 0


def test_evict_refuses_what_is_pinned_and_does_the_rest(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    done = cache.run("evict", *blobs)
    assert done.code == 1
    assert f"error: {blobs[0]}: it is pinned\n\nhint: unpin it first: " in done.err
    assert [cache.has(each) for each in blobs] == [True, False, False]
    done = cache.run("evict", "--json", blobs[0])
    assert done.code == 1
    assert json.loads(done.out) == {
        "evicted": 0,
        "bytes": 0,
        "pinned": [blobs[0].hex],
        "absent": [],
        "failed": [],
    }


def test_evict_all_leaves_what_is_pinned(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    done = cache.run("evict", "--all")
    assert (done.code, done.err) == (0, "evicted 2 blobs (488.3K), 1 pinned\n")
    assert [cache.has(each) for each in blobs] == [True, False, False]


def test_evict_what_the_index_does_not_know(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert cache.run("evict", *blobs).code == 1
    assert [cache.has(each) for each in blobs] == [True, False, False]


def test_evict_from_a_list(cache: Cache, blobs: list[Digest], tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{blobs[0]}  a\n\\{blobs[1]}  b\\\\c\n")
    with (tmp_path / "list").open() as stdin:
        assert cache.run("evict", "--from", "-", stdin=stdin).code == 0
    assert cache.run("ls").ok().text == lines(blobs[2])


# --- pin and unpin


def test_pins_are_listed_and_kept(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", *blobs[:2])
    assert (done.code, done.out, done.err) == (0, b"", "pinned 2 blobs\n")
    assert cache.run("ls", "--pinned").ok().text == lines(*sorted(blobs[:2]))
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert {each["hash"] for each in cache.json("ls", "--pinned")} == set(map(str, blobs[:2]))
    assert cache.json("gc", "--cache-files", "1")["cached_blobs"] == 2


def test_what_is_not_cached_cannot_be_pinned(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", ABSENT, blobs[0])
    assert done.code == 1
    assert done.err == (
        f"pinned 1 blob\nerror: {ABSENT}: it is not cached\n\n"
        "hint: pull it: cafsfs cache pin --pull URI HASH\n"
    )
    assert cache.run("ls", "--pinned").ok().text == lines(blobs[0])


def test_pins_may_not_exceed_the_bound(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", "--cache-size", "500000", *blobs)
    assert done.code == 1
    assert done.complaint() == "600000 bytes would be pinned, and the cache may hold 500000"
    assert done.hint() == "raise --cache-size, or unpin something"
    assert cache.run("ls", "--pinned").ok().text == ""
    assert cache.run("pin", "--cache-size", "500000", *blobs[:2]).code == 0
    assert cache.run("pin", "--cache-size", "500000", *blobs[:2]).code == 0
    assert cache.run("pin", "--cache-size", "500000", blobs[2]).code == 1


def test_pins_keep_to_the_bound_of_a_mount(cache: Cache, blobs: list[Digest]) -> None:
    with cache.opened(size=650_000):
        assert cache.run("pin", *blobs[1:]).code == 0
        assert cache.run("pin", "--cache-size", "1K", blobs[0]).code == 0
    with cache.opened(size=550_000):
        cache.run("unpin", blobs[0])
        assert cache.run("pin", blobs[0]).code == 1


def test_pin_pulls(cache: Cache, blobs: list[Digest], server: Serving, tmp_path: Path) -> None:
    coming = server.put(tmp_path, b"to be pulled and pinned")
    done = cache.run("pin", "--pull", server.uri, coming, blobs[0])
    assert (done.code, done.out) == (0, b"")
    assert done.err == "pulled 1 blob (23), 1 cached before, all pinned\n"
    assert cache.run("ls", "--pinned").ok().text == lines(*sorted([coming, blobs[0]]))
    done = cache.run("pin", "--pull", server.uri, ABSENT, blobs[1])
    assert (done.code, done.text) == (1, lines(ABSENT))
    assert cache.json("status")["pinned_blobs"] == 3


def test_unpin(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", *blobs)
    done = cache.run("unpin", blobs[0], ABSENT)
    assert (done.code, done.err) == (0, "unpinned 1 blob, 1 not pinned\n")
    assert cache.run("evict", blobs[0]).code == 0
    done = cache.run("unpin", "--all")
    assert (done.code, done.err) == (0, "unpinned 2 blobs\n")
    assert cache.run("ls", "--pinned").ok().text == ""
    assert cache.run("evict", "--all").err == "evicted 2 blobs (488.3K)\n"


def test_pins_for_scripts(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", "--json", ABSENT, blobs[0])
    assert done.code == 1
    assert json.loads(done.out) == {"pinned": [str(blobs[0])], "absent": [str(ABSENT)]}
    assert cache.json("unpin", blobs[0], ABSENT) == {"unpinned": 1, "not_pinned": 1}


# --- many at once


def test_commands_do_not_get_into_each_others_way(cache: Cache, blobs: list[Digest]) -> None:
    for number in range(300):
        cache.place(b"%d" % number)
    for each in cache.directory.glob("index.*"):
        each.unlink()
    directory = ["--cache-dir", str(cache.directory)]
    orders = [["ls"], ["status"], ["gc"], ["verify"], ["pin", blobs[0].hex], ["ls", "--json"]]
    running = [
        start("cache", *words, *directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for words in orders * 2
    ]
    said = [each.communicate(timeout=PATIENCE) for each in running]
    for process, words, (out, err) in zip(running, orders * 2, said, strict=True):
        assert process.returncode == 0, (words, err)
        if words == ["ls"]:
            assert len(out.splitlines()) == 303
    assert cache.json("status")["blobs"] == 303
    assert cache.run("ls", "--pinned").text == lines(blobs[0])
    assert cache.json("verify")["wrong"] == []


# --- on a live mount


@pytest.fixture
def mount(server: Serving, tmp_path: Path) -> Iterator[Mounted]:
    mounted = Mounted(server.uri, tmp_path)
    yield mounted
    wrong = mounted.clear()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def read(mount: Mounted, server: Serving, tmp_path: Path) -> Digest:
    """A blob that was read through the mount just now."""
    content = content_of(300_000, len(str(tmp_path)) + time.time_ns())
    digest = server.put(tmp_path, content)
    assert attempt("len(open(a[0], 'rb').read())", mount.path(digest)) == 300_000
    return digest


def state(mount: Mounted, digest: Digest, name: str = "state") -> Any:
    expression = "os.getxattr(a[0], 'user.cafs.' + a[1]).decode()"
    return attempt(expression, mount.path(digest), name)


def blocks(mount: Mounted, digest: Digest) -> Any:
    return attempt("os.stat(a[0]).st_blocks", mount.path(digest))


@pytest.mark.fuse
def test_what_a_mount_has_read_is_listed_at_once(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert cache.run("ls").ok().text == lines(read)
    [user] = cache.json("status")["users"]
    assert user["pid"] == mount.daemon.pid
    assert user["what"] == f"mount on {mount.point}"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_evicted(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert (state(mount, read), blocks(mount, read)) == ("cached", 586)
    assert cache.run("evict", read).code == 0
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)
    assert mount.stats()["cache"]["blobs"] == 0


@pytest.mark.fuse
def test_a_mount_that_hangs_is_not_waited_for(mount: Mounted, cache: Cache, read: Digest) -> None:
    mount.daemon.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert len(cache.json("status")["users"]) == 1
    assert time.monotonic() - began < 5
    assert cache.run("evict", read).code == 0
    assert time.monotonic() - began < 20
    mount.daemon.signal(signal.SIGCONT)
    eventually(lambda: state(mount, read) == "remote", what="the mount has heard of it")


@pytest.mark.fuse
def test_a_mount_learns_at_once_of_pins(mount: Mounted, cache: Cache, read: Digest) -> None:
    assert state(mount, read, "pin") == "no"
    assert cache.run("pin", read).code == 0
    assert state(mount, read, "pin") == "yes"
    assert cache.run("unpin", read).code == 0
    assert state(mount, read, "pin") == "no"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_repaired(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    cache.spoil(read)
    assert cache.run("verify", "--repair").code == 1
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)
    # Let the kernel forget what it has read: with that, nobody waits for the blob to come again.
    drop = "os.posix_fadvise(os.open(a[0], 0), 0, 0, os.POSIX_FADV_DONTNEED)"
    attempt(drop, mount.path(read))
    mended = program("cat", mount.path(read)).ok().out
    assert hash_bytes(mended) == read
    assert state(mount, read) == "cached"


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_collected(
    mount: Mounted, cache: Cache, read: Digest
) -> None:
    assert cache.json("gc", "--cache-size", "100K")["evicted"] == 1
    assert (state(mount, read), blocks(mount, read)) == ("remote", 1)


@pytest.mark.fuse
def test_a_mount_learns_at_once_what_was_prefetched(
    mount: Mounted, cache: Cache, server: Serving, tmp_path: Path
) -> None:
    digest = server.put(tmp_path, content_of(400_000, time.time_ns()))
    assert (state(mount, digest), blocks(mount, digest)) == ("remote", 1)
    assert cache.prefetch(server.uri, digest).code == 0
    assert (state(mount, digest), blocks(mount, digest)) == ("cached", 782)
