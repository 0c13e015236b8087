"""Which directory a client means by the root that it names."""

from __future__ import annotations

from pathlib import Path


def resolve_root(directory: Path, name: bytes) -> Path | None:
    """The directory of root ``name`` below ``directory``, or None if there is none.

    Names that climb (``/../x``: deployed servers follow them, protocol page, section 3.5), that
    are no UTF-8, that hold a NUL or that we may not look at are no roots. ``/`` names ``directory``
    itself.
    """
    try:
        parts = [part for part in name.decode().split("/") if part]
    except UnicodeDecodeError:
        return None
    if any(part in {".", ".."} or "\0" in part for part in parts):
        return None
    root = directory.joinpath(*parts)
    try:
        return root if root.is_dir() else None
    except OSError:
        return None
