"""The public client: what users of the asyncio client know, on Trio, and verified."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import trio

from cafsfs.client.credentials import Credentials
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.network import WORKERS, Network, NetworkOptions
from cafsfs.client.servers import Deadlines, Member, Server
from cafsfs.digest import Digest
from cafsfs.errors import CafsError, InvalidDigest, StoreError, UsageError
from cafsfs.packing import Compression
from cafsfs.secret import Secret, read_secret
from cafsfs.store.budget import MemoryBudget, default_budget
from cafsfs.store.contracts import BlobStat, ContentStore, Wanted
from cafsfs.store.files import FileSource, ReplacingFile, pull_to_file
from cafsfs.store.memory import NullSink
from cafsfs.store.router import PlaceState

T = TypeVar("T")


class BatchError(CafsError):
    """Some blobs of a batch failed; the others are done.

    ``failures`` maps each hash (or path, for uploads) to its error.
    """

    def __init__(self, failures: dict[str, CafsError], total: int) -> None:
        first = next(iter(failures.values()))
        super().__init__(f"{len(failures)} of {total} failed, the first with: {first}")
        self.failures = failures


@dataclass(frozen=True, slots=True)
class Upload:
    """What was uploaded: its hash, and the servers that have it now, as ``host:port``."""

    hash: str
    servers: tuple[str, ...]


class CafsClient:
    """Check, measure, pull and upload blobs on CAFS servers.

    ::

        async with CafsClient("/data", ["cafs1.example.com", "10.0.0.2:2403"]) as client:
            digest = await client.stream(Path("asset.bin"), compression=Compression.ZSTD)
            await client.pull(digest, Path("copy.bin"))

    Several servers are taken to hold the same content. A server is ``host:port``, or a Member with
    a zone, a priority and a weight. Those of ``zone`` are asked first, then the nearest by measured
    time, which is measured in the background of ``async with``; see Router. A pull leaves a server
    that brings less than ``slow_rate`` bytes a second for another one. Uploads go to ``replicas``
    of them. ``mirrors`` are HTTP mirrors, as ``https://host/{ab}/{cd}/{hash}``, which are asked
    last and never written to.

    Each operation has ``retry``: with it (the default) the operation goes on over the other
    connections and servers until one succeeds or all have failed; without it, only the first server
    is asked, and the first error is raised. Either way a pooled connection that proves dead before
    any byte of the answer is replaced once.

    Every pull is verified against its hash; wrong bytes are an error of that server, and with
    ``retry`` the next one is tried. All errors are CafsError: BlobNotFound when all servers have
    said so, Unavailable when nobody could tell (its subclass TimedOut: ``deadlines``, in seconds),
    CorruptBlob, ServerRefused, RemoteProtocolError, StoreError for local files, InvalidDigest.

    ``secret`` is what servers share with us, or the file that holds it (see ``read_secret``): with
    servers that offer it we authenticate each other, and what is said is encrypted unless the
    server lifts that. Where it fails, nobody goes on without: AuthenticationFailed says why.
    ``auth="required"`` says no word to servers that do not offer it.

    All pulls together keep no more than ``memory`` bytes of buffers and decoders; None: 256 MiB, or
    a quarter of what the process's control group may use where that is less.

    Hashes are given as Digest or as 64 lower-case hexadecimal digits, and returned as the latter.
    """

    def __init__(
        self,
        server_root: str,
        servers: Collection[str | Member],
        *,
        connections_per_server: int = 4,
        connect_timeout: float = 5.0,
        answer_timeout: float = 30.0,
        progress_timeout: float = 30.0,
        memory: int | None = None,
        zone: str | None = None,
        replicas: int = 1,
        slow_rate: float = 128 << 10,
        secret: Secret | Path | str | None = None,
        auth: Literal["auto", "required"] = "auto",
        mirrors: Collection[str] = (),
    ) -> None:
        if isinstance(servers, str):  # it would be taken for servers of one letter each
            raise UsageError("servers are a list", hint=f'write ["{servers}"]')
        if isinstance(mirrors, str):
            raise UsageError("mirrors are a list", hint="write [url]")
        if not servers:
            raise UsageError("a client needs at least one server")
        if connections_per_server < 1:
            raise UsageError("a client needs at least one connection per server")
        deadlines = Deadlines(
            connect=connect_timeout, answer=answer_timeout, progress=progress_timeout
        )
        members = {each.server: each for each in map(_member, servers)}
        self._network = Network(
            list(members.values()),
            server_root,
            mirrors=[MirrorTemplate.parse(each) for each in mirrors],
            options=NetworkOptions(
                connections=connections_per_server,
                attempts=connections_per_server,
                deadlines=deadlines,
                credentials=_credentials(secret, auth),
                zone=zone,
                slow_rate=slow_rate,
            ),
            limiter=trio.CapacityLimiter(WORKERS),
            budget=MemoryBudget(default_budget() if memory is None else memory),
        )
        self._servers = len(members)
        self._replicas = replicas
        self._connections = connections_per_server
        self._limiter = trio.CapacityLimiter(WORKERS)

    async def __aenter__(self) -> Self:
        await self._network.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._network.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Close the idle connections, and those in use when they are done."""
        await self._network.aclose()

    def servers(self) -> list[PlaceState]:
        """What is known of each server: whether it is up, its times, its errors."""
        return self._network.states()

    async def check(self, blob_hash: Digest | str, *, retry: bool = True) -> bool:
        """Is the blob on any of the servers?"""
        digest = _digest(blob_hash)
        return not await self._store(retry=retry).find_missing([digest])

    async def check_batch(
        self, hashes: Iterable[Digest | str], *, retry: bool = True
    ) -> dict[str, bool]:
        """Which of the blobs are there; pipelined, a round trip a thousand."""
        digests = [_digest(each) for each in hashes]
        missing = await self._store(retry=retry).find_missing(digests)
        return {digest.hex: digest not in missing for digest in digests}

    async def size(self, blob_hash: Digest | str, *, retry: bool = True) -> int:
        """The length of the *content* in bytes.

        Costs a round trip or two; a whole pull only where nothing else tells the length (compressed
        blobs of the asyncio client).
        """
        return _size(await self.stat(blob_hash, retry=retry))

    async def stat(self, blob_hash: Digest | str, *, retry: bool = True) -> BlobStat:
        """Content size, packed size (bytes), compression, and the server that told."""
        return await full_stat(self._store(retry=retry), _digest(blob_hash))

    async def stat_batch(
        self, hashes: Iterable[Digest | str], *, retry: bool = True
    ) -> dict[str, BlobStat]:
        """What ``stat`` tells, of many blobs; all are tried, then BatchError tells which failed.

        Pipelined: a few round trips for thousands of small blobs, which are then pulled where
        nothing cheaper tells their length. Each blob above 256 KiB is a probe, two at once.
        """
        digests = [_digest(each) for each in hashes]
        found, failures = await full_stats(self._store(retry=retry), digests)
        if failures:
            raise BatchError({each.hex: error for each, error in failures.items()}, len(digests))
        return {each.hex: found[each] for each in digests}

    async def size_batch(
        self, hashes: Iterable[Digest | str], *, retry: bool = True
    ) -> dict[str, int]:
        """The lengths of the *content* of many blobs in bytes, as ``stat_batch`` learns them."""
        stats = await self.stat_batch(hashes, retry=retry)
        return {name: _size(stat) for name, stat in stats.items()}

    async def pull(self, blob_hash: Digest | str, path: Path, *, retry: bool = True) -> None:
        """Pull a blob to ``path``, by a temporary file beside it that is renamed when verified."""
        store = self._store(retry=retry)
        await pull_to_file(store, _digest(blob_hash), Path(path), limiter=self._limiter)

    async def pull_batch(
        self,
        blobs: Iterable[tuple[Digest | str, Path]],
        *,
        retry: bool = True,
        max_concurrent: int | None = None,
    ) -> None:
        """Pull many blobs; all are tried, then BatchError tells which failed.

        Pipelined: a few round trips for thousands of small blobs, over up to ``max_concurrent``
        connections of a server. Each is put in its place as ``pull`` does it.
        """
        at_once = self._at_once(max_concurrent)
        items = list(blobs)
        failures: dict[str, CafsError] = {}
        wanted: dict[Wanted, Path] = {}
        batch = secrets.token_hex(4)
        for number, (blob_hash, path) in enumerate(items):
            destination = ReplacingFile(path, mark=f"{batch}-{number}")
            try:
                wanted[Wanted(_digest(blob_hash), destination)] = path
            except InvalidDigest as error:
                failures[str(blob_hash)] = error
        failed = await self._store(retry=retry).pull_many(list(wanted), at_once=at_once)
        for each, failure in failed.items():
            failures[each.digest.hex] = _as_ours(failure, wanted[each])
        if failures:
            raise BatchError(failures, len(items))

    async def stream(
        self, path: Path, compression: Compression = Compression.NONE, *, retry: bool = True
    ) -> str:
        """Upload a file and return its hash; see ``upload``."""
        return (await self.upload(path, compression, retry=retry)).hash

    async def upload(
        self, path: Path, compression: Compression = Compression.NONE, *, retry: bool = True
    ) -> Upload:
        """Upload a file to ``replicas`` servers; its hash is computed first.

        Small files and files that are compressed already are sent as they are. Raises CorruptBlob
        if the file changes meanwhile, and what the last server refused it with if too few take it.
        """
        source = await trio.to_thread.run_sync(FileSource, Path(path), limiter=self._limiter)
        try:
            store = self._store(retry=retry, compression=compression)
            servers = await store.put(source.digest, source)
        finally:
            source.close()
        return Upload(source.digest.hex, servers)

    async def stream_batch(
        self,
        paths: Iterable[Path],
        compression: Compression = Compression.NONE,
        *,
        retry: bool = True,
        max_concurrent: int | None = None,
    ) -> list[str]:
        """Upload many files; returns their hashes in the order of ``paths``, or BatchError."""
        hashes: dict[str, str] = {}

        async def stream(path: Path) -> None:
            hashes[str(path)] = await self.stream(path, compression, retry=retry)

        items = [(str(path), path) for path in paths]
        await self._batch(stream, items, max_concurrent)
        return [hashes[name] for name, _ in items]

    def _store(self, *, retry: bool, compression: Compression = Compression.NONE) -> ContentStore:
        if not retry:
            return self._network.first(compression=compression)
        return self._network.store(compression=compression, replicas=self._replicas)

    def _at_once(self, max_concurrent: int | None) -> int | None:
        if max_concurrent is not None and max_concurrent < 0:
            raise UsageError(f"a batch of {max_concurrent} at once gets nothing done")
        return max_concurrent or None

    async def _batch(
        self,
        operation: Callable[[T], Awaitable[None]],
        items: Sequence[tuple[str, T]],
        max_concurrent: int | None,
    ) -> None:
        workers = self._at_once(max_concurrent) or self._connections * self._servers
        failures: dict[str, CafsError] = {}
        waiting = iter(items)

        async def work() -> None:
            for name, item in waiting:
                try:
                    await operation(item)
                except CafsError as error:
                    failures[name] = error

        async with trio.open_nursery() as nursery:
            for _ in range(min(workers, len(items))):
                nursery.start_soon(work)
        if failures:
            raise BatchError(failures, len(items))


async def full_stat(store: ContentStore, digest: Digest) -> BlobStat:
    """A stat with its size, by a pull that is thrown away where nothing cheaper tells it."""
    stat = await store.stat(digest)
    return stat if stat.size is not None else await store.pull(digest, NullSink())


async def full_stats(
    store: ContentStore, digests: Sequence[Digest]
) -> tuple[dict[Digest, BlobStat], dict[Digest, CafsError]]:
    """Full stats of a batch, and the errors of those that failed; each hits its own blob only."""
    found: dict[Digest, BlobStat] = {}
    errors = await store.stat_many(list(dict.fromkeys(digests)), found.__setitem__)
    measuring = [each for each, stat in found.items() if stat.size is None]
    wanted = [Wanted(each, _Measured(each, found)) for each in measuring]
    failed = await store.pull_many(wanted)
    errors |= {each.digest: error for each, error in failed.items()}
    failures = {each: error for each, error in errors.items() if isinstance(error, CafsError)}
    return {each: stat for each, stat in found.items() if each not in failures}, failures


class _Measured(NullSink):
    """A destination that keeps nothing but the stat."""

    def __init__(self, digest: Digest, found: dict[Digest, BlobStat]) -> None:
        self._digest = digest
        self._found = found

    def commit(self, stat: BlobStat, /) -> None:
        self._found[self._digest] = stat

    def abandon(self) -> None:
        pass


def _size(stat: BlobStat) -> int:
    if stat.size is None:
        raise AssertionError("a complete stat has a size")
    return stat.size


def _as_ours(error: CafsError | OSError, path: Path) -> CafsError:
    if isinstance(error, CafsError):
        return error
    return StoreError(f"cannot write `{path}`: {error.strerror}")


def _credentials(secret: Secret | Path | str | None, auth: str) -> Credentials:
    if auth not in {"auto", "required"}:
        raise UsageError(f"{auth!r} is no way to authenticate", hint='it is "auto" or "required"')
    if isinstance(secret, str | Path):
        secret = read_secret(Path(secret))
    return Credentials(secret=secret, required=auth == "required")


def _digest(given: Digest | str) -> Digest:
    return given if isinstance(given, Digest) else Digest.parse(given)


def _member(given: str | Member) -> Member:
    return given if isinstance(given, Member) else Member(Server.parse(given))
