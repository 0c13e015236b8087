"""An SQLite file that several processes have open, and that may be thrown away.

What is damaged, or not ours, is begun anew; nobody who asks notices but by ``generation``.

Whoever opens, closes or deletes the file holds ``index.lock``, for SQLite finds ``-wal`` and
``-shm`` by name: a connection to a file that is gone must not get, or on closing delete, those of
its successor. The lock is an ``flock``; POSIX locks on the database itself are SQLite's, and
closing any descriptor of it would drop them: we open it ourselves only to create it.

Two connections: readers do not wait while a batch is written. Lock order: write, read, file.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from cafsfs.errors import StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

_VERSION = 1  # user_version; another one, older or newer, is thrown away
PATIENCE = 5.0  # seconds to wait for another process's lock; a batch of 1000 takes 0.03
_POLL = 0.01  # seconds
_WAL_LIMIT = 16 << 20  # bytes that -wal keeps after a large batch has gone to the main file
_MEMORY = 16 << 10  # KiB of pages; SQLite's own 2 MiB make 300,000 new rows a fifth slower

_NO_SHARED_MEMORY = {
    sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMLOCK, sqlite3.SQLITE_IOERR_SHMMAP,
}  # fmt: skip


class Database:
    """A file of SQLite's that is begun anew when it is unsound, and followed when it is replaced.

    Without a path it is in memory, with one connection for all.
    """

    def __init__(
        self,
        path: Path | None,
        schema: Sequence[str],
        *,
        patience: float = PATIENCE,
        vfs: str | None = None,
    ) -> None:
        self._schema = schema
        self.rebuilds = 0
        self.generation = 0
        self._path: Final = path
        self._patience = patience
        self._vfs = vfs
        self._write_lock = threading.RLock()
        self._read_lock = threading.RLock() if path else self._write_lock
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._closed = False

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            if self._closed:
                return
            self._closed = True
            # Somebody holds the lock for long, or the directory is gone: close nevertheless.
            with suppress(StoreError, OSError), self._alone():
                self._disconnect()
            self._disconnect()

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def attempt() -> T:
            with self._read_lock:
                if self._reader is None:
                    raise StoreError(f"{self._name} is closed")
                return work(self._reader)

        with self.translated():
            if self._reader is None:  # closed, or the last attempt to open it failed
                self.follow()
            return self._twice(attempt)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def attempt() -> T:
            if self._writer is None:
                raise StoreError(f"{self._name} is closed")
            return _in_transaction(self._writer, work)

        with self.translated(), self._write_lock:
            self.follow()
            return self._twice(attempt)

    def _twice(self, attempt: Callable[[], T]) -> T:
        """Again, on a new file, if this one is unsound."""
        generation = self.generation
        try:
            return attempt()
        except (sqlite3.Error, UnsoundError) as error:
            if not _is_unsound(error) or self._path is None:
                raise
            with self._write_lock:
                if self.generation == generation:  # else another thread was faster
                    self._reopen(unsound=str(error))
        return attempt()

    def follow(self) -> None:
        """Open the file that has the name now, unless we have it."""
        with self._write_lock:
            if self._closed:
                raise StoreError(f"{self._name} is closed")
            if self._writer is None or (self._path and _identity(self._path) != self._opened):
                self._reopen()

    def _reopen(self, *, unsound: str | None = None) -> None:
        """Open it anew; ``unsound`` tells why the file that we have must go. Needs the write lock.

        Raises StoreError, OSError or sqlite3.Error, and then nothing is open.
        """
        if self._path is None:
            self._connect(":memory:")
            return
        with self._read_lock, self._alone():
            there = _identity(self._path)  # asked while ours is open: its number cannot come again
            if there != self._opened:
                unsound = None
            self._disconnect()
            uri = f"{self._path.as_uri()}?mode=rw" + (f"&vfs={self._vfs}" if self._vfs else "")
            try:
                if there is None or unsound:
                    self._create(self._path, unsound)
                try:
                    self._connect(uri)
                except (sqlite3.Error, UnsoundError) as error:
                    if not _is_unsound(error):
                        raise
                    self._create(self._path, str(error))
                    self._connect(uri)
            except StoreError:  # no shared memory: leave nothing of ours behind
                if there is None:
                    _delete(self._path)
                    self._path.with_suffix(".lock").unlink(missing_ok=True)
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold ``index.lock``; polls, for one who is stopped must not stop us for ever."""
        if self._path is None:
            yield
            return
        lock = self._path.with_suffix(".lock")
        deadline = time.monotonic() + self._patience
        while (descriptor := _try_lock(lock)) is None:
            if time.monotonic() > deadline:
                raise StoreError(f"`{lock}`: {self._held()}")
            time.sleep(_POLL)
        try:
            yield
        finally:
            os.close(descriptor)

    def _create(self, path: Path, unsound: str | None) -> None:
        """Put an empty file in place of the one that is there; needs the file lock."""
        if unsound:
            self.rebuilds += 1
            log.warning("`%s` is unusable (%s): rebuilding it from the files", path, unsound)
        _delete(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _connect(self, uri: str) -> None:
        """Open both connections and look whether the schema is ours; an empty file gets it."""
        try:
            self._opened = _identity(self._path) if self._path else None
            self._writer = self._reader = self._connection(uri)
            if self._path:
                _begin_wal(self._writer, self._path)
            if _is_new(self._writer):
                _in_transaction(self._writer, self._make_schema)
            self._check_schema(self._writer)
            if self._path:
                self._reader = self._connection(uri)
                self._reader.execute("PRAGMA query_only = ON")
                # SQLite finds -wal by name at the first read: now, under the lock.
                self._reader.execute("SELECT * FROM state").fetchall()
            self.generation += 1
        except BaseException:
            self._disconnect()
            raise

    def _make_schema(self, db: sqlite3.Connection) -> None:
        for statement in self._schema:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")

    def _check_schema(self, db: sqlite3.Connection) -> None:
        if (version := _user_version(db)) != _VERSION:
            raise UnsoundError(f"version {version}, not {_VERSION}")
        found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master")}
        if not found.issuperset(each for each in self._schema if each.startswith("CREATE")):
            raise UnsoundError("its tables are not ours")
        if len(db.execute("SELECT 1 FROM state").fetchall()) != 1:
            raise UnsoundError("its totals are missing")

    def _connection(self, uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            uri, self._patience, isolation_level=None, check_same_thread=False, uri=True
        )
        db.execute(f"PRAGMA cache_size = -{_MEMORY}")
        return db

    def _disconnect(self) -> None:
        for db in (self._reader, self._writer):
            if db:
                db.close()
        self._reader = self._writer = self._opened = None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What SQLite and the system raise becomes StoreError; our own mistakes stay."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise
        except OverflowError as error:  # a number that SQLite has no room for
            raise StoreError(f"{self._name}: {error}") from error
        except OSError as error:
            hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
            raise StoreError(f"{self._name}: {error.strerror}", hint=hint) from error
        except (sqlite3.Error, UnsoundError) as error:
            match getattr(error, "sqlite_errorcode", 0) & 0xFF:
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    raise StoreError(f"{self._name}: {self._held()}") from error
                case sqlite3.SQLITE_FULL:
                    raise StoreError(f"{self._name}: {error}", hint="free some space") from error
                case _:
                    raise StoreError(f"{self._name}: {error}") from error

    @property
    def _name(self) -> str:
        return f"`{self._path}`" if self._path else "the index in memory"

    def _held(self) -> str:
        return f"another process has held the lock for {self._patience:g} s"


class UnsoundError(Exception):
    """SQLite finds nothing wrong with the file, but who reads it does."""


def _is_unsound(error: Exception) -> bool:
    if isinstance(error, UnsoundError):
        return True
    code = getattr(error, "sqlite_errorcode", 0)  # 0: of Python's module, not of SQLite
    text = str(error)
    return (
        code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
        or code == sqlite3.SQLITE_IOERR_SHORT_READ  # -wal was cut
        or (code == sqlite3.SQLITE_ERROR and text.startswith(("no such table", "no such column")))
        or (not code and "decode to UTF-8" in text)
    )


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # on some errors SQLite has rolled it back itself
            with suppress(sqlite3.Error):  # the first error tells more
                db.execute("ROLLBACK")
        raise
    return result


def _begin_wal(db: sqlite3.Connection, path: Path) -> None:
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode not in _NO_SHARED_MEMORY:
            raise
        mode = "none"
    if mode != "wal":
        raise StoreError(
            f"cannot keep an index at `{path}`: its filesystem cannot share memory among processes",
            hint="put the cache on a local disk",
        )
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")


def _is_new(db: sqlite3.Connection) -> bool:
    """Empty: we have made it just now, or somebody died between making it and the schema."""
    return _user_version(db) == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchall()


def _user_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _try_lock(path: Path) -> int | None:
    """Returns a descriptor that holds the lock, or None while somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if _identity(path) == (found.st_dev, found.st_ino):  # else deleted between open and flock
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _delete(path: Path) -> None:
    # The file goes first: SQLite throws away the -wal of an empty file, but would take what is
    # left of a sound one without its -wal for the whole.
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
