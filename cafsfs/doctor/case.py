"""What is examined, and what is found."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cafsfs.config.options import CacheOptions, MountOptions, StoreOptions
from cafsfs.config.uri import StoreUri
from cafsfs.report.ours import Found


class Verdict(enum.Enum):
    """How bad a finding is."""

    FINE = "fine"
    ADVICE = "advice"  # it works, and could do better or surprise somebody
    BROKEN = "broken"  # something will not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on what was seen, and the exact ``fix``, unless all is fine."""

    verdict: Verdict
    text: str
    fix: str | None = None


def fine(text: str) -> Finding:
    """All is well."""
    return Finding(Verdict.FINE, text)


def advice(text: str, fix: str) -> Finding:
    """It works, but."""
    return Finding(Verdict.ADVICE, text, fix)


def broken(text: str, fix: str) -> Finding:
    """It will not work."""
    return Finding(Verdict.BROKEN, text, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A machine whose files are below ``root``, a user, and what he wants to mount or has mounted.

    ``uri`` is None if no store was named, ``mount`` if none was. ``path`` is where
    programs are looked for, as $PATH.
    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    path: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
    uri: StoreUri | None = None
    store: StoreOptions = field(default_factory=StoreOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    options: MountOptions = field(default_factory=MountOptions)
    mount: Found | None = None

    def file(self, path: str) -> Path:
        """A file of the machine, by its absolute path."""
        return self.root / path.removeprefix("/")

    def read(self, path: str) -> str | None:
        """What is in a file; None if it is not there, or not for us."""
        try:
            return self.file(path).read_text(errors="replace")
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The number in a file of the kernel's; None if there is none."""
        try:
            return int(self.read(path) or "")
        except ValueError:
            return None


Look = Callable[[Case], Iterable[Finding]]
