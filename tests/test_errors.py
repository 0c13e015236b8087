"""One tree of errors, drawn in the docstring as it is."""

from __future__ import annotations

import re

from cafsfs import errors
from cafsfs.errors import BlobNotFound, CafsError, ConnectionBroken


def drawn() -> dict[str, str | None]:
    """Each class of the drawing, and the one above it."""
    above: list[str] = []
    parents: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"    ([│ ├└─]*)(\w+)(  .*)?", line)
        if found is not None:
            above[len(found[1]) // 4 :] = [found[2]]
            parents[found[2]] = above[-2] if len(above) > 1 else None
    return parents


def test_the_drawing_is_the_tree() -> None:
    classes = {
        name: each
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, CafsError)
    }
    real = {
        name: None if each is CafsError else each.__bases__[0].__name__
        for name, each in classes.items()
    }
    assert drawn() == real


def test_an_error_has_a_message_and_may_have_a_hint() -> None:
    assert CafsError("what").hint is None
    error = CafsError("what", hint="how")
    assert (str(error), error.hint) == ("what", "how")


def test_an_absent_blob_names_itself() -> None:
    error = BlobNotFound("abc", hint="look elsewhere")
    assert str(error) == "blob abc not found"
    assert (error.hash, error.hint) == ("abc", "look elsewhere")


def test_a_broken_connection_is_taken_to_have_answered() -> None:
    assert ConnectionBroken("broke").answered
