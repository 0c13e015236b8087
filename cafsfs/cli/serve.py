"""``cafsfs serve``: the embedded server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import click
import trio

from cafsfs.cli.completing import complete_directory
from cafsfs.cli.options import argument, layers, with_options
from cafsfs.cli.supervisor import inherited_sockets, notify, notify_reloading
from cafsfs.cli.talk import run_daemon
from cafsfs.client.servers import Server
from cafsfs.compose import make_server
from cafsfs.config.layers import resolve
from cafsfs.config.options import LogOptions, ServeOptions
from cafsfs.duties import obey_signals, stop_on_signal
from cafsfs.errors import CafsError
from cafsfs.report.dump import describe_tasks
from cafsfs.report.logs import reopen_files, set_level, start_logging
from cafsfs.server import CafsServer

log = logging.getLogger(__name__)


@click.command()
@click.argument("directory", required=False, shell_complete=complete_directory)
@with_options(ServeOptions, LogOptions)
def serve(directory: str | None, config: Path | None, **flags: str | None) -> None:
    """Serve the roots below DIRECTORY to CAFS clients.

    Each root is a directory below DIRECTORY; its blobs stand in ROOT/blobs/ab/cd/, as a CAFS
    server of G-CVSNT keeps them. What is missing below a root is made.

    With --secret-file clients have to authenticate, and what is said is encrypted. With
    --encryption optional, clients from private addresses (loopback, 10.x, 192.168.x, fd…) need
    neither, and are not encrypted if they do.

    \b
    mkdir -p store/data
    cafsfs serve store --listen 127.0.0.1:2403
    cafsfs serve store --listen 0.0.0.0:2403 --secret-file /etc/cafsfs/secret
    cafsfs put cafs://127.0.0.1/data FILE
    """
    found = layers(flags, config)
    start_logging(resolve(LogOptions, found))
    options = resolve(ServeOptions, found)
    path = Path(argument(directory, "directory", found)).absolute()
    if config is not None:
        config = config.absolute()
    level = partial(_log_level, flags, config)
    run_daemon(lambda: _serve(make_server(path, options), path, options, level))


def _log_level(flags: Mapping[str, str | None], config: Path | None) -> str:
    """As all layers say now; raises UsageError."""
    return resolve(LogOptions, layers(flags, config)).log_level


async def _serve(
    server: CafsServer, path: Path, options: ServeOptions, level: Callable[[], str]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signal, partial(_stop, server, options.grace))
        await nursery.start(obey_signals, partial(_reload, level), describe_tasks)
        async with trio.open_nursery() as serving:
            listen = partial(server.serve, inherited=inherited_sockets())
            addresses = await serving.start(listen, options.listen.host, options.listen.port)
            for host, port in addresses:
                log.info("serving %s on %s", path, Server(host, port))
            log.info("%s", server.gate.rule)
            notify("READY=1")
        nursery.cancel_scope.cancel()


def _stop(server: CafsServer, grace: float) -> None:
    notify("STOPPING=1")
    log.info("stopping: transfers have %g s to finish", grace)
    server.stop()


async def _reload(level: Callable[[], str]) -> None:
    """Open the log's file anew, and take its level from the configuration.

    All else of a server needs a restart; clients go on at another one, or try again.
    """
    notify_reloading()
    reopen_files()
    try:
        chosen = await trio.to_thread.run_sync(level)
    except CafsError as error:
        log.error("nothing is changed: %s", error)  # noqa: TRY400  # no bug
    else:
        log.info("reloaded: log-level is %s now; all else needs a restart", chosen)
        set_level(chosen)
    notify("READY=1")
