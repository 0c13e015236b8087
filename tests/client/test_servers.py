"""How servers are named, and how long they are waited for."""

from __future__ import annotations

import pytest

from cafsfs.client.servers import DEFAULT_PORT, Deadlines, Server
from cafsfs.errors import UsageError

GOOD = {
    "cafs1": Server("cafs1", DEFAULT_PORT),
    "cafs1.example.com:1": Server("cafs1.example.com", 1),
    "CAFS1.Example.com": Server("cafs1.example.com", DEFAULT_PORT),
    "[FE80::A%Eth0]": Server("fe80::a%Eth0", DEFAULT_PORT),
    "10.0.0.2:65535": Server("10.0.0.2", 65535),
    "[::1]": Server("::1", DEFAULT_PORT),
    "[fe80::1%eth0]:2404": Server("fe80::1%eth0", 2404),
    "[127.0.0.1]:80": Server("127.0.0.1", 80),
}
BAD = [
    "",
    ":2403",
    "[]",
    "[]:2403",
    "::1",
    "::1:2403",
    "host:",
    "host:port",
    "host:0",
    "host:65536",
    "host:-1",
    "host:+1",
    "host:1 ",
    "host:٣",
    "host:" + "9" * 5000,
    "host:1:2",
    "[::1",
    "::1]",
    "[::1]2403",
    "[::1]:",
    " host",
    "host\n",
    "[::1]x:1",
]


@pytest.mark.parametrize("text", GOOD)
def test_parse(text: str) -> None:
    assert Server.parse(text) == GOOD[text]


@pytest.mark.parametrize("server", GOOD.values(), ids=str)
def test_str_can_be_parsed_again(server: Server) -> None:
    assert Server.parse(str(server)) == server


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Server.parse(text)
    assert caught.value.hint


def test_answer_to_pull_gets_what_the_server_needs_to_read_the_blob() -> None:
    deadlines = Deadlines(answer=30)
    assert deadlines.for_pull(0) == 30
    assert deadlines.for_pull(20_000_000_000) == 30 + 1000


def test_a_lie_about_the_length_does_not_hold_us_for_ever() -> None:
    assert Deadlines(answer=30).for_pull((1 << 63) - 1) < 2 * 3600
