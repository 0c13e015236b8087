"""What a daemon does besides serving requests: it obeys signals and, if it mounts, commands."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from cafsfs import sharing
from cafsfs.control import Handler, serve_control
from cafsfs.errors import StoreError
from cafsfs.reloading import RELOAD, Reloading
from cafsfs.report.dump import log_dump
from cafsfs.report.ours import DUMP, STATUS
from cafsfs.report.status import Status
from cafsfs.store.cache.disk_cache import DiskCache

log = logging.getLogger(__name__)


async def stop_on_signal(
    *deeds: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM, SIGINT: do ``deeds``, in their order."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            for each in deeds:
                each()


async def obey_signals(
    reload: Callable[[], Awaitable[None]],
    tell: Callable[[], list[str]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGHUP: ``reload``. SIGUSR1: have in the log what ``tell`` says, line by line."""
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGUSR1) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGUSR1:
                log_dump(tell())
            else:
                await reload()


def commands(
    changing: Reloading, cache: DiskCache, status: Status, tell: Callable[[], list[str]]
) -> dict[str, Handler]:
    """What the control socket of a mount is asked."""

    async def tell_status(_: dict[str, Any]) -> dict[str, object]:
        return status.stats()

    async def tell_tasks(_: dict[str, Any]) -> dict[str, object]:
        return {"dump": "".join(f"{line}\n" for line in tell())}

    return {
        STATUS: tell_status,
        DUMP: tell_tasks,
        RELOAD: changing.command,
        **sharing.handlers(cache, changing.plan.point),
    }


async def obey_commands(nursery: trio.Nursery, handlers: dict[str, Handler]) -> None:
    """Answer at the control socket from now on, if there can be one."""
    try:
        await nursery.start(serve_control, handlers)
    except StoreError as error:  # a mount without it is a mount all the same
        log.warning("commands cannot reach this mount: %s", error)
