"""Can a cache be used? On real directories and, where root runs the tests, real filesystems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.config.options import CacheOptions
from cafsfs.config.values import parse_amount
from cafsfs.doctor import storage
from cafsfs.doctor.case import Verdict
from tests.doctor.conftest import CaseMaker, only, seen

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can")
US = os.geteuid()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    directory = tmp_path / "the cache"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of a megabyte in memory."""
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)


def options(cache: Path, size: str = "1M", free: str = "0") -> CacheOptions:
    return CacheOptions(
        cache_dir=cache, cache_size=parse_amount(size), cache_free=parse_amount(free)
    )


def test_a_cache_that_is_ours(cache: Path, case: CaseMaker) -> None:
    examined = case(cache=options(cache), uid=US)
    assert only(storage.look_at_cache_rights, examined)[0] is Verdict.FINE
    assert only(storage.look_at_cache_room, examined)[0] is Verdict.FINE


def test_a_cache_that_can_be_made(cache: Path, case: CaseMaker) -> None:
    verdict, text, _ = only(storage.look_at_cache_rights, case(cache=options(cache / "a/b")))
    assert verdict is Verdict.FINE
    assert text == f"the cache {cache}/a/b can be made"


@pytest.mark.parametrize("below", ["", "/cache"])
def test_a_file_in_its_place(below: str, tmp_path: Path, case: CaseMaker) -> None:
    (tmp_path / "file").touch()
    examined = case(cache=options(Path(f"{tmp_path}/file{below}")))
    verdict, text, fix = only(storage.look_at_cache_rights, examined)
    assert (verdict, text) == (Verdict.BROKEN, f"`{tmp_path}/file` is not a directory")
    assert "--cache-dir" in fix


def test_a_cache_that_others_can_write_to(cache: Path, case: CaseMaker) -> None:
    cache.chmod(0o770)
    examined = case(cache=options(cache), uid=US)
    verdict, text, fix = only(storage.look_at_cache_rights, examined)
    assert (verdict, text) == (Verdict.BROKEN, f"others can write to the cache `{cache}`")
    subprocess.run(fix, shell=True, check=True)
    assert only(storage.look_at_cache_rights, examined)[0] is Verdict.FINE


@as_root
def test_a_cache_of_somebody_else(cache: Path, case: CaseMaker) -> None:
    os.chown(cache, 54321, -1)
    verdict, text, _ = only(storage.look_at_cache_rights, case(cache=options(cache)))
    assert (verdict, text) == (Verdict.BROKEN, f"the cache `{cache}` belongs to user 54321")


@as_root
def test_a_cache_that_can_only_be_read(small_disk: Path, case: CaseMaker) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    examined = case(cache=options(small_disk), uid=0)
    assert only(storage.look_at_cache_rights, examined)[0] is Verdict.ADVICE
    below = case(cache=options(small_disk / "cache"), uid=0)
    verdict, text, fix = only(storage.look_at_cache_rights, below)
    assert verdict is Verdict.BROKEN
    assert text == f"the cache `{small_disk}/cache` cannot be made in `{small_disk}`"
    assert f"install -d -m 700 -o 0 {small_disk}/cache" in fix


@as_root
def test_a_cache_without_room(small_disk: Path, case: CaseMaker) -> None:
    verdict, text, _ = only(storage.look_at_cache_room, case(cache=options(small_disk, "2M")))
    assert verdict is Verdict.ADVICE
    assert text.startswith("--cache-size is ")
    verdict, text, _ = only(
        storage.look_at_cache_room, case(cache=options(small_disk, "1M", "100%"))
    )
    assert verdict is Verdict.ADVICE
    assert "--cache-free keeps" in text
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", small_disk], check=True)
    verdict, text, _ = only(storage.look_at_cache_room, case(cache=options(small_disk)))
    assert verdict is Verdict.ADVICE
    assert "no inodes left" in text


@as_root
def test_a_cache_in_memory(small_disk: Path, case: CaseMaker) -> None:
    verdict, text, _ = only(storage.look_at_cache_disk, case(cache=options(small_disk)))
    assert verdict is Verdict.ADVICE
    assert text.startswith("the cache is on tmpfs: ")


def test_a_cache_on_a_network(
    cache: Path, case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one thing that cannot be real: there is no NFS server here."""
    monkeypatch.setattr(storage, "find_fstype", lambda _: "nfs4")
    verdict, text, _ = only(storage.look_at_cache_disk, case(cache=options(cache)))
    assert verdict is Verdict.ADVICE
    assert "is on nfs4, where its index cannot be kept" in text


def test_a_seed(cache: Path, case: CaseMaker) -> None:
    assert seen(storage.look_at_seed, case()) == []
    examined = case(cache=CacheOptions(cache_seed=cache))
    verdict, text, _ = only(storage.look_at_seed, examined)
    assert verdict is Verdict.BROKEN
    assert text == f"the seed `{cache}` has no `blobs` that can be read: No such file or directory"
    (cache / "blobs").mkdir()
    assert only(storage.look_at_seed, examined)[0] is Verdict.FINE
