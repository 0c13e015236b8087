"""What one process knows of a cache that it shares with others, between two looks at the index.

Bookkeeping is done on the event loop and never waits; ``flush`` writes it to the index in one
transaction and learns what the others have done. ``find`` is for worker threads.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.store.cache.index import Changes, Entry, Index, Totals

log = logging.getLogger(__name__)

_KNOWN = 1 << 16  # blobs remembered in memory, about 250 bytes each
_63_BITS = (1 << 63) - 1
_BACKLOG = 1 << 17  # changes that wait for an index that cannot be written: then uses are dropped


class Known(NamedTuple):
    """A blob that is there. With a stamp: its bytes were verified, and this tells a change."""

    size: int
    mtime_ns: int = -1
    inode: int = -1

    @classmethod
    def of(cls, stat: os.stat_result) -> Known:
        """Of a file that was verified, in numbers that SQLite has room for."""
        return cls(stat.st_size, stat.st_mtime_ns & _63_BITS, stat.st_ino & _63_BITS)

    def describes(self, stat: os.stat_result) -> bool:
        """Is it this very file, unchanged?"""
        return self == Known.of(stat)


@dataclass(slots=True, eq=False)
class OpenFiles:
    """How often one file of the cache is open here. It may lose its name meanwhile."""

    digest: Digest
    size: int
    counted: bool = True  # does it count when it lingers?
    count: int = 0
    lingers: bool = False


class Ledger:
    """Sizes are in bytes.

    ``used`` and ``blobs`` are those of all processes, as of the last flush, and ours since.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._known: OrderedDict[Digest, Known] = OrderedDict()
        self._pending = Changes()
        self._writing: Changes | None = None
        self._open: dict[Digest, OpenFiles] = {}
        self.lingering = 0  # evicted, and still open here
        self.used = 0
        self.blobs = 0
        self._unwritten = (0, 0)  # bytes and blobs that came in, or went, since the last flush
        self._being_written = (0, 0)
        self.complete = False
        self.lost = False  # changes that could not be written: files may have no row
        self._take(index.totals())

    # --- what is there

    def known(self, digest: Digest) -> Known | None:
        """What is known without asking the disk."""
        return self._known.get(digest)

    def all_known(self) -> list[Digest]:
        """The blobs that ``known`` would tell of."""
        return list(self._known)

    def note(self, digest: Digest, known: Known) -> None:
        """A blob is there."""
        self._known[digest] = known
        self._known.move_to_end(digest)
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    def find(self, digest: Digest) -> Entry | None:
        """The entry of a blob, if it has one; asks the index, so call it in a thread.

        None too if the index cannot tell.
        """
        for changes in (self._pending, self._writing):
            if changes is not None:
                if (entry := changes.entries.get(digest)) is not None:  # the loop may take it out
                    return entry
                if digest in changes.removed:
                    return None
        try:
            return self.index.get(digest)
        except StoreError as error:
            log.warning("%s", error)
            return None

    # --- what happens

    def enter(self, entry: Entry, *, replaced: int | None) -> None:
        """A blob came in, or was verified; ``replaced`` is the size that was counted for it."""
        self._count(entry.size - (replaced or 0), replaced is None)
        self._pending.removed.discard(entry.digest)
        self._pending.entries[entry.digest] = entry
        self.note(entry.digest, Known(entry.size, entry.mtime_ns, entry.inode))

    def use(self, digest: Digest) -> None:
        """A blob was used."""
        self._pending.uses[digest] = time.time()
        if digest in self._known:
            self._known.move_to_end(digest)

    def strike(self, digest: Digest, size: int | None) -> None:
        """A blob is gone; ``size`` is what was counted for it, None if nothing was."""
        if size is not None:
            self._count(-size, -1)
        self._known.pop(digest, None)
        self._pending.entries.pop(digest, None)
        self._pending.uses.pop(digest, None)
        self._pending.removed.add(digest)
        if (files := self._open.pop(digest, None)) is not None:
            files.lingers = files.counted
            self.lingering += files.size * files.lingers

    def distrust(self) -> None:
        """What was verified may be lost: believe no stamp any more, but the sizes."""
        for digest, known in self._known.items():
            self._known[digest] = Known(known.size)

    def forget(self, digest: Digest) -> bool:
        """Believe nothing of a blob that was known; False if it was not."""
        return self._known.pop(digest, None) is not None

    def remember_length(self, digest: Digest, size: int | None) -> None:
        """The size of a blob, for good; None: what is remembered has proved wrong."""
        self._pending.lengths[digest] = size

    # --- open files

    def opened(self, digest: Digest, size: int, *, counted: bool = True) -> OpenFiles:
        """A file was opened; to be given to ``closed``."""
        files = self._open.setdefault(digest, OpenFiles(digest, size, counted))
        files.count += 1
        return files

    def closed(self, files: OpenFiles) -> None:
        """A file was closed."""
        files.count -= 1
        if files.count:
            return
        if files.lingers:
            self.lingering -= files.size
        elif self._open.get(files.digest) is files:
            del self._open[files.digest]

    def use_what_is_open(self) -> None:
        """A file that is read for a week is not idle."""
        for digest, files in self._open.items():
            if files.counted:
                self.use(digest)

    def is_open(self, digest: Digest) -> bool:
        """Is its file open here?"""
        return digest in self._open

    # --- the index

    def is_gone(self, digest: Digest) -> bool:
        """Was it struck, and the index does not know it yet?"""
        return digest in self._pending.removed

    @property
    def backlog(self) -> int:
        """Changes that wait to be written."""
        return len(self._pending)

    def begin_flush(self) -> Changes:
        """The changes to be written now; to be ended by ``end_flush``, or ``undo_flush``."""
        assert self._writing is None
        self._writing, self._pending = self._pending, Changes()
        self._being_written, self._unwritten = self._unwritten, (0, 0)
        return self._writing

    def end_flush(self, totals: Totals) -> None:
        """They are written."""
        self._writing = None
        self._take(totals)

    def undo_flush(self) -> None:
        """They are not: keep them for the next time, the newer ones first."""
        old, new = self._writing, self._pending
        assert old is not None
        self._writing = None
        (size, blobs), (more_size, more_blobs) = self._being_written, self._unwritten
        self._unwritten = size + more_size, blobs + more_blobs
        if len(old) + len(new) > _BACKLOG:
            old.uses.clear()
            new.uses.clear()
        if len(old) + len(new) > _BACKLOG:  # the files remain, and are found by the next walk
            self._unwritten = more_size, more_blobs
            self.lost = True
            self.complete = False
            return
        old.removed |= new.removed
        for digest in new.removed:
            old.entries.pop(digest, None)
            old.uses.pop(digest, None)
        old.removed -= new.entries.keys()
        old.entries |= new.entries
        old.uses |= new.uses
        old.lengths |= new.lengths
        self._pending = old

    def _count(self, size: int, blobs: int) -> None:
        self.used += size
        self.blobs += blobs
        unwritten_bytes, unwritten_blobs = self._unwritten
        self._unwritten = unwritten_bytes + size, unwritten_blobs + blobs

    def _take(self, totals: Totals) -> None:
        """What all have written, and what we have not yet."""
        self.used = totals.bytes + self._unwritten[0]
        self.blobs = totals.blobs + self._unwritten[1]
        self.complete = totals.complete and not self.lost
