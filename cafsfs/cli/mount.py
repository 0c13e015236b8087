"""``cafsfs mount``: in the foreground for supervisors, in the background for everybody else.

A background mount is a spawned ``--foreground`` process, not a fork: a process that has run Trio
must not be forked. Its standard error is a pipe to us until it has mounted; a NUL says that it has,
and anything else that comes is shown.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import trio

from cafsfs.cli.completing import complete_directory
from cafsfs.cli.options import argument, with_options
from cafsfs.cli.readiness import answers, feed_watchdog, wait_until_it_answers
from cafsfs.cli.remount import remount
from cafsfs.cli.supervisor import notify, notify_reloading
from cafsfs.cli.talk import run_daemon
from cafsfs.cli.target import find_target
from cafsfs.compose import run_mount
from cafsfs.config.mount_options import MountArguments, parse_mount_options
from cafsfs.config.options import FOR_UPLOADS, CacheOptions, LogOptions, MountOptions, StoreOptions
from cafsfs.config.values import parse_bool, parse_path
from cafsfs.errors import MountError
from cafsfs.fuse import mounts
from cafsfs.reloading import MountPlan, Reread
from cafsfs.report.logs import flush_log, leave_terminal, start_logging

log = logging.getLogger(__name__)

_CAFSFS = (sys.executable, "-P", "-m", "cafsfs")  # -P: nothing from the working directory
_MOUNTED = b"\0"
_START_DEADLINE = 60.0  # seconds; fusermount3 and INIT have deadlines of their own within it
_END_DEADLINE = 5.0  # seconds for a daemon that has failed to unmount
_STATUS_PERIOD = 10.0  # seconds between two lines of status for a supervisor


@click.command()
@click.argument("uri", required=False)
@click.argument("mountpoint", required=False, shell_complete=complete_directory)
@click.option(
    "-o",
    "mount_options",
    multiple=True,
    metavar="OPTIONS",
    help="comma-separated options: any long flag, and those of mount(8)",
)
@click.option("-f", "--foreground", is_flag=True, help="stay in the foreground, log to stderr")
@click.option("--background-child", is_flag=True, hidden=True)
@with_options(CacheOptions, MountOptions, StoreOptions, LogOptions, without=FOR_UPLOADS)
def mount(
    uri: str | None,
    mountpoint: str | None,
    config: Path | None,
    *,
    mount_options: tuple[str, ...],
    foreground: bool,
    background_child: bool,
    **flags: str | None,
) -> None:
    """Mount the store at URI on the directory MOUNTPOINT, read-only.

    URI is cafs://host[:port][,host…]/root[?key=value…], or file:///directory/of/roots/root. A path
    named by a hash is the blob with that hash: MOUNTPOINT/<hash>, or MOUNTPOINT/<hash>.<ext> for
    tools that go by the extension. What was read once is kept in the cache.

    Several servers are a group: those of this --zone are read from first, others while they fail,
    HTTP mirrors (--mirror) last. cafs:///root has the servers that TOML has in [[server]] tables.
    Servers that share a secret with us want --secret-file.

    Returns once the mount answers. Both arguments may come from the file of --config.

    \b
    cafsfs mount cafs://127.0.0.1/data /mnt/cafs
    cafsfs mount 'cafs://a;zone=eu,b;zone=us/data?zone=eu' /mnt/cafs
    cmp FILE /mnt/cafs/$(b3sum --no-names FILE)
    cafsfs unmount /mnt/cafs
    """
    arguments = parse_mount_options(mount_options)
    given = arguments.layer.values
    if config is None and "config" in given:
        config = parse_path(given["config"])
    if config is not None:
        config = config.absolute()  # it is read again, from elsewhere
    target = find_target(uri, config, flags, arguments.layer)
    point = mounts.canonical(os.path.expanduser(argument(mountpoint, "mountpoint", target.layers)))
    replan = partial(_plan, uri, config, flags, arguments, point)
    plan = replan({})
    if arguments.remount:
        remount(point, given, arguments.kernel)
        return
    if not background_child:
        check_mount_point(point, nonempty=plan.mount.nonempty)
    foreground = foreground or parse_bool(given.get("foreground", "false"))
    if not (foreground or background_child):
        _spawn(point, click.get_current_context().obj)
        return
    start_logging(plan.log, {"mountpoint": point})
    run_daemon(lambda: _serve(plan, replan, in_background=background_child))


def _plan(
    uri: str | None,
    config: Path | None,
    flags: Mapping[str, str | None],
    arguments: MountArguments,
    point: str,
    options: Mapping[str, str],
) -> MountPlan:
    """What to mount, as all layers say now; ``options`` win over all of them."""
    target = find_target(uri, config, {**flags, **options}, arguments.layer)
    return MountPlan(
        uri=target.uri,
        point=point,
        store=target.store,
        cache=target.resolve(CacheOptions),
        mount=target.resolve(MountOptions),
        log=target.resolve(LogOptions),
        kernel_options=arguments.kernel,
    )


async def _serve(plan: MountPlan, replan: Reread, *, in_background: bool) -> None:
    async def ready(summary: Callable[[], str]) -> None:
        log.info("mounted %s on %s", plan.uri.shown, plan.point)
        if in_background:
            flush_log()  # who has started us sees the warnings of the start
            # Not before: autofs(5) lets systemd's own process group mount on an automount point,
            # and has all others wait until that is done.
            os.setsid()
            os.write(2, _MOUNTED)
            _leave_terminal()
            if plan.log.log_file is None:
                leave_terminal({"mountpoint": plan.point})
        elif "NOTIFY_SOCKET" in os.environ:
            await _be_supervised(plan.point, summary)

    def stopping() -> None:
        if not in_background:
            notify("STOPPING=1")

    def reloading(begins: bool) -> None:
        if not in_background:
            notify_reloading() if begins else notify("READY=1")

    await run_mount(plan, ready, stopping, reread=replan, reloading=reloading)
    log.info("unmounted %s", plan.point)


async def _be_supervised(point: str, summary: Callable[[], str]) -> None:
    """Tell the supervisor how the mount is, until cancelled; raises MountError at the start."""
    if not await answers(point):
        raise MountError(f"cannot mount on `{point}`: the mount does not answer")
    notify(f"READY=1\nSTATUS=mounted on {point}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed_watchdog, point)
        while True:
            await trio.sleep(_STATUS_PERIOD)
            notify(f"STATUS=mounted on {point}: {summary()}")


def check_mount_point(point: str, *, nonempty: bool) -> None:
    """Refuse what cannot be mounted on; raises MountError.

    Looks into mountinfo before it looks at the directory: a hung mount there would hang us. Under a
    dead mount of ours the directory cannot be seen, and was looked at by whoever mounted; it is
    cleared when the new mount is about to come. An automount point waits for us to mount there, and
    whoever looks waits with it.
    """
    there = mounts.find_mount(point)
    if there is not None and there.fstype == mounts.FSTYPE:
        if mounts.is_dead(point):
            return
        raise MountError(
            f"cannot mount on `{point}`: `{there.source}` is mounted there",
            hint=f"unmount it first: cafsfs unmount {point}",
        )
    if there is not None and there.fstype == "autofs":
        return
    try:
        is_directory = stat.S_ISDIR(os.stat(point).st_mode)
        empty = is_directory and not next(os.scandir(point), None)
    except FileNotFoundError:
        raise MountError(
            f"cannot mount on `{point}`: there is no such directory", hint=f"make it: mkdir {point}"
        ) from None
    except OSError as error:
        raise MountError(f"cannot mount on `{point}`: {error.strerror}") from None
    if not is_directory:
        raise MountError(
            f"cannot mount on `{point}`: not a directory", hint="name an empty directory"
        )
    if not (empty or nonempty):
        raise MountError(
            f"cannot mount on `{point}`: directory is not empty",
            hint="pass `--nonempty` to mount over it",
        )


def _spawn(point: str, arguments: list[str]) -> None:
    """Start ourselves again as a daemon, and wait until the mount answers or has failed."""
    child = subprocess.Popen(
        [*_CAFSFS, *arguments[:1], "--background-child", *arguments[1:]],  # these may hold a --
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    said = _listen(child.stderr.fileno())
    mounted = _MOUNTED in said
    said = said.replace(_MOUNTED, b"")
    click.echo(_worth_showing(said, failed=not mounted), err=True, nl=False)
    if not mounted:
        sys.exit(_end(child, point))
    try:
        wait_until_it_answers(point)
    except MountError:
        _end(child, point)
        raise


def _end(child: subprocess.Popen[bytes], point: str) -> int:
    """End a daemon that has failed, and its mount with it; the exit code to end with ourselves."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        return max(1, child.wait(_END_DEADLINE))
    there = mounts.find_mount(point)
    if there is not None and there.fstype == mounts.FSTYPE:
        with suppress(MountError):
            mounts.abort(there)
        with suppress(MountError):
            mounts.detach(point, lazy=True)
    child.kill()
    return 1


def _listen(descriptor: int) -> bytes:
    """What the daemon says until it has mounted, has ended, or has taken too long."""
    said = b""
    end = time.monotonic() + _START_DEADLINE
    while _MOUNTED not in said:
        ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
        if not ready:
            return said + b"error: the mount did not start in time\n"
        more = os.read(descriptor, 1 << 16)
        if not more:
            break
        said += more
    return said


def _worth_showing(said: bytes, *, failed: bool) -> bytes:
    """Of a child that did mount, its warnings only."""
    if failed:
        return said
    lines = said.splitlines(keepends=True)
    return b"".join(line for line in lines if b" INFO " not in line and b" DEBUG " not in line)


def _leave_terminal() -> None:
    """Keep no pipe and no terminal open, and no directory busy."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")
