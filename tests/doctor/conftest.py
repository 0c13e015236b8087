"""A machine of files below a temporary directory, on which nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cafsfs.config.options import CacheOptions
from cafsfs.doctor.case import Case, Look, Verdict

CaseMaker = Callable[..., Case]
ORDINARY = 12345


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``/`` of that machine."""
    root = tmp_path / "root"
    for each in ("dev", "etc/cafsfs", "usr/bin", "usr/sbin", "proc/sys/fs/fuse"):
        (root / each).mkdir(parents=True)
    (root / "dev/fuse").touch()
    program = root / "usr/bin/fusermount3"
    program.touch()
    program.chmod(0o4755)
    (root / "etc/fuse.conf").write_text("# user_allow_other\nuser_allow_other\n")
    connections = root / "sys/fs/fuse/connections"
    (connections / "42").mkdir(parents=True)
    parameters = root / "sys/module/fuse/parameters"
    parameters.mkdir(parents=True)
    (parameters / "max_user_bgreq").write_text("7868\n")
    return root


@pytest.fixture
def case(root: Path, tmp_path: Path) -> CaseMaker:
    """Makes the case of an ordinary user there; arguments are Case's, and override."""

    def make(**given: Any) -> Case:
        cache = CacheOptions(cache_dir=tmp_path / "cache")
        return Case(**{"root": root, "uid": ORDINARY, "path": "/usr/bin", "cache": cache, **given})

    return make


def seen(look: Look, case: Case) -> list[tuple[Verdict, str, str]]:
    """Findings as verdict, text and fix; each that is not fine has one, and no other has."""
    found = list(look(case))
    assert all((each.fix is None) is (each.verdict is Verdict.FINE) for each in found)
    return [(each.verdict, each.text, each.fix or "") for each in found]


def only(look: Look, case: Case) -> tuple[Verdict, str, str]:
    """The one finding."""
    (found,) = seen(look, case)
    return found
