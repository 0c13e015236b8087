"""``cafsfs put``, ``get`` and ``cat``: files to a store and back."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import click
import trio
from tqdm import tqdm

from cafsfs.cli.options import layers, with_options
from cafsfs.cli.talk import complain, run, start_logging
from cafsfs.compose import open_store
from cafsfs.config import LogOptions, StoreOptions, StoreUri, parse_uri, resolve
from cafsfs.digest import Digest
from cafsfs.errors import CafsError, StoreError, UsageError
from cafsfs.packing import Compression
from cafsfs.store.contracts import ContentStore
from cafsfs.store.files import FileSink, FileSource, pull_to_file

_BAR_DELAY = 0.5  # seconds; what is done sooner needs no progress bar
Bar: TypeAlias = "tqdm[NoReturn]"  # counted by hand; a class that is generic in its stubs only

_COMPRESSIONS = [each.name.lower() for each in Compression]


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a command transfers to or from, and how."""

    uri: StoreUri
    options: StoreOptions


def _target(uri: str, config: Path | None, flags: dict[str, str | None]) -> _Target:
    parsed = parse_uri(uri)
    found = layers(flags, config, parsed.layer)
    logs = resolve(LogOptions, found)
    if flags["log_level"] is None:  # errors are shown anyway; the rest is for who asks
        logs = LogOptions(log_level="error", log_file=logs.log_file)
    start_logging(logs)
    return _Target(parsed, resolve(StoreOptions, found))


def _bar(total: int | None) -> Bar:
    """A progress bar of bytes on a terminal; nothing elsewhere, and nothing for short work."""
    return tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1024, delay=_BAR_DELAY, disable=None
    )


# --- put


@click.command()
@click.argument("uri")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--compression",
    type=click.Choice(_COMPRESSIONS),
    default="none",
    show_default=True,
    help="pack with this, except small files and those that are compressed already",
)
@with_options(StoreOptions, LogOptions)
def put(
    uri: str, paths: tuple[Path, ...], compression: str, config: Path | None, **flags: str | None
) -> None:
    """Upload files, and all files in directories, to the store at URI.

    Prints a line "<hash>  <path>" for each, as b3sum does: `b3sum -c` checks them. What the store
    has already is not sent again. Exit code 1 if any file failed; the others are uploaded.
    """
    target = _target(uri, config, flags)
    files = list(_walk(paths))
    failed = run(lambda: _put(target, files, Compression[compression.upper()]))
    if failed:
        sys.exit(1)


def _walk(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The regular files among and below ``paths``; links to files count, links to trees do not."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for directory, subdirectories, names in os.walk(path):
            subdirectories.sort()
            for name in sorted(names):
                file = Path(directory, name)
                if file.is_file():
                    yield file


async def _put(target: _Target, files: list[Path], compression: Compression) -> int:
    """Upload, printing in the order of ``files``; returns how many failed."""
    lines: dict[int, str] = {}
    shown = failed = 0
    waiting = iter(enumerate(files))
    limiter = trio.CapacityLimiter(target.options.connections)

    def show(index: int, line: str) -> None:
        nonlocal shown
        lines[index] = line
        while shown in lines:
            click.echo(lines.pop(shown), nl=False)
            shown += 1

    async def work(store: ContentStore, bar: Bar) -> None:
        nonlocal failed
        for index, path in waiting:
            try:
                digest = await _put_file(store, path, limiter, bar.update)
                show(index, _checksum_line(digest, path))
            except CafsError as error:
                failed += 1
                show(index, "")
                complain(error)

    async with open_store(target.uri, target.options, compression=compression) as store:
        with _bar(sum(_size(each) for each in files)) as bar:
            async with trio.open_nursery() as nursery:
                for _ in range(target.options.connections):
                    nursery.start_soon(work, store, bar)
    return failed


async def _put_file(
    store: ContentStore,
    path: Path,
    limiter: trio.CapacityLimiter,
    progress: Callable[[int], object],
) -> Digest:
    source = await trio.to_thread.run_sync(FileSource, path, limiter=limiter)
    try:
        if await store.find_missing([source.digest]):
            await store.put(source.digest, source)
        progress(source.size)
    finally:
        source.close()
    return source.digest


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # said when its turn comes
        return 0


def _checksum_line(digest: Digest, path: Path) -> str:
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
@with_options(StoreOptions, LogOptions)
def get(
    uri: str,
    blob: str,
    output: Path | None,
    config: Path | None,
    **flags: str | None,
) -> None:
    """Download the blob HASH from the store at URI to a file, verified.

    The file appears when it is complete and its hash is right, not before.
    """
    digest = Digest.parse(blob)
    target = _target(uri, config, flags)
    path = Path(digest.hex) if output is None else output
    if path.is_dir():
        raise UsageError(f"`{path}` is a directory", hint="name a file with -o")
    run(lambda: _get(target, digest, path))


async def _get(target: _Target, digest: Digest, path: Path) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_store(target.uri, target.options) as store:
        with _bar(None) as bar:
            await pull_to_file(store, digest, path, limiter=limiter, on_write=bar.update)


@click.command()
@click.argument("uri")
@click.argument("blob", metavar="HASH")
@with_options(StoreOptions, LogOptions)
def cat(uri: str, blob: str, config: Path | None, **flags: str | None) -> None:
    """Write the blob HASH from the store at URI to standard output.

    Nothing is written before all of it is verified: wrong bytes reach nobody. Until then it is
    kept in a file without a name in $TMPDIR.
    """
    digest = Digest.parse(blob)
    target = _target(uri, config, flags)
    try:
        with tempfile.TemporaryFile(prefix="cafsfs-") as spool:
            run(lambda: _spool(target, digest, spool.fileno()))
            spool.seek(0)
            shutil.copyfileobj(spool, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise StoreError(
            f"cannot keep the blob: {error.strerror}", hint="set TMPDIR to a disk with space"
        ) from error


async def _spool(target: _Target, digest: Digest, descriptor: int) -> None:
    async with open_store(target.uri, target.options) as store:
        await store.pull(digest, FileSink(descriptor))
