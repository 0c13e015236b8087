"""Every error of cafsfs, in one tree: one way to say absent, one to say broken, one to try again.

    CafsError
    ├── UsageError            the caller's input: a malformed digest, URI or option
    │   └── InvalidDigest
    ├── BlobNotFound          every place that could have the blob has said that it has not
    ├── NoSuchName            a name in the mount that names nothing, and never will
    ├── StaleInode            an inode that was given up: the name is to be looked up anew
    ├── NotSupported          something that this filesystem does not do
    ├── Unavailable           nobody could tell; the only kind that is worth trying again
    │   ├── Unreachable       no connection to the server
    │   │   └── ConnectTimedOut  none within its deadline; a TimedOut too
    │   ├── TimedOut          a deadline passed
    │   │   └── Crowded          in a queue of our own: nobody was asked
    │   ├── ConnectionBroken  the connection ended in the middle of something
    │   └── TooFewReplicas    an upload is on some servers, and not on as many as it should be
    ├── CorruptBlob           bytes that are not the blob: wrong hash, bad packing, wrong length
    ├── RangeError            a range that lies outside the blob
    ├── ServerRefused         the server answered with an error of its own
    ├── AuthenticationFailed  server and client do not prove to each other that they know a secret
    ├── ProtocolError
    │   ├── LocalProtocolError   our bug: the state machine was asked for what it must not do
    │   └── RemoteProtocolError  the peer's: close the connection
    ├── StoreError            a directory, disk or file that does not do what a store needs
    └── MountError            mounting or unmounting failed

Messages are one line without a full stop; ``hint`` says what to do about it, where that is known.
"""

from __future__ import annotations


class CafsError(Exception):
    """Base of all errors that cafsfs raises on purpose.

    ``hint`` is a sentence that tells the user what to do next, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CafsError):
    """The caller's input is wrong: exit code 2 on the command line."""


class InvalidDigest(UsageError, ValueError):
    """A string that is not 64 lower-case hexadecimal digits, or bytes that are not 32."""


class BlobNotFound(CafsError):
    """The blob is absent: every place that could have it has said so. ``hash`` names it."""

    def __init__(self, digest: object, *, hint: str | None = None) -> None:
        super().__init__(f"blob {digest} not found", hint=hint)
        self.hash = str(digest)


class NoSuchName(CafsError):
    """A name that is no hash and nothing else we know: absent for ever, no server is asked."""


class StaleInode(CafsError):
    """An inode that was given up: whoever looks the name up anew finds another one."""


class NotSupported(CafsError):
    """Something that this filesystem does not do: an unknown attribute, a read of a directory."""


class Unavailable(CafsError):
    """Nobody could tell. The only kind of error that is worth trying again."""


class Unreachable(Unavailable):
    """No connection to the server could be made."""


class TimedOut(Unavailable):
    """A deadline passed before the answer, or before any progress, came."""


class ConnectTimedOut(Unreachable, TimedOut):
    """The deadline for connecting passed, the greeting included.

    Unreachable, for nobody is there who answers anything; where an *answer* is late, a disk or a
    line may be slow, and that is only a TimedOut. A reader sees ETIMEDOUT of both.
    """


class Crowded(TimedOut):
    """A deadline passed in a queue of our own: it says nothing of who was to be asked."""


class ConnectionBroken(Unavailable):
    """The connection ended in the middle of something.

    ``answered`` is set to False where not one byte of the answer had come: then a request on a
    pooled connection is simply repeated on a fresh one (protocol page, section 2).
    """

    answered: bool = True


class TooFewReplicas(Unavailable):
    """An upload is on ``servers``, and they are fewer than it should be on."""

    def __init__(self, message: str, *, servers: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.servers = servers


class CorruptBlob(CafsError):
    """Bytes that are not the blob: a wrong hash, broken packing, a length that disagrees."""


class RangeError(CafsError):
    """A range that lies outside the blob."""


class ServerRefused(CafsError):
    """The server answered ``ERIO`` or ``ERBD``; the connection may still be in step."""


class AuthenticationFailed(CafsError):
    """Server and client do not prove to each other that they know the same secret.

    Or one of them demands it, and the other does not offer it. Asking this server again is of no
    use until somebody has changed something; another server may be right.
    """


class ProtocolError(CafsError):
    """Base of the two protocol errors."""


class LocalProtocolError(ProtocolError):
    """Our bug: the state machine was asked for something that it must not do now."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol: close the connection, never reuse it."""


class StoreError(CafsError):
    """A directory, disk or file that does not do what a store needs of it."""


class MountError(CafsError):
    """Mounting or unmounting failed."""
