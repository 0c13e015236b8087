"""The one total table from our errors to errno."""

from __future__ import annotations

import errno

from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    NoSuchName,
    NotSupported,
    StaleInode,
    TimedOut,
    UsageError,
)

# The nearest class in the order of inheritance counts; CafsError makes the table total.
ERRNO: dict[type[CafsError], int] = {
    BlobNotFound: errno.ENOENT,
    NoSuchName: errno.ENOENT,
    NotSupported: errno.EOPNOTSUPP,
    StaleInode: errno.ESTALE,  # the kernel looks up the name once more, and opens what it finds
    TimedOut: errno.ETIMEDOUT,
    UsageError: errno.EINVAL,
    CafsError: errno.EIO,
}


def errno_of(error: CafsError) -> int:
    """The errno that a reader sees for ``error``."""
    return next(ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO)
