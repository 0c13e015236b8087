"""What the cache remembers of its blobs: SQLite, never the truth about content.

All of it can be had again from the files, so a file that is damaged, or not ours, is thrown away
and begun anew; nobody who asks notices but by ``Totals.complete``. Several processes have it
open: see ``database.py``.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cafsfs.digest import DIGEST_LENGTH, Digest
from cafsfs.errors import InvalidDigest
from cafsfs.store.cache.database import PATIENCE, Database, UnsoundError

log = logging.getLogger(__name__)

T = TypeVar("T")

_STEP = 10_000  # rows at a time: some 0.2 s in which other writers wait

# Kept by sqlite_master as written here: that is how a schema that is not ours is told.
_SCHEMA = (
    """CREATE TABLE blobs(
    digest BLOB NOT NULL PRIMARY KEY, durable INTEGER NOT NULL, size INTEGER NOT NULL,
    pulled REAL NOT NULL, used REAL NOT NULL, verified REAL NOT NULL, mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, boot TEXT NOT NULL, boottime REAL NOT NULL,
    source TEXT, packed_size INTEGER, compression TEXT) WITHOUT ROWID""",
    "CREATE INDEX by_use ON blobs(used, digest, size)",
    "CREATE INDEX by_age ON blobs(pulled)",
    "CREATE INDEX not_durable ON blobs(boot, boottime) WHERE durable = 0 AND verified > 0",
    "CREATE TABLE pins(digest BLOB NOT NULL PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE lengths(digest BLOB NOT NULL PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state(blobs INTEGER NOT NULL, bytes INTEGER NOT NULL, complete INTEGER NOT NULL)",
    """CREATE TRIGGER blob_came AFTER INSERT ON blobs BEGIN
    UPDATE state SET blobs = blobs + 1, bytes = bytes + NEW.size; END""",
    """CREATE TRIGGER blob_went AFTER DELETE ON blobs BEGIN
    UPDATE state SET blobs = blobs - 1, bytes = bytes - OLD.size; END""",
    """CREATE TRIGGER blob_grew AFTER UPDATE OF size ON blobs WHEN NEW.size <> OLD.size BEGIN
    UPDATE state SET bytes = bytes + NEW.size - OLD.size; END""",
    "INSERT INTO state VALUES(0, 0, 0)",
)

_FIELDS = (
    "size", "pulled", "used", "verified", "mtime_ns", "inode", "boot", "boottime", "source",
    "packed_size", "compression",
)  # fmt: skip
_ENTRIES = f"SELECT digest, durable, {', '.join(_FIELDS)} FROM blobs"  # noqa: S608  # constants
_UPSERT = f"""INSERT INTO blobs(digest, durable, {", ".join(_FIELDS)})
    VALUES({", ".join("?" * (len(_FIELDS) + 2))})
    ON CONFLICT(digest) DO UPDATE SET
    durable = max(excluded.durable,
        durable AND mtime_ns = excluded.mtime_ns AND inode = excluded.inode),
    {", ".join(f"{each} = excluded.{each}" for each in _FIELDS if each != "used")},
    used = max(used, excluded.used)"""
_UNPINNED = "NOT EXISTS (SELECT 1 FROM pins WHERE pins.digest = blobs.digest)"
_OLDEST = f"""SELECT digest, size, used FROM blobs WHERE {_UNPINNED}
    ORDER BY used, digest LIMIT ? OFFSET ?"""  # noqa: S608  # constants
_EXPIRED = f"""SELECT digest, size, used FROM blobs
    WHERE (pulled < ? OR used < ?) AND {_UNPINNED} LIMIT ?"""  # noqa: S608  # constants
_MARK_DURABLE = """UPDATE blobs SET durable = 1 WHERE digest IN (
    SELECT digest FROM blobs WHERE durable = 0 AND verified > 0 AND boot = ?
    AND boottime BETWEEN ? AND ? LIMIT ?)"""
_DISTRUST = "UPDATE blobs SET boot = '' WHERE durable = 0 AND verified > 0 AND boot = ?"
_CLAMP = """UPDATE blobs SET used = min(used, ?1), pulled = min(pulled, ?1) WHERE digest IN (
    SELECT digest FROM blobs WHERE used > ?1 OR pulled > ?1 LIMIT ?2)"""

_NUMBERS = ("size", "pulled", "used", "verified", "mtime_ns", "inode", "boottime")
_ROW = attrgetter("digest.raw", "durable", *_FIELDS)

_REMOTE = frozenset(
    """
    9p afs beegfs ceph cifs coda davfs fuse.beegfs fuse.ceph-fuse fuse.curlftpfs fuse.gcsfuse
    fuse.glusterfs fuse.goofys fuse.juicefs fuse.mfs fuse.mount-s3 fuse.rclone fuse.s3fs
    fuse.smbnetfs fuse.sshfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2
    smb2 smb3 smbfs
    """.split()  # noqa: SIM905  # a list of them would fill the page
)


def works_on(fstype: str) -> bool:
    """Can the index be on a filesystem of this type, as ``/proc/self/mounts`` names it?

    WAL needs memory that all its processes share, and "does not work over a network filesystem"
    (https://www.sqlite.org/wal.html); NFS does not say so, it loses data.
    """
    return fstype not in _REMOTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A blob in the cache; times are seconds since 1970 unless they say otherwise.

    ``pulled``: when it came. ``verified``: when content and hash were last seen to agree; 0 is
    never, and then ``size`` (bytes of content) is not vouched for either. ``mtime_ns`` and
    ``inode`` of the file at that time tell whether it has changed since. ``boot``, ``boottime``:
    the machine's boot id at that time, and seconds since that boot (CLOCK_MONOTONIC).
    ``durable``: a finished syncfs covers it.
    """

    digest: Digest
    size: int
    pulled: float
    used: float
    verified: float = 0.0
    mtime_ns: int = 0
    inode: int = 0
    boot: str = ""
    boottime: float = 0.0
    durable: bool = False
    source: str | None = None
    packed_size: int | None = None
    compression: str | None = None


class Listed(NamedTuple):
    """A blob of a listing. What was never verified has a size that nobody vouches for."""

    digest: Digest
    size: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all rows; ``complete``: every file is known to have its row."""

    blobs: int
    bytes: int
    complete: bool


@dataclass(slots=True)
class Changes:
    """What ``apply`` writes, in its order: removed, entries, uses, lengths. Empty is false.

    A length that is None is to be forgotten.
    """

    entries: dict[Digest, Entry] = field(default_factory=dict)
    uses: dict[Digest, float] = field(default_factory=dict)
    removed: set[Digest] = field(default_factory=set)
    lengths: dict[Digest, int | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries) + len(self.uses) + len(self.removed) + len(self.lengths)


class Index:
    """The rows, the pins, and lengths of blobs; synchronous, for any thread.

    Every method raises StoreError for what is not the file's content: lock, full or sick disk, a
    closed index. Then nothing of the call has happened, and the next one is tried as if new.
    A file that another process has replaced is noticed by the next write, not by reads.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = database.read
        self._write = database.write
        with database.translated():
            database.follow()

    @classmethod
    def open(cls, path: Path, *, patience: float = PATIENCE, vfs: str | None = None) -> Index:
        """Open the file, or make it (mode 0600) in a directory that is there.

        Raises StoreError if the filesystem cannot do it; then no file of ours is left behind.
        ``patience``: seconds to wait for locks. ``vfs``: of SQLite's, not the usual one.
        """
        return cls(Database(path.absolute(), _SCHEMA, patience=patience, vfs=vfs))

    @classmethod
    def in_memory(cls) -> Index:
        """For a cache that is read-only or on NFS: the same, but nothing is kept."""
        return cls(Database(None, _SCHEMA))

    @property
    def rebuilds(self) -> int:
        """How often the file was unusable and begun anew."""
        return self._database.rebuilds

    @property
    def generation(self) -> int:
        """Grows whenever the index may have become another one: see ``set_complete``."""
        return self._database.generation

    def totals(self) -> Totals:
        """At once, however many rows: triggers keep them."""
        return self._read(lambda db: _totals(db.execute("SELECT * FROM state").fetchone()))

    def get(self, digest: Digest) -> Entry | None:
        """The row, or None."""
        query = f"{_ENTRIES} WHERE digest = ?"
        found = self._read(lambda db: [_entry(row) for row in db.execute(query, (digest.raw,))])
        return found[0] if found else None

    def below(self, prefix: bytes) -> dict[Digest, int]:
        """Digest and size of all rows whose digest begins with ``prefix``."""
        query = "SELECT digest, size FROM blobs WHERE digest BETWEEN ? AND ?"
        ends = prefix, prefix.ljust(DIGEST_LENGTH, b"\xff")
        return self._read(lambda db: {_digest(raw): size for raw, size in db.execute(query, ends)})

    def between(self, first: Digest, last: Digest) -> dict[Digest, Entry]:
        """All rows from ``first`` to ``last``, both among them."""
        query = f"{_ENTRIES} WHERE digest BETWEEN ? AND ?"
        ends = first.raw, last.raw
        found = self._read(lambda db: [_entry(row) for row in db.execute(query, ends)])
        return {entry.digest: entry for entry in found}

    def entries(self, after: Digest | None, limit: int) -> list[Entry]:
        """Up to ``limit`` rows in order of digest, from the first one behind ``after``."""
        query = f"{_ENTRIES} WHERE digest > ? ORDER BY digest LIMIT ?"
        start = after.raw if after else b""
        return self._read(lambda db: [_entry(row) for row in db.execute(query, (start, limit))])

    def listing(self) -> list[Listed]:
        """All rows, in order of digest.

        Read in steps, else other readers would wait a second for a million rows; so what comes or
        goes meanwhile may be in it or not.
        """
        query = (
            "SELECT digest, size, verified > 0 FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?"
        )
        found: list[Listed] = []

        def step(db: sqlite3.Connection) -> list[Listed]:
            start = found[-1].digest.raw if found else b""
            rows = db.execute(query, (start, _STEP))
            return [Listed(_digest(raw), size, verified == 1) for raw, size, verified in rows]

        while more := self._read(step):
            found += more
        return found

    def oldest(self, limit: int, *, offset: int = 0) -> list[tuple[Digest, int, float]]:
        """Digest, size and last use of what is not pinned, least recently used first."""
        return self._read(lambda db: _uses(db.execute(_OLDEST, (limit, offset))))

    def expired(
        self, limit: int, *, pulled_before: float | None, used_before: float | None
    ) -> list[tuple[Digest, int, float]]:
        """Digest, size and last use of what is not pinned and meets either condition, unordered."""
        values = (pulled_before, used_before, limit)  # nothing is before NULL
        return self._read(lambda db: _uses(db.execute(_EXPIRED, values)))

    def apply(self, changes: Changes) -> None:
        """Write it all or nothing. ``used`` only grows, where there is a row.

        An entry that replaces a row stays durable if ``mtime_ns`` and ``inode`` stay as they were.
        """

        def write(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM blobs WHERE digest = ?", _keys(changes.removed))
            # Sorted, a large batch touches each page of the tree once.
            rows = sorted(_ROW(entry) for entry in changes.entries.values())
            db.executemany(_UPSERT, rows)
            db.executemany(
                "UPDATE blobs SET used = ?1 WHERE digest = ?2 AND used < ?1",
                ((used, digest.raw) for digest, used in changes.uses.items()),
            )
            known = {each: size for each, size in changes.lengths.items() if size is not None}
            db.executemany(
                "INSERT OR REPLACE INTO lengths VALUES(?, ?)",
                ((digest.raw, size) for digest, size in known.items()),
            )
            wrong = changes.lengths.keys() - known.keys()
            db.executemany("DELETE FROM lengths WHERE digest = ?", _keys(wrong))

        if changes:
            self._write(write)

    def mark_durable(
        self, boot: str, before: float, limit: int = _STEP, *, since: float = 0.0
    ) -> int:
        """Call durable what was verified on that boot from ``since`` to ``before`` (seconds of it).

        At most ``limit`` rows; returns how many: the caller goes on until they are fewer.
        """
        values = (boot, since, before, limit)
        return self._write(lambda db: db.execute(_MARK_DURABLE, values).rowcount)

    def distrust(self, boot: str) -> int:
        """What was verified on that boot and is not durable may be lost; returns how many rows."""
        return self._write(lambda db: db.execute(_DISTRUST, (boot,)).rowcount)

    def clamp(self, now: float) -> None:
        """Times to come, of a clock that was wrong, become ``now``."""
        while self._write(lambda db: db.execute(_CLAMP, (now, _STEP)).rowcount) == _STEP:
            pass

    def pins(self) -> list[Digest]:
        """All of them, in order of digest, with or without a row."""
        query = "SELECT digest FROM pins ORDER BY digest"
        return self._read(lambda db: [_digest(raw) for (raw,) in db.execute(query)])

    def is_pinned(self, digest: Digest) -> bool:
        """Is it among ``pins``?"""
        query = "SELECT 1 FROM pins WHERE digest = ?"
        return self._read(lambda db: db.execute(query, (digest.raw,)).fetchone() is not None)

    def pin(self, digests: Collection[Digest]) -> None:
        """Keep them out of ``oldest`` and ``expired``, whether they have a row yet or not."""
        self._write(
            lambda db: db.executemany("INSERT OR IGNORE INTO pins VALUES(?)", _keys(digests))
        )

    def unpin(self, digests: Collection[Digest]) -> None:
        """Undo ``pin``; what is not pinned is passed over."""
        self._write(lambda db: db.executemany("DELETE FROM pins WHERE digest = ?", _keys(digests)))

    def pinned_bytes(self) -> int:
        """Sum of sizes of those pinned that have a row."""
        query = "SELECT ifnull(sum(size), 0) FROM pins CROSS JOIN blobs USING(digest)"
        return int(self._read(lambda db: db.execute(query).fetchone()[0]))

    def length(self, digest: Digest) -> int | None:
        """Bytes of content that somebody has told, or a pull; also when its row is gone."""
        query = "SELECT size FROM lengths WHERE digest = ?"
        row = self._read(lambda db: db.execute(query, (digest.raw,)).fetchone())
        return None if row is None else int(row[0])

    def set_complete(self, complete: bool, *, generation: int | None = None) -> None:
        """Say whether every file has its row.

        With ``generation``, as it was before the scan: nothing happens if it has changed, for
        then the first half of the scan may have gone to a file that is no more.
        """

        def write(db: sqlite3.Connection) -> None:
            if generation in {None, self.generation}:
                db.execute("UPDATE state SET complete = ?", (complete,))

        self._write(write)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        self._database.close()


def _keys(digests: Iterable[Digest]) -> Iterator[tuple[bytes]]:
    return ((digest.raw,) for digest in digests)


def _digest(raw: Any) -> Digest:
    try:
        return Digest(raw)
    except (InvalidDigest, TypeError):
        raise UnsoundError("a row that names no blob") from None


def _totals(row: tuple[Any, ...]) -> Totals:
    if not all(isinstance(each, int) for each in row):
        raise UnsoundError("totals that are no numbers")
    return Totals(row[0], row[1], bool(row[2]))


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip(_FIELDS, row[2:], strict=True))
    for each in _NUMBERS:
        _number(values[each])
    return Entry(digest=_digest(row[0]), durable=bool(row[1]), **values)


def _uses(rows: Iterable[tuple[Any, int, float]]) -> list[tuple[Digest, int, float]]:
    return [(_digest(raw), _number(size), _number(used)) for raw, size, used in rows]


def _number(value: T) -> T:
    if not isinstance(value, int | float):  # SQLite takes text for a number, too
        raise UnsoundError("a row with text for a number")
    return value
