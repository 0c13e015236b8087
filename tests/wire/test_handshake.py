"""Recordings of version 002 on a deployed server, replayed from both sides to the last byte."""

from __future__ import annotations

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import AuthenticationFailed, RemoteProtocolError
from cafsfs.secret import Secret
from cafsfs.wire import (
    Accepted,
    Authenticate,
    BadRequest,
    Ciphers,
    ClientProof,
    Connection,
    EndOfBody,
    GoesOnPlain,
    Greeting,
    Handshake,
    Have,
    Hello,
    Keystream,
    Message,
    PeerClosed,
    Pull,
    Push,
    Role,
    Root,
    ServerProof,
    Take,
    Version,
    WrongClock,
)
from cafsfs.wire.handshake import EphemeralKey, derive, is_current, is_proof, is_punctual, page_at
from tests.wire.driving import CLIENT, SERVER, Heard, Word, close, feed, say, sliced
from tests.wire.handshakes import (
    ACCEPTED,
    CLOCK,
    PAGE,
    RECORDED,
    REFUSED,
    SECRET,
    Recording,
    fixed,
    frames,
    refused,
)

_KEY_AND_IV = ("key_hex", "iv_hex")
_ROOT = Root(b"/enc")

steps = pytest.mark.parametrize("step", [None, 1, 7, 41], ids=lambda s: f"{s or 'all'} bytes")
recordings = pytest.mark.parametrize("recording", ACCEPTED.values(), ids=ACCEPTED)
roles = pytest.mark.parametrize("role", Role, ids=lambda role: role.value)


# --- intermediate values


@recordings
def test_page_and_one_time_password(recording: Recording) -> None:
    page = recording.values["otp_page_number"]
    assert page_at(recording.values["timestamp"]) == page == PAGE
    password = Secret(recording.values["secret"].encode()).sign(page.to_bytes(8, "little"))
    assert password == recording.bytes_of("otp_page")
    assert password[16:31] + b"\0" == recording.bytes_of("handshake_iv")


@recordings
def test_key_agreement(recording: Recording) -> None:
    key = recording.client_key
    assert key.public == recording.bytes_of("client_public")
    assert key.shared_with(recording.bytes_of("server_public")) == recording.bytes_of("ecdh_shared")


@recordings
@roles
def test_hellos(recording: Recording, role: Role) -> None:
    said = recording.handshake(role).hello().encode()
    assert said == recording.said_by(role)[1]
    opened = Keystream(recording.bytes_of("otp_page")[:16], recording.bytes_of("handshake_iv"))
    side = role.value
    public, nonce = recording.bytes_of(f"{side}_public"), recording.bytes_of(f"{side}_random")
    assert opened.convert(said) == public + nonce


@recordings
@roles
def test_session_keys(recording: Recording, role: Role) -> None:
    """The recorded keys encrypt as the derived ciphers do."""
    password, shared = recording.bytes_of("otp_page"), recording.bytes_of("ecdh_shared")
    ciphers = derive(role, password, shared)
    expected = {
        name: Keystream(*(bytes.fromhex(recording.values[name][each]) for each in _KEY_AND_IV))
        for name in ("client_to_server", "server_to_client")
    }
    up, down = expected["client_to_server"], expected["server_to_client"]
    sending, receiving = (up, down) if role is CLIENT else (down, up)
    assert ciphers.sending.convert(bytes(64)) == sending.convert(bytes(64))
    assert ciphers.receiving.convert(bytes(64)) == receiving.convert(bytes(64))


# --- whole conversations


class Side:
    """One side as the owner of a socket drives it; ``ciphers`` from its hello on."""

    def __init__(self, role: Role, handshake: Handshake, step: int | None) -> None:
        self.conn = Connection(role)
        self.handshake = handshake
        self.ciphers: Ciphers | None = None
        self.step = step

    def say(self, *words: Word) -> bytes:
        said = say(self.conn, *words)
        if self.ciphers is None:
            return said
        return b"".join(self.ciphers.sending.convert(each) for each in sliced(said, self.step))

    def hear(self, data: bytes) -> list[Heard]:
        heard: list[Heard] = []
        for piece in sliced(data, self.step):
            opened = self.ciphers.receiving.convert(piece) if self.ciphers else piece
            feed(self.conn, opened, heard=heard)
        return heard

    def say_hello(self) -> bytes:
        return self.say(self.handshake.hello())

    def hear_hello(self, data: bytes) -> None:
        [hello] = self.hear(data)
        assert isinstance(hello, Hello)
        self.ciphers = self.handshake.agree(hello)

    def lift(self, verdict: Message) -> None:
        if isinstance(verdict, GoesOnPlain):
            self.ciphers = None


def _transfers(recording: Recording) -> tuple[list[Word], list[Word], list[Word], list[Word]]:
    """What the client says and hears after the verdict: a push, then a pull."""
    answer = recording.bytes_of("pull_answer")
    digest, packed = Digest(answer[10:42]), answer[54:]
    return (
        [Push(digest, len(packed)), packed, EndOfBody()],
        [Have()],
        [Pull(digest)],
        [Take(digest, len(packed), 0), packed, EndOfBody()],
    )


@recordings
@steps
def test_the_client_says_every_byte_as_recorded(recording: Recording, step: int | None) -> None:
    side = Side(CLIENT, recording.handshake(CLIENT), step)
    heard, said = recording.said_by(SERVER), recording.said_by(CLIENT)
    push, stored, pull, taken = _transfers(recording)
    assert side.hear(heard[0]) == [Greeting(2)]
    assert side.say(Authenticate(PAGE)) == said[0]
    assert side.say_hello() == said[1]
    side.hear_hello(heard[1])
    assert side.say(ClientProof(CLOCK)) == said[2]
    assert side.hear(heard[2]) == [ServerProof()]
    assert side.say(_ROOT) == said[3]
    assert side.hear(heard[3]) == [recording.verdict]
    side.lift(recording.verdict)
    assert side.say(*push) == said[4]
    assert side.hear(heard[4]) == stored
    assert side.say(*pull) == said[5]
    assert side.hear(heard[5]) == taken
    assert side.conn.at_rest
    assert len(said) == len(heard) == 6


@recordings
@steps
def test_the_server_says_every_byte_as_recorded(recording: Recording, step: int | None) -> None:
    side = Side(SERVER, recording.handshake(SERVER), step)
    said, heard = recording.said_by(SERVER), recording.said_by(CLIENT)
    push, stored, pull, taken = _transfers(recording)
    assert side.say(Greeting(2)) == said[0]
    assert side.hear(heard[0]) == [Authenticate(PAGE)]
    [hello] = side.hear(heard[1])
    assert side.say_hello() == said[1]
    assert isinstance(hello, Hello)
    side.ciphers = side.handshake.agree(hello)
    [proof] = side.hear(heard[2])
    assert proof == ClientProof(CLOCK)
    assert is_proof(proof)
    assert is_punctual(proof, CLOCK)
    assert side.say(ServerProof()) == said[2]
    assert side.hear(heard[3]) == [_ROOT]
    assert side.say(recording.verdict) == said[3]
    side.lift(recording.verdict)
    assert side.hear(heard[4]) == push
    assert side.say(*stored) == said[4]
    assert side.hear(heard[5]) == pull
    assert side.say(*taken) == said[5]
    assert side.conn.at_rest


# --- refusals


def test_there_are_five_refusals() -> None:
    names = {"version_001", "old_page", "wrong_secret", "bad_timestamp", "bad_padding"}
    assert REFUSED.keys() == names


@steps
def test_version_001_is_refused(step: int | None) -> None:
    said, heard, closed = refused("version_001")
    side = Side(CLIENT, fixed("wrong_secret"), step)
    assert side.hear(heard[0]) == [Greeting(2)]
    assert side.say(Version(1)) == said[0]
    assert side.hear(heard[1]) == [BadRequest()]
    assert closed
    assert close(side.conn) == [PeerClosed()]


def test_version_001_is_taken_by_an_optional_server() -> None:
    transcript = RECORDED["optional_server_with_version_001"]["transcript"]
    side = Side(CLIENT, fixed("wrong_secret"), None)
    heard = frames(transcript, SERVER)
    assert side.hear(heard[0]) == [Greeting(2)]
    assert [side.say(Version(1))] == frames(transcript, CLIENT)
    assert side.hear(heard[1]) == [Accepted()]


def test_an_old_page_ends_in_silence() -> None:
    said, heard, closed = refused("old_page")
    side = Side(CLIENT, fixed("wrong_secret"), None)
    assert side.hear(heard[0]) == [Greeting(2)]
    assert side.say(Authenticate(5)) == said[0]
    assert not is_current(5, CLOCK)
    assert closed
    with pytest.raises(RemoteProtocolError, match="server closed in state SILENT"):
        close(side.conn)


def test_with_another_secret_there_is_no_point() -> None:
    said, heard, _ = refused("wrong_secret")
    handshake = fixed("wrong_secret", Secret(REFUSED["wrong_secret"]["client_secret"].encode()))
    side = Side(CLIENT, handshake, None)
    side.hear(heard[0])
    assert side.say(Authenticate(PAGE)) == said[0]
    assert side.say_hello() == said[1]
    opened = handshake._cipher().convert(heard[1])[:33]
    assert opened.hex() == REFUSED["wrong_secret"]["decrypted_server_point_hex"]
    with pytest.raises(AuthenticationFailed, match="not decrypt to a point"):
        side.hear_hello(heard[1])


@steps
def test_a_wrong_clock_is_told(step: int | None) -> None:
    said, heard, closed = refused("bad_timestamp")
    side = Side(CLIENT, fixed("bad_timestamp"), step)
    side.hear(heard[0])
    assert side.say(Authenticate(PAGE)) == said[0]
    assert side.say_hello() == said[1]
    side.hear_hello(heard[1])
    seconds = int.from_bytes(begun_anew(side).convert(said[2])[:8], "little")
    assert not is_punctual(ClientProof(seconds), CLOCK)
    assert side.say(ClientProof(seconds)) == said[2]
    # It comes at once: the server does not wait for the root.
    assert side.hear(heard[2] + heard[3]) == [ServerProof(), WrongClock()]
    assert closed
    assert close(side.conn) == [PeerClosed()]


def begun_anew(side: Side) -> Keystream:
    """What the client encrypts with, from its first byte on."""
    assert side.ciphers is not None
    sending = side.ciphers.sending
    return Keystream(sending._key, sending._first.to_bytes(16, "big"))


def test_a_wrong_padding_ends_in_silence() -> None:
    said, heard, closed = refused("bad_padding")
    side = Side(CLIENT, fixed("bad_padding"), None)
    side.hear(heard[0])
    assert side.say(Authenticate(PAGE)) == said[0]
    assert side.say_hello() == said[1]
    side.hear_hello(heard[1])
    proof = begun_anew(side).convert(said[2])
    wrong = ClientProof(int.from_bytes(proof[:8], "little"), proof[8:])
    assert not is_proof(wrong)
    assert side.say(wrong) == said[2]
    assert closed
    with pytest.raises(RemoteProtocolError, match="server closed in state PROOF"):
        close(side.conn)


def test_a_server_that_takes_no_version_002_says_so_and_closes() -> None:
    """ERBD alone; else these four bytes are the beginning of a hello."""
    for more in (b"", b"!"):
        side = Side(CLIENT, fixed("wrong_secret"), None)
        side.hear(b"BLOBPUSH_SERVER_V002")
        side.say(Authenticate(PAGE))
        side.say_hello()
        assert side.hear(b"ERBD" + more) == []
        if more:
            with pytest.raises(RemoteProtocolError, match="in the middle of a message"):
                close(side.conn)
        else:
            assert close(side.conn) == [BadRequest(), PeerClosed()]


# --- decisions


@pytest.mark.parametrize(
    ("age", "taken"),
    [
        (0, True),
        (8 * 3600 - 131, True),
        (8 * 3600, True),
        (8 * 3600 + 131, False),
        (-600, True),
        (-600 - 131, False),
    ],
)
def test_pages_are_taken_for_eight_hours_and_ten_minutes_ahead(age: int, taken: bool) -> None:
    assert is_current(page_at(CLOCK - age), CLOCK) is taken


@pytest.mark.parametrize("direction", [1, -1])
def test_clocks_may_differ_by_ten_minutes(direction: int) -> None:
    assert is_punctual(ClientProof(CLOCK + direction * 600), CLOCK + 0.9)
    assert not is_punctual(ClientProof(CLOCK + direction * 601), CLOCK)


def test_any_clock_is_compared() -> None:
    assert not is_punctual(ClientProof((1 << 64) - 1), CLOCK)


@pytest.mark.parametrize("wrong", range(8))
def test_each_byte_of_a_proof_counts(wrong: int) -> None:
    padding = bytearray(b"\xff" * 8)
    padding[wrong] ^= 1
    assert not is_proof(ServerProof(bytes(padding)))
    assert is_proof(ServerProof())


def test_what_is_no_point_is_refused() -> None:
    """Every first byte, before a coordinate that is on the curve: only 2 and 3 make a point."""
    key = EphemeralKey(12345)
    good = EphemeralKey(54321).public[1:]
    for first in range(256):
        if first in {2, 3}:
            assert len(key.shared_with(bytes([first]) + good)) == 32
        else:
            with pytest.raises(ValueError, match=r"point|Invalid"):
                key.shared_with(bytes([first]) + good)


def test_each_handshake_has_a_key_of_its_own() -> None:
    said = {Handshake(CLIENT, SECRET, PAGE).hello() for _ in range(3)}
    assert len(said) == 3


def test_both_sides_come_to_the_same_ciphers() -> None:
    client, server = (Handshake(role, SECRET, PAGE) for role in (CLIENT, SERVER))
    ours, theirs = client.agree(server.hello()), server.agree(client.hello())
    assert theirs.receiving.convert(ours.sending.convert(b"up")) == b"up"
    assert ours.receiving.convert(theirs.sending.convert(b"down")) == b"down"


@pytest.mark.parametrize("wrong", ["secret", "page"])
def test_with_another_secret_or_page_nothing_fits(wrong: str) -> None:
    """No point; but one time in 256, when the proof is wrong."""
    other = Secret(b"another-secret-entirely") if wrong == "secret" else SECRET
    page = PAGE + (wrong == "page")
    refusals = 0
    for _ in range(20):
        client, server = Handshake(CLIENT, SECRET, PAGE), Handshake(SERVER, other, page)
        for one, another in ((client, server), (server, client)):
            try:
                one.agree(another.hello())
            except AuthenticationFailed:
                refusals += 1
    assert refusals > 20
