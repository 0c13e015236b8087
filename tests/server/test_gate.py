"""Whom a server lets in: what is a private address, and what is asked of whom."""

from __future__ import annotations

import pytest

from cafsfs.secret import Secret
from cafsfs.server import Gate
from cafsfs.server.gate import is_private

SECRET = Secret(b"0123456789abcdef")

PRIVATE = """
    127.0.0.1 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1
    169.254.1.1 ::1 fc00::1 fdff::1 fe80::1 fe80::1%eth0 ::ffff:127.0.0.1 ::ffff:10.1.2.3
    ::ffff:192.168.1.1
"""
PUBLIC = """
    126.255.255.255 128.0.0.1 9.255.255.255 11.0.0.0 172.15.255.255 172.32.0.0 192.167.255.255
    192.169.0.0 169.253.0.1 169.255.0.1 100.64.0.1 192.0.2.1 198.18.0.1 203.0.113.7 8.8.8.8
    0.0.0.0 240.0.0.1 :: ::2 fbff::1 fe00::1 fec0::1 2001:db8::1 2606:4700::1 ::ffff:8.8.8.8
    64:ff9b::a00:1 2002:a00:1::
"""


@pytest.mark.parametrize("host", PRIVATE.split())
def test_private(host: str) -> None:
    assert is_private(host)


@pytest.mark.parametrize("host", [*PUBLIC.split(), "", "unknown", "localhost"])
def test_not_private(host: str) -> None:
    assert not is_private(host)


@pytest.mark.parametrize(
    ("gate", "inside", "outside"),
    [
        (Gate(), (False, True), (False, True)),
        (Gate(required=False), (False, False), (False, True)),
        (Gate(secret=SECRET), (True, True), (True, True)),
        (Gate(secret=SECRET, required=False), (False, False), (True, True)),
    ],
    ids=["no secret", "no secret, optional", "required", "optional"],
)
def test_what_is_asked_of_whom(
    gate: Gate, inside: tuple[bool, bool], outside: tuple[bool, bool]
) -> None:
    for host, expected in (("10.0.0.1", inside), ("8.8.8.8", outside), ("", outside)):
        assert (gate.demands_authentication(host), gate.keeps_encryption(host)) == expected
