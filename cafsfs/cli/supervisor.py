"""What a supervisor is told, and the child that asks the mount in the place of its daemon.

A daemon must not touch its own mount: if a handler hangs, it could not even be killed. And it
cannot ask itself whether it is well. So a child asks, which holds no descriptor of the session, and
tells the supervisor itself that the mount answers.

The child runs this file by itself, without `site`: nothing but the standard library in here, and
little of that. It has 9 MiB, of which it shares most with others.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

_LONGEST_PERIOD = 5.0  # seconds between two questions, whatever the watchdog allows
_SHARE = 4  # of the watchdog's time, so that one slow answer is not the end
_SLOW = 2.0  # seconds for an answer that is worth a line
_FIRST_INHERITED = 3  # descriptor, says sd_listen_fds(3)


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


def notify_reloading() -> None:
    """Say that the configuration is being read again; READY=1 says that this is done."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify(f"RELOADING=1\nMONOTONIC_USEC={now}")


def inherited_sockets() -> list[socket.socket]:
    """What a supervisor listens on for us (sd_listen_fds(3)); whoever we start does not get it."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    found = []
    for number in range(_FIRST_INHERITED, _FIRST_INHERITED + count):
        os.set_inheritable(number, False)
        found.append(socket.socket(fileno=number))
    return found


def watchdog_period() -> float | None:
    """Seconds between two questions, if a supervisor wants to hear that the mount answers."""
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
        ours = int(os.environ.get("WATCHDOG_PID", "0")) in {0, os.getpid()}
    except ValueError:
        return None
    return min(allowed / _SHARE, _LONGEST_PERIOD) if ours and allowed > 0 else None


def watching(point: str, period: float) -> list[str]:
    """The command of the child that asks the mount; it ends when its standard input does."""
    # -I: nothing of the user's, nothing from the working directory.
    return [sys.executable, "-I", "-S", __file__, str(period), point]


def watch(point: str, period: float) -> None:
    """Ask the mount, and tell the supervisor when it has answered; until the daemon has gone."""
    gone = False
    while not gone:
        began = time.monotonic()
        try:
            os.statvfs(point)  # never from the kernel's memory: it goes through the daemon's loop
        except OSError as error:
            print(f"`{point}` answers with an error: {error.strerror}", file=sys.stderr, flush=True)
        else:
            notify("WATCHDOG=1")
            took = time.monotonic() - began
            if took > _SLOW:
                print(f"`{point}` took {took:.1f} s to answer", file=sys.stderr, flush=True)
        gone = bool(select.select([0], [], [], period)[0])


if __name__ == "__main__":
    watch(sys.argv[2], float(sys.argv[1]))
