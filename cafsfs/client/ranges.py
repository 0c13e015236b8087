"""Whether a server answers ranges of a blob with the right bytes: tested once, then known.

Deployed servers announce the range that they were asked for and send another, or all of the blob
(protocol page, section 3.1). So the test has a connection of its own with a small receive buffer:
some kilobytes of the wrong body travel, no command is ever read from the middle of it, and the
server sees the connection close. A server that has failed is never asked for a range again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable

from cafsfs.client.connection import ServerConnection
from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound, CorruptBlob, RemoteProtocolError, ServerRefused
from cafsfs.packing import HEADER_LENGTH

log = logging.getLogger(__name__)

# A test that ended without an answer (a line that broke, a lookup that was given up) says nothing;
# but one that never gets an answer must not stand before every probe.
_TESTS = 2


class _Verdict(enum.Enum):
    UNTESTED = enum.auto()
    TESTING = enum.auto()
    SOUND = enum.auto()
    UNSOUND = enum.auto()


class Ranges:
    """What is known of the ranges of one server; ``connect`` makes the connection for the test."""

    def __init__(self, name: str, connect: Callable[[], Awaitable[ServerConnection]]) -> None:
        self._name = name
        self._connect = connect
        self._verdict = _Verdict.UNTESTED
        self._tests = _TESTS

    def __repr__(self) -> str:
        return f"<Ranges of {self._name} {self._verdict.name}>"

    @property
    def verdict(self) -> str:
        """``sound``, ``unsound`` or ``untested``."""
        known = self._verdict in {_Verdict.SOUND, _Verdict.UNSOUND}
        return self._verdict.name.lower() if known else "untested"

    @property
    def known_sound(self) -> bool:
        """True if the server has passed, and has done nothing wrong since."""
        return self._verdict is _Verdict.SOUND

    async def are_sound(self, digest: Digest, packed_length: int) -> bool:
        """What is known; where nothing is, what a test with this blob shows.

        While somebody else's test is on its way the answer is no. ``packed_length`` is in bytes.
        Raises Unavailable and BlobNotFound where the test came to no end.
        """
        if self._verdict is _Verdict.UNTESTED and packed_length > HEADER_LENGTH:
            self._verdict = _Verdict.TESTING
            await self._test(digest, packed_length)
        return self.known_sound

    def condemn(self, reason: object) -> None:
        """Use no range of this server any more: one has proved wrong."""
        if self.known_sound:
            log.warning("%s; asking %s for no more ranges", reason, self._name)
        self._verdict = _Verdict.UNSOUND

    async def _test(self, digest: Digest, packed_length: int) -> None:
        verdict = _Verdict.UNTESTED
        try:
            connection = await self._connect()
            self._tests -= 1
            verdict = _Verdict.UNTESTED if self._tests else _Verdict.UNSOUND
            try:
                sound = await connection.has_sound_ranges(digest, packed_length)
                verdict = _Verdict.SOUND if sound else _Verdict.UNSOUND
            except BlobNotFound:  # nobody's fault
                self._tests += 1
                verdict = _Verdict.UNTESTED
                raise
            except (RemoteProtocolError, ServerRefused, CorruptBlob) as error:
                log.debug("the range test of %s: %s", self._name, error)
                verdict = _Verdict.UNSOUND
            finally:
                connection.close()
        finally:
            self._verdict = verdict
            log.info("ranges of %s: %s", self._name, verdict.name.lower())
