"""One mount from attaching to detaching. One per process: pyfuse3's session is global.

In order: attach (fusermount3), INIT through a socket pair (see ``init_patch``), the loop, and at
the end, whatever ended it: fail all waiters, leave the loop, detach. The daemon never touches its
own mount: a statvfs in a thread, while a handler hangs, would leave a zombie that even SIGKILL
does not end (tried).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pyfuse3
import trio

from cafsfs.errors import CafsError, MountError, Unavailable
from cafsfs.fuse import mounts
from cafsfs.fuse.init_patch import MAX_BACKGROUND, patch_answer
from cafsfs.fuse.operations import Operations
from cafsfs.metrics import Metrics
from cafsfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

# pyfuse3's default of 99 would hold back requests before max_background (256) does, and a task
# that waits costs next to nothing.
_MAX_TASKS = 1024
_INIT_DEADLINE = 10.0  # seconds for the kernel to send INIT and for libfuse to answer
_READ_AHEAD = 1024  # KiB; the kernel's own is 128, so a request is that large at the most
_MESSAGE = 1 << 16  # bytes; INIT and its answer have about 100
# What a lookup may wait for the network where lookups run one at a time.
_HURRIED_LOOKUP = 1.0  # seconds
_DROPPERS = 8  # threads
_UNASKED_BACKGROUND = 12  # page-cache requests at once, where the kernel was not asked for more
_LEFT_FREE = 4  # of them, for reads of other blobs than the stalled ones
_NUDGE = 0.05  # seconds between attempts to end pyfuse3's first loop
_LONGEST_FREEZE = 2.0  # seconds; a wake-up so often costs nothing that could be measured


class Session:
    """The FUSE session of ``filesystem`` at mount point ``point`` (see ``mounts.canonical``).

    ``options`` are mount options as fusermount3 takes them. ``patched`` tells, once ``run`` has
    reported ready, whether the kernel was asked for parallel lookups and more background requests.
    """

    def __init__(
        self, filesystem: FileSystem, point: str, options: Sequence[str], metrics: Metrics
    ) -> None:
        self._filesystem = filesystem
        self._point = point
        self._options = tuple(options)
        self._operations = Operations(filesystem, metrics)
        self._stopping = False
        self._initialised = False
        self._running = False
        self._minor: int | None = None
        self._served = False
        self._invalidator = trio.CapacityLimiter(1)
        # Apart from the other: what drops pages waits for each that is being read.
        self._dropper = trio.CapacityLimiter(_DROPPERS)
        self._drops = 0  # under way
        self._mounter = trio.CapacityLimiter(1)
        self.patched = False

    @property
    def kernel_settings(self) -> dict[str, int | bool | None]:
        """What the kernel does for this mount, for stats.json."""
        seen = {} if self._minor is None else mounts.kernel_settings(self._minor)
        tasks = {"parallel_lookups": self.patched, "max_tasks": _MAX_TASKS}
        return {"minor": self._minor, **tasks, **seen}

    async def run(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Mount, serve until unmounted, aborted or stopped, and leave nothing mounted.

        ``ready`` is called when requests are being answered. Raises MountError.
        """
        leave_dead = False
        fuse = await trio.to_thread.run_sync(
            mounts.attach, self._point, self._options, limiter=self._mounter
        )
        logging.getLogger("pyfuse3").addFilter(_is_news)
        try:
            mounted = mounts.find_mount(self._point)
            self._minor = None if mounted is None else mounted.minor
            await self._start(fuse)
            if not self.patched:
                self._make_do()
            if not self._stopping:
                await self._serve(fuse, ready)
        except Exception:
            # As after a crash: a mirror job must see an error there, not an empty directory. Who
            # mounts again clears it.
            leave_dead = self._served
            raise
        finally:
            if self._initialised:
                pyfuse3.close(unmount=False)
            os.close(fuse)
            logging.getLogger("pyfuse3").removeFilter(_is_news)
            if not leave_dead:
                with trio.CancelScope(shield=True):
                    await self._detach()

    async def _serve(self, fuse: int, ready: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            self._forward_invalidations(nursery)
            nursery.start_soon(self._watch_for_the_end, fuse)
            nursery.start_soon(self._read_further_ahead)
            nursery.start_soon(ready)
            self._running = self._served = True
            try:
                with _interrupted_now_and_then():
                    await pyfuse3.main(max_tasks=_MAX_TASKS)
            finally:
                self._running = False
                nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Fail all waiters and end the loop: ``run`` then detaches and returns."""
        self._stopping = True
        self._filesystem.fail_waiters(_going_away())
        self._end_loop()

    def _end_loop(self) -> None:
        """Not while the kernel drops pages: it waits for READs, and who else would answer them?"""
        if self._stopping and self._running and not self._drops:
            pyfuse3.terminate()

    # --- INIT

    async def _start(self, fuse: int) -> None:
        """Bring pyfuse3's session past INIT, on the real descriptor."""
        with trio.move_on_after(_INIT_DEADLINE) as scope:
            await trio.lowlevel.wait_readable(fuse)
            trio.lowlevel.notify_closing(fuse)  # it will be polled under another number
            request = os.read(fuse, _MESSAGE)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                ours.setblocking(False)
                number = theirs.detach()
                pyfuse3.init(self._operations, f"/dev/fd/{number}", set())
                self._initialised = True
                ours.send(request)
                answer = await _answer_to_init(ours, number)
                os.dup2(fuse, number, inheritable=False)
            os.write(fuse, self._patched(request, answer))
        if scope.cancelled_caught:
            raise MountError(f"the kernel did not start `{self._point}` in {_INIT_DEADLINE:g} s")

    def _patched(self, request: bytes, answer: bytes) -> bytes:
        try:
            patched = patch_answer(request, answer)
        except MountError as error:
            self._filesystem.hurry_lookups(_HURRIED_LOOKUP)
            log.warning(
                "%s: mounted without; lookups run one at a time and wait %g s at most",
                *(error, _HURRIED_LOOKUP),
            )
            return answer
        self.patched = True
        return patched

    def _make_do(self) -> None:
        """Without the patch: by the kernel's files, or by letting few stalled reads wait.

        The kernel holds up every read of the mount while max_background of them wait.
        """
        allowed = _UNASKED_BACKGROUND
        if self._minor is not None:
            with contextlib.suppress(OSError):  # no fusectl filesystem, or not ours to write to
                mounts.set_max_background(self._minor, MAX_BACKGROUND)
            allowed = mounts.kernel_settings(self._minor)["max_background"] or allowed
        if allowed < MAX_BACKGROUND:
            self._filesystem.limit_stalled_reads(max(1, allowed - _LEFT_FREE))

    # --- while it runs

    async def _read_further_ahead(self) -> None:
        """Larger requests: a first read of a cached blob is twice as fast, where we may ask for it.

        Not before the first request: until then the kernel sets it back (tried). A file has the
        value that stood when it was opened.
        """
        await self._operations.answering.wait()
        if self._minor is not None:
            with contextlib.suppress(OSError):  # who is not root may not, nor in some containers
                mounts.set_read_ahead(self._minor, _READ_AHEAD)

    async def _watch_for_the_end(self, fuse: int) -> None:
        """Fail the waiters when the kernel ends the connection (umount -f, abort).

        ``pyfuse3.main`` returns only when every handler has. An epoll that is asked for nothing
        still reports errors, so this wakes up once and not with each request.
        """
        with contextlib.closing(select.epoll()) as epoll:
            epoll.register(fuse, 0)
            await trio.lowlevel.wait_readable(epoll.fileno())
            trio.lowlevel.notify_closing(epoll.fileno())
        self._filesystem.fail_waiters(_going_away())

    def _forward_invalidations(self, nursery: trio.Nursery) -> None:
        def on_stale(inode: int) -> None:
            if self._running:
                nursery.start_soon(self._invalidate, inode)

        def on_spoilt(inode: int) -> None:
            if self._running:
                self._drops += 1
                nursery.start_soon(self._drop_pages, inode)
            else:
                self._filesystem.pages_dropped(inode)

        self._filesystem.on_stale = on_stale
        self._filesystem.on_spoilt = on_spoilt

    async def _invalidate(self, inode: int) -> None:
        """Tell the kernel to ask again for attributes; in a thread, for it takes kernel locks.

        Attributes only: dropping pages while a READ of that inode waits deadlocks the daemon in
        the kernel (tried).
        """
        await trio.to_thread.run_sync(_forget, inode, True, limiter=self._invalidator)

    async def _drop_pages(self, inode: int) -> None:
        """Have the kernel forget what it has of a file; no READ of it waits, for all fail."""
        try:
            await trio.to_thread.run_sync(_forget, inode, False, limiter=self._dropper)
        finally:
            self._drops -= 1
            self._filesystem.pages_dropped(inode)
            self._end_loop()

    async def _detach(self) -> None:
        """Unmount what is still there and is ours; by its minor number, never by a look at it."""
        mounted = mounts.find_mount(self._point)
        if mounted is None or mounted.minor != self._minor or mounted.fstype != mounts.FSTYPE:
            return
        try:
            await trio.to_thread.run_sync(
                lambda: mounts.detach(self._point, lazy=True), limiter=self._mounter
            )
        except CafsError as error:
            log.warning("%s", error)


@contextlib.contextmanager
def _interrupted_now_and_then() -> Iterator[None]:
    """Have the main thread interrupted, for it may be frozen.

    pyfuse3 reads a request when it has seen that there is one, blocking and with the GIL held. If
    it has been withdrawn by then, for its process was killed, all threads stand still until the
    next one comes (tried). A signal fails that read with EINTR, and pyfuse3 waits again as it
    should; a descriptor that does not block would end its loop.
    """
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_FREEZE, _LONGEST_FREEZE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _forget(inode: int, attributes_only: bool) -> None:
    # The kernel may have forgotten the inode, or the whole connection may be gone.
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=attributes_only)


async def _answer_to_init(ours: socket.socket, number: int) -> bytes:
    """Run pyfuse3 on its end of the pair until it has answered, then let its loop end."""
    answer = b""
    async with trio.open_nursery() as nursery:
        loop = trio.Event()

        async def run_loop() -> None:
            await pyfuse3.main(max_tasks=_MAX_TASKS)
            loop.set()

        nursery.start_soon(run_loop)
        await trio.lowlevel.wait_readable(ours)
        answer = ours.recv(_MESSAGE)
        while not loop.is_set():
            trio.lowlevel.notify_closing(number)
            with trio.move_on_after(_NUDGE):
                await loop.wait()
    trio.lowlevel.notify_closing(ours)
    return answer


def _is_news(record: logging.LogRecord) -> bool:
    """Keep pyfuse3 from reporting as errors that the kernel has cut requests off, on abort.

    It says ENOENT then: it knows of nobody who waits for that answer.
    """
    cut = os.strerror(errno.ENOENT)
    return not (record.args == (cut,) and "fuse_reply_* failed" in str(record.msg))


def _going_away() -> Unavailable:
    return Unavailable("the filesystem is being unmounted")
