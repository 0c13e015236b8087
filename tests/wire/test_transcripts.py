"""Recordings of a deployed server, replayed from both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import RemoteProtocolError
from cafsfs.wire import (
    Aborted,
    Absent,
    Accepted,
    Authenticate,
    BadRequest,
    Check,
    Connection,
    EndOfBody,
    FileError,
    Greeting,
    Have,
    Measure,
    PackedLength,
    PeerClosed,
    Pull,
    Push,
    Role,
    Root,
    Stream,
    Take,
    Version,
)
from tests.wire.driving import (
    CLIENT,
    SERVER,
    TWO,
    Heard,
    Word,
    close,
    feed,
    say,
    shaken,
)

_VECTORS = Path(__file__).parent.parent / "vectors"
_RECORDED = json.loads((_VECTORS / "plain-transcripts.json").read_text())
_RANGED = json.loads((_VECTORS / "ranged-pull.json").read_text())["requests"]


@dataclass(frozen=True)
class Turn:
    """What one side says until the other speaks; STRM bodies go in chunks of ``chunk`` bytes."""

    role: Role
    words: tuple[Word, ...]
    chunk: int = 50


def client(*words: Word, chunk: int = 50) -> Turn:
    return Turn(CLIENT, words, chunk)


def server(*words: Word) -> Turn:
    return Turn(SERVER, words)


def recorded_turns(scenario: str) -> list[tuple[Role, bytes]]:
    """The bytes of each turn; frames of one side that follow each other are one turn."""
    frames = [f for f in _RECORDED["scenarios"][scenario]["transcript"] if "hex" in f]
    return [
        (Role(side), b"".join(bytes.fromhex(frame["hex"]) for frame in run))
        for side, run in groupby(frames, key=lambda frame: frame["from"])
    ]


def recorded(scenario: str, role: Role) -> bytes:
    return b"".join(data for side, data in recorded_turns(scenario) if side is role)


def closes(scenario: str) -> bool:
    transcript = _RECORDED["scenarios"][scenario]["transcript"]
    return any(frame.get("event") == "closed" for frame in transcript)


FOX = Digest.parse(_RECORDED["digest_hex"])
_CONTENT = bytes.fromhex(_RECORDED["content_hex"])
PACKED = b"NONE\x10\0\0\0" + len(_CONTENT).to_bytes(8, "little") + _CONTENT
REPACKED = recorded("pull_after_repack", SERVER)[-79:]

ZERO = Digest(bytes(32))  # this server has it: somebody once pushed something under that key

_STREAMED = recorded("stream", CLIENT)[13 : 13 + 137]  # after VERS001 and the root
STREAMED = Digest(_STREAMED[10:42])
STREAM = _STREAMED[44:94] + _STREAMED[96:135]
ABORTED = Digest(recorded("stream_aborted", CLIENT)[13 + 10 : 13 + 42])

_HELLO = (server(Greeting(1)), client(Version(1)), server(Accepted()))
_ROOT = Root(b"/root")
_PUSH = (Push(FOX, len(PACKED)), PACKED, EndOfBody())

SCENARIOS: dict[str, tuple[Turn, ...]] = {
    "absent": (
        *_HELLO,
        client(_ROOT, Check(FOX)),
        server(Absent()),
        client(Measure(FOX)),
        server(Absent()),
        client(Pull(FOX)),
        server(Absent()),
    ),
    "push_then_pull": (
        *_HELLO,
        client(_ROOT, *_PUSH),
        server(Have()),
        client(Check(FOX)),
        server(Have()),
        client(Measure(FOX)),
        server(PackedLength(len(PACKED))),
        client(Pull(FOX)),
        server(Take(FOX, len(PACKED), 0), PACKED, EndOfBody()),
    ),
    "push_again": (*_HELLO, client(_ROOT, *_PUSH), server(Have())),
    "pull_after_repack": (
        *_HELLO,
        client(_ROOT, Measure(FOX)),
        server(PackedLength(len(REPACKED))),
        client(Pull(FOX)),
        server(Take(FOX, len(REPACKED), 0), REPACKED, EndOfBody()),
    ),
    "stream": (
        *_HELLO,
        client(_ROOT, Stream(STREAMED), STREAM, EndOfBody()),
        server(Have()),
        client(Check(STREAMED)),
        server(Have()),
    ),
    "stream_aborted": (
        *_HELLO,
        client(_ROOT, Stream(ABORTED), b"NONE\x10\0\0\0\x07\0\0\0\0\0\0\0", Aborted()),
        server(FileError()),
        client(Check(ABORTED)),
        server(Absent()),
    ),
    "pipelined": (
        *_HELLO,
        client(_ROOT, Check(FOX), Check(FOX), Check(FOX), Measure(FOX), Check(ZERO)),
        server(Have(), Have(), Have(), PackedLength(len(REPACKED)), Have()),
    ),
    "version_000": (server(Greeting(1)), client(Version(0)), server(BadRequest())),
    "unknown_root": (*_HELLO, client(Root(b"/no/such/root"), Check(FOX)), server(Absent())),
}
# What our client cannot say: tests of their own, below.
UNSPEAKABLE = {"unknown_command", "version_002_on_plain_server"}

scenarios = pytest.mark.parametrize("scenario", SCENARIOS)
steps = pytest.mark.parametrize("step", [None, 1, 7, 41], ids=lambda s: f"{s or 'all'} bytes")


def said_by(scenario: str, role: Role) -> list[Word]:
    return [word for turn in SCENARIOS[scenario] for word in turn.words if turn.role is role]


def replay(conn: Connection, scenario: str, turns: int, step: int | None = None) -> None:
    """The first ``turns`` turns, seen from the side of ``conn``; both must be as recorded."""
    script = zip(SCENARIOS[scenario], recorded_turns(scenario), strict=True)
    for turn, (role, data) in [*script][:turns]:
        assert turn.role is role
        if role is conn.role:
            assert say(conn, *turn.words, chunk=turn.chunk) == data
        else:
            assert feed(conn, data, step) == list(turn.words)


def test_every_recording_is_replayed() -> None:
    assert SCENARIOS.keys() | UNSPEAKABLE == _RECORDED["scenarios"].keys()


@pytest.mark.parametrize("role", Role)
@scenarios
@steps
def test_turn_by_turn(role: Role, scenario: str, step: int | None) -> None:
    conn = Connection(role)
    replay(conn, scenario, len(SCENARIOS[scenario]), step)
    assert conn.at_rest is not closes(scenario)
    assert close(conn) == [PeerClosed()]


@scenarios
@steps
def test_client_says_everything_before_it_listens(scenario: str, step: int | None) -> None:
    conn = Connection(CLIENT)
    replay(conn, scenario, 1)
    assert say(conn, *said_by(scenario, CLIENT), chunk=50) == recorded(scenario, CLIENT)
    answers = recorded(scenario, SERVER)[len(b"BLOBPUSH_SERVER_V001") :]
    assert feed(conn, answers, step) == said_by(scenario, SERVER)[1:]


@scenarios
@steps
def test_server_hears_everything_before_it_answers(scenario: str, step: int | None) -> None:
    conn = Connection(SERVER)
    replay(conn, scenario, 1)
    assert feed(conn, recorded(scenario, CLIENT), step) == said_by(scenario, CLIENT)
    assert b"BLOBPUSH_SERVER_V001" + say(conn, *said_by(scenario, SERVER)[1:]) == recorded(
        scenario, SERVER
    )


@scenarios
@pytest.mark.parametrize("garbage", [b"\xff", b"\xff" * 60, b"HAVE", b"NONE"])
def test_client_refuses_more_than_was_asked_for(scenario: str, garbage: bytes) -> None:
    turns = [i for i, turn in enumerate(SCENARIOS[scenario]) if turn.role is SERVER]
    for i in turns:
        conn = Connection(CLIENT)
        replay(conn, scenario, i)
        heard: list[Heard] = []
        with pytest.raises(RemoteProtocolError):
            feed(conn, recorded_turns(scenario)[i][1] + garbage, heard=heard)
        assert heard == list(SCENARIOS[scenario][i].words)


@scenarios
def test_server_hears_the_next_message_in_the_same_read(scenario: str) -> None:
    turns = [i for i, turn in enumerate(SCENARIOS[scenario]) if turn.role is CLIENT]
    for i in turns:
        conn = Connection(SERVER)
        replay(conn, scenario, i)
        turn = SCENARIOS[scenario][i]
        following = Root(b"") if isinstance(turn.words[-1], Version) else Check(TWO)
        data = recorded_turns(scenario)[i][1] + following.encode()
        assert feed(conn, data) == [*turn.words, following]


@scenarios
def test_server_refuses_garbage_after_a_command(scenario: str) -> None:
    for i, turn in enumerate(SCENARIOS[scenario]):
        if turn.role is SERVER or isinstance(turn.words[-1], Version):
            continue  # after VERS anything is the beginning of a root
        conn = Connection(SERVER)
        replay(conn, scenario, i)
        heard: list[Heard] = []
        with pytest.raises(RemoteProtocolError, match="unknown command b'WHAT'"):
            feed(conn, recorded_turns(scenario)[i][1] + b"WHATEVER", heard=heard)
        assert heard == list(turn.words)


@steps
def test_unknown_command(step: int | None) -> None:
    assert recorded("unknown_command", CLIENT) == b"VERS001\x05/rootWHAT"
    conn = Connection(SERVER)
    said = conn.send(Greeting(1))
    assert feed(conn, b"VERS001\x05/root", step) == [Version(1), _ROOT]
    assert said + conn.send(Accepted()) == recorded("unknown_command", SERVER)
    with pytest.raises(RemoteProtocolError, match="unknown command b'WHAT'"):
        feed(conn, b"WHAT", step)


def test_version_002_on_a_plain_server_is_heard_before_what_follows_it() -> None:
    sent = recorded("version_002_on_plain_server", CLIENT)
    assert sent == b"VERS002" + bytes(8)
    at_server = Connection(SERVER)
    assert at_server.send(Greeting(1)) == recorded("version_002_on_plain_server", SERVER)
    at_server.receive_data(sent)
    assert at_server.next_event() == Authenticate(0)  # now it closes, as it was recorded


def test_version_002_on_a_plain_server_is_answered_by_nothing() -> None:
    at_client = Connection(CLIENT)
    feed(at_client, recorded("version_002_on_plain_server", SERVER))
    sent = recorded("version_002_on_plain_server", CLIENT)
    assert at_client.send(Authenticate(0)) == sent
    with pytest.raises(RemoteProtocolError, match="server closed in state SILENT"):
        close(at_client)


@pytest.mark.parametrize("request_", _RANGED)
@steps
def test_ranged_pull_of_a_deployed_server(request_: str, step: int | None) -> None:
    length, chunk = map(int, request_.split(","))
    answer = _RANGED[request_]
    conn = shaken(CLIENT)
    conn.send(Pull(FOX, length, chunk))
    if answer["answer"] == "ERIO":
        assert feed(conn, b"ERIO", step) == [FileError()]
        assert conn.at_rest
        return
    announced, sent = answer["announced_size"], answer["bytes_sent"]
    take = Take(FOX, announced, answer["announced_chunk"])
    # The body begins with what stands at byte 0 of the blob, and so never like an answer.
    body = b"NONE\x10\0\0\0" + bytes(sent - 8)
    step = step and step * 4001  # the control message in small steps is tested elsewhere
    heard: list[Heard] = []
    if sent == announced:
        assert feed(conn, take.encode() + body, step) == [take, body, EndOfBody()]
        assert conn.at_rest
        return
    with pytest.raises(RemoteProtocolError, match="answers no command"):
        feed(conn, take.encode() + body, step, heard)
    assert heard == [take, body[:announced], EndOfBody()]
