"""What is put together: stacks that read aloud, and options that reach who uses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cafsfs import compose
from cafsfs.client.credentials import Credentials
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.compose import make_server, open_store, own_cache, with_seed
from cafsfs.config.options import CacheOptions, MountOptions, ServeOptions, StoreOptions
from cafsfs.config.uri import parse_uri
from cafsfs.errors import BlobNotFound, StoreError, Unreachable, UsageError
from cafsfs.packing import Compression, hash_bytes
from cafsfs.reloading import MountPlan
from cafsfs.secret import Secret
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.memory import MemorySink, MemorySource, MemoryStore
from cafsfs.store.routing import RoutingStore
from cafsfs.store.unpacking import UnpackingStore
from tests.store.stacks import Caches

CONTENT = b"content " * 1000


@pytest.fixture
def caches() -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


def plan(*kernel: str, **options: object) -> MountPlan:
    return MountPlan(
        uri=parse_uri("cafs://h,g/r"),
        point="/mnt/cafs",
        store=StoreOptions(),
        cache=CacheOptions(),
        mount=MountOptions(**options),  # type: ignore[arg-type]  # as the tests say
        kernel_options=kernel,
    )


async def test_a_directory_is_a_store(tmp_path: Path) -> None:
    uri = parse_uri(f"file://{tmp_path}")
    digest = hash_bytes(CONTENT)
    async with open_store(uri, StoreOptions(), compression=Compression.ZSTD) as store:
        assert isinstance(store, UnpackingStore)
        await store.put(digest, MemorySource(CONTENT))
        assert await store.find_missing([digest]) == set()
    sink = MemorySink()
    async with open_store(uri, StoreOptions()) as store:
        stat = await store.pull(digest, sink)
    assert sink.content == CONTENT
    assert stat.compression is Compression.ZSTD
    stored = tmp_path / "blobs" / digest.hex[:2] / digest.hex[2:4] / digest.hex
    assert stored.stat().st_size == stat.packed_size
    with pytest.raises(BlobNotFound):
        async with open_store(uri, StoreOptions()) as store:
            await store.pull(hash_bytes(b"absent"), sink)


async def test_a_directory_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no root") as caught:
        async with open_store(parse_uri(f"file://{tmp_path}/none"), StoreOptions()):
            pass
    assert caught.value.hint == f"make it: mkdir -p {tmp_path}/none"


async def test_servers_are_asked_one_after_the_other() -> None:
    async with open_store(parse_uri("cafs://h,g:1/r"), StoreOptions()) as store:
        assert isinstance(store, RoutingStore)


async def test_a_mount_is_told_at_once_that_it_is_offline() -> None:
    async with trio.open_nursery() as nursery:
        uri = parse_uri("cafs://h,g:1/r")
        async with open_store(uri, StoreOptions(), parking=nursery) as store:
            assert isinstance(store, RoutingStore)


async def test_a_seed_is_read_before_a_server_is_asked(tmp_path: Path) -> None:
    """A cache of another mount."""
    async with open_disk_cache(tmp_path / "seed") as seed:
        await seed.put(hash_bytes(CONTENT), MemorySource(CONTENT))
    behind = MemoryStore()
    await behind.put(hash_bytes(b"behind"), MemorySource(b"behind"))
    store = with_seed(behind, CacheOptions(cache_seed=tmp_path / "seed"))
    for content in (CONTENT, b"behind"):
        sink = MemorySink()
        await store.pull(hash_bytes(content), sink)
        assert sink.content == content
    assert with_seed(behind, CacheOptions()) is behind


def test_a_seed_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read the seed"):
        with_seed(MemoryStore(), CacheOptions(cache_seed=tmp_path / "none"))


def test_a_server_needs_its_directory(tmp_path: Path) -> None:
    make_server(tmp_path, ServeOptions())
    with pytest.raises(StoreError, match="is not a directory"):
        make_server(tmp_path / "none", ServeOptions())


def secret_in(directory: Path, mode: int = 0o600) -> Path:
    file = directory / "secret"
    file.write_bytes(b"0123456789abcdefSECRET\n")
    file.chmod(mode)
    return file


@pytest.mark.parametrize("encryption", [None, "required", "optional"])
def test_a_secret_reaches_the_server(tmp_path: Path, encryption: str | None) -> None:
    options = ServeOptions(secret_file=secret_in(tmp_path), encryption=encryption)
    gate = make_server(tmp_path, options).gate
    assert gate.secret is not None
    assert gate.secret.sign(b"") == Secret(b"0123456789abcdefSECRET").sign(b"")
    assert gate.required is (encryption != "optional")


def test_a_server_without_a_secret_asks_nothing(tmp_path: Path) -> None:
    assert make_server(tmp_path, ServeOptions()).gate.secret is None


@pytest.mark.parametrize("encryption", ["required", "optional"])
def test_a_server_that_is_to_authenticate_needs_a_secret(tmp_path: Path, encryption: str) -> None:
    """Else it would serve everybody, and who has configured it believe that it does not."""
    with pytest.raises(UsageError, match=f"encryption is {encryption}, and there is no") as caught:
        make_server(tmp_path, ServeOptions(encryption=encryption))
    assert "--secret-file" in str(caught.value.hint)


@pytest.mark.parametrize("auth", ["auto", "required"])
async def test_credentials_reach_every_connection(
    tmp_path: Path,
    auth: str,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("WARNING cafsfs.store.rout.*nobody is there$")
    seen = []

    async def open_connection(*_: object, credentials: Credentials, **__: object) -> object:
        await trio.lowlevel.checkpoint()
        seen.append(credentials)
        raise Unreachable("nobody is there")

    monkeypatch.setattr("cafsfs.client.connection.ServerConnection.open", open_connection)
    options = StoreOptions(secret_file=secret_in(tmp_path), auth=auth)
    async with open_store(parse_uri("cafs://h,g/r"), options) as store:
        with pytest.raises(Unreachable):
            await store.stat(hash_bytes(CONTENT))
    assert len(seen) >= 2  # who does not answer is greeted, too
    assert {each.required for each in seen} == {auth == "required"}
    assert all(each.secret is not None for each in seen)


async def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    options = StoreOptions(secret_file=secret_in(tmp_path, 0o644))
    with pytest.raises(UsageError, match="mode 0644"):
        async with open_store(parse_uri("cafs://h/r"), options):
            pass


async def test_a_directory_authenticates_nobody(tmp_path: Path) -> None:
    """A secret is not even looked at; to demand it makes no sense."""
    uri = parse_uri(f"file://{tmp_path}")
    async with open_store(uri, StoreOptions(secret_file=tmp_path / "missing")):
        pass
    with pytest.raises(UsageError, match="has no server that could authenticate") as caught:
        async with open_store(uri, StoreOptions(auth="required")):
            pass
    assert caught.value.hint


async def test_who_demands_authentication_asks_no_mirror_over_http(tmp_path: Path) -> None:
    secure = MirrorTemplate.parse("https://host/{hash}")
    plain = MirrorTemplate.parse("http://host/{hash}")
    options = StoreOptions(secret_file=secret_in(tmp_path), auth="required", mirror=(secure,))
    async with open_store(parse_uri("cafs://h/r"), options):
        pass
    with pytest.raises(UsageError, match="the mirror http://host cannot prove who it is"):
        async with open_store(parse_uri("cafs://h/r"), replace(options, mirror=(secure, plain))):
            pass


REQUIRED = StoreOptions(auth="required")
SHARED = CacheOptions(cache_dir=Path("/cache"))


def own(uri: str, store: StoreOptions = REQUIRED) -> Path:
    return own_cache(parse_uri(uri), store, SHARED).cache_dir


def test_who_demands_authentication_has_a_cache_of_his_own_for_each_uri() -> None:
    first = own("cafs://h,g:1/r")
    assert first.parent == Path("/cache/authenticated")
    assert re.fullmatch(r"[0-9a-f]{32}", first.name)
    for other in ("cafs://h/r", "cafs://h,g/r", "cafs://h,g:1/s", "cafs://h,g:1/r/s"):
        assert own(other) != first


def test_options_and_the_order_of_servers_make_no_other_cache() -> None:
    first = own("cafs://h,g:1/r")
    for same in (
        "cafs://g:1,h/r",
        "cafs://h:2403,g:1/r?connections=7&zone=eu",
        "cafs://h;zone=eu,g:1;weight=2/r",
    ):
        assert own(same) == first


def test_all_others_share_the_cache() -> None:
    assert own("cafs://h/r", StoreOptions()) == SHARED.cache_dir
    assert own("file:///directory/r", StoreOptions()) == SHARED.cache_dir


def test_a_cache_of_ones_own_keeps_the_other_options() -> None:
    cache = CacheOptions(cache_dir=Path("/cache"), cache_files=7)
    changed = own_cache(parse_uri("cafs://h/r"), REQUIRED, cache)
    assert replace(changed, cache_dir=cache.cache_dir) == cache


def test_a_mount_is_read_only_and_named_by_its_uri() -> None:
    options = compose._fuse_options(plan())
    assert {"ro", "nosuid", "nodev", "default_permissions", "subtype=cafsfs"} <= set(options)
    assert r"fsname=cafs://h\,g/r" in options
    assert "allow_other" not in options


def test_options_reach_the_kernel() -> None:
    options = compose._fuse_options(plan("noexec", allow_other=True, fsname="a\\,b"))
    assert {"noexec", "allow_other"} <= set(options)
    assert r"fsname=a\\\,b" in options


def test_options_reach_the_filesystem() -> None:
    options = compose._vfs_options(plan(uid=5, gid=6, lookup_timeout=2.0, read_timeout=3.0))
    assert (options.uid, options.gid) == (5, 6)
    assert (options.lookup_deadline, options.read_patience) == (2, 3)
