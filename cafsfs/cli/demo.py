"""``cafsfs demo``: the whole way on real files, with loopback and a temporary directory only.

Everything is done by real commands in processes of their own, so that what is shown is what a user
would type.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click

from cafsfs.errors import CafsError, StoreError
from cafsfs.fuse import mounts
from cafsfs.packing import hash_file

_CAFSFS = [sys.executable, "-P", "-m", "cafsfs"]  # -P: nothing from the working directory
_START_DEADLINE = 15.0  # seconds for the server to listen
_END_DEADLINE = 5.0  # seconds for a mount to end once it is unmounted


@click.command(short_help="Serve, fill, mount and read a sample store, until Ctrl-C.")
@click.option("--once", is_flag=True, help="check everything, then leave; exit code 1 if wrong")
def demo(*, once: bool) -> None:
    """Serve a fresh store on loopback, fill it with Python's library, mount it, read it.

    Stays up until Ctrl-C, then leaves nothing behind: all of it happens on 127.0.0.1 and in a
    temporary directory. It shows each command that it runs.

    \b
    cafsfs demo
    cafsfs demo --once && echo all is well
    """
    # SIGTERM as Ctrl-C: whatever ends the demo, nothing stays mounted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cafsfs-demo-")))
        uri = stack.enter_context(_server(directory / "store"))
        uploaded = _upload(uri, Path(sysconfig.get_path("stdlib")))
        point = stack.enter_context(_mount(uri, directory))
        _read(point, uploaded)
        if once:
            click.echo("\nall of it was right")
            return
        try:
            _invite(uri, point, uploaded)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            _finish_in_peace()
            click.echo("\nunmounting, stopping the server, removing the store")


@contextmanager
def _server(store: Path) -> Iterator[str]:
    (store / "demo").mkdir(parents=True)
    log = store.with_name("server.log")
    command = [*_CAFSFS, "serve", str(store), "--listen", "127.0.0.1:0", "--log-file", str(log)]
    _show("cafsfs serve store --listen 127.0.0.1:0 &")
    server = subprocess.Popen(command, start_new_session=True)
    try:
        address = _address(server, log)
        click.echo(f"serving on {address}")
        yield f"cafs://{address}/demo"
    finally:
        _finish_in_peace()
        server.terminate()
        server.wait()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, from its log."""
    deadline = time.monotonic() + _START_DEADLINE
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text().splitlines() if log.exists() else ():
            if " serving " in line and line.split()[-1][-1].isdigit():
                return line.split()[-1]
        time.sleep(0.02)
    raise StoreError("the demo's server did not start")


def _upload(uri: str, library: Path) -> list[tuple[str, Path]]:
    """Upload a real directory: Python's own standard library."""
    paths = [each for each in sorted(library.glob("*.py")) if each.stat().st_size]
    paths += [library / name for name in ("asyncio", "email", "json", "unittest")]
    _show(f"cafsfs put {uri} {library}/*.py …")
    said = _run("put", uri, "--compression", "zstd", *map(str, paths))
    lines = [line.split("  ", 1) for line in said.splitlines()]
    click.echo(f"{lines[0][0]}  {lines[0][1]}\n… {len(lines)} files uploaded")
    return [(digest, Path(path)) for digest, path in lines]


@contextmanager
def _mount(uri: str, directory: Path) -> Iterator[Path]:
    point = directory / "mnt"
    point.mkdir()
    _show(f"cafsfs mount {uri} {point}")
    try:
        _run("mount", uri, str(point), "--cache-dir", str(directory / "cache"))
        yield point
    finally:
        _finish_in_peace()
        if mounts.find_mount(mounts.canonical(str(point))) is not None:
            daemon = json.loads((point / ".cafsfs" / "stats.json").read_text())["pid"]
            _run("unmount", "--lazy", str(point))
            _wait_for_end(daemon)


def _wait_for_end(process: int) -> None:
    """Wait for one that is not our child: it has files in the directory that is to be removed."""
    with suppress(OSError):  # it has ended already, or the kernel is older than 5.3
        descriptor = os.pidfd_open(process)
        select.select([descriptor], [], [], _END_DEADLINE)
        os.close(descriptor)


def _read(point: Path, uploaded: list[tuple[str, Path]]) -> None:
    digest, original = uploaded[0]
    _tool("head", "-n", "3", str(point / f"{digest}.py"))
    _show(f"cmp MOUNT/<hash> FILE    # for all {len(uploaded)} files")
    for digest, original in uploaded:
        if subprocess.run(["cmp", str(point / digest), str(original)], check=False).returncode:
            raise StoreError(f"`{original}` came back different")
    click.echo("no difference")
    _show("b3sum MOUNT/<hash>       # the name of each is the hash of what is read")
    for digest, _ in uploaded:
        if hash_file(point / digest).hex != digest:
            raise StoreError(f"what is read as {digest} has another hash")
    click.echo(f"{len(uploaded)} hashes are right")
    _show(f"ls {point}/blake3 | head -n 3")
    listed = subprocess.run(
        ["ls", str(point / "blake3")], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    click.echo("\n".join(listed[:3]))
    if set(listed) != {digest for digest, _ in uploaded}:
        raise StoreError("the listing is not what was read")
    _tool("df", "-h", str(point))


def _invite(uri: str, point: Path, uploaded: list[tuple[str, Path]]) -> None:
    digest, original = uploaded[len(uploaded) // 2]
    click.echo(f"""
It stays up until Ctrl-C. In another terminal, try:

  less {point}/{digest}.py
  cmp {point}/{digest} {original}
  python3 -c 'import os, sys; print(os.getxattr(*sys.argv[1:]))' {point}/{digest} user.cafs.state
  cat {point}/.cafsfs/stats.json
  {Path(sys.executable).parent}/cafsfs put {uri} FILE     # then read {point}/<its hash>
""")


def _finish_in_peace() -> None:
    """From now on a second Ctrl-C does not stop the clearing up, nor what does it."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _run(*arguments: str) -> str:
    """What a cafsfs command prints; what it complains about is shown as it is.

    Ctrl-C neither reaches the command (it has a session of its own) nor cuts the wait for it: a
    mount that is half made could not be unmounted.
    """
    with subprocess.Popen(
        [*_CAFSFS, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as command:
        try:
            said, _ = command.communicate()
        except KeyboardInterrupt:
            command.communicate()
            raise
    if command.returncode:
        raise CafsError(f"cafsfs {arguments[0]} failed with exit code {command.returncode}")
    return said


def _tool(*command: str) -> None:
    _show(" ".join(command))
    if subprocess.run(command, check=False).returncode:
        raise CafsError(f"`{command[0]}` failed")


def _show(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)
