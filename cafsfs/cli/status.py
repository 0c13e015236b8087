"""``cafsfs status`` and ``cafsfs mounts``: how our mounts are, without touching any."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cafsfs.cli.completing import complete_mount
from cafsfs.cli.talk import blobs, emit, readable
from cafsfs.errors import MountError
from cafsfs.fuse import mounts as kernel
from cafsfs.report.ours import Found, State, find_on, find_ours

_INTERVAL = 2.0  # seconds between two looks of --watch
_CLEAR = "\033[H\033[J"  # home, and away with what is below
_HEALTHY = {State.LIVE, State.HIDDEN}
_SAYS = {
    State.LIVE: "live",
    State.SILENT: "silent: its process does not answer",
    State.DEAD: "dead: there is no process any more",
    State.FOREIGN: "foreign: it is somebody else's, who can look at it",
    State.UNKNOWN: "unknown: nobody answers, and the kernel does not tell whether it has a process",
    State.HIDDEN: "hidden: it answers, and is not mounted here (unmounted lazily, or elsewhere)",
}


@click.command()
@click.argument("mountpoint", required=False, shell_complete=complete_mount)
@click.option("--json", "as_json", is_flag=True, help="all there is, for scripts")
@click.option("--watch", is_flag=True, help=f"again every {_INTERVAL:g} s, until Ctrl-C")
def status(mountpoint: str | None, *, as_json: bool, watch: bool) -> None:
    """Tell how the mount on MOUNTPOINT is, or each of ours.

    Also while its readers hang: the mount itself is never touched, and nobody is waited for longer
    than two seconds. Exit code 1 if one of them is dead or does not answer.

    \b
    cafsfs status /mnt/cafs
    cafsfs status --json | jq '.[].hit_rate'
    """
    point = None if mountpoint is None else kernel.canonical(mountpoint)
    if watch:
        _watch(point, as_json=as_json)
    found = _find(point)
    emit(_shown(found, point, as_json=as_json))
    if not found and not as_json:
        click.echo("no mounts of cafsfs here", err=True)
    healthy = _HEALTHY if point is not None else {*_HEALTHY, State.FOREIGN}
    sys.exit(any(each.state not in healthy for each in found))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def mounts(*, as_json: bool) -> None:
    """List our mounts: where, how each is, its process, its URI.

    How: live; silent (its process does not answer), dead (there is none: mount again, or `cafsfs
    unmount`), unknown (one of these), foreign (somebody else's), hidden (not mounted here). No
    mount is touched.

    \b
    cafsfs mounts
    cafsfs mounts --json | jq -r '.[] | select(.state == "dead").mountpoint'
    """
    found = find_ours()
    if as_json:
        listed = [_briefly(each) for each in found]
        emit(json.dumps(listed, indent=2) + "\n")
        return
    rows = [(each.mountpoint, each.state.value, str(each.pid or "-"), each.uri) for each in found]
    emit("".join(f"{line}\n" for line in _columns(rows)))


def _find(point: str | None) -> list[Found]:
    if point is None:
        return find_ours()
    there = find_on(point)
    if there is not None:
        return [there]
    mounted = kernel.find_mount(point)
    if mounted is None:
        raise MountError(
            f"nothing is mounted on `{point}`", hint="`cafsfs mounts` lists what is mounted"
        )
    raise MountError(f"`{point}` is a mount of type {mounted.fstype}, not one of cafsfs")


def _watch(point: str | None, *, as_json: bool) -> None:
    """Until interrupted; a mount that goes away meanwhile may come back."""
    screen = sys.stdout.isatty() and not as_json
    while True:
        try:
            shown = _shown(_find(point), point, as_json=as_json, indent=None)
        except MountError as error:
            shown = f"{error}\n"
        emit((_CLEAR if screen else "") + shown)
        time.sleep(_INTERVAL)


def _shown(
    found: Sequence[Found], point: str | None, *, as_json: bool, indent: int | None = 2
) -> str:
    if not as_json:
        return "\n".join("".join(f"{line}\n" for line in _describe(each)) for each in found)
    told = [{**each.status, **_briefly(each)} for each in found]
    return json.dumps(told if point is None else told[0], indent=indent) + "\n"


def _briefly(found: Found) -> dict[str, object]:
    return {
        "mountpoint": found.mountpoint,
        "uri": found.uri,
        "state": found.state.value,
        "pid": found.pid,
        "waiting_in_kernel": found.waiting,
    }


# --- for people


def _describe(found: Found) -> Iterator[str]:
    yield f"{found.mountpoint}  {found.uri}"
    yield f"  state     {_SAYS[found.state]}" + (f", pid {found.pid}" if found.pid else "")
    if not found.status:
        if found.waiting is not None:
            yield f"  requests  {found.waiting} wait in the kernel"
        if found.state is State.SILENT and found.pid:
            yield f"  process   {_process_state(found.pid)}"
        return
    status = found.status
    yield f"  since     {status['started']}, {_span(status['uptime_seconds'])}"
    yield f"  version   {status['version']}"
    for line in (_cache, _reads, _network, _requests, _memory, _kernel):
        yield line(status)
    yield from _servers(status["servers"])
    yield from _pulls(status["inflight"])
    yield from _errors(status["last_errors"])


def _cache(status: Mapping[str, Any]) -> str:
    cache = status["cache"]
    fill = "" if cache["fill"] is None else f" ({cache['fill']:.0%})"
    trouble = f"; trouble: {cache['trouble']}" if cache["trouble"] else ""
    return (
        f"  cache     {readable(cache['bytes'])} of {readable(cache['bound_bytes'])}{fill},"
        f" {blobs(cache['blobs'])} in {cache['directory']}{trouble}"
    )


def _reads(status: Mapping[str, Any]) -> str:
    read = status["bytes"]
    rate = "" if status["hit_rate"] is None else f"; hit rate {status['hit_rate']:.1%}"
    return (
        f"  reads     {readable(read['read'])}: {readable(read['from_cache'])} from the cache,"
        f" {readable(read['from_pulls'])} from pulls{rate}"
    )


def _network(status: Mapping[str, Any]) -> str:
    counters, read = status["counters"], status["bytes"]
    failed = f", {counters['pull_errors']} failed" if counters["pull_errors"] else ""
    return (
        f"  network   pulls: {counters['pulls']}{failed}; {readable(read['received'])} received,"
        f" {readable(read['pulled'])} unpacked"
    )


def _requests(status: Mapping[str, Any]) -> str:
    waiting = status["requests"]
    oldest = ""
    if waiting["oldest_seconds"] is not None:
        oldest = f", {waiting['oldest_operation']} for {waiting['oldest_seconds']:.1f} s"
    files = status["filesystem"]["open_handles"]
    return f"  requests  {waiting['waiting']} wait{oldest}; {files} files and directories open"


def _memory(status: Mapping[str, Any]) -> str:
    memory = status["memory"]
    return (
        f"  memory    {readable(memory['held_bytes'])} of {readable(memory['budget_bytes'])} held"
        f" by pulls in flight; {memory['waiting']} wait for some"
    )


def _kernel(status: Mapping[str, Any]) -> str:
    return "  kernel    " + ", ".join(f"{k} {_plain(v)}" for k, v in status["kernel"].items())


def _servers(servers: Mapping[str, Any]) -> Iterator[str]:
    since = f" since {servers['since']}: {servers['reason']}" if servers["since"] else ""
    yield f"  servers   {servers['state']}{since}"
    rows = []
    for each in servers["members"]:
        seconds, rate = each["seconds"], each["rate"]
        rows.append(
            (
                each["name"],
                each["state"],
                f"zone {each['zone']}" if each["zone"] else "no zone",
                "-" if seconds is None else f"{seconds * 1000:.1f} ms",
                "-" if rate is None else f"{readable(round(rate))}/s",
                f"{each['requests']} requests",
                f"{each['errors']} errors, {each['wrong_hashes']} wrong",
                f"ranges {each['ranges']}",
                each["reason"] or "",
            )
        )
    yield from (f"    {line}" for line in _columns(rows))


def _pulls(pulls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"  pulls     {len(pulls)} in flight"
    rows = []
    for each in pulls:
        size = "?" if each["size"] is None else readable(each["size"])
        rows.append(
            (
                each["hash"],
                f"{readable(each['bytes'])} of {size}",
                f"{readable(each['rate'])}/s",
                f"{each['age_seconds']:.1f} s old, still for {each['still_seconds']:.1f} s",
                f"{each['users']} open it, {each['waiting']} wait",
                " ".join(map(_named, each["pids"])),
            )
        )
    yield from (f"    {line}" for line in _columns(rows))


def _errors(complaints: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"  errors    {len(complaints) or 'none'}"
    for each in complaints[-5:]:
        times = f" ({each['times']} times since {each['first']})" if each["times"] > 1 else ""
        yield f"    {each['last']} {each['level']} {each['message']}{times}"


def _named(pid: int) -> str:
    """A process with its name, if it is still there; ``comm`` never waits, unlike ``cmdline``."""
    with suppress(OSError):
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()}[{pid}]"
    return f"[{pid}]"


def _process_state(pid: int) -> str:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return "gone"


def _plain(value: object) -> str:
    if value is None:
        return "?"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _span(seconds: float) -> str:
    """1d 02:03:04, as people read it."""
    days, rest = divmod(round(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days}d {clock}" if days else clock


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
