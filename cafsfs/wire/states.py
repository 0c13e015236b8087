"""The one table of states; everything that decides what may be said when lives here.

Each connection has two halves that move side by side: what the client says and what the server
says. A message must have an entry in ``TABLE`` in the row of the half that says it; where the
other half has an entry for it in ``FOLLOWS``, that half moves with it (the greeting lets the client
speak).

    client:  SILENT ─greeting→ VERSION ─VERS→ ROOT ─root→ COMMAND ⇄ BODY, CHUNKS
    server:  GREETING ─greeting→ SILENT ─VERS→ VERDICT ─accepted→ ANSWER ⇄ BODY

The client may send its root before it has read the verdict, so its half does not wait for that.
With version 002 it waits, as it cannot know what will be encrypted:

    client:  … VERSION ─VERS 002→ HELLO ─hello→ SILENT ─its hello→ PROOF ─clock→ SILENT
             ─its proof→ SEALED_ROOT ─root→ SILENT ─verdict→ COMMAND …
    server:  … SILENT ─its hello→ HELLO ─hello→ SILENT ─its clock→ PROOF ─proof→ PROVEN
             ─root→ ADMISSION ─verdict→ ANSWER …

From the hellos on the bytes are encrypted; the owner of the socket sees to that, and where nothing
more may have come yet than what was parsed.
Answers come in the order of the commands; ``ANSWERS`` and ``fits`` say which answer fits which
command.
"""

from __future__ import annotations

import enum

from cafsfs.wire.messages import (
    Aborted,
    Absent,
    Accepted,
    Authenticate,
    BadRequest,
    Check,
    ClientProof,
    Command,
    EndOfBody,
    Event,
    FileError,
    GoesOnPlain,
    Greeting,
    Have,
    Hello,
    Measure,
    PackedLength,
    Pull,
    Push,
    Root,
    ServerProof,
    StaysEncrypted,
    Stream,
    Take,
    Version,
    WrongClock,
)


class Role(enum.Enum):
    """Which side of the connection."""

    CLIENT = "client"
    SERVER = "server"

    __hash__ = object.__hash__  # Enum's own is Python: a third of the time that a pull takes here

    @property
    def peer(self) -> Role:
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(enum.Enum):
    """What one half of a connection may say next."""

    SILENT = enum.auto()  # nothing: it is the other side's turn
    GREETING = enum.auto()
    VERSION = enum.auto()
    VERDICT = enum.auto()
    ROOT = enum.auto()
    HELLO = enum.auto()  # from here on only with version 002
    PROOF = enum.auto()
    PROVEN = enum.auto()  # it may complain of the client's clock, else it waits for the root
    SEALED_ROOT = enum.auto()
    ADMISSION = enum.auto()  # up to here
    COMMAND = enum.auto()
    ANSWER = enum.auto()
    BODY = enum.auto()  # as many bytes as were announced
    CHUNKS = enum.auto()  # STRM: chunks with a length each
    CLOSED = enum.auto()  # nothing any more
    ERROR = enum.auto()  # nothing any more: somebody broke the protocol

    __hash__ = object.__hash__  # as in Role


START = {Role.CLIENT: State.SILENT, Role.SERVER: State.GREETING}

# What each half may say, and its state afterwards. Data has no entry: in BODY and CHUNKS it is
# counted. EndOfBody is no message after PUSH and TAKE, but the same step.
TABLE: dict[Role, dict[State, dict[type, State]]] = {
    Role.CLIENT: {
        State.VERSION: {Version: State.ROOT, Authenticate: State.HELLO},
        State.HELLO: {Hello: State.SILENT},
        State.PROOF: {ClientProof: State.SILENT},
        State.SEALED_ROOT: {Root: State.SILENT},
        State.ROOT: {Root: State.COMMAND},
        State.COMMAND: {
            Check: State.COMMAND,
            Measure: State.COMMAND,
            Pull: State.COMMAND,
            Push: State.BODY,
            Stream: State.CHUNKS,
        },
        State.BODY: {EndOfBody: State.COMMAND},
        State.CHUNKS: {EndOfBody: State.COMMAND, Aborted: State.COMMAND},
    },
    Role.SERVER: {
        State.GREETING: {Greeting: State.SILENT},
        State.VERDICT: {Accepted: State.ANSWER, BadRequest: State.CLOSED},
        State.HELLO: {Hello: State.SILENT, BadRequest: State.CLOSED},
        State.PROOF: {ServerProof: State.PROVEN},
        State.PROVEN: {WrongClock: State.CLOSED},
        State.ADMISSION: {
            StaysEncrypted: State.ANSWER,
            GoesOnPlain: State.ANSWER,
            WrongClock: State.CLOSED,
        },
        State.ANSWER: {
            Have: State.ANSWER,
            Absent: State.ANSWER,
            PackedLength: State.ANSWER,
            FileError: State.ANSWER,
            Take: State.BODY,
            BadRequest: State.CLOSED,
        },
        State.BODY: {EndOfBody: State.ANSWER},
    },
}

# Where a half goes when the *other* half says something; without an entry it stays. A table of its
# own, or a half could say what it only hears, and the end of a pulled body would end an upload
# that is under way beside it.
FOLLOWS: dict[Role, dict[State, dict[type, State]]] = {
    Role.CLIENT: {
        State.SILENT: {
            Greeting: State.VERSION,
            Hello: State.PROOF,
            ServerProof: State.SEALED_ROOT,
            StaysEncrypted: State.COMMAND,
            GoesOnPlain: State.COMMAND,
            WrongClock: State.CLOSED,
            BadRequest: State.CLOSED,
        },
        State.SEALED_ROOT: {WrongClock: State.CLOSED},
        State.ROOT: {BadRequest: State.CLOSED},
        State.COMMAND: {BadRequest: State.CLOSED},
        State.BODY: {BadRequest: State.CLOSED},
        State.CHUNKS: {BadRequest: State.CLOSED},
    },
    Role.SERVER: {
        State.SILENT: {Version: State.VERDICT, Hello: State.HELLO, ClientProof: State.PROOF},
        State.PROVEN: {Root: State.ADMISSION},
    },
}

# Where a half may close the connection: before or between commands, or after ERBD.
MAY_CLOSE = frozenset({State.VERSION, State.COMMAND, State.ANSWER, State.CLOSED})

# FileError fits everywhere: it is four bytes, and the connection stays in step after it.
ANSWERS: dict[type, frozenset[type]] = {
    Check: frozenset({Have, Absent, FileError, BadRequest}),
    Measure: frozenset({PackedLength, Absent, FileError, BadRequest}),
    Pull: frozenset({Take, Absent, FileError, BadRequest}),
    Push: frozenset({Have, FileError, BadRequest}),
    Stream: frozenset({Have, FileError, BadRequest}),
}


def fits(answer: Event, command: Command) -> bool:
    """Whether ``answer`` may answer ``command``; a Take also by its blob and the range asked for.

    Every server announces the range that it was asked for, even one that then sends another
    (protocol page, section 3.1). A length of 0 asks for all there is, so any length answers it.
    """
    if type(answer) not in ANSWERS[type(command)]:
        return False
    if isinstance(answer, Take) and isinstance(command, Pull):
        same_place = (answer.digest, answer.chunk) == (command.digest, command.chunk)
        return same_place and command.length in {0, answer.length}
    return True
