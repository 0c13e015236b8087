"""The rules of the house that no linter holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from cafsfs.cli.app import cafsfs

REPOSITORY = Path(__file__).parent.parent
# What the top of the repository may hold beside files that begin with a dot.
TOP = {
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "cafsfs",
    "pyproject.toml",
    "systemd",
    "tests",
}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


def tracked() -> list[Path]:
    """The files of the repository, those included that are not yet committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    return [Path(line) for line in listed.stdout.splitlines() if (REPOSITORY / line).exists()]


def modules() -> list[Path]:
    return [each for each in tracked() if each.suffix == ".py"]


def test_the_top_of_the_repository_holds_what_the_design_says() -> None:
    top = {path.parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_every_module_opens_by_saying_what_it_is_in_one_line() -> None:
    assert [str(each) for each in modules() if not looked_through(each)[0]] == []


def test_modules_are_named_by_what_they_do() -> None:
    assert [str(each) for each in modules() if NAMELESS & {each.stem, *each.parts}] == []


def in_its_own_scope(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, without the functions within it."""
    for each in ast.iter_child_nodes(function):
        yield each
        if not isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from in_its_own_scope(each)


def is_generator(function: ast.AsyncFunctionDef) -> bool:
    """Is it one that Trio leaves unfinalised, and no context manager or fixture?"""
    decorators = (
        each.func if isinstance(each, ast.Call) else each for each in function.decorator_list
    )
    names = {ast.unparse(each).rpartition(".")[2] for each in decorators}
    return not names & {"asynccontextmanager", "fixture"} and any(
        isinstance(each, ast.Yield) for each in in_its_own_scope(function)
    )


def async_generators(tree: ast.Module) -> list[str]:
    functions = (each for each in ast.walk(tree) if isinstance(each, ast.AsyncFunctionDef))
    return [each.name for each in functions if is_generator(each)]


def says_what_it_is(tree: ast.Module) -> bool:
    opening = (ast.get_docstring(tree, clean=False) or "").split("\n")
    return bool(opening[0].strip()) and not any(opening[1:2])


@cache
def looked_through(path: Path) -> tuple[bool, list[str]]:
    """Does it say what it is, and its async generators; not its tree.

    Kept, the trees are 900,000 objects, and half a second each time that the collector looks.
    """
    text = (REPOSITORY / path).read_text()
    tree = ast.parse(text)
    nothing = path.name == "__init__.py" and not text  # makes a package of a directory of tests
    return nothing or says_what_it_is(tree), async_generators(tree)


def test_there_are_no_async_generators() -> None:
    """As ASYNC900 of flake8-async, which takes 35 s of CPU time for it; this takes half of one."""
    found = {str(path): looked_through(path)[1] for path in modules()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("async def f():\n yield", ["f"]),
        ("class C:\n async def f(self):\n  with a:\n   b = yield 1", ["f"]),
        ("async def f():\n async def g():\n  yield", ["g"]),
        ("@asynccontextmanager\nasync def f():\n async def g():\n  yield\n yield", ["g"]),
        ("@wrapped\n@other(1)\nasync def f():\n yield", ["f"]),
        ("@contextlib.asynccontextmanager\nasync def f():\n yield", []),
        ("@pytest.fixture(scope='module')\nasync def f():\n yield", []),
        ("async def f():\n def g():\n  yield\n lambda: (yield)", []),
        ("async def f():\n return (x async for x in y)", []),
        ("def f():\n yield", []),
    ],
)
def test_async_generators_are_found(text: str, names: list[str]) -> None:
    assert async_generators(ast.parse(text)) == names


def shell_lines(text: str) -> list[str]:
    """The lines of indented or fenced blocks, and what stands between backquotes."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
    return [line.strip().removeprefix("$ ") for line in lines + re.findall(r"`([^`\n]+)`", text)]


def check_commands(lines: Iterable[str]) -> None:
    """Fail if one of the lines tells of a command, a flag or a target that there is not."""
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in lines:
        match line.split():
            case ["make", target, *_]:
                assert target in targets, line
            case [program, name, *words] if Path(program).name == "cafsfs" and name.islower():
                command = cafsfs.commands[name]
                while isinstance(command, click.Group) and words and words[0] in command.commands:
                    command = command.commands[words.pop(0)]
                known = {each for option in command.params for each in option.opts}
                flags = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert flags <= known | {"--help", "--"}, line
            case _:
                pass


@pytest.mark.process
def test_a_command_imports_nothing_that_few_need() -> None:
    """Each takes its time at every start: httpx 40 ms of 200."""
    heavy = ("httpx", "prometheus_client", "docutils", "opentelemetry", "pyfuse3")
    program = f"import sys, cafsfs.cli; print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"[]\n"


def test_commands_of_the_readme_exist() -> None:
    check_commands(shell_lines((REPOSITORY / "README.md").read_text()))
