"""Shells complete our commands: asked as they ask, and bash, zsh and fish themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import CAFSFS, environment, run

pytestmark = pytest.mark.process


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A directory with a ``cafsfs`` in it, to be found by $PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "cafsfs"
    script.write_text(f'#!/bin/sh\nexec {" ".join(CAFSFS)} "$@"\n')
    script.chmod(0o755)
    return directory


def in_shell(program: Path, *command: str, cwd: Path | None = None) -> list[str]:
    """The lines that a shell prints."""
    env = environment(PATH=f"{program}:{os.environ['PATH']}", HOME=str(program), TERM="dumb")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=env, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bash(program: Path, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last word, by the function that readline would call."""
    script = run("completion", "bash").ok().text
    line = " ".join(f'"{each}"' for each in words)
    function = re.search(r"^(\w+)\(\)", script, re.MULTILINE)
    assert function
    asking = f"""
compopt() {{ printf 'compopt %s %s\n' "$@"; }}
{script}
complete -p cafsfs >&2 || exit 1
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
{function[1]} cafsfs
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return in_shell(program, "bash", "--norc", "-c", asking, cwd=cwd)


def test_bash_completes_commands(program: Path) -> None:
    assert {"mount", "unmount", "doctor", "help"} <= set(bash(program, "cafsfs", ""))
    assert bash(program, "cafsfs", "unm") == ["unmount"]
    assert bash(program, "cafsfs", "cache", "ver") == ["verify"]


def test_bash_completes_options_and_their_values(program: Path) -> None:
    assert bash(program, "cafsfs", "mount", "--cache-s") == ["--cache-size", "--cache-seed"]
    assert bash(program, "cafsfs", "mount", "--log-level", "w") == ["warning"]
    assert bash(program, "cafsfs", "mount", "--auth", "") == ["auto", "required"]
    assert bash(program, "cafsfs", "mount", "--cache-dir", "/")[0] == "compopt -o default"


def test_bash_completes_topics_and_directories(program: Path) -> None:
    assert bash(program, "cafsfs", "help", "troubl") == ["troubleshooting"]
    assert bash(program, "cafsfs", "serve", "/")[0] == "compopt -o dirnames"
    assert bash(program, "cafsfs", "completion", "") == ["bash", "zsh", "fish"]


def test_zsh_completes_commands(program: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh here")
    functions = program / "functions"
    functions.mkdir()
    (functions / "_cafsfs").write_text(run("completion", "zsh").ok().text)
    asking = f"""
fpath=({functions} $fpath)
autoload -Uz compinit && compinit -u -d {program}/dump
print -r -- "defined: ${{_comps[cafsfs]}}"
compadd() {{ print -r -- "compadd $*"; }}
_describe() {{ print -rl -- "${{(@P)3}}"; }}
words=(cafsfs unm) CURRENT=2
_cafsfs
"""
    lines = in_shell(program, "zsh", "-f", "-c", asking)
    assert lines[0] == "defined: _cafsfs"
    assert any(each.startswith("unmount") for each in lines[1:]), lines


def test_fish_completes_commands(program: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")
    script = program / "cafsfs.fish"
    script.write_text(run("completion", "fish").ok().text)
    asking = f"source {script}; complete -C 'cafsfs unm'"
    lines = in_shell(program, "fish", "--no-config", "-c", asking)
    assert [each.split("\t")[0] for each in lines] == ["unmount"]


def test_a_shell_that_is_unknown() -> None:
    done = run("completion", "tcsh")
    assert done.code == 2
    assert "`tcsh`" in done.complaint()
