"""``cafsfs prefetch``: what it pulls, what it says of what it cannot, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cafsfs.cli import prefetch as filling
from cafsfs.config.options import CacheOptions, StoreOptions
from cafsfs.config.uri import parse_uri
from cafsfs.digest import Digest
from cafsfs.errors import Unavailable, Unreachable
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.content_directory import ContentDirectory
from cafsfs.store.memory import MemorySink
from tests.bad_server import BadServerProcess, Fault, Phase
from tests.cli.caches import Cache, content_of
from tests.cli.running import ABSENT, PATIENCE, Serving, end, environment, run, start
from tests.cli.test_progress import run_on_terminal
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Process, eventually
from tests.fuse.serving import ROOT
from tests.store.tmpfs import small_tmpfs

pytestmark = pytest.mark.process

MIB = 1 << 20
SMALL = 50_000  # bytes
LARGE = 8 * MIB


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def blobs(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> list[Digest]:
    directory = tmp_path_factory.mktemp("blobs")
    return [server.put(directory, content_of(SMALL, seed)) for seed in range(5)]


@pytest.fixture(scope="module")
def large(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return server.put(tmp_path_factory.mktemp("large"), content_of(LARGE, 99))


@pytest.fixture(scope="module")
def bad() -> Iterator[BadServerProcess]:
    with BadServerProcess() as serving:
        yield serving


def put(bad: BadServerProcess, tmp_path: Path, content: bytes) -> Digest:
    bad.mend()
    (tmp_path / "content").write_bytes(content)
    return Digest.parse(bad.put(tmp_path / "content"))


def order_from(
    store: object,
    digests: list[Digest],
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_cut_off: bool = False,
    rate: int | None = None,
) -> filling.Order:
    """One that is filled by ``store.fetch``; nothing of it gets into the cache."""

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[Any]:
        async with open_disk_cache(cache.directory, keep=False) as disk:
            yield SimpleNamespace(cache=disk, store=store, is_cut_off=lambda: is_cut_off)

    monkeypatch.setattr(filling, "open_prefetching", opened)
    return filling.Order(
        uri=parse_uri(nobody()),
        store=StoreOptions(),
        cache=CacheOptions(cache_dir=cache.directory),
        digests=digests,
        rate=rate,
    )


class Crowded:
    """Brings blobs of these sizes (bytes), and notes how many are on their way at once.

    ``then`` of the last five.
    """

    def __init__(self, *sizes: int) -> None:
        self.digests = [hash_bytes(b"%d" % number) for number in range(len(sizes))]
        self.most = self.then = 0
        self._sizes = dict(zip(self.digests, sizes, strict=True))
        self._under_way = 0

    async def fetch(self, digest: Digest) -> int:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await trio.testing.wait_all_tasks_blocked()
        if digest in self.digests[-5:]:
            self.then = max(self.then, self._under_way)
        self._under_way -= 1
        return self._sizes[digest]


def nobody() -> str:
    """The URI of a server that is not there."""
    return "cafs://127.0.0.1:1/data"


def assert_sound(cache: Cache, *digests: Digest) -> None:
    """They are there, and nothing else is; all right, and nothing is in flight."""

    async def check() -> None:
        store = ContentDirectory(cache.directory, limiter=trio.CapacityLimiter(1))
        for each in digests:
            await store.pull(each, MemorySink())

    trio.run(check)
    assert {each.name for each in cache.directory.glob("blobs/*/*/*")} == set(map(str, digests))
    assert cache.partial == []


# --- what is pulled


def test_it_fills_the_cache_and_what_is_there_is_passed_over(
    cache: Cache, server: Serving, blobs: list[Digest]
) -> None:
    done = cache.prefetch(server.uri, *blobs[:3])
    assert (done.code, done.out) == (0, b"")
    assert done.err == "pulled 3 blobs (146.5K)\n"
    assert_sound(cache, *blobs[:3])
    done = cache.prefetch(server.uri, *blobs)
    assert (done.code, done.err) == (0, "pulled 2 blobs (97.7K), 3 cached before\n")
    assert_sound(cache, *blobs)


def test_json_is_a_summary(cache: Cache, server: Serving, blobs: list[Digest]) -> None:
    cache.prefetch(server.uri, blobs[0])
    done = cache.prefetch(server.uri, "--json", ABSENT, *blobs)
    assert done.code == 1
    assert json.loads(done.out) == {
        "pulled": 4,
        "bytes": 4 * SMALL,
        "cached": 1,
        "failed": {ABSENT.hex: "not found"},
    }


def test_hashes_from_standard_input(
    cache: Cache, server: Serving, blobs: list[Digest], tmp_path: Path
) -> None:
    (tmp_path / "SUMS").write_bytes(
        b"# comment\n\n%(a)b  name with  spaces \xff\n\\%(b)b  new\\nline\r\n%(a)b\n  %(c)b"
        % {name.encode(): each.hex.encode() for name, each in zip("abc", blobs, strict=False)}
    )
    with (tmp_path / "SUMS").open() as stdin:
        done = cache.prefetch(server.uri, "--from", "-", blobs[0], stdin=stdin)
    assert (done.code, done.err) == (0, "pulled 3 blobs (146.5K)\n")
    assert_sound(cache, *blobs[:3])


def test_what_put_prints_can_be_prefetched(cache: Cache, server: Serving, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in ("a", "b\nb", "c\\c"):
        (tmp_path / "files" / name).write_text(f"content of {name}")
    (tmp_path / "SUMS").write_bytes(run("put", server.uri, tmp_path / "files").ok().out)
    assert cache.prefetch(server.uri, "--from", tmp_path / "SUMS").code == 0
    assert cache.json("status")["blobs"] == 3


@pytest.mark.parametrize("line", ["beef", "G" * 64, "AB" * 32, "ab" * 32 + "x", "ab" * 33])
def test_a_bad_line_is_named(cache: Cache, server: Serving, tmp_path: Path, line: str) -> None:
    (tmp_path / "SUMS").write_text(f"{ABSENT}\n\n{line}  name\n")
    done = cache.prefetch(server.uri, "--from", tmp_path / "SUMS")
    assert done.code == 2
    assert done.complaint() == f"line 3 of `{tmp_path / 'SUMS'}` does not begin with a hash"
    assert not cache.directory.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no blob is named"),
        ([ABSENT, "--jobs", "0"], "`0` is no value for --jobs"),
        ([ABSENT, "--limit", "fast"], "`fast` is no value for --limit"),
        ([ABSENT, "--limit", "0"], "`0` is no value for --limit"),
    ],
)
def test_usage(cache: Cache, server: Serving, words: list[str | Digest], said: str) -> None:
    done = cache.prefetch(server.uri, *words)
    assert (done.code, done.complaint()) == (2, said)


def test_nothing_to_do(cache: Cache, server: Serving, tmp_path: Path) -> None:
    (tmp_path / "SUMS").write_text("# none\n")
    done = cache.prefetch(server.uri, "--from", tmp_path / "SUMS")
    assert (done.code, done.err) == (0, "pulled 0 blobs\n")


def test_what_is_wrong_in_the_cache_is_pulled_again(
    cache: Cache, server: Serving, blobs: list[Digest]
) -> None:
    cache.place(bytes(SMALL), blobs[0])
    cache.place(content_of(SMALL, 1)[:100], blobs[1])
    cache.place(content_of(SMALL, 2), blobs[2])
    done = cache.prefetch(server.uri, *blobs[:3])
    assert done.code == 0
    assert_sound(cache, *blobs[:3])


def test_a_store_directory(cache: Cache, server: Serving, blobs: list[Digest]) -> None:
    assert cache.prefetch(f"file://{server.data}", *blobs).code == 0
    assert_sound(cache, *blobs)


def test_connections_are_as_many_as_jobs(
    cache: Cache, bad: BadServerProcess, tmp_path: Path
) -> None:
    digests = [put(bad, tmp_path, content_of(3 * MIB, seed)) for seed in range(20, 24)]
    bad.fault(Phase.BODY, Fault(drip=(MIB, 0.2)))
    before = bad.counts()["connections"]
    uri = f"cafs://{bad.address}{ROOT}"
    assert cache.prefetch(uri, *digests, "--jobs", "2").code == 0
    assert bad.counts()["connections"] - before <= 3  # and one for questions
    assert_sound(cache, *digests)


# --- what cannot be pulled


def test_what_is_absent_is_named_and_the_rest_is_pulled(
    cache: Cache, server: Serving, blobs: list[Digest], tmp_path: Path
) -> None:
    done = cache.prefetch(server.uri, ABSENT, *blobs)
    assert (done.code, done.text) == (1, f"{ABSENT}\n")
    assert done.err == (
        f"error: {ABSENT}: not found\n"
        "pulled 5 blobs (244.1K)\n"
        "error: failed 1 of 6\n\n"
        "hint: standard output has their hashes, for --from to try them again\n"
    )
    assert_sound(cache, *blobs)
    (tmp_path / "failed").write_bytes(done.out)
    again = cache.prefetch(server.uri, "--from", tmp_path / "failed")
    assert (again.code, again.out) == (1, done.out)


def test_a_wrong_root_is_thought_of(cache: Cache, server: Serving, blobs: list[Digest]) -> None:
    done = cache.prefetch(f"cafs://{server.address}/other", *blobs[:2])
    assert done.code == 1
    assert "hint: is `/other` the right root?" in done.err


def test_wrong_bytes_are_no_success(cache: Cache, bad: BadServerProcess, tmp_path: Path) -> None:
    good = put(bad, tmp_path, b"good" * 1000)
    spoilt = put(bad, tmp_path, b"spoilt" * 1000)
    uri = f"cafs://{bad.address}{ROOT}"
    assert cache.prefetch(uri, good).code == 0
    bad.fault(Phase.BODY, Fault(spoil=3000))
    done = cache.prefetch(uri, good, spoilt)
    bad.mend()
    assert (done.code, done.text) == (1, f"{spoilt}\n")
    assert_sound(cache, good)


def test_without_a_server_it_stops_at_once(
    cache: Cache, server: Serving, blobs: list[Digest]
) -> None:
    cache.prefetch(server.uri, *blobs[:2])
    wanted = [hash_bytes(b"%d" % number) for number in range(300)]
    done = cache.prefetch(nobody(), *blobs[:2], *wanted)
    assert done.code == 1
    assert sorted(done.text.splitlines()) == sorted(map(str, wanted))
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith("error: cannot connect to 127.0.0.1:")
    assert errors[1] == "error: failed 300 of 302"
    assert "pulled 0 blobs, 2 cached before\n" in done.err


def test_why_there_is_no_server_is_said_though_who_was_refused_for_it_failed_first(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (hash_bytes(b"%d" % number) for number in range(2))
    refused = trio.Event()

    class Store:
        async def fetch(self, digest: Digest) -> int:
            if digest == second:
                refused.set()
                raise Unavailable("no server could be reached for 0 s")
            await refused.wait()
            await trio.testing.wait_all_tasks_blocked()
            raise Unreachable("cannot connect")

    order = order_from(Store(), [first, second], cache, monkeypatch, is_cut_off=True)
    outcome = trio.run(filling.fill, order)
    assert outcome.failed.keys() == {first, second}
    assert capsys.readouterr().err == "error: cannot connect\n"


def test_small_blobs_are_many_at_once_and_large_ones_few(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*sizes: int, rate: int | None = None) -> Crowded:
        crowded = Crowded(*sizes)
        order = order_from(crowded, crowded.digests, cache, monkeypatch, rate=rate)
        outcome = trio.run(filling.fill, order)
        assert outcome.pulled == len(sizes)
        return crowded

    assert fill(*[4096] * 500).most == 64
    assert fill(*[MIB] * 50).most == 4
    mixed = fill(*[4096] * 300, *[MIB] * 100)
    assert mixed.most == 64
    assert 1 <= mixed.then <= 4
    assert fill(*[4096] * 500, rate=10 * 4096).most == 10


def test_without_a_server_what_is_cached_is_fine(
    cache: Cache, server: Serving, blobs: list[Digest]
) -> None:
    cache.prefetch(server.uri, *blobs)
    done = cache.prefetch(nobody(), *blobs)
    assert (done.code, done.err) == (0, "pulled 0 blobs, 5 cached before\n")


def test_a_server_that_hangs_costs_one_deadline(
    cache: Cache, bad: BadServerProcess, tmp_path: Path
) -> None:
    digest = put(bad, tmp_path, b"never seen")
    wanted = [hash_bytes(b"%d" % number) for number in range(50)]
    uri = f"cafs://{bad.address}{ROOT}?connect-timeout=0.5&answer-timeout=0.5"
    bad.freeze()
    began = time.monotonic()
    done = cache.prefetch(uri, digest, *wanted, "--jobs", "2")
    bad.thaw()
    assert done.code == 1
    assert time.monotonic() - began < 15
    assert len(done.text.splitlines()) == 51


def test_a_seed_is_used(cache: Cache, server: Serving, blobs: list[Digest], tmp_path: Path) -> None:
    seed = Cache(tmp_path / "seed")
    seed.prefetch(server.uri, *blobs[:2])
    words: list[str | Path | Digest] = ["--cache-seed", seed.directory, *reversed(blobs)]
    done = cache.prefetch(nobody(), *words)
    assert done.code == 1
    assert sorted(done.text.splitlines()) == sorted(map(str, blobs[2:]))
    assert_sound(cache, *blobs[:2])
    assert len(re.findall("^error: ", done.err, re.MULTILINE)) == 2
    assert cache.prefetch(server.uri, *words).err == "pulled 3 blobs (146.5K), 2 cached before\n"


def test_a_cache_that_is_too_small_is_not_filled_for_ever(
    cache: Cache, server: Serving, blobs: list[Digest], large: Digest
) -> None:
    done = cache.prefetch(server.uri, *blobs, "--cache-size", "120K", "--jobs", "1")
    assert done.code == 1
    assert "error: the cache may hold 120.0K, and that much was pulled\n" in done.err
    assert done.err.count("hint: raise --cache-size") == 1
    assert 3 <= len(done.text.splitlines()) < 5
    assert len(list(cache.directory.glob("blobs/*/*/*"))) == 5 - len(done.text.splitlines())
    done = cache.prefetch(server.uri, large, "--cache-size", "120K")
    assert (done.code, done.text) == (1, f"{large}\n")


def test_a_disk_that_is_too_small_is_said(
    server: Serving, blobs: list[Digest], large: Digest, tmp_path: Path
) -> None:
    with small_tmpfs(tmp_path / "small", 4 * MIB) as point:
        cache = Cache(point / "cache")
        done = cache.prefetch(server.uri, "--cache-free", "0", "--jobs", "1", large, *blobs)
        assert (done.code, done.text) == (1, f"{large}\n")
        assert "error: 1 blob did not stay in the cache\n" in done.err
        assert "error: failed 1 of 6\n" in done.err
        assert_sound(cache, *blobs)


# --- --check


def test_check_pulls_nothing(cache: Cache, server: Serving, blobs: list[Digest]) -> None:
    done = cache.prefetch(server.uri, "--check", ABSENT, blobs[0])
    assert (done.code, done.err) == (1, "")
    assert done.text == f"{ABSENT}  absent\n{blobs[0]}  remote\n"
    assert not cache.directory.exists()
    cache.prefetch(server.uri, blobs[0])
    assert cache.prefetch(server.uri, "--check", ABSENT, *blobs[:2]).text == (
        f"{ABSENT}  absent\n{blobs[1]}  remote\n"
    )
    done = cache.prefetch(nobody(), "--check", blobs[0])
    assert (done.code, done.out) == (0, b"")
    done = cache.prefetch(server.uri, "--check", "--json", *blobs[:2])
    assert [each["place"] for each in json.loads(done.out)] == ["cache", "remote"]
    assert done.code == 1
    done = cache.prefetch(nobody(), "--check", *blobs)
    assert done.code == 1
    assert done.complaint().startswith("cannot connect to ")


# --- --pin


def test_pin(cache: Cache, server: Serving, blobs: list[Digest]) -> None:
    cache.prefetch(server.uri, blobs[0])
    done = cache.prefetch(server.uri, "--pin", *blobs)
    assert (done.code, done.err) == (0, "pulled 4 blobs (195.3K), 1 cached before, all pinned\n")
    assert len(cache.json("ls", "--pinned")) == 5


def test_pins_that_exceed_the_bound_are_refused_before_anything_is_pulled(
    cache: Cache, server: Serving, blobs: list[Digest]
) -> None:
    done = cache.prefetch(server.uri, "--pin", *blobs, "--cache-size", "200K")
    assert done.code == 1
    said = r"at least 2\d{5} bytes would be pinned, and the cache may hold 204800"
    assert re.fullmatch(said, done.complaint())
    assert_sound(cache)


# --- speed


def test_a_limit(cache: Cache, server: Serving, large: Digest) -> None:
    began = time.monotonic()
    assert cache.prefetch(server.uri, large, "--limit", "4M/s").code == 0
    # The first piece of 2 MiB passes at once.
    assert 1.3 < time.monotonic() - began < 10
    assert_sound(cache, large)


def test_it_gives_way_to_who_waits(cache: Cache, server: Serving, large: Digest) -> None:
    with cache.opened() as mount:
        mount.cache.premises.pull_in_foreground(pulls=True)
        # A second for each piece, and it goes on.
        assert 2.5 < seconds_of_prefetch(cache, server, large) < 15
        mount.cache.premises.pull_in_foreground(pulls=False)
        # Not each try: a busy machine is slow at times.
        assert min(seconds_of_prefetch(cache, server, large) for _ in range(4)) < 2.5


def seconds_of_prefetch(cache: Cache, server: Serving, digest: Digest) -> float:
    cache.run("evict", digest)
    began = time.monotonic()
    assert cache.prefetch(server.uri, digest).code == 0
    return time.monotonic() - began


@pytest.mark.fuse
def test_it_gives_way_to_a_read_of_a_mount(
    cache: Cache, server: Serving, bad: BadServerProcess, large: Digest, tmp_path: Path
) -> None:
    slow = put(bad, tmp_path, content_of(4 * MIB, 60))
    bad.fault(Phase.BODY, Fault(drip=(MIB // 2, 0.6)))
    mounted = Mounted(f"cafs://{bad.address}{ROOT}", tmp_path)
    try:
        with Process("cat", mounted.path(slow)) as reading:
            eventually(lambda: cache.partial, what="the mount pulls")
            process = start(
                *("prefetch", "--cache-dir", cache.directory, server.uri, large.hex),
                stderr=subprocess.DEVNULL,
            )
            began = time.monotonic()
            assert process.wait(PATIENCE) == 0
            assert time.monotonic() - began > 2.5  # a second for each piece
            assert len(reading.finish().ok().out) == 4 * MIB
    finally:
        wrong = mounted.clear()
    assert not wrong, "\n".join(wrong)
    assert_sound(cache, slow, large)


def test_two_at_once_pull_each_blob_once(
    cache: Cache, bad: BadServerProcess, tmp_path: Path
) -> None:
    digests = [put(bad, tmp_path, content_of(MIB, seed)) for seed in range(40, 46)]
    bad.fault(Phase.BODY, Fault(drip=(256 << 10, 0.02)))
    before = bad.counts()["pulls"]
    words = ("prefetch", "--cache-dir", cache.directory, f"cafs://{bad.address}{ROOT}")
    both = [
        start(*words, *(each.hex for each in order), stderr=subprocess.PIPE)
        for order in (digests, digests[::-1])
    ]
    said = [each.communicate(timeout=PATIENCE) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert bad.counts()["pulls"] - before == len(digests)
    assert_sound(cache, *digests)


def test_a_bar_shows_bytes_and_blobs(cache: Cache, bad: BadServerProcess, tmp_path: Path) -> None:
    digests = [put(bad, tmp_path, content_of(MIB, seed)) for seed in range(50, 56)]
    bad.fault(Phase.BODY, Fault(drip=(256 << 10, 0.06)))
    shown = run_on_terminal(
        *("prefetch", "--cache-dir", cache.directory, f"cafs://{bad.address}{ROOT}", ABSENT.hex),
        *(each.hex for each in digests),
        "--jobs=2",
        cwd=tmp_path,
    )
    assert shown.code == 1
    assert "6/6 blobs: 100%" in shown.terminal
    assert "6.00M/6.00M" in shown.terminal
    assert re.search(r"[2-5]/6 blobs: +\d+%\|", shown.terminal), shown.terminal
    assert f"error: {ABSENT}: not found" in shown.terminal


# --- how it ends


def started(cache: Cache, uri: str, *words: str | Digest) -> subprocess.Popen[bytes]:
    """One that is in the middle of something."""
    rest: list[str | Path] = [e.hex if isinstance(e, Digest) else e for e in words]
    process = start(
        *("prefetch", "--cache-dir", cache.directory, uri, *rest),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    deadline = time.monotonic() + PATIENCE
    while not _is_in_flight(cache):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def _is_in_flight(cache: Cache) -> bool:
    with suppress(FileNotFoundError):  # not there yet, or renamed just now
        return any(each.stat().st_size >= MIB for each in cache.partial)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(
    cache: Cache, server: Serving, blobs: list[Digest], large: Digest, number: signal.Signals
) -> None:
    process = started(cache, server.uri, *blobs, large, "--limit", "1M/s")
    assert end(process, number) == 128 + signal.SIGINT
    out, err = process.communicate()
    assert (out, err) == (b"", b"\n")  # so that the prompt stands alone
    assert_sound(cache, *blobs)
    assert cache.json("status")["users"] == []
    assert cache.prefetch(server.uri, *blobs, large).err == (
        "pulled 1 blob (8.0M), 5 cached before\n"
    )


def test_killed_it_goes_on_where_it_was(
    cache: Cache, server: Serving, blobs: list[Digest], large: Digest
) -> None:
    process = started(cache, server.uri, *blobs, large, "--limit", "1M/s")
    assert end(process, signal.SIGKILL) == -signal.SIGKILL
    process.communicate()
    assert len(cache.partial) == 1
    done = cache.prefetch(server.uri, *blobs, large, "--json")
    found = json.loads(done.out)
    assert (done.code, found["failed"]) == (0, {})
    assert found["pulled"] + found["cached"] == 6
    assert_sound(cache, *blobs, large)
    assert cache.run("verify").code == 0


def test_a_reader_of_what_failed_may_leave(cache: Cache, server: Serving) -> None:
    words = ["prefetch", "--cache-dir", str(cache.directory), server.uri, ABSENT.hex]
    read, write = os.pipe()
    os.close(read)
    with start(*words, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert b"Traceback" not in err
