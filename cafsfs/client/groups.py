"""Servers of a group, as the host list of a URI and the [[server]] tables of TOML name them.

A URI writes ``a;zone=eu;priority=1,b:2403,[::1]:2404;weight=2``: attributes stand behind their
server, each after a ``;``. A table has the same names as keys, and ``address`` for the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from cafsfs.client.servers import Member, Server
from cafsfs.errors import UsageError

_ZONE = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it stands in a URI as it is
_PRIORITY = re.compile(r"[0-9]{1,6}")
_WEIGHT = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,20})?")


@dataclass(frozen=True, slots=True)
class NamedServer:
    """A server, and what was said of its place in the group; None where nothing was.

    As text it is what a URI says, in the shortest way.
    """

    server: Server
    zone: str | None = None
    priority: int | None = None
    weight: float | None = None

    def __str__(self) -> str:
        place = str(self.server)
        words = [place.replace("%", "%25") if place.startswith("[") else place]  # RFC 6874
        if self.zone is not None:
            words.append(f"zone={self.zone}")
        if self.priority is not None:
            words.append(f"priority={self.priority}")
        if self.weight is not None:
            words.append(f"weight={str(self.weight).removesuffix('.0')}")
        return ";".join(words)


# --- parsers: text in, value out; ValueError completes "it takes …"


def parse_zone(text: str) -> str:
    """The name of a place where servers are."""
    if not _ZONE.fullmatch(text):
        raise ValueError("a name of up to 64 letters, digits, dots, dashes and underscores")
    return text


def parse_priority(text: str) -> int:
    """The least goes first."""
    if not _PRIORITY.fullmatch(text):
        raise ValueError("a whole number from 0, the first, to 999999")
    return int(text)


def parse_weight(text: str) -> float:
    """A share among equals."""
    value = float(text) if _WEIGHT.fullmatch(text) else 0.0
    if not 0.001 <= value <= 1000:
        raise ValueError("a number from 0.001 to 1000, as in 2 or 0.5")
    return value


_ATTRIBUTES: dict[str, Callable[[str], object]] = {
    "zone": parse_zone,
    "priority": parse_priority,
    "weight": parse_weight,
}


# --- the host list of a URI


def parse_hosts(text: str) -> tuple[NamedServer, ...]:
    """Read the host list of a URI, in its order; raises UsageError."""
    return _once((_parse_host(each) for each in text.split(",")), "URI")


def _parse_host(text: str) -> NamedServer:
    place, *said = text.split(";")
    if "=" in place:
        raise UsageError(
            f"`{place}` is not a server",
            hint="attributes stand behind their server, after a `;`, as in cafs://a;zone=eu,b/root",
        )
    server = Server.parse(place.replace("%25", "%") if place.startswith("[") else place)
    attributes: dict[str, Any] = {}
    for each in said:
        key, equals, value = each.partition("=")
        if key in attributes:
            raise UsageError(f"`{server}` has two of `{key}` (URI)", hint="leave one of them")
        if key not in _ATTRIBUTES:
            hint = None if equals else "servers are separated by commas, as in cafs://a,b/root"
            raise _unknown(key, "URI", hint=hint)
        attributes[key] = _read(key, unquote(value), "URI")
    return NamedServer(server, **attributes)


def _read(key: str, text: str, origin: str) -> object:
    try:
        return _ATTRIBUTES[key](text)
    except ValueError as error:
        raise UsageError(
            f"`{text}` is no {key} of a server ({origin})",
            hint=f"it takes {error}"
            + ("; a port stands before the first `;`" if ":" in text and origin == "URI" else ""),
        ) from None


def _unknown(key: str, origin: str, *, hint: str | None = None) -> UsageError:
    meant = closest(key, ["address", *_ATTRIBUTES] if origin != "URI" else list(_ATTRIBUTES))
    if hint is None:
        hint = f"did you mean `{meant}`?" if meant else "a server has zone, priority and weight"
    return UsageError(f"`{key}` is not an attribute of a server ({origin})", hint=hint)


# --- [[server]] in TOML


def parse_tables(
    tables: object, origin: str, options: Collection[str] = ()
) -> tuple[NamedServer, ...]:
    """Read what TOML has under ``server``; raises UsageError.

    ``options`` are the names, with ``_``, of what stands at the top of such a file.
    """
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise UsageError(
            f"`server` is no list of tables ({origin})",
            hint='write [[server]], with two brackets, and below it address = "host:2403"; a table '
            "for each server",
        )
    return _once((_parse_table(each, origin, options) for each in tables), origin)


def _parse_table(table: dict[str, object], origin: str, options: Collection[str]) -> NamedServer:
    for key in table:
        if key != "address" and key not in _ATTRIBUTES:
            misplaced = key.replace("-", "_") in options
            hint = "an option stands above the first [[server]]" if misplaced else None
            raise _unknown(key, origin, hint=hint)
    if "address" not in table:
        raise UsageError(
            f"a [[server]] has no address ({origin})", hint='write address = "host:2403"'
        )
    attributes: dict[str, Any] = {
        key: _read(key, _text(key, table[key], origin), origin)
        for key in _ATTRIBUTES
        if key in table
    }
    return NamedServer(_address(_text("address", table["address"], origin), origin), **attributes)


def _address(text: str, origin: str) -> Server:
    if ";" in text or "," in text:
        raise UsageError(
            f"`{text}` is not a server ({origin})",
            hint="each server has a table of its own, and zone, priority and weight are its keys",
        )
    try:
        return Server.parse(text)
    except UsageError as error:
        raise UsageError(f"{error} ({origin})", hint=error.hint) from None


def _text(key: str, value: object, origin: str) -> str:
    """A value as text; numbers may stand without quotes, where a number is wanted."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) or (number and key in {"priority", "weight"}):
        return str(value)
    wanted = "a number" if key in {"priority", "weight"} else "text in quotes"
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    raise UsageError(f"`{shown}` is no {key} of a server ({origin})", hint=f"it takes {wanted}")


# --- both


def complete(named: Sequence[NamedServer], tables: Sequence[NamedServer]) -> tuple[Member, ...]:
    """The group of those that are named; what is not said of one, its table says."""
    known = {each.server: each for each in tables}
    return tuple(_member(each, known.get(each.server, each)) for each in named)


def _member(named: NamedServer, table: NamedServer) -> Member:
    values: dict[str, Any] = {}
    for key in _ATTRIBUTES:
        for each in (table, named):  # the last one wins
            value = getattr(each, key)
            if value is not None:
                values[key] = value
    return Member(named.server, **values)


def describe(member: Member) -> str:
    """A member as a URI would name it."""
    return str(
        NamedServer(
            member.server,
            member.zone,
            member.priority or None,
            member.weight if member.weight != 1 else None,
        )
    )


def _once(servers: Iterable[NamedServer], origin: str) -> tuple[NamedServer, ...]:
    """Each server once; raises UsageError where the same is said to be in two places."""
    found: dict[Server, NamedServer] = {}
    for each in servers:
        if found.setdefault(each.server, each) != each:
            raise UsageError(
                f"`{each.server}` is named twice, with different attributes ({origin})",
                hint="name it once",
            )
    return tuple(found.values())


def closest(key: str, known: Collection[str]) -> str | None:
    """The one of ``known`` that was probably meant."""
    import difflib  # noqa: PLC0415  # 8 ms that only an error needs

    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.7)), None)
