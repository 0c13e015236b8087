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


@dataclass(frozen=True)
class Entry:
    """One definition of a guide: its term, and what the notes below it name."""

    term: str
    body: str
    tests: tuple[str, ...]
    origin: str

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


# What the guide takes for an example, and what may stand in its place.
_EXAMPLES = {
    r"cafs://cafs1/data": r"\w+://\S+?",
    r"/(?:mnt|srv|var|etc/cafsfs)[\w/]*": r"/[^`\n]*?",
    r"(?:cafs1|127\.0\.0\.1|0\.0\.0\.0):2403": r"[\w.]+:\d+",
    r"cafs1": r"[\w.]+",
    r"6f0adf48|0b8bfb15": r"[0-9a-f]{64}",
    r"1000|4000|0644": r"\d+",
}


@cache
def entry_of(words: str) -> Entry:
    """The one message of the troubleshooting guide that is, or else has, these words."""
    known = {each.term: each for each in entries(GUIDES / "troubleshooting.rst")}
    (term,) = [words] if words in known else [each for each in known if words in each]
    return known[term]


def documented(words: str) -> re.Pattern[str]:
    """Finds that message in a log, or in what a program says: the whole line, as in the guide.

    A test that the guide names asserts it, so that the guide says what users will see.
    """
    entry = entry_of(words)
    term = entry.term
    pattern, at = "", 0
    for found in re.finditer("|".join(f"({each})" for each in _EXAMPLES), term):
        assert found.lastindex is not None
        pattern += re.escape(term[at : found.start()])
        pattern += list(_EXAMPLES.values())[found.lastindex - 1]
        at = found.end()
    pattern += re.escape(term[at:])
    before = r"(?:[\d-]+ [\d:,]+ )?" if entry.module else "(?:error: )?"
    if entry.origin == "kernel":
        before = ".+: "  # a program says of what
    return re.compile(f"(?m)^{before}{pattern}$")


_PROVING = {"expect_log", "logged"}  # who fails without the pattern that they are given


def proven_by(test: str) -> set[str]:
    """The words of the messages that a test asserts."""
    file, name = test.split("::")
    words = set()
    for function in ast.parse((REPOSITORY / file).read_text()).body:
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name == name:
            for node in ast.walk(function):
                if isinstance(node, ast.Assert) or _is_call(node, _PROVING):
                    words |= {
                        ast.literal_eval(call.args[0])
                        for call in ast.walk(node)
                        if isinstance(call, ast.Call) and _is_call(call, {"documented"})
                    }
    return words


def _is_call(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names


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
