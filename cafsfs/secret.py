"""The secret that authenticates client and server: where it is read from, and how it stays one."""

from __future__ import annotations

import hmac
import os
import shlex
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import NoReturn

from cafsfs.errors import UsageError

SHORTEST = 16  # bytes, says the protocol
LONGEST = 4096  # bytes; what is longer is some other file
CREDENTIAL = "cafsfs-secret"  # its name among a unit's credentials

_OTHERS = 0o077


class Secret:
    """Bytes that are never shown: all that can be had of it are signatures.

    It has no representation, cannot be pickled or copied, and equals only itself.
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        if not isinstance(value, bytes):
            raise UsageError(
                f"a secret is bytes, not {type(value).__name__}",
                hint="`Secret(b'…')`, or the path of the file that holds it",
            )
        if (length := len(value)) < SHORTEST:
            del value  # some tracebacks show variables
            raise UsageError(
                f"a secret has at least {SHORTEST} bytes, not {length}",
                hint="make one: openssl rand -hex 32",
            )
        self.__value = value

    def __repr__(self) -> str:
        return "<Secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied, and not written anywhere")

    def sign(self, message: bytes) -> bytes:
        """HMAC-SHA384 of ``message``, 48 bytes."""
        return hmac.digest(self.__value, message, "sha384")


def find_secret(given: Path | None) -> Secret | None:
    """The secret in the file ``given``, else in the unit's credential, else None.

    Raises UsageError as ``read_secret`` does.
    """
    if given is not None:
        return read_secret(given)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # systemd.exec(5)
    if credentials:
        path = Path(credentials) / CREDENTIAL
        if os.path.lexists(path):
            return read_secret(path)
    return None


def read_secret(path: Path) -> Secret:
    """The secret in a file, without the line feed that may end it.

    Exactly one is taken off, nothing else: every other byte belongs to the secret. Raises
    UsageError where there is none, or where others than its owner could read or change it.
    """
    try:
        value = _read_protected(path)
    except OSError as error:
        raise UsageError(
            f"cannot read the secret in `{path}`: {error.strerror}",
            hint="name a file that you may read with --secret-file",
        ) from None
    value = value.removesuffix(b"\n")
    if not SHORTEST <= (length := len(value)) <= LONGEST:
        del value  # some tracebacks show variables
        raise UsageError(
            f"`{path}` holds {_at_least(length)} bytes, and no secret",
            hint=f"a secret has {SHORTEST} to {LONGEST} bytes; make one: "
            f"(umask 077; openssl rand -hex 32 >{shlex.quote(str(path))})",
        )
    return Secret(value)


def _read_protected(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait
    try:
        _check_protected(path, os.fstat(descriptor))
        return os.read(descriptor, LONGEST + 2)
    finally:
        os.close(descriptor)


def _check_protected(path: Path, status: os.stat_result) -> None:
    if not S_ISREG(status.st_mode):
        raise UsageError(
            f"the secret `{path}` is not a regular file", hint="name a file with --secret-file"
        )
    if str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY"):
        # systemd sees to it that nobody but the unit reads these. Where it lets the unit's user do
        # so by an ACL, the file is root's, and its mode shows the ACL's mask: 0440.
        return
    quoted = shlex.quote(str(path))
    if status.st_uid not in {0, os.geteuid()}:
        raise UsageError(
            f"the secret `{path}` belongs to another user, who could change it",
            hint=f"make it yours: chown {os.geteuid()} {quoted}",
        )
    mode = S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise UsageError(
            f"others than its owner have rights to the secret `{path}` (mode {mode:04o})",
            hint=f"take them away: chmod 600 {quoted}",
        )


def _at_least(count: int) -> str:
    return str(count) if count <= LONGEST else f"over {LONGEST}"
