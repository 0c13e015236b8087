"""What a cache trusts without looking: files that are what they were when they were verified.

They are (size, time of modification, inode), if that was on this boot or a finished syncfs covers
them (design page, section 3). All others are hashed when they are opened first.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from cafsfs.digest import Digest
from cafsfs.store.cache.durability import boot_id, since_boot
from cafsfs.store.cache.index import Entry
from cafsfs.store.cache.ledger import Known
from cafsfs.store.contracts import BlobStat


class Trust:
    """Of a process, on this ``boot``."""

    def __init__(self) -> None:
        self.boot = boot_id()

    def covers(self, entry: Entry, stat: os.stat_result) -> bool:
        """May this file be served without hashing it first?"""
        if not entry.verified or not (entry.durable or entry.boot == self.boot):
            return False
        return Known(entry.size, entry.mtime_ns, entry.inode).describes(stat)

    def entry(
        self, digest: Digest, found: os.stat_result, told: BlobStat | None, *, used: bool
    ) -> Entry:
        """What to remember of a file that came now, and was verified; ``told``: by its server."""
        now = time.time()
        told = told or BlobStat(size=None)
        stamp = Known.of(found)
        return Entry(
            digest=digest,
            size=found.st_size,
            pulled=now,
            used=now if used else 0.0,
            verified=now,
            mtime_ns=stamp.mtime_ns,
            inode=stamp.inode,
            boot=self.boot,
            boottime=since_boot(),
            source=told.source,
            packed_size=told.packed_size,
            compression=None if told.compression is None else told.compression.name.lower(),
        )

    def entry_again(
        self, digest: Digest, found: os.stat_result, old: Entry | None, *, used: bool
    ) -> Entry:
        """As ``entry``, of a file that was there, and was verified now."""
        verified = self.entry(digest, found, None, used=used)
        if old is None:
            return verified
        return replace(
            verified,
            pulled=old.pulled,
            used=old.used,
            source=old.source,
            packed_size=old.packed_size,
            compression=old.compression,
        )
