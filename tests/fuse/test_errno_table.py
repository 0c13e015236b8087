"""Every error of the tree has an errno, and this one."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

import cafsfs.client  # noqa: F401  # errors of its own
from cafsfs import errors
from cafsfs.errors import CafsError
from cafsfs.fuse.errno_table import ERRNO, errno_of

WANTED = {
    errors.CafsError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.InvalidDigest: errno.EINVAL,
    errors.BlobNotFound: errno.ENOENT,
    errors.NoSuchName: errno.ENOENT,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.StaleInode: errno.ESTALE,
    errors.Unavailable: errno.EIO,
    errors.Unreachable: errno.EIO,
    errors.TimedOut: errno.ETIMEDOUT,
    errors.Crowded: errno.ETIMEDOUT,
    errors.ConnectTimedOut: errno.ETIMEDOUT,
    errors.ConnectionBroken: errno.EIO,
    errors.AuthenticationFailed: errno.EIO,
    errors.TooFewReplicas: errno.EIO,
    errors.CorruptBlob: errno.EIO,
    errors.RangeError: errno.EIO,
    errors.ServerRefused: errno.EIO,
    errors.ProtocolError: errno.EIO,
    errors.LocalProtocolError: errno.EIO,
    errors.RemoteProtocolError: errno.EIO,
    errors.StoreError: errno.EIO,
    errors.MountError: errno.EIO,
}


def tree(kind: type[CafsError]) -> Iterator[type[CafsError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from tree(each)


@pytest.mark.parametrize("kind", list(tree(CafsError)), ids=lambda kind: kind.__name__)
def test_every_error_has_its_errno(kind: type[CafsError]) -> None:
    error = kind.__new__(kind)  # each has arguments of its own
    assert errno_of(error) == next(WANTED[each] for each in kind.__mro__ if each in WANTED)


def test_the_table_knows_no_error_that_is_not_in_the_tree() -> None:
    assert set(ERRNO) <= set(tree(CafsError))
    assert {each for each in tree(CafsError) if each.__module__ == errors.__name__} == set(WANTED)


def test_an_error_that_nobody_has_thought_of_is_an_input_output_error() -> None:
    class Surprise(errors.TimedOut):
        pass

    class Other(CafsError):
        pass

    assert errno_of(Surprise("late")) == errno.ETIMEDOUT
    assert errno_of(Other("what?")) == errno.EIO
