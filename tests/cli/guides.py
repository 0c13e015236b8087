"""What the guides say of tests and messages, and what tests and source say of themselves."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
GUIDES = REPOSITORY / "cafsfs" / "guide"

_NOTE = re.compile(r"^ *\.\. (test|origin): (.+)$", re.MULTILINE)
_LOG_LINE = re.compile(r"[A-Z]+ (?P<logger>cafsfs\.[\w.]+): (?P<message>.+)")
_TELLING = 10  # characters of its own that a text of the source has, or it would match anything


@dataclass(frozen=True)
class Entry:
    """One definition of a guide: its term, and what the notes below it name."""

    term: str
    body: str
    tests: tuple[str, ...]
    origin: str

    @property
    def message(self) -> str:
        """The term without what a log puts before it."""
        found = _LOG_LINE.fullmatch(self.term)
        return found["message"] if found else self.term

    @property
    def module(self) -> str | None:
        """The module that logs it, if it is a line of a log."""
        found = _LOG_LINE.fullmatch(self.term)
        return found["logger"] if found else None


def entries(guide: Path) -> list[Entry]:
    """The definitions of a guide whose term is a message."""
    found = re.findall(r"^``(.+)``\n((?: {4}.*\n|\n)+)", guide.read_text(), re.MULTILINE)
    made = []
    for term, body in found:
        notes = _NOTE.findall(body)
        tests = tuple(text for kind, text in notes if kind == "test")
        origin = next((text for kind, text in notes if kind == "origin"), "")
        made.append(Entry(term, body, tests, origin))
    return made


@cache
def templates() -> list[tuple[str, re.Pattern[str]]]:
    """Each text in the source, with its module: what is formatted into it may be anything."""
    found = []
    for path in sorted((REPOSITORY / "cafsfs").rglob("*.py")):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            parts = _parts(node)
            if parts and sum(len(re.sub(r"%\S+", "", each)) for each in parts) >= _TELLING:
                pattern = ".+".join(re.sub(r"%[a-z]", ".+", re.escape(each)) for each in parts)
                found.append((module, re.compile(pattern)))
    return found


def _parts(node: ast.AST) -> list[str]:
    """The constant parts of a text; what stands between them is formatted in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if not isinstance(node, ast.JoinedStr):
        return []
    parts = [""]
    for each in node.values:
        if isinstance(each, ast.Constant):
            parts[-1] += str(each.value)
        else:
            parts.append("")
    return parts


def stands_in_the_source(entry: Entry) -> bool:
    """Does a module make this message (the module that the line names, if it names one)?"""
    return any(
        pattern.fullmatch(entry.message) and entry.module in {None, module}
        for module, pattern in templates()
    )


@cache
def _pieces_of(file: str) -> dict[str, str]:
    """The functions and constants of a module of tests."""
    text = (REPOSITORY / file).read_text()
    pieces: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.get_source_segment(text, each) or "" for each in node.decorator_list]
            pieces[node.name] = "\n".join([*decorators, ast.get_source_segment(text, node) or ""])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            pieces[ast.unparse(target)] = ast.get_source_segment(text, node) or ""
    return pieces


def source_of(test: str) -> str:
    """The text of a test, and of the constants of its module that it or its fixtures name."""
    file, name = test.split("::")
    pieces = _pieces_of(file)
    reached, left = {}, [name]
    while left:
        each = left.pop()
        if each in pieces and each not in reached:
            reached[each] = pieces[each]
            left += re.findall(r"\w+", pieces[each])
    return "\n".join(reached.values())


def shares_words(message: str, source: str) -> bool:
    """Does a source speak of a message: three words of it in a row, or all if they are fewer?"""
    words = re.findall(r"[\w']+", message)
    count = min(3, len(words))
    text = " ".join(re.findall(r"[\w']+", source))
    runs = (" ".join(words[at : at + count]) for at in range(len(words) - count + 1))
    return any(run in text for run in runs)
