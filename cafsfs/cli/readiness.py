"""Telling a supervisor, or the parent of a background mount, how things stand."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import trio

from cafsfs.errors import MountError

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
    """Ask a mount, from a child that may hang in our place; raises MountError.

    A child that hangs is left behind: it waits in the kernel, and so would we for its end.
    """
    child = subprocess.Popen(
        _probe(point),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + ANSWER_DEADLINE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if child.returncode is None:
        child.kill()
        raise MountError(
            f"`{point}` is mounted but does not answer",
            hint=f"clear it: cafsfs unmount --force {point}",
        )
    if child.returncode:
        raise MountError(f"`{point}` is mounted but answers with an error")


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
