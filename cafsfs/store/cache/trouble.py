"""What is wrong with a cache's disk, and for how long it is left alone."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import trio

from cafsfs.store.cache.partials import FULL

log = logging.getLogger(__name__)

_BYPASSED_FOR = (
    60.0  # seconds after an error of the disk; and between two complaints that it is full
)
# What stands in the place of a blob, or of its directory: no trouble of the disk.
_IN_THE_WAY = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP})
_READ_ONLY_FOR = 600.0  # seconds
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Trouble:
    """A cache is bypassed for a minute after an I/O error, and where it cannot be written, read.

    What became read-only while it was used is tried again after ten minutes.
    """

    def __init__(self, directory: Path, read_only: str | None) -> None:
        self._directory = directory
        self._read_only = read_only
        self._not_written = float("-inf"), ""  # until when, and why
        self._until = float("-inf")
        self._why = ""
        self._full_until, self._full = float("-inf"), ""

    @property
    def read_only(self) -> str | None:
        """Why it cannot be written, if it cannot."""
        until, why = self._not_written
        return why if trio.current_time() < until else self._read_only

    @property
    def bypassed(self) -> bool:
        """Is the disk to be left alone now?"""
        return trio.current_time() < self._until

    @property
    def reason(self) -> str | None:
        """Why the cache is not used, or not written to, at the moment."""
        if self.bypassed:
            return self._why
        if self.read_only is None and trio.current_time() < self._full_until:
            return self._full
        return self.read_only

    def note(self, error: OSError) -> None:
        """The disk has failed in this way."""
        reason = f"{error.strerror} in `{self._directory}`"
        now = trio.current_time()
        if error.errno == errno.ENOENT:
            log.debug("%s", error)  # somebody clears the cache by hand
        elif error.errno in _IN_THE_WAY:
            log.warning("not cached, because of what somebody else has put there: %s", error)
        elif error.errno in FULL:
            if now >= self._full_until:
                log.warning("the cache has no room, and nothing to evict: %s", reason)
            self._full_until, self._full = now + _BYPASSED_FOR, reason
        elif error.errno in _READ_ONLY:
            if self.read_only is None:
                log.warning("the cache can only be read: %s", reason)
            self._not_written = now + _READ_ONLY_FOR, reason
        else:
            if not self.bypassed:
                log.warning("the cache is bypassed for %g s: %s", _BYPASSED_FOR, reason)
            self._until, self._why = now + _BYPASSED_FOR, reason
