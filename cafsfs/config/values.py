"""Values of options: text in, value out, and back as people write it.

A parser raises ValueError, whose text completes "it takes …".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.servers import Server
from cafsfs.errors import UsageError
from cafsfs.store.cache.bounds import Amount

_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(
    r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([KMGT])(?:iB|B)?|B?)", re.IGNORECASE | re.ASCII
)
_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PERCENTAGE = re.compile(r"\d{1,3}(?:\.\d{1,9})?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}")
_NO_ID = (1 << 32) - 1  # (uid_t) -1 is nobody's: it means "do not change"
LOG_LEVELS = ("debug", "info", "warning", "error")


def parse_size(text: str) -> int:
    """Bytes; K, M, G and T are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("a number of bytes, or one with K, M, G or T behind it, as in 20G")
    return int(Decimal(found[1]) * (1 << _SHIFTS.get((found[2] or "").upper(), 0)))


def parse_amount(text: str) -> Amount:
    """Bytes as ``parse_size``, or a percentage of a disk."""
    number, percent, rest = text.strip().partition("%")
    if not percent:
        try:
            return Amount(parse_size(text))
        except ValueError as error:
            raise ValueError(f"{error}, or a percentage, as in 10%") from None
    found = _PERCENTAGE.fullmatch(number.strip())
    share = Decimal(found[0]) / 100 if found else Decimal(-1)
    if rest or not 0 <= share <= 1:
        raise ValueError("a percentage from 0% to 100%")
    return Amount(share=float(share))


def parse_age(text: str) -> float:
    """Seconds, more than none; m, h, d and w behind the number are longer ones."""
    number = text.strip()
    factor = _AGES.get(number[-1:].lower())
    try:
        value = float(number[:-1]) * factor if factor else float(number)
    except ValueError:
        value = 0
    if not 0 < value < 1e11:
        raise ValueError("a number of seconds, or one with m, h, d or w behind it, as in 30d")
    return value


def parse_seconds(text: str) -> float:
    """Seconds, more than none."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise ValueError("a number of seconds, as in 5 or 0.5")
    return value


def parse_verify_first(text: str) -> int | None:
    """A size, or None for ``always``."""
    if text.strip().lower() == "always":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{error}, or `always`") from None


def parse_count(text: str) -> int:
    """A whole number from 1 on."""
    if not _COUNT.fullmatch(text) or int(text) == 0:
        raise ValueError("a whole number from 1 on")
    return int(text)


def parse_id(text: str) -> int:
    """A numeric user or group id."""
    if not _COUNT.fullmatch(text) or int(text) >= _NO_ID:
        raise ValueError("the number of a user or group, as `id` tells it")
    return int(text)


def parse_bool(text: str) -> bool:
    """True or false; an option named without a value is true."""
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


@dataclass(frozen=True, slots=True)
class Choice:
    """Reads one of some words, in whatever case."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        if text.lower() not in self.words:
            raise ValueError("one of " + ", ".join(self.words))
        return text.lower()


parse_level = Choice(LOG_LEVELS)
parse_format = Choice(("auto", "human", "json"))
parse_auth = Choice(("auto", "required"))  # what a server must do before it is talked to
parse_encryption = Choice(("optional", "required"))  # of whom a server with a secret demands it


def parse_mirrors(text: str) -> tuple[MirrorTemplate, ...]:
    """URLs of HTTP mirrors, separated by blanks; raises UsageError, which shows no password."""
    if not text.strip():
        raise ValueError("a URL, or several with blanks between, as in https://host/{hash}")
    return tuple(dict.fromkeys(map(MirrorTemplate.parse, text.split())))


def parse_text(text: str) -> str:
    """Any text but none."""
    if not text or "\0" in text:
        raise ValueError("some text")
    return text


def parse_path(text: str) -> Path:
    """A path; ``~`` is the home directory."""
    if not text or "\0" in text:
        raise ValueError("a path")
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~ without a home, or the ~name of nobody
        raise ValueError("a path, and there is no such home directory") from None
    return path if path.is_absolute() else _began_in() / path


@cache
def _began_in() -> Path:
    """What relative paths mean also where a mount in the background reads its options again."""
    return Path.cwd()


def parse_textfile(text: str) -> Path:
    """A path that node_exporter's textfile collector reads."""
    path = parse_path(text)
    if path.suffix != ".prom":
        raise ValueError("a path that ends in .prom, for node_exporter reads no other")
    return path


def parse_listen(text: str) -> Server:
    """HOST:PORT to listen on; port 0 means any that is free."""
    host, colon, port = text.rpartition(":")
    try:
        if colon and port == "0":
            return dataclasses.replace(Server.parse(host), port=0)
        server = Server.parse(text)
    except UsageError:
        server = None
    if server is None or server.host.isdigit():  # a port alone; no address is one number
        raise ValueError("HOST:PORT, as in 127.0.0.1:2403, or 0.0.0.0:2403 for every address")
    return server


def plain(value: object, parse: Callable[[str], object]) -> str:
    """A value as it could be written in an option with this parser; ``-`` if it is not set."""
    if value is None:
        return "always" if parse is parse_verify_first else "-"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Amount):
        return f"{value.share * 100:g}%" if value.share else plain(value.bytes, parse_size)
    if parse in {parse_size, parse_verify_first} and isinstance(value, int) and value:
        for unit, shift in reversed(_SHIFTS.items()):
            if value % (1 << shift) == 0:
                return f"{value >> shift}{unit}"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
