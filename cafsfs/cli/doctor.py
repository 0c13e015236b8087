"""``cafsfs doctor``: what is wrong with this machine, and the exact fix."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from cafsfs.cli.completing import complete_mount
from cafsfs.cli.options import flags_layer, with_options
from cafsfs.cli.talk import emit
from cafsfs.cli.target import Target, find_target
from cafsfs.config.layers import Layer, environment_layer, resolve, toml_layers
from cafsfs.config.options import FOR_UPLOADS, CacheOptions, MountOptions, StoreOptions
from cafsfs.doctor.apart import examine
from cafsfs.doctor.case import Case, Finding, Verdict
from cafsfs.doctor.examination import CHECKS
from cafsfs.errors import MountError, UsageError
from cafsfs.fuse import mounts
from cafsfs.report.ours import Found, find_on

_SIGNS = {Verdict.FINE: "ok  ", Verdict.ADVICE: "note", Verdict.BROKEN: "FAIL"}
# Options of a mount that no check asks for.
_OF_NO_MATTER = frozenset(
    {*FOR_UPLOADS, "uid", "gid", "fsname", "nonempty", "verify_first", "finish_pulls"}
)


@click.command(short_help="Tell what is wrong with this machine, and the exact fix.")
@click.argument("target", required=False, metavar="[TARGET]", shell_complete=complete_mount)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_options(CacheOptions, MountOptions, StoreOptions, without=_OF_NO_MATTER)
def doctor(target: str | None, config: Path | None, *, as_json: bool, **flags: str | None) -> None:
    """Look for what will keep a mount of TARGET, a URI, from working, or ails it, a mount point.

    Looks at the kernel, its limits and helpers, the cache, each server, updatedb, mount(8) and
    systemd. Without TARGET it looks at this machine, and at the store of --config. It
    says what it sees, and of what is not well the exact fix. Exit code 1 if something will not
    work. No mount is touched, so a hung one hangs nobody; a check that takes too long is left.

    \b
    cafsfs doctor
    cafsfs doctor cafs://cafs.example.com/data
    cafsfs doctor --config /etc/cafsfs/data.toml --json
    """
    case = _find_case(target, config, flags)
    found = examine(CHECKS, case)
    broken = any(each.verdict is Verdict.BROKEN for some in found.values() for each in some)
    emit(_for_json(found, ok=not broken) if as_json else _for_people(found))
    sys.exit(broken)


def _find_case(target: str | None, config: Path | None, flags: Mapping[str, str | None]) -> Case:
    files = toml_layers(config)
    mount = None if target is None or "://" in target else _find_mount(target)
    uri = target if mount is None else mount.uri
    found: list[Layer] = [flags_layer(flags), environment_layer(os.environ), *files]
    parsed = None
    if mount is not None and "://" not in mount.uri:
        uri = None  # it has another name (--fsname), and its process does not tell
    if uri is not None or any("uri" in each.values for each in files):
        looked_up = _look_up(uri, config, flags, mounted=mount is not None)
        if looked_up is not None:
            parsed, found = looked_up.uri, list(looked_up.layers)
    cache = resolve(CacheOptions, found)
    if mount is not None and mount.status:
        cache = dataclasses.replace(cache, cache_dir=Path(mount.status["cache"]["directory"]))
    return Case(
        uri=parsed,
        store=resolve(StoreOptions, found),
        cache=cache,
        options=resolve(MountOptions, found),
        mount=mount,
    )


def _look_up(
    uri: str | None, config: Path | None, flags: Mapping[str, str | None], *, mounted: bool
) -> Target | None:
    """The store; None if a mount tells its URI without what is secret in it, and so no URI."""
    try:
        return find_target(uri, config, flags)
    except UsageError:
        if not mounted:
            raise
        return None


def _find_mount(target: str) -> Found:
    """One of ours by its mount point, which is not touched; raises MountError, UsageError."""
    point = mounts.canonical(target)
    found = find_on(point)
    if found is not None:
        return found
    there = mounts.find_mount(point)
    if there is None:
        raise UsageError(
            f"`{target}` is neither a URI nor a mount of cafsfs",
            hint="a URI is as in cafs://host/root; `cafsfs mounts` lists what is mounted",
        )
    raise MountError(f"`{point}` is a mount of type {there.fstype}, not one of cafsfs")


def _for_people(found: Mapping[str, list[Finding]]) -> str:
    lines = []
    for each in (each for some in found.values() for each in some):
        lines.append(f"{_SIGNS[each.verdict]}  {each.text}\n")
        if each.fix:
            lines.append(f"      fix: {each.fix}\n")
    return "".join(lines)


def _for_json(found: Mapping[str, list[Finding]], *, ok: bool) -> str:
    findings = [
        {"check": name, "verdict": each.verdict.value, "finding": each.text, "fix": each.fix}
        for name, some in found.items()
        for each in some
    ]
    return json.dumps({"ok": ok, "findings": findings}, indent=2) + "\n"
