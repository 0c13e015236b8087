"""Telling a supervisor, or the parent of a background mount, how things stand."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import tempfile
import time

import trio

from cafsfs.errors import MountError

_DEAD_DEADLINE = 2.0  # seconds; a dead mount says so at once
ANSWER_DEADLINE = 10.0  # seconds for a fresh mount to answer


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3): a datagram to $NOTIFY_SOCKET); nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return  # a supervisor that does not listen is no reason to fail


def _probe(point: str) -> list[str]:
    """A command that asks the mount for something; in a process of its own, that may hang."""
    return ["stat", "--file-system", "--format=%T", "--", point]


def wait_until_it_answers(point: str) -> None:
    """Ask a fresh mount; raises MountError."""
    status, _ = _ask(point, ANSWER_DEADLINE)
    if status is None:
        raise MountError(
            f"cannot mount on `{point}`: the mount does not answer",
            hint="see what it does: add --foreground --log-level debug",
        )
    if status:
        raise MountError(f"cannot mount on `{point}`: the mount answers with an error")


def is_dead(point: str) -> bool:
    """Has the process behind this mount gone? False also if the mount hangs: it may come back."""
    _, said = _ask(point, _DEAD_DEADLINE)
    return os.strerror(errno.ENOTCONN).encode() in said


def _ask(point: str, deadline: float) -> tuple[int | None, bytes]:
    """Exit status (None: it hangs) and complaint of a child that asks the mount in our place.

    A child that hangs is left behind: it waits in the kernel, and so would we for its end.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            _probe(point),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
        )
        end = time.monotonic() + deadline
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        if child.returncode is None:
            child.kill()
        said.seek(0)
        return child.returncode, said.read()


async def answers(point: str) -> bool:
    """As ``wait_until_it_answers``, for the daemon itself, which must never touch its mount.

    The child has none of our descriptors: Python's are not inherited.
    """
    with trio.move_on_after(ANSWER_DEADLINE):
        done = await trio.run_process(
            _probe(point), capture_stdout=True, capture_stderr=True, check=False
        )
        return done.returncode == 0
    return False
