"""The filesystem without FUSE: lookups, attributes, reads and their deadlines.

Everything here raises CafsError; ``fuse/`` turns that into an errno and nothing else. Deadlines
(section 4 of the design): lookup and getattr have a total one, because a process that waits in
them cannot be killed; a read has one for time without progress of its pull, because a total one
would make a large blob on a slow line unreadable.
"""

from __future__ import annotations

import logging
import math
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import trio

from cafsfs.digest import Digest
from cafsfs.errors import (
    CafsError,
    CorruptBlob,
    NoSuchName,
    NotSupported,
    StaleInode,
    TimedOut,
)
from cafsfs.metrics import Metrics
from cafsfs.store.cache.index import Listed
from cafsfs.store.read_caching import HELD_BACK, OpenBlob, ReadCachingStore
from cafsfs.vfs.names import parse_blob_name
from cafsfs.vfs.nodes import BlobNode, BlobTable, ControlFile, Fixed, Node

log = logging.getLogger(__name__)

FOREVER = 10 * 365 * 86400.0  # seconds; immutable means: in the kernel for good
ABSENT_FOR = 3.0  # seconds that the kernel may remember that a blob is absent
_UNSETTLED = 1.0  # seconds that attributes of a blob may be remembered while it is not complete
_CONTROL_FIRST = 16  # inode number of the first file below .cafsfs/
_SECTOR = 512  # bytes; what st_blocks counts in
# A constant, for what is named by its hash has no history: 2000-01-01, because zip knows no time
# before 1980 and many tools take 0 for "unknown".
BLOB_TIME_NS = 946_684_800 * 10**9
_XATTR_PREFIX = b"user.cafs."


@dataclass(frozen=True, slots=True, kw_only=True)
class VfsOptions:
    """``lookup_deadline``: seconds in all; ``read_patience``: seconds without progress.

    ``uid`` and ``gid`` own everything. ``born_ns`` is the time that directories show, in
    nanoseconds: when the mount began, as in /proc.
    """

    uid: int
    gid: int
    born_ns: int
    lookup_deadline: float = 5.0
    read_patience: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What stat shows. Sizes in bytes, times in nanoseconds, ``remember`` in seconds."""

    inode: int
    mode: int
    size: int
    blocks: int
    time_ns: int
    remember: float


@dataclass(frozen=True, slots=True)
class Space:
    """What df shows, in bytes and files."""

    total: int
    used: int
    files: int


@dataclass(slots=True)
class _OpenFile:
    blob: OpenBlob
    node: BlobNode
    pid: int


@dataclass(slots=True)
class _OpenControl:
    inode: int
    content: bytes


@dataclass(slots=True)
class _OpenDirectory:
    entries: list[tuple[bytes, Listed | Fixed]]


class FileSystem:
    """The tree of one mount over one store.

    ``control`` maps the names below ``.cafsfs/`` to what renders their content, in milliseconds.
    ``on_stale(inode)`` is called when attributes that the kernel holds are no longer true;
    ``on_spoilt(inode)`` when it is to drop what it holds of the content, for that was never
    verified, or could be taken for the end of what will not be: ``pages_dropped`` is to be called
    then. Until that the file cannot be opened, and all who have it open are answered with an error
    at once.
    """

    def __init__(
        self,
        store: ReadCachingStore,
        options: VfsOptions,
        control: Mapping[str, Callable[[], Awaitable[bytes]]],
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self.options = options
        self._hurry = math.inf  # seconds for a lookup at most, whatever the options say
        self._control = dict(control)
        self._control_nodes = {
            name: ControlFile(name, _CONTROL_FIRST + index) for index, name in enumerate(control)
        }
        self._standing: dict[int, Node] = {
            **{fixed.value: fixed for fixed in Fixed},
            **{node.inode: node for node in self._control_nodes.values()},
        }
        self._metrics = metrics or Metrics()
        self._blobs = BlobTable()
        self._handles: dict[int, _OpenFile | _OpenControl | _OpenDirectory] = {}
        self._last_handle = 0
        self._ending: CafsError | None = None  # why nothing may wait any more
        self._dropping: dict[int, trio.Event] = {}
        self.on_stale: Callable[[int], None] = lambda _: None
        self.on_spoilt: Callable[[int], None] = self.pages_dropped

    def hurry_lookups(self, deadline: float) -> None:
        """Let lookups wait ``deadline`` seconds at most, where they hinder each other."""
        self._hurry = min(self._hurry, deadline)

    def set_deadlines(self, *, lookup: float, read: float) -> None:
        """Have lookups, and reads without progress, wait for so many seconds from now on."""
        self.options = replace(self.options, lookup_deadline=lookup, read_patience=read)

    @property
    def _lookup_deadline(self) -> float:
        return min(self._hurry, self.options.lookup_deadline)

    def limit_stalled_reads(self, count: int) -> None:
        """Let so many reads wait at once for pulls that do not move; further ones fail.

        For where the kernel lets only so many through, and others would wait behind them.
        """
        self._store.stalled.limit = count

    # --- names

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        """Find ``name``; counts as a reference that ``forget`` drops.

        Raises NoSuchName for what can be no name, without asking anybody; BlobNotFound, and
        whatever tells why nobody could tell.
        """
        self._metrics.lookups += 1
        directory = self._node(parent)
        fixed = self._lookup_fixed(directory, name)
        if isinstance(fixed, ControlFile):
            return await self._control_attributes(fixed)
        if fixed is not None:
            return self._attributes(fixed)
        digest = None
        if directory is Fixed.ROOT or directory is Fixed.BLAKE3:
            digest = parse_blob_name(name)
        if digest is None:
            raise NoSuchName(f"no such name: {name!r}")
        size = await self._size(digest)
        # No checkpoint from here on: nobody forgets the node before it is counted.
        node = self._blobs.add(digest, size)
        node.lookups += 1
        return self._attributes(node)

    def _lookup_fixed(self, directory: Node, name: bytes) -> Fixed | ControlFile | None:
        if directory is Fixed.ROOT:
            return {b"blake3": Fixed.BLAKE3, b".cafsfs": Fixed.CONTROL}.get(name)
        if directory is Fixed.CONTROL:
            return self._control_nodes.get(name.decode(errors="replace"))
        return None

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel drops references that lookups and listings have given it."""
        self._blobs.forget(inode, lookups)

    def find_inode(self, digest: Digest) -> int | None:
        """The inode number of a blob that the kernel knows."""
        node = self._blobs.find(digest)
        return None if node is None else node.inode

    # --- attributes

    async def getattr(self, inode: int) -> Attributes:
        """Attributes; waits for the network only where a size has proved wrong."""
        node = self._node(inode)
        if isinstance(node, ControlFile):
            return await self._control_attributes(node)
        if isinstance(node, BlobNode):
            if node.size is None:
                node.size = await self._size(node.digest)
            elif self._store.cached_size(node.digest) is None:
                with trio.move_on_after(self._lookup_deadline):
                    await self._store.is_cached(node.digest)  # what memory has forgotten
        return self._attributes(node)

    def size_is_wrong(self, digest: Digest) -> None:
        """Forget a size that was given out: the next getattr finds out anew."""
        node = self._blobs.find(digest)
        if node is not None:
            node.size = None
            self.on_stale(node.inode)

    def blocks_changed(self, digest: Digest) -> None:
        """A blob came into the cache, or left it: what stat tells of its blocks has changed."""
        node = self._blobs.find(digest)
        if node is not None:
            self.on_stale(node.inode)

    def content_is_unverified(self, digest: Digest) -> None:
        """Readers have seen content that nobody will vouch for: the kernel has to forget it."""
        node = self._blobs.find(digest)
        if node is None or self._ending is not None:
            return
        if any(
            isinstance(each, _OpenFile) and each.node is node for each in self._handles.values()
        ):
            self._blobs.give_up(node)
        self._drop_pages(node)

    def _drop_pages(self, node: BlobNode) -> None:
        if node.inode not in self._dropping:
            self._dropping[node.inode] = trio.Event()
            self.on_spoilt(node.inode)

    def pages_dropped(self, inode: int) -> None:
        """The kernel has no content of it any more."""
        node = self._blobs.node(inode)
        if node is not None:
            node.ended = False
        self._dropping.pop(inode).set()

    async def getxattr(self, inode: int, name: bytes) -> bytes | None:
        """The value of a ``user.cafs.*`` attribute of a blob, or None if there is none.

        Read by name and never listed: else ``cp -a`` and ``rsync -X`` would copy them.
        """
        node = self._node(inode)
        if not isinstance(node, BlobNode) or not name.startswith(_XATTR_PREFIX):
            return None
        key = name[len(_XATTR_PREFIX) :].decode(errors="replace")
        digest = node.digest
        if key == "hash":
            return digest.hex.encode()
        if key == "state":
            if self._store.is_pulling(digest):
                return b"partial"
            return b"cached" if await self._store.is_cached(digest) else b"remote"
        if key == "error":
            reason = self._store.last_failure(digest)
            return None if reason is None else reason.encode()
        if key == "pin":
            return b"yes" if await self._store.is_pinned(digest) else b"no"
        told = await self._store.recall(digest)
        if told is None:
            return None
        values = {
            "packed_size": told.packed_size,
            "compression": None if told.compression is None else told.compression.value.decode(),
            "source": told.source,
            "verified": told.verified_at,
        }
        value = values.get(key)
        return None if value is None else str(value).encode()

    # --- blobs and control files

    async def open(self, inode: int, pid: int = 0) -> tuple[int, bool]:
        """Open a file for process ``pid``: a handle, and whether the kernel may keep its pages.

        Never waits for a body: a process that waits in open cannot be killed.
        """
        node = self._node(inode)
        match node:
            case BlobNode(digest):
                self._metrics.opens += 1
                await self._forgotten(node)
                # Who reads wrong bytes now must not find the right end in the kernel.
                if node.ended and self._store.would_stream(digest):
                    self._drop_pages(node)
                    await self._forgotten(node)
                self._check_not_ending()
                blob = self._store.open(digest, stream=not node.ended)
                return self._handle(_OpenFile(blob, node, pid)), True
            case ControlFile(name):
                return self._handle(_OpenControl(inode, await self._control[name]())), False
            case _:
                raise NotSupported("a directory cannot be opened as a file")

    async def read(self, handle: int, offset: int, length: int) -> bytes | memoryview:
        """min(length, size − offset) bytes, or an error: a short answer truncates the file."""
        opened = self._handles[handle]
        match opened:
            case _OpenFile(blob, node, _):
                patience, size = self.options.read_patience, node.size
                data = await blob.read(offset, length, patience=patience, size=size)
                node.ended = node.ended or size is None or offset + length > size - HELD_BACK
                self._check_whole(len(data), node, offset, length)
                self._metrics.reads += 1
                self._metrics.read_bytes += len(data)
                if blob.cached:
                    self._metrics.cached_bytes += len(data)
                return data
            case _OpenControl(_, content):
                return content[offset : offset + length]
            case _OpenDirectory():
                raise NotSupported("a directory cannot be read as a file")

    def release(self, handle: int) -> None:
        """Close a handle of any kind."""
        opened = self._handles.pop(handle, None)
        if isinstance(opened, _OpenFile):
            self._store.close(opened.blob)

    # --- directories

    async def opendir(self, inode: int) -> int:
        """A handle on a listing as it is now."""
        directory = self._node(inode)
        if not isinstance(directory, Fixed):
            raise NotSupported("a file cannot be listed")
        # Every directory is the root, or in it.
        entries: list[tuple[bytes, Listed | Fixed]] = [(b".", directory), (b"..", Fixed.ROOT)]
        match directory:
            case Fixed.ROOT:
                entries.append((b"blake3", Fixed.BLAKE3))
            case Fixed.BLAKE3:
                listed = await self._store.listing()
                entries += [(blob.digest.hex.encode(), blob) for blob in listed]
            case Fixed.CONTROL:
                pass  # found by name, never listed
        return self._handle(_OpenDirectory(entries))

    def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Name, attributes and next position of the entries from ``start`` on.

        An entry counts as looked up only when the caller says so by ``listed``.
        """
        opened = self._handles[handle]
        assert isinstance(opened, _OpenDirectory)
        for position in range(start, len(opened.entries)):
            name, target = opened.entries[position]
            if isinstance(target, Fixed):
                yield name, self._attributes(target), position + 1
                continue
            yield name, self._listed_attributes(target), position + 1

    def _listed_attributes(self, listed: Listed) -> Attributes:
        node = self._blobs.find(listed.digest) or self._blobs.add(listed.digest, listed.size)
        if listed.verified:
            node.size = listed.size
            known = self._store.cached_size(listed.digest) is not None
            remember = FOREVER if known else _UNSETTLED  # it may have been evicted since
        else:
            node.size = node.size or listed.size
            remember = 0  # nobody vouches for the size: it is to be asked for before it is used
        blocks = _blocks(node.size, cached=True)
        return replace(self._attributes(node), blocks=blocks, remember=remember)

    def listed(self, inode: int) -> None:
        """The kernel took an entry of a listing: a reference, as a lookup gives one."""
        node = self._blobs.node(inode)
        if node is not None:
            node.lookups += 1

    def passed_over(self, inode: int) -> None:
        """The kernel had no room for an entry: it will ask again."""
        self._blobs.forget(inode, 0)

    # --- the whole

    def statfs(self) -> Space:
        """From memory: df never waits."""
        usage = self._store.usage
        free = max(0, usage.bound - usage.used)
        if usage.room is not None:
            free = min(free, usage.room)
        return Space(total=usage.used + free, used=usage.used, files=usage.blobs)

    def state(self) -> dict[str, int]:
        """Numbers for stats.json."""
        return {"known_inodes": len(self._blobs), "open_handles": len(self._handles)}

    def digest_of(self, inode: int) -> Digest | None:
        """The blob behind an inode number, if there is one."""
        node = self._blobs.node(inode)
        return None if node is None else node.digest

    def digest_of_open(self, handle: int) -> Digest | None:
        """The blob behind a handle, if there is one."""
        opened = self._handles.get(handle)
        return opened.node.digest if isinstance(opened, _OpenFile) else None

    def openers(self) -> dict[Digest, list[int]]:
        """The processes that have opened each blob that is open, as the kernel has named them.

        By a thread's number where a thread did it; 0 is one of another PID namespace.
        """
        pids: dict[Digest, list[int]] = {}
        for each in self._handles.values():
            if isinstance(each, _OpenFile):
                pids.setdefault(each.node.digest, []).append(each.pid)
        return pids

    def fail_waiters(self, error: CafsError) -> None:
        """Answer everything that waits with ``error``, at once, and whatever would wait later."""
        self._ending = error
        self._store.fail_all(error)

    @property
    def ending(self) -> CafsError | None:
        """What ``fail_waiters`` was given, once it was called."""
        return self._ending

    # ---

    def _node(self, inode: int) -> Node:
        node = self._blobs.node(inode) or self._standing.get(inode)
        if node is None:
            raise NoSuchName(f"no such inode: {inode}")
        return node

    def _check_not_ending(self) -> None:
        if self._ending is not None:
            raise self._ending.with_traceback(None)

    def _check_whole(self, count: int, node: BlobNode, offset: int, length: int) -> None:
        """Whatever the store does: a short answer inside the file would be its end to the kernel.

        ``node.size`` is what the kernel was told last; None means that it is about to ask again.
        """
        if node.size is None or count == max(0, min(length, node.size - offset)):
            return
        told = node.size
        self.size_is_wrong(node.digest)
        raise CorruptBlob(f"{node.digest} has {count} bytes at {offset}, and {told} in all")

    async def _forgotten(self, node: BlobNode) -> None:
        """Return when the kernel has nothing of a file that it is to drop."""
        dropping = self._dropping.get(node.inode)
        if dropping is not None and self._blobs.is_current(node):
            with trio.move_on_after(self._lookup_deadline):
                await dropping.wait()
            if not dropping.is_set():
                raise TimedOut(f"the kernel does not forget what it has of {node.digest}")
        if not self._blobs.is_current(node):
            raise StaleInode(f"the inode of {node.digest} has failed")

    async def _size(self, digest: Digest) -> int:
        self._check_not_ending()
        try:
            with trio.fail_after(self._lookup_deadline):
                size = (await self._store.stat(digest)).size
        except trio.TooSlowError:
            raise TimedOut(
                f"the size of {digest} is not known after {self._lookup_deadline:g} s"
            ) from None
        if size is None:
            raise AssertionError("a ReadCachingStore finds the size out")
        return size

    async def _control_attributes(self, node: ControlFile) -> Attributes:
        size = await self._size_of_control(node)
        return Attributes(
            inode=node.inode,
            mode=stat.S_IFREG | 0o444,
            size=size,
            blocks=math.ceil(size / _SECTOR),  # fewer are holes to cp, which trusts the size then
            time_ns=self.options.born_ns,
            remember=0,
        )

    async def _size_of_control(self, node: ControlFile) -> int:
        """Of the longest there is: who has one open and trusts fstat, as curl, reads no less."""
        fresh = len(await self._control[node.name]())
        opened = [each for each in self._handles.values() if isinstance(each, _OpenControl)]
        return max([fresh, *(len(each.content) for each in opened if each.inode == node.inode)])

    def _attributes(self, node: Fixed | BlobNode) -> Attributes:
        match node:
            case Fixed():
                return Attributes(
                    inode=node.value,
                    mode=stat.S_IFDIR | 0o555,
                    size=0,
                    blocks=0,
                    time_ns=self.options.born_ns,
                    remember=FOREVER,
                )
            case BlobNode(digest, inode, size):
                assert size is not None
                cached = self._store.cached_size(digest) is not None
                return Attributes(
                    inode=inode,
                    mode=stat.S_IFREG | 0o444,
                    size=size,
                    blocks=_blocks(size, cached=cached),
                    time_ns=BLOB_TIME_NS,
                    remember=FOREVER if cached else _UNSETTLED,
                )

    def _handle(self, opened: _OpenFile | _OpenControl | _OpenDirectory) -> int:
        self._last_handle += 1
        self._handles[self._last_handle] = opened
        return self._last_handle


def _blocks(size: int, *, cached: bool) -> int:
    """What is on this machine, in sectors, so that ``du`` shows the use of the cache.

    Never 0 for a file that is not empty: GNU tar --sparse archives a file of 0 blocks as a hole,
    without reading it (tried).
    """
    return math.ceil(size / _SECTOR) if cached else min(size, 1)
