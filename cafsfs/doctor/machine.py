"""Can this machine mount, and as well as it could? The kernel, its limits, and its helpers."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
from collections.abc import Iterator

from cafsfs.doctor.case import Case, Finding, advice, broken, fine

_CONTAINER = "in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
_CONNECTIONS = "/sys/fs/fuse/connections"
_BACKGROUND = 256  # page-cache requests at once that a mount asks for, see fuse/init_patch.py
_READ_AHEAD = 1024  # KiB, see fuse/session.py
_DESCRIPTORS = 4096  # each blob that is open has one, and each connection
_MARGIN = 1.1  # the kernel asks once more when a read has failed, which costs a tenth


def look_at_device(case: Case) -> Iterator[Finding]:
    """/dev/fuse is there, and lets us in."""
    device = case.file("/dev/fuse")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        yield broken("there is no /dev/fuse", f"as root: modprobe fuse; {_CONTAINER}")
    except OSError as error:
        fix = "as root: modprobe fuse"
        if error.errno in {errno.EACCES, errno.EPERM}:
            fix = "as root: chmod 0666 /dev/fuse"
        yield broken(f"/dev/fuse cannot be opened: {error.strerror}", f"{fix}; {_CONTAINER}")
    else:
        yield fine("/dev/fuse can be opened")


def look_at_fusermount3(case: Case) -> Iterator[Finding]:
    """The program that mounts is installed; and may, where we are not root."""
    path = os.pathsep.join(str(case.file(each)) for each in case.path.split(os.pathsep) if each)
    program = shutil.which("fusermount3", path=path)
    if program is None:
        yield broken("fusermount3 is not installed", "as root: apt-get install fuse3")
        return
    found = os.stat(program)
    if case.uid and not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        yield broken(
            f"{program} is not setuid root, so only root can mount",
            f"as root: chown root {program} && chmod 4755 {program}",
        )
    else:
        yield fine(f"{program} is installed")


def look_at_allow_other(case: Case) -> Iterator[Finding]:
    """Others may be let in, if that is wanted."""
    lines = (case.read("/etc/fuse.conf") or "").splitlines()
    allowed = "user_allow_other" in (line.partition("#")[0].strip() for line in lines)
    if case.uid == 0 or allowed:
        yield fine("--allow-other is allowed")
        return
    fix = r"as root: printf '\nuser_allow_other\n' >>/etc/fuse.conf"
    if case.options.allow_other:
        yield broken("--allow-other is asked for, and not allowed to ordinary users", fix)
    else:
        yield advice("ordinary users may not mount with --allow-other", f"if they are to, {fix}")


def look_at_fusectl(case: Case) -> Iterator[Finding]:
    """A hung mount can be freed by who mounted it."""
    connections = case.file(_CONNECTIONS)
    try:
        there = os.path.ismount(connections) or any(connections.iterdir())
    except OSError:
        there = False
    if there:
        yield fine("fusectl is mounted")
    else:
        yield advice(
            "fusectl is not mounted: only root can free a hung mount, and nobody sees what waits",
            f"as root: mount -t fusectl fusectl {_CONNECTIONS}",
        )


def look_at_request_timeouts(case: Case) -> Iterator[Finding]:
    """The kernel does not end a mount whose server is only slow (Linux 6.14 and later)."""
    patience = case.options.read_timeout * _MARGIN
    limits = {
        name: seconds
        for name in ("default_request_timeout", "max_request_timeout")
        if (seconds := case.number(f"/proc/sys/fs/fuse/{name}"))
    }
    short = {name: seconds for name, seconds in limits.items() if seconds <= patience}
    for name, seconds in short.items():
        yield broken(
            f"the kernel ends a mount whose read takes {seconds} s (fs.fuse.{name}), and one may "
            f"wait for {case.options.read_timeout:g} s",
            f"as root: sysctl fs.fuse.{name}=0; or mount with a shorter --read-timeout",
        )
    if not short:
        yield fine("the kernel gives requests the time that they may take")


def look_at_background(case: Case) -> Iterator[Finding]:
    """Reads that wait for one blob do not hold up those of others."""
    most = case.number("/sys/module/fuse/parameters/max_user_bgreq")
    if case.uid and most is not None and most < _BACKGROUND:
        yield advice(
            f"the kernel lets {most} reads of an ordinary user's mount through at once, so some "
            "that wait for a server can hold up others",
            f"as root: echo {_BACKGROUND} >/sys/module/fuse/parameters/max_user_bgreq",
        )
    else:
        yield fine(f"the kernel lets {_BACKGROUND} reads through at once")


def look_at_descriptors(_case: Case) -> Iterator[Finding]:
    """Many blobs can be open at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        yield advice(
            f"a process may have {hard} files open here, and each open blob is one",
            f"LimitNOFILE=1048576 in the unit; in a shell, as root: ulimit -n {_DESCRIPTORS}",
        )
    else:
        yield fine("a process may have enough files open")


def look_at_live_kernel(case: Case) -> Iterator[Finding]:
    """What the kernel does for the mount that is examined, by what the mount tells."""
    if case.mount is None or not case.mount.status:
        return
    kernel = case.mount.status["kernel"]
    if not kernel.get("parallel_lookups"):
        yield advice(
            "lookups in this mount run one at a time: the kernel was not asked for more",
            "see the first warning in its log; a kernel of 4.7 or later, and libfuse 3, can",
        )
    background, ahead = kernel.get("max_background"), kernel.get("read_ahead_kb")
    minor = kernel.get("minor")
    if background is not None and background < _BACKGROUND:
        yield advice(
            f"the kernel lets {background} reads of this mount through at once",
            f"as its user: echo {_BACKGROUND} >{_CONNECTIONS}/{minor}/max_background",
        )
    if ahead is not None and ahead < _READ_AHEAD:
        yield advice(
            f"the kernel reads {ahead} KiB of this mount ahead; {_READ_AHEAD} are faster by half",
            f"as root: echo {_READ_AHEAD} >/sys/class/bdi/0:{minor}/read_ahead_kb",
        )
