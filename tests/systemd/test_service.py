"""``cafsfs@.service``: what it gives that no other way of mounting does."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

import pytest

from tests.fuse.processes import eventually
from tests.systemd.machine import Machine
from tests.systemd.service import DEAD, SERVER, Blob, Service, put_blob

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

Making = Callable[..., Service]

RESTART = 1.0  # seconds, says the unit
WATCHDOG = 2.0  # seconds, so that no test takes half a minute
# Seconds that systemd's own work may take on two busy cores. For a daemon's start, which takes one,
# there is no bound but patience: with a load of 20 it was not done in 6.
BUSY = 2.0


@pytest.fixture
def mounted(service: Making) -> Service:
    made = service("cafs", "allow-other = true")
    made.start()
    return made


def test_the_mount_is_seen_by_everybody(mounted: Service, blob: Blob) -> None:
    assert mounted.types() == ["fuse.cafsfs"]
    mounted.read(blob)
    done = mounted.machine.as_user("cat", mounted.path(blob)).ok()
    assert done.out == blob.content


def test_its_directories_are_roots_alone(mounted: Service) -> None:
    directories = ("/var/lib/cafsfs-mounts/cafs", "/var/cache/cafsfs", "/run/cafsfs")
    shown = mounted.machine.run("stat", "-c", "%U %a", *directories).ok().text
    assert shown == "root 700\n" * 3


def test_its_status_tells_hit_rate_bytes_and_servers(mounted: Service, blob: Blob) -> None:
    assert mounted.show("StatusText").startswith(f"mounted on {mounted.point}")
    mounted.read(blob)
    told = lambda: "opens from the cache" in mounted.show("StatusText")  # noqa: E731
    eventually(told, what="its status tells of opens")
    text = mounted.show("StatusText")
    assert "MiB cached" in text
    assert "MiB pulled" in text
    assert text.endswith("1 of 1 servers up")


def test_stopping_leaves_nothing(mounted: Service, blob: Blob) -> None:
    mounted.read(blob)
    mounted.stop()
    assert mounted.show("Result") == "success"
    assert mounted.show("ActiveState") == "inactive"
    assert mounted.look().ok().text == ""


def test_killed_it_is_back_after_its_restart_time(mounted: Service, blob: Blob) -> None:
    before = mounted.pid
    mounted.machine.kill(before, signal.SIGKILL)
    eventually(lambda: DEAD in mounted.look().err, what="an error where the mount was")
    took = mounted.comes_back(before)
    assert mounted.delay("Main process exited", "Scheduled restart job") < RESTART + BUSY
    mounted.read(blob)
    assert mounted.types() == ["fuse.cafsfs"]  # the dead one has gone
    print(f"back after {took:.2f} s")


_CAN_MOUNT_BENEATH = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 5)

# Looks all the time, and prints for how many seconds it has seen no name and no error.
_MIRROR = """
import os, sys, time
point, seconds = sys.argv[1], float(sys.argv[2])
end, last, empty, dead = time.monotonic() + seconds, time.monotonic(), 0.0, 0
while time.monotonic() < end:
    time.sleep(0.0005)
    try:
        names = os.listdir(point)
    except OSError:
        names, dead = None, dead + 1
    now = time.monotonic()
    empty, last = empty + (now - last if names == [] else 0), now
print(empty, dead)
"""


def test_a_mirror_job_sees_an_error_while_it_is_dead(mounted: Service) -> None:
    """And not an empty directory: the new mount is there before the old one goes."""
    machine, before = mounted.machine, mounted.pid
    with machine.start("python3", "-c", _MIRROR, mounted.point, "5") as mirror:
        machine.kill(before, signal.SIGKILL)
        mounted.comes_back(before)
        empty, dead = mirror.finish().ok().text.split()
    assert int(dead) > 100
    assert float(empty) <= (0 if _CAN_MOUNT_BENEATH else 0.2)


def test_killed_and_stopped_it_stays_dead_until_it_is_started(mounted: Service, blob: Blob) -> None:
    mounted.drop_in("RestartSec=20")
    mounted.machine.kill(mounted.pid, signal.SIGKILL)
    eventually(lambda: mounted.show("SubState") == "auto-restart", what="it waits to restart")
    mounted.machine.systemctl("stop", mounted.unit).ok()
    assert mounted.types() == ["fuse.cafsfs"]
    assert DEAD in mounted.look().err
    mounted.start()
    mounted.read(blob)
    assert mounted.types() == ["fuse.cafsfs"]


@pytest.fixture
def watched(service: Making) -> Service:
    """With a watchdog that does not take half a minute."""
    made = service("watched", "connect-timeout = 60")  # 5 s would end readers first
    made.drop_in(f"WatchdogSec={WATCHDOG}")
    made.start()
    return made


def test_frozen_it_is_restarted_by_the_watchdog(watched: Service, blob: Blob) -> None:
    before = watched.pid
    watched.machine.kill(before, signal.SIGSTOP)
    took = watched.comes_back(before)
    watched.read(blob)
    said = watched.machine.journal(watched.unit)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said  # and where each thread was
    print(f"back after {took:.2f} s")


def test_the_watchdog_is_fed_while_readers_wait_for_a_server(watched: Service) -> None:
    machine, before = watched.machine, watched.pid
    blob = put_blob(machine, 3_000_000)
    machine.run("stat", watched.path(blob)).ok()
    machine.kill(machine.main_pid(SERVER), signal.SIGSTOP)
    with watched.reading(blob) as reader:
        assert not reader.ended(within=3 * WATCHDOG)
        assert watched.pid == before
        machine.kill(machine.main_pid(SERVER), signal.SIGCONT)
        assert reader.finish().ok().out == blob.content


def test_a_reader_who_waits_when_the_watchdog_strikes_gets_an_error(watched: Service) -> None:
    machine, before = watched.machine, watched.pid
    blob = put_blob(machine, 3_000_000)
    machine.run("stat", watched.path(blob)).ok()
    machine.kill(machine.main_pid(SERVER), signal.SIGSTOP)
    with watched.reading(blob) as reader:
        assert not reader.ended(within=0.5)
        machine.kill(before, signal.SIGSTOP)
        watched.comes_back(before)
        assert reader.finish(BUSY).code == 1
    machine.kill(machine.main_pid(SERVER), signal.SIGCONT)
    watched.read(blob)


def test_the_child_that_asks_holds_no_descriptor_of_the_session(watched: Service) -> None:
    machine = watched.machine
    eventually(lambda: machine.children(watched.pid), what="a child")
    [child] = machine.children(watched.pid)
    assert "/dev/fuse" not in machine.run("ls", "-l", f"/proc/{child}/fd").ok().text
    assert "/dev/fuse" in machine.run("ls", "-l", f"/proc/{watched.pid}/fd").ok().text
    machine.kill(child, signal.SIGKILL)
    another = lambda: machine.children(watched.pid) not in ([], [child])  # noqa: E731
    eventually(another, what="another child in its place")


@pytest.mark.parametrize("how", ["frozen", "gone"])
def test_it_stops_at_once_when_a_server_is_down(service: Making, how: str) -> None:
    """Before any deadline of a server or of a reader, and before systemd has to kill it."""
    patient = ("connect", "answer", "progress", "lookup", "read")
    mounted = service("patient", *(f"{each}-timeout = 600" for each in patient))
    mounted.start()
    machine = mounted.machine
    blob = put_blob(machine, 3_000_000)
    machine.run("stat", mounted.path(blob)).ok()
    machine.kill(machine.main_pid(SERVER), signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
    with mounted.reading(blob) as reader:
        reader.ended(within=0.5)
        assert mounted.stop() < 30  # TimeoutStopSec
        assert reader.finish(BUSY).code in ({1} if how == "frozen" else {0, 1})
    assert mounted.show("Result") == "success"


def test_unmounted_by_hand_it_comes_back(mounted: Service, blob: Blob) -> None:
    """Only `systemctl stop` says that it is not wanted any more."""
    before = mounted.pid
    mounted.machine.run("umount", mounted.point).ok()
    mounted.comes_back(before)
    mounted.read(blob)


def test_a_wrong_configuration_is_not_tried_again(service: Making) -> None:
    made = service("wrong", 'cache-size = "much"')
    assert made.machine.systemctl("start", made.unit).code == 1
    assert made.show("NRestarts") == "0"
    assert "`much` is no value for --cache-size" in made.machine.journal(made.unit)


def test_reloading_changes_what_can_change(mounted: Service, blob: Blob) -> None:
    """And says what cannot; the mount stays, and so does what is open."""
    before = mounted.pid
    mounted.configure('cache-size = "3G"', 'log-level = "debug"', "uid = 7")
    mounted.machine.systemctl("reload", mounted.unit).ok()
    path = f"{mounted.point}/.cafsfs/stats.json"
    bound = lambda: b'"bound_bytes": 3221225472' in mounted.machine.cat(path)  # noqa: E731
    eventually(bound, what="the new bound")
    mounted.read(blob)
    active = lambda: mounted.show("ActiveState") == "active"  # noqa: E731
    eventually(active, what="it has reloaded")
    assert mounted.pid == before
    assert mounted.types() == ["fuse.cafsfs"]
    said = mounted.machine.journal(mounted.unit)
    assert "Reloaded cafsfs@cafs.service" in said
    assert "uid stays as it was until it is mounted anew" in said


def test_two_mounts_live_and_end_by_themselves(
    mounted: Service, service: Making, blob: Blob
) -> None:
    """They share a cache, and the directory of their control sockets."""
    other = service("other")
    other.start()
    other.read(blob)
    sockets = [f"{each.pid}.sock" for each in (mounted, other)]
    assert set(sockets) <= set(mounted.machine.run("ls", "/run/cafsfs").ok().text.split())
    other.stop()
    left = mounted.machine.run("ls", "/run/cafsfs").ok().text.split()
    assert [each in left for each in sockets] == [True, False]
    mounted.read(blob)


# Prints what an open file gives before and after the end of its daemon; waits in between.
_READER = """
import errno, os, sys
def read(offset):
    try:
        print(len(os.pread(file, 4096, offset)), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
file = os.open(sys.argv[1], os.O_RDONLY)
read(0)
open("/run/hold").read()
read(0)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
read(0)
print(os.stat(sys.argv[1]).st_size)
"""


def test_what_readers_see_of_a_restart(mounted: Service) -> None:
    """README: what the kernel has of an open file is still read, the rest fails with ENOTCONN."""
    machine, before = mounted.machine, mounted.pid
    blob = put_blob(machine, 3_000_000)
    mounted.read(blob)
    machine.run("mkfifo", "/run/hold").ok()
    with machine.start("python3", "-c", _READER, mounted.path(blob)) as reader:
        # Opening a FIFO for writing waits until somebody has opened it for reading.
        with machine.start(
            "sh", "-c", "exec >/run/hold && systemctl restart $0", mounted.unit
        ) as it:
            it.finish().ok()
        assert reader.finish().ok().text.split() == ["4096", "4096", "ENOTCONN", "3000000"]
    assert mounted.pid != before
    assert mounted.types() == ["fuse.cafsfs"]
    mounted.read(blob)


def test_a_secret_comes_as_a_credential(service: Making, server: Machine) -> None:
    """And neither the daemon's arguments nor its environment hold it."""
    secret = "correct horse battery staple"
    for instance in ("guarded", "locked"):
        server.write(f"/etc/credstore/cafsfs-{instance}", secret + "\n", mode=0o600)
    server.write(
        "/etc/cafsfs/locked.toml",
        'directory = "/var/lib/cafsfs/locked"\nlisten = "127.0.0.1:2500"\n',
    )
    server.systemctl("start", "cafsfs-serve@locked.service").ok()
    server.run("install", "-d", "-o", "cafsfs", "/var/lib/cafsfs/locked/data").ok()
    uri = "cafs://127.0.0.1:2500/data"
    content = b"known to the few" * 100
    server.write("/run/blob", content)
    secret_file = "/etc/credstore/cafsfs-guarded"
    said = server.run("cafsfs", "put", "--secret-file", secret_file, uri, "/run/blob").ok().text
    made = service("guarded", 'auth = "required"', uri=uri)
    made.start()
    assert server.cat(f"{made.point}/{said.split()[0]}") == content
    for name in ("cmdline", "environ"):
        assert secret.encode() not in server.run("cat", f"/proc/{made.pid}/{name}").ok().out
    server.systemctl("stop", "cafsfs-serve@locked.service").ok()
