"""Can the servers be reached, do they let us in, and how well do they serve?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from cafsfs.client.connection import ServerConnection
from cafsfs.client.credentials import Credentials
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.ranges import Ranges
from cafsfs.client.servers import Deadlines, Server
from cafsfs.digest import Digest
from cafsfs.doctor.case import Case, Finding, advice, broken, fine
from cafsfs.errors import BlobNotFound, CafsError, InvalidDigest, UsageError
from cafsfs.packing import HEADER_LENGTH
from cafsfs.secret import find_secret

PATIENCE = 15.0  # seconds for one server, so that a slow one does not silence the others
_BUFFER = 4 << 10  # bytes of receive buffer: about 6 KB travel of a body that nobody asked for
_TRIED = 16  # cached blobs that a server is asked for, until it has one
_REACH = "is it running, and can it be reached from here? a firewall may be between"

Connect = Callable[..., Awaitable[ServerConnection]]


def look_at_secret(case: Case) -> Iterator[Finding]:
    """The secret can be read, and by nobody else."""
    try:
        credentials = _credentials(case)
    except UsageError as error:
        yield broken(str(error), error.hint or "")
        return
    if credentials.secret is not None:
        yield fine("there is a secret, and others cannot read it")


def look_at_directory(case: Case) -> Iterator[Finding]:
    """The root of a file:// URI is there."""
    if case.uri is None or case.uri.directory is None:
        return
    directory = case.uri.directory
    shown = shlex.quote(str(directory))
    if not directory.is_dir():
        yield broken(f"there is no root `{directory}`", f"mkdir -p {shown}")
    elif not os.access(directory, os.R_OK | os.X_OK):
        yield broken(f"the root `{directory}` cannot be read", f"as root: chmod go+rx {shown}")
    else:
        yield fine(f"the root {directory} can be read")


def look_at_servers(case: Case) -> Iterator[Finding]:
    """Each server and each mirror, side by side."""
    if case.uri is None or not case.uri.servers:
        return
    try:
        credentials = _credentials(case)
    except UsageError:  # look_at_secret says so
        return
    yield from trio.run(_look_at_all, case, credentials)


async def _look_at_all(case: Case, credentials: Credentials) -> list[Finding]:
    assert case.uri is not None
    patience = case.store.connect_timeout
    deadlines = Deadlines(connect=patience, question=patience, answer=patience)
    hashes = list(islice(_cached(case.cache.cache_dir), _TRIED))
    opening = partial(
        ServerConnection.open,
        root=case.uri.root.encode(),
        deadlines=deadlines,
        credentials=credentials,
    )
    looks = [
        *(
            partial(
                _look_at_server, each, opening, hashes, with_secret=credentials.secret is not None
            )
            for each in case.uri.servers
        ),
        *(partial(_look_at_mirror, each, deadlines) for each in case.store.mirror),
    ]
    names = [*map(str, case.uri.servers), *(each.name for each in case.store.mirror)]
    found = [
        [broken(f"{name} is too slow: not seen within {PATIENCE:g} s", _REACH)] for name in names
    ]

    async def note(number: int) -> None:
        with trio.move_on_after(PATIENCE):
            found[number] = await looks[number]()

    async with trio.open_nursery() as nursery:
        for number in range(len(looks)):
            nursery.start_soon(note, number)
    return [each for findings in found for each in findings]


async def _look_at_server(
    server: Server, opening: Connect, hashes: Sequence[Digest], *, with_secret: bool
) -> list[Finding]:
    began = trio.current_time()
    try:
        connection = await opening(server)
    except CafsError as error:
        return [broken(str(error), error.hint or _REACH)]
    trip = (trio.current_time() - began) / connection.round_trips
    spoken = f"{server} speaks version {connection.protocol}, {trip * 1000:.1f} ms away"
    try:
        known = await _find(connection, hashes)
    except CafsError as error:
        return [broken(f"{spoken}, but: {error}", error.hint or _REACH)]
    finally:
        connection.close()
    seen = fine(spoken)
    if with_secret and connection.protocol == "001":
        seen = advice(
            f"{spoken}: it authenticates nobody, though we have a secret",
            "give it the secret (cafsfs serve --secret-file FILE); --auth required leaves it out",
        )
    return [seen, *await _look_at_ranges(server, opening, known)]


async def _find(
    connection: ServerConnection, hashes: Sequence[Digest]
) -> tuple[Digest, int] | None:
    """A cached blob that the server has, long enough to show whether ranges are right."""
    for digest in hashes:
        try:
            length = await connection.measure(digest)
        except BlobNotFound:
            continue
        if length > HEADER_LENGTH:
            return digest, length
    return None


async def _look_at_ranges(
    server: Server, opening: Connect, known: tuple[Digest, int] | None
) -> list[Finding]:
    if known is None:
        return [fine(f"ranges of {server} are untested: no blob of it is cached here")]
    ranges = Ranges(str(server), partial(opening, server, receive_buffer=_BUFFER))
    try:
        await ranges.are_sound(*known)
    except CafsError as error:
        return [advice(f"ranges of {server} could not be tested: {error}", error.hint or _REACH)]
    if ranges.known_sound:
        return [fine(f"ranges of {server} are sound")]
    return [
        advice(
            f"ranges of {server} are {ranges.verdict}: a pull that breaks begins anew",
            "nothing, if lines are good; `cafsfs serve` over the same directory has sound ones",
        )
    ]


async def _look_at_mirror(template: MirrorTemplate, deadlines: Deadlines) -> list[Finding]:
    from cafsfs.client.mirror import MirrorStore  # noqa: PLC0415  # httpx takes 40 ms to import

    mirror = MirrorStore(template, connections=1, deadlines=deadlines)
    try:
        seconds = await mirror.greet()
    except CafsError as error:
        return [broken(str(error), error.hint or _REACH)]
    finally:
        with trio.CancelScope(shield=True):
            await mirror.aclose()
    return [fine(f"{template.name} answers within {seconds * 1000:.0f} ms")]


def _credentials(case: Case) -> Credentials:
    return Credentials(
        secret=find_secret(case.store.secret_file), required=case.store.auth == "required"
    )


def _cached(directory: Path) -> Iterator[Digest]:
    """Blobs that are cached, in no order."""
    for path in (directory / "blobs").glob("??/??/*"):
        try:
            yield Digest.parse(path.name)
        except InvalidDigest:
            continue
