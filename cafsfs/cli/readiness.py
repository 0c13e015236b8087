"""Does a mount answer? Asked by children, for whoever asks a mount may hang with it."""

from __future__ import annotations

import logging
import subprocess

import trio

from cafsfs.cli.supervisor import watchdog_period, watching
from cafsfs.errors import MountError
from cafsfs.fuse import mounts

log = logging.getLogger(__name__)

ANSWER_DEADLINE = 10.0  # seconds for a fresh mount to answer
_RESPITE = 1.0  # seconds before a watchdog's child that has ended is replaced


def wait_until_it_answers(point: str) -> None:
    """Ask a fresh mount; raises MountError."""
    status, _ = mounts.ask(point, ANSWER_DEADLINE)
    if status is None:
        raise MountError(
            f"cannot mount on `{point}`: the mount does not answer",
            hint="see what it does: add --foreground --log-level debug",
        )
    if status:
        raise MountError(f"cannot mount on `{point}`: the mount answers with an error")


async def answers(point: str) -> bool:
    """As ``wait_until_it_answers``, for the daemon itself, which must never touch its mount.

    The child has none of our descriptors: Python's are not inherited.
    """
    with trio.move_on_after(ANSWER_DEADLINE):
        done = await trio.run_process(
            mounts.probe(point), capture_stdout=True, capture_stderr=True, check=False
        )
        return done.returncode == 0
    return False


async def feed_watchdog(point: str) -> None:
    """Keep the child that asks the mount, if a supervisor has a watchdog; until cancelled."""
    period = watchdog_period()
    while period is not None:
        child = await trio.lowlevel.open_process(watching(point, period), stdin=subprocess.PIPE)
        assert child.stdin is not None
        async with child.stdin:
            try:
                status = await child.wait()
            finally:  # not waiting for it: it may hang as long as the mount does
                child.kill()
        log.warning("who asks the mount for the watchdog has ended with %d: once more", status)
        await trio.sleep(_RESPITE)
