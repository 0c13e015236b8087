"""Which names are names of blobs."""

from __future__ import annotations

import re

from cafsfs.digest import Digest

# A hash, or a hash with an extension of 1 to 32 characters for tools that go by it.
_BLOB_NAME = re.compile(rb"([0-9a-f]{64})(?:\.[A-Za-z0-9._-]{1,32})?")


def parse_blob_name(name: bytes) -> Digest | None:
    """The digest that ``name`` stands for, or None: lower case only, as everywhere."""
    found = _BLOB_NAME.fullmatch(name)
    return None if found is None else Digest(bytes.fromhex(found[1].decode()))
