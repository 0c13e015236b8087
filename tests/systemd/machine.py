"""A machine with a real systemd, in namespaces of its own; looked at as its administrator would.

Nothing of it is to be seen outside, and nothing of it is left when its holder has gone.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.fuse.processes import LEASHED, PATIENCE, Finished, Process, eventually, run
from tests.systemd.tree import CannotBuild, Tree

_BOOT = Path(__file__).with_name("boot.sh")
# What a shell in it would have. HOME is root's: systemd gives its units none.
_ENVIRONMENT = (
    *("env", "--chdir=/", "-i", "HOME=/root", "LC_ALL=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
_SPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net")
_OWN = ("unshare", *_SPACES, "--propagation", "private", "--fork", "--kill-child")
USER = 1000
USER_ENVIRONMENT = ("HOME=/home/joe", "XDG_RUNTIME_DIR=/run/user/1000", "USER=joe")
# The disk, and all hierarchies of control groups that systemd would mount; it makes no groups in
# cpuset. By version 1 it needs one of its own, and mounts version 2 beside it.
_HOLD = """
mount -t tmpfs machine "$0"
if grep -q '^cgroup ' /proc/mounts; then
    mkdir "$0/systemd"
    mount -t cgroup -o none,name=systemd machine "$0/systemd"
fi
while IFS=: read -r number names path; do
    case $names in
        "") kind="cgroup2" ;;
        cpuset) continue ;;
        name=*) kind="cgroup -o none,$names" ;;
        *) kind="cgroup -o $names" ;;
    esac
    mkdir -p "$0/groups/$number"
    mount -t $kind machine "$0/groups/$number"
    echo "$0/groups/$number${path%/}/${0##*/}" >>"$0/own"
done </proc/self/cgroup
echo >"$0/held"
exec sleep 100000
"""
# Two machines in one group would take each other's processes for their own, and remove each
# other's groups: a unit that starts just then fails with 219/CGROUP.
_IN_A_GROUP = """
while read -r group; do
    mkdir "$group"
    echo 0 >"$group/cgroup.procs"
done <"$0"
exec "$@"
"""
_LEAVE_NO_GROUP = """
while read -r group; do
    test ! -e "$group" || find "$group" -depth -type d -exec rmdir {} +
    test ! -e "$group"
done <"$0"
"""


class Machine:
    """A machine whose disk lasts as long as ``with`` does; it boots, halts and boots again."""

    def __init__(self, tree: Tree, disk: Path) -> None:
        self.tree = tree
        self._disk = disk
        self._init: Process | None = None
        self._pid = 0
        self._groups = disk / "own"
        private = ("unshare", "--mount", "--propagation", "private")
        self._holder = Process(*LEASHED, *private, "sh", "-e", "-c", _HOLD, disk)
        self._enter_holder = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--wd=/")
        try:
            held = ("test", "-e", disk / "held")
            eventually(
                lambda: not self._holder.runs or run(*self._enter_holder, *held).code == 0,
                what="the machine has a disk",
            )
            if not self._holder.runs:
                raise CannotBuild(f"no namespace of its own: {self._holder.finish().err}")
        except BaseException:
            self._holder.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._init is not None:
            self._init.end()
            self._clear_up()
        self._holder.end()

    def _clear_up(self) -> None:
        eventually(lambda: not Path(f"/proc/{self._pid}").exists(), what="its init has gone")
        remove = (*self._enter_holder, "sh", "-e", "-c", _LEAVE_NO_GROUP, self._groups)
        eventually(lambda: run(*remove).code == 0, what="its control groups have gone")

    # --- power

    def boot(self) -> None:
        """Returns when systemd says that all is up; raises CannotBuild if there is none."""
        parts = (self._disk, self.tree.debian, self.tree.installed, self.tree.python)
        in_a_group = (*self._enter_holder, "sh", "-e", "-c", _IN_A_GROUP, self._groups)
        self._init = Process(*LEASHED, *in_a_group, *_OWN, "sh", "-e", _BOOT, *parts)
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")

        def started() -> bool:
            assert self._init is not None
            if not self._init.runs:
                raise CannotBuild(f"no machine here: {self._init.finish().err[-500:]}")
            text = children.read_text().split()
            with suppress(FileNotFoundError, ProcessLookupError):  # an earlier child has ended
                if text and Path(f"/proc/{text[0]}/comm").read_text() == "systemd\n":
                    self._pid = int(text[0])
            return bool(self._pid)

        self._pid = 0
        eventually(started, what="systemd has started")
        state = ("systemctl", "is-system-running")
        up = {"running", "degraded"}
        eventually(lambda: self.run(*state).text.strip() in up, what="the machine is up")
        needed = ("systemd-sysusers*", "systemd-tmpfiles*", "cafs*")
        failed = self.systemctl("--failed", "--plain", "--no-legend", *needed).text
        assert not failed, failed + self.run("journalctl", "--no-pager", "-b").text

    @property
    def groups(self) -> set[str]:
        """The control groups of its init, as the machine around it sees them."""
        lines = Path(f"/proc/{self._pid}/cgroup").read_text().splitlines()
        return {line for line in lines if ":cpuset:" not in line}

    def power_off(self) -> float:
        """As an administrator does; returns the seconds that it took."""
        assert self._init is not None
        began = time.monotonic()
        self.run("systemctl", "poweroff")
        assert self._init.ended(PATIENCE), "the machine does not shut down"
        took = time.monotonic() - began
        self._init.end()
        self._init = None
        self._clear_up()
        return took

    # --- commands

    @property
    def enter(self) -> tuple[str, ...]:
        """What is put before a command that is to run in it, as root."""
        return ("nsenter", f"--target={self._pid}", "--all", *_ENVIRONMENT)

    @property
    def enter_as_user(self) -> tuple[str, ...]:
        """The same, as its ordinary user joe."""
        drop = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
        return (*self.enter, *USER_ENVIRONMENT, *drop)

    def run(self, *command: str | Path, within: float = PATIENCE) -> Finished:
        return run(*self.enter, *command, within=within)

    def as_user(self, *command: str | Path) -> Finished:
        return run(*self.enter_as_user, *command)

    def start(self, *command: str | Path) -> Process:
        """As ``run``, but don't wait for it."""
        return Process(*self.enter, *command)

    def cat(self, path: str) -> bytes:
        """Content of a file, seen from the machine's own namespace."""
        return self.run("cat", path).ok().out

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """A file of root's, but not on a mount of ours."""
        outside = Path(f"/proc/{self._pid}/root{path}")
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_bytes(content.encode() if isinstance(content, str) else content)
        outside.chmod(mode)

    # --- units

    def systemctl(self, *words: str) -> Finished:
        return self.run("systemctl", *words)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).ok().text.strip()

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def kill(self, pid: int, number: signal.Signals) -> None:
        """A signal to a process, by the number that it has in the machine."""
        self.run("sh", "-c", f"kill -{number.value} {pid}").ok()

    def processes(self) -> dict[int, list[str]]:
        """The command line of each, by the number that it has in the machine."""
        found = {}
        for each in Path(f"/proc/{self._pid}/root/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                found[int(each.parent.name)] = each.read_text().split("\0")
        return found

    def children(self, pid: int) -> list[int]:
        """Of a process, by the numbers that they have in the machine."""
        script = f'grep -lx "PPid:.{pid}" /proc/[0-9]*/status 2>/dev/null'
        return [int(each.split("/")[2]) for each in self.run("sh", "-c", script).text.split()]

    def journal(self, unit: str, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, *options).text

    def mounts(self, point: str) -> list[str]:
        """The types of what is mounted there, the topmost last; as init sees it."""
        text = self.run("cat", "/proc/1/mountinfo").ok().text
        return [
            line.partition(" - ")[2].split()[0]
            for line in text.splitlines()
            if line.split()[4] == point
        ]
