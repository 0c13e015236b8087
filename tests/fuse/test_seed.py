"""``--cache-seed``: what this machine has is not pulled, and what is wrong there does no harm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting, cached_file
from tests.fuse.mounted import Mounted
from tests.fuse.processes import cafsfs, run
from tests.fuse.serving import Blob, BlobMaker, Roots

pytestmark = pytest.mark.fuse

PASSED_OVER = "WARNING .*the seed is passed over: "


@pytest.fixture
def some(blobs: BlobMaker, server: BadServerProcess) -> list[Blob]:
    """On both sides of the sizes that are handled in another way."""
    made = [blobs.text(size) for size in (0, 1, 5000, 300_000, 3_000_000)]
    for each in made:
        server.put(each.source)
    return made


@pytest.fixture
def other_cache(
    mounting: Mounting, server: BadServerProcess, some: list[Blob], scratch: Path
) -> Path:
    """The cache of another mount, which had everything."""
    (scratch / "other").mkdir()
    other = mounting(home=scratch / "other")
    read_all(other, some)
    other.stop()
    return other.cache


def read_all(mount: Mounted, blobs: list[Blob]) -> None:
    for each in blobs:
        run("cmp", mount.path(each), each.source).ok()


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """What would change if anything was written there."""
    found = ((path, path.lstat()) for path in [directory, *directory.rglob("*")])
    return {str(path): (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found}


def test_what_another_cache_has_is_not_pulled(
    mounting: Mounting, server: BadServerProcess, some: list[Blob], other_cache: Path
) -> None:
    before = snapshot(other_cache)
    commands = server.counts()["commands"]
    mount = mounting("--cache-seed", other_cache)
    read_all(mount, some)
    assert server.counts()["commands"] == commands  # the server was not even asked
    assert snapshot(other_cache) == before
    for each in some:
        assert cached_file(mount.cache, each).read_bytes() == each.content


@pytest.mark.parametrize("how", ["none", "zstd", "zlib", "zstd-asyncio"])
def test_what_a_store_directory_has_is_not_pulled(
    how: str, mounting: Mounting, server: BadServerProcess, some: list[Blob], roots: Roots
) -> None:
    for each in some:
        roots.put(each, how)
    seed = roots.directory / "data"
    before = snapshot(seed)
    commands = server.counts()["commands"]
    read_all(mounting("--cache-seed", seed), some)
    assert server.counts()["commands"] == commands
    assert snapshot(seed) == before


def test_a_live_cache_of_another_mount(
    mounting: Mounting, server: BadServerProcess, some: list[Blob], scratch: Path
) -> None:
    (scratch / "other").mkdir()
    other = mounting(home=scratch / "other")
    read_all(other, some)
    pulls = server.counts()["pulls"]
    read_all(mounting("--cache-seed", other.cache), some)
    assert server.counts()["pulls"] == pulls


def test_what_a_seed_lacks_is_pulled(
    mounting: Mounting, server: BadServerProcess, some: list[Blob], other_cache: Path
) -> None:
    for each in some[::2]:
        cached_file(other_cache, each).unlink()
    pulls = server.counts()["pulls"]
    read_all(mounting("--cache-seed", other_cache), some)
    assert server.counts()["pulls"] == pulls + len(some[::2])


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("spoil", [flip, zero])
def test_what_is_spoilt_in_a_seed_comes_from_the_server(
    spoil: Callable[[Path], None],
    mounting: Mounting,
    server: BadServerProcess,
    some: list[Blob],
    other_cache: Path,
) -> None:
    for each in some[1:]:
        spoil(cached_file(other_cache, each))
    before = snapshot(other_cache)
    pulls = server.counts()["pulls"]
    mount = mounting("--cache-seed", other_cache)
    mount.announce(PASSED_OVER)
    read_all(mount, some)
    assert server.counts()["pulls"] == pulls + len(some[1:])
    mount.logged(documented("the seed is passed over").pattern, times=len(some[1:]))
    assert snapshot(other_cache) == before


def test_what_is_truncated_in_a_seed_comes_from_the_server(
    mounting: Mounting, server: BadServerProcess, some: list[Blob], other_cache: Path
) -> None:
    for each in some[1:]:
        cut(cached_file(other_cache, each))
    before = snapshot(other_cache)
    mount = mounting("--cache-seed", other_cache)
    mount.announce(PASSED_OVER)
    read_all(mount, some[:4])
    # Of a large one the length is believed, and given out: who opened it then is told EIO, rather
    # than get half of it; and nobody after that.
    mount.announce("WARNING .*read: .* has 3000000 bytes, .* said 1500000")
    done = run("cmp", mount.path(some[4]), some[4].source)
    assert (done.code, "Input/output error" in done.err) == (2, True)
    read_all(mount, some)
    assert snapshot(other_cache) == before


@pytest.mark.parametrize("how", ["none", "zstd"])
@pytest.mark.parametrize("spoil", [flip, cut, zero])
def test_what_is_spoilt_in_a_store_comes_from_the_server(
    spoil: Callable[[Path], None],
    how: str,
    mounting: Mounting,
    server: BadServerProcess,
    some: list[Blob],
    roots: Roots,
) -> None:
    for each in some:
        roots.put(each, how)
    for each in some[2:]:
        spoil(roots.file(each))
    before = snapshot(roots.directory)
    mount = mounting("--cache-seed", roots.directory / "data")
    mount.announce(PASSED_OVER)
    read_all(mount, some)
    for each in some[1:]:  # an empty one is closed before it has come
        assert cached_file(mount.cache, each).read_bytes() == each.content
    assert snapshot(roots.directory) == before


def test_a_seed_serves_while_no_server_is_there(
    mounting: Mounting, some: list[Blob], other_cache: Path
) -> None:
    mount = mounting("--cache-seed", other_cache, uri="cafs://127.0.0.1:1/data")
    read_all(mount, some)


@pytest.mark.parametrize(
    ("seed", "reason"),
    [
        ("nowhere", "cannot read the seed `{}`: No such file or directory"),
        ("empty", "`{}` is neither a cache nor a store"),
        ("file", "cannot read the seed `{}`: Not a directory"),
    ],
)
def test_a_seed_that_is_none_is_refused(
    seed: str, reason: str, server: BadServerProcess, scratch: Path
) -> None:
    (scratch / "empty").mkdir()
    (scratch / "file").touch()
    (scratch / "mnt").mkdir()
    done = cafsfs(
        *("mount", "--foreground", "--cache-dir", scratch / "cache"),
        *("--cache-seed", scratch / seed, f"cafs://{server.address}/data", scratch / "mnt"),
    )
    assert done.code == 1
    assert done.err.startswith(f"error: {reason.format(scratch / seed)}\n")
    assert "Traceback" not in done.err
