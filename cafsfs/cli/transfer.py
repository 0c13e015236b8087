"""``cafsfs put``, ``get`` and ``cat``: files to a store and back."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import IO, Self

import click
import trio

from cafsfs.cli.options import QUIET, with_options
from cafsfs.cli.progress import Progress
from cafsfs.cli.talk import complain, emit, run
from cafsfs.cli.target import Target, find_quietly
from cafsfs.compose import open_store
from cafsfs.config.options import FOR_DOWNLOADS, FOR_UPLOADS, LogOptions, StoreOptions
from cafsfs.config.uri import StoreUri
from cafsfs.digest import Digest
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    CorruptBlob,
    ServerRefused,
    StoreError,
    Unreachable,
    UsageError,
)
from cafsfs.packing import Compression
from cafsfs.store.contracts import ContentStore
from cafsfs.store.files import FileSink, FileSource, pull_to_file

_PIECE = 1 << 20  # bytes of ``cat`` at once

_COMPRESSIONS = [each.name.lower() for each in Compression]


@contextmanager
def _advice(target: Target) -> Iterator[None]:
    """Say of an absent blob what else may be wrong."""
    try:
        yield
    except BlobNotFound as error:
        if target.uri.servers and error.hint is None:
            error.hint = (
                f"is `{target.uri.root}` the right root? a server says the same of a root that "
                "it does not have"
            )
        raise


# --- put


@click.command()
@click.argument("uri")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…", type=click.Path(path_type=Path))
@click.option(
    "--compression",
    type=click.Choice(_COMPRESSIONS),
    default="none",
    show_default=True,
    help="pack with this, except small files and those that are compressed already",
)
@click.option("--json", "as_json", is_flag=True, help="print a line of JSON for each file")
@with_options(StoreOptions, LogOptions, defaults=QUIET, without=FOR_DOWNLOADS)
def put(
    uri: str,
    paths: tuple[Path, ...],
    compression: str,
    config: Path | None,
    *,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Upload files, and all files in directories, to the store at URI.

    In directories, links to files count as files; links to directories, broken links and special
    files are passed over.

    Prints a line "<hash>  <path>" for each, as b3sum does: `b3sum -c` checks them. What a server
    has already is not sent to it again, unless it is small. Exit code 1 if any file failed; the
    others are uploaded, unless no server can be reached or lets us in.

    Of several servers N get each file (--replicas), those of this --zone first; where one fails or
    is full, the next one does. A file that fewer than N have in the end has failed. With --json
    each line tells who has it: {"hash": …, "path": …, "servers": […]}.

    \b
    cafsfs put cafs://127.0.0.1/data FILE
    cafsfs put --compression zstd cafs://127.0.0.1/data DIRECTORY > SUMS
    cafsfs put --replicas 2 cafs://cafs1,cafs2,cafs3/data FILE
    """
    target = find_quietly(uri, config, flags)
    if target.uri.directory is not None and target.store.replicas > 1:
        raise UsageError(
            f"`{target.uri.shown}` is one directory, and cannot have {target.store.replicas}"
            " replicas",
            hint="name servers, as in cafs://a,b/root, or leave --replicas out",
        )
    files = list(_walk(paths))
    line = _json_line if as_json else _checksum_line
    report = run(lambda: _put(target, files, Compression[compression.upper()], line))
    if target.store.replicas > 1 and report.files:
        click.echo(report.replicas(target.store.replicas), err=True)
    if report.failures:
        sys.exit(1)


def _walk(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The regular files among and below ``paths``; links to files count, links to trees do not.

    What may not be looked at is among them: the attempt to read it will tell why.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _walk_tree(path)
        else:
            yield path


def _walk_tree(tree: Path) -> Iterator[Path]:
    closed: list[Path] = []
    for directory, subdirectories, names in os.walk(
        tree, onerror=lambda error: closed.append(Path(error.filename))
    ):
        subdirectories.sort()
        yield from filter(_may_be_file, (Path(directory, name) for name in sorted(names)))
    yield from closed


def _may_be_file(path: Path) -> bool:
    try:
        return S_ISREG(path.stat().st_mode)
    except OSError as error:
        return error.errno not in {errno.ENOENT, errno.ELOOP}  # links that lead nowhere


_Line = Callable[[Digest, Path, Sequence[str]], str]


async def _put(target: Target, files: list[Path], compression: Compression, line: _Line) -> _Report:
    """Upload, printing in the order of ``files``."""
    waiting = iter(enumerate(files))
    limiter = trio.CapacityLimiter(target.store.connections)

    async def work(store: ContentStore, progress: Progress, report: _Report) -> None:
        for index, path in waiting:
            try:
                digest, servers = await _put_file(target, store, path, limiter, progress)
                report.stored(index, line(digest, path, servers), servers)
            except (Unreachable, AuthenticationFailed):
                raise  # nor will the other files get there
            except CafsError as error:
                report.failed(index, _about_file(path, error, target.uri))

    async with open_store(
        target.uri, target.store, compression=compression, replicas=target.store.replicas
    ) as store:
        with Progress(sum(map(_size, files))) as progress, _Report(progress) as report:
            async with trio.open_nursery() as nursery:
                for _ in range(min(target.store.connections, len(files))):
                    nursery.start_soon(work, store, progress, report)
    return report


class _Report:
    """Says what became of each file, in the order of the files, beside a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines: dict[int, str] = {}
        self._next = 0
        self._hints: set[str | None] = set()
        self.files = 0
        self._servers: Counter[str] = Counter()
        self.failures = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Of what was uploaded, something is said in any case."""
        for index in sorted(self._lines):
            emit(self._lines[index])

    def stored(self, index: int, line: str, servers: Sequence[str]) -> None:
        self.files += 1
        self._servers.update(servers)
        self._done(index, line)

    def replicas(self, wanted: int) -> str:
        """One line on who has how many."""
        count = f"{self.files} file" + ("" if self.files == 1 else "s")
        have = [f"{name} has {number}" for name, number in sorted(self._servers.items())]
        return ", ".join([f"stored {count} on {wanted} servers each", *have])

    def _done(self, index: int, line: str) -> None:
        self._lines[index] = line
        with self._progress.aside():
            while self._next in self._lines:
                emit(self._lines.pop(self._next))
                self._next += 1

    def failed(self, index: int, error: CafsError) -> None:
        self.failures += 1
        if error.hint in self._hints:  # once is enough
            error.hint = None
        self._hints.add(error.hint)
        with self._progress.aside():
            complain(error)
        self._done(index, "")


def _about_file(path: Path, error: CafsError, uri: StoreUri) -> CafsError:
    """Errors of the way to the store do not know which file they are about."""
    if f"`{path}`" in str(error):
        return error
    hint = error.hint
    if isinstance(error, CorruptBlob):
        hint = "it changed while it was read, or its size is not what the kernel says (as in /proc)"
    if isinstance(error, ServerRefused) and hint is None:
        hint = f"has the server a root `{uri.root}`, and space? its log may tell more"
    return CafsError(f"cannot upload `{path}`: {error}", hint=hint)


class _Watched:
    """A file whose upload is shown; a second try shows what the first has not reached.

    So does a second server: threads read the file for both.
    """

    def __init__(self, source: FileSource, progress: Progress) -> None:
        self._lock = threading.Lock()
        self._source = source
        self._progress = progress
        self._shown = 0

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def settled(self) -> bool:
        return self._source.settled

    def read_at(self, buffer: memoryview, offset: int) -> int:
        count = self._source.read_at(buffer, offset)
        self.show(offset + count)
        return count

    def show(self, end: int) -> None:
        with self._lock:
            if end > self._shown:
                self._progress.advance(end - self._shown)
                self._shown = end


async def _put_file(
    target: Target,
    store: ContentStore,
    path: Path,
    limiter: trio.CapacityLimiter,
    progress: Progress,
) -> tuple[Digest, Sequence[str]]:
    """Its hash, and who has it now."""
    source = await trio.to_thread.run_sync(FileSource, path, limiter=limiter)
    try:
        watched = _Watched(source, progress)
        servers: Sequence[str] = [str(target.uri.directory)]
        # Servers are asked by the store, each for itself.
        if target.uri.directory is None or await store.find_missing([source.digest]):
            servers = await store.put(source.digest, watched)
        watched.show(source.size)
    finally:
        source.close()
    return source.digest, servers


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # said when its turn comes
        return 0


def _json_line(digest: Digest, path: Path, servers: Sequence[str]) -> str:
    return json.dumps({"hash": digest.hex, "path": str(path), "servers": list(servers)}) + "\n"


def _checksum_line(digest: Digest, path: Path, _: Sequence[str]) -> str:
    """A line as b3sum writes it: a name with a newline or a backslash is escaped and marked."""
    name = str(path)
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n"


# --- get and cat


@click.command()
@click.argument("uri")
@click.argument("blob", metavar="HASH")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="where to; the default is a file named by the hash",
)
@with_options(StoreOptions, LogOptions, defaults=QUIET, without=FOR_UPLOADS)
def get(
    uri: str,
    blob: str,
    output: Path | None,
    config: Path | None,
    **flags: str | None,
) -> None:
    """Download the blob HASH from the store at URI to a file, verified.

    The file appears when it is complete and its hash is right, not before.

    Servers of this --zone are asked first, HTTP mirrors (--mirror) last; who fails, or has wrong
    bytes, is passed over.

    \b
    cafsfs get cafs://127.0.0.1/data HASH -o FILE
    """
    digest = Digest.parse(blob)
    target = find_quietly(uri, config, flags)
    path = Path(digest.hex) if output is None else output
    if os.path.isdir(path):
        raise UsageError(f"`{path}` is a directory", hint=f"name a file: -o {path / digest.hex}")
    if not os.path.isdir(path.parent):
        raise UsageError(
            f"`{path.parent}` is not a directory", hint="is the path right? make it, if it is"
        )
    with _advice(target):
        run(lambda: _get(target, digest, path))


async def _get(target: Target, digest: Digest, path: Path) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_store(target.uri, target.store) as store:
        with Progress(None) as progress:
            try:
                await pull_to_file(store, digest, path, limiter=limiter, on_write=progress.advance)
            except StoreError as error:
                if error.hint is None and str(path) in str(error):
                    error.hint = "name another file with -o"
                raise


@click.command()
@click.argument("uri")
@click.argument("blob", metavar="HASH")
@with_options(StoreOptions, LogOptions, defaults=QUIET, without=FOR_UPLOADS)
def cat(uri: str, blob: str, config: Path | None, **flags: str | None) -> None:
    """Write the blob HASH from the store at URI to standard output.

    Nothing is written before all of it is verified: wrong bytes reach nobody. Until then it is
    kept in a file without a name in $TMPDIR.

    Of several servers it asks those of this --zone first, HTTP mirrors (--mirror) last.

    \b
    cafsfs cat cafs://127.0.0.1/data HASH | less
    """
    digest = Digest.parse(blob)
    target = find_quietly(uri, config, flags)
    with _advice(target), _spool(target, digest) as spool:
        while piece := spool.read(_PIECE):
            emit(piece)


def _spool(target: Target, digest: Digest) -> IO[bytes]:
    """A file without a name that holds the content of a blob, verified, from its start on."""
    try:
        spool = tempfile.TemporaryFile(prefix="cafsfs-")  # noqa: SIM115  # the caller closes it
        try:
            run(lambda: _pull(target, digest, spool.fileno()))
        except BaseException:
            spool.close()
            raise
    except OSError as error:
        raise StoreError(
            f"cannot keep the blob: {error.strerror}", hint="set TMPDIR to a disk with space"
        ) from error
    return spool


async def _pull(target: Target, digest: Digest, descriptor: int) -> None:
    async with open_store(target.uri, target.store) as store:
        await store.pull(digest, FileSink(descriptor))
