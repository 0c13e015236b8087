"""The files of a cache's blobs, below ``blobs/``: opened, looked at, named, removed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, StoreError
from cafsfs.store.cache import partials
from cafsfs.store.cache.index import Entry
from cafsfs.store.cache.ledger import Known, Ledger
from cafsfs.store.cache.partials import Following, Partial
from cafsfs.store.cache.premises import Premises
from cafsfs.store.cache.remembered import open_remembered
from cafsfs.store.cache.trust import Trust
from cafsfs.store.local_root import blob_path

log = logging.getLogger(__name__)

# O_NONBLOCK: to open a FIFO would wait for ever; files know no such thing.
_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
PINNED = 0o400  # the mode of a pinned blob; that of others is 0600


def is_marked(found: os.stat_result) -> bool:
    """Is the file marked as pinned?"""
    return found.st_mode & 0o777 == PINNED


class Looked(NamedTuple):
    """What is told of a blob without reading it.

    ``size`` is one that was verified once; None where nobody vouches for any. It may be known of
    a blob that is not ``present``, where only unpacking tells it. ``on_disk``: bytes of the file,
    whoever vouches for it.
    """

    present: bool
    size: int | None = None
    on_disk: int = 0


class Found(NamedTuple):
    """A blob that was opened, and what is remembered of it where that has to be asked."""

    descriptor: int
    stat: os.stat_result
    entry: Entry | None
    trusted: bool


Claimed = Found | tuple[int, Path] | Following | None
"""The open blob, a locked partial file, another process that pulls it, or nothing to be had."""


class BlobFiles:
    """Its methods block, and are for worker threads; they raise OSError.

    What they ask the index raises StoreError.
    """

    def __init__(self, premises: Premises, ledger: Ledger, trust: Trust) -> None:
        self._premises = premises
        self._ledger = ledger
        self._trust = trust

    def path(self, digest: Digest) -> Path:
        """Where a blob stands."""
        return blob_path(self._premises.blobs, digest)

    def open(self, digest: Digest, known: Known | None) -> Found:
        """Raises BlobNotFound."""
        try:
            descriptor = os.open(self.path(digest), _TO_READ)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobNotFound(digest) from None
        except OSError as error:
            # A link is no blob, and what we may not read is none for us: no trouble of the disk.
            if error.errno in {errno.ELOOP, errno.EACCES, errno.EPERM}:
                raise BlobNotFound(digest) from None
            raise
        try:
            stat = os.fstat(descriptor)
            if not S_ISREG(stat.st_mode):
                raise BlobNotFound(digest)
            if known is not None and known.describes(stat):
                return Found(descriptor, stat, None, trusted=True)
            return Found(descriptor, stat, self._ledger.find(digest), trusted=False)
        except BaseException:
            os.close(descriptor)
            raise

    def open_at_once(self, digest: Digest, known: Known) -> Found | None:
        """On the event loop, if that costs no disk anything and the file is what it was."""
        descriptor = open_remembered(self.path(digest), _TO_READ)
        if descriptor is None:
            return None
        stat = os.fstat(descriptor)
        if known.describes(stat) and S_ISREG(stat.st_mode):
            return Found(descriptor, stat, None, trusted=True)
        os.close(descriptor)
        return None

    def open_or_claim(
        self, digest: Digest, known: Known | None, *, anew: bool, writable: bool
    ) -> Claimed:
        """In one hop, for small blobs come by the thousand; ``anew``: what is there is wrong."""
        with suppress(BlobNotFound):
            if not anew:
                return self.open(digest, known)
        if not writable:
            return None
        claimed = partials.claim(self._premises.partials, self._premises.blobs, digest)
        if isinstance(claimed, Following) or anew:
            return claimed
        try:
            # Another process may have committed it between our look and our lock.
            found = self.open(digest, None)
        except BlobNotFound:
            return claimed
        except BaseException:
            os.close(claimed[0])
            raise
        claimed[1].unlink(missing_ok=True)
        os.close(claimed[0])
        return found

    def look(self, digest: Digest) -> tuple[Looked, Known | None]:
        """What is told of it, and what is to be noted, if anything."""
        try:
            found = self.path(digest).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return Looked(present=False, size=self._ledger.index.length(digest)), None
        entry = self._ledger.find(digest)
        size = found.st_size
        if entry is None or not entry.verified or entry.size != size:
            return Looked(present=True, on_disk=size), None
        known = Known.of(found) if self._trust.covers(entry, found) else Known(size)
        return Looked(present=True, size=size, on_disk=size), known

    def size(self, digest: Digest) -> int | None:
        """Bytes of the file, whoever vouches for it; None if there is none."""
        try:
            return self.path(digest).lstat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(
        self, digests: Collection[Digest], *, pinned: bool
    ) -> tuple[dict[Digest, int], list[Digest]]:
        """The sizes of those that were there, and those that were not.

        Without ``pinned`` those are spared, by their mark at this very moment. What cannot be
        removed is a warning in the log.
        """
        gone: dict[Digest, int] = {}
        absent: list[Digest] = []
        for digest in digests:
            try:
                path = self.path(digest)
                found = path.lstat()
                if not pinned and is_marked(found):
                    continue
                path.unlink()
                gone[digest] = found.st_size
            except (FileNotFoundError, NotADirectoryError):
                absent.append(digest)
            except OSError as error:
                log.warning("cannot remove %s from the cache: %s", digest, error.strerror)
        return gone, absent

    def name(
        self, partial: Partial, *, once_more: bool = False
    ) -> tuple[os.stat_result, int | None]:
        """Give a verified partial file its name; or make it private, if that fails ``once_more``.

        Returns what was verified, and the size of the file that was replaced if there was one.
        The former as it is before it has its name: what others do to it by that shows in its time.
        """
        partial.finish()
        found = os.fstat(partial.descriptor)
        if partial.path is None:
            return found, None
        path = self.path(partial.digest)
        try:
            self._premises.make(path.parent)
            if not partials.is_at(partial.descriptor, partial.path):
                raise FileNotFoundError(errno.ENOENT, "the partial file was taken away")
            if self._was_pinned(partial.digest):
                os.fchmod(partial.descriptor, PINNED)
            replaced = self.size(partial.digest)
            partial.path.rename(path)
            if not partials.is_at(partial.descriptor, path):
                path.unlink()  # of another process that has begun anew: not verified
                raise FileNotFoundError(errno.ENOENT, "the partial file was taken away")
        except OSError:
            if not once_more:
                raise
            partial.make_private()
            return found, None
        partials.unlock(partial.descriptor)
        return found, replaced

    def _was_pinned(self, digest: Digest) -> bool:
        """Was it pinned before it was lost? If the index cannot tell, it stays in the index."""
        try:
            return self._ledger.index.is_pinned(digest)
        except StoreError:
            return False
