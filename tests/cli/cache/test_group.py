"""What every command of ``cafsfs cache`` does, and several at once."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import ONE, Cache, lines
from tests.cli.guides import documented
from tests.cli.running import ABSENT, PATIENCE, Serving, start
from tests.store.tmpfs import small_tmpfs

pytestmark = pytest.mark.process


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
    assert documented("there is no cache").search(done.complaint())
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
