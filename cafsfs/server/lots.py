"""Answer what a client asks: the questions that came together in one hop into a thread.

A hop costs about 100 µs, opening and reading a small file 20: a client that pipelines pulls of
small blobs would wait for little but hops. A lot ends early where going on would be unfair or
would take memory: see the bounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from cafsfs.errors import BlobNotFound, CafsError
from cafsfs.store.local_root import FileBody, LocalRoot
from cafsfs.wire import (
    CHUNK_STEP,
    Absent,
    Check,
    FileError,
    Have,
    Measure,
    Message,
    PackedLength,
    Pull,
    Take,
)

Question = Check | Measure | Pull

LOT = 64  # questions; with more a lot is hardly cheaper
_BODIES = 256 << 10  # bytes; what a client that takes nothing can make the server keep
# Seconds. A lot whose files are in memory takes about one millisecond. Where each waits for the
# disk it gives its thread back after the first one, and other clients have their turn.
_TURN = 0.002


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one question; with it what was found, or the reason of a FileError.

    A body that is not ``whole`` has an open descriptor, which whoever gets the reply closes.
    """

    answer: Message
    body: FileBody | None = None
    reason: CafsError | None = None


async def reply_to(
    questions: Sequence[Question], store: LocalRoot, limiter: trio.CapacityLimiter
) -> list[Reply]:
    """Answer the first of ``questions``, at least one; a body that is not whole ends the list."""
    return await trio.to_thread.run_sync(_reply_to, questions, store, limiter=limiter)


def _reply_to(questions: Sequence[Question], store: LocalRoot) -> list[Reply]:
    replies = []
    end = time.monotonic() + _TURN
    kept = 0
    for question in questions[:LOT]:
        reply = _reply(question, store)
        replies.append(reply)
        if reply.body is not None:
            if not reply.body.whole:
                break
            kept += reply.body.length
        if kept >= _BODIES or time.monotonic() >= end:
            break
    return replies


def _reply(question: Question, store: LocalRoot) -> Reply:
    try:
        match question:
            case Pull():
                return _reply_with_body(question, store)
            case Check(digest):
                return Reply(Have() if store.has(digest) else Absent())
            case Measure(digest):
                return Reply(PackedLength(store.measure(digest).length))
    except BlobNotFound:
        return Reply(Absent())
    except CafsError as error:
        return Reply(FileError(), reason=error)
    except OSError as error:
        return Reply(FileError(), reason=store.explain(error))


def _reply_with_body(pull: Pull, store: LocalRoot) -> Reply:
    body = store.open_body(pull.digest, pull.chunk * CHUNK_STEP, pull.length or None)
    if body.whole:
        os.close(body.descriptor)
    return Reply(Take(pull.digest, body.length, pull.chunk), body)
