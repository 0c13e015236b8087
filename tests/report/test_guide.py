"""The guide about metrics names each metric and each field, and none that is not there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cafsfs.cli.app import cafsfs
from cafsfs.cli.guides import read_guide
from cafsfs.packing import hash_bytes
from cafsfs.report.publishing import metrics_page
from tests.cli.guides import GUIDES
from tests.report.conftest import Bench

CONTENT = b"content"


def documented() -> dict[str, str]:
    """The metrics of the guide, with what it says of each."""
    guide = read_guide("metrics", cafsfs)
    found = re.findall(r"^``(cafsfs_\w+)``\n((?: {4}.+\n)+)", guide, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


async def test_every_metric_is_documented_with_kind_labels_and_help(bench: Bench) -> None:
    bench.metrics.requests.end(bench.metrics.requests.begin("read"), "ok")
    guide = documented()
    suffixes = {"counter": "_total", "info": "_info"}
    page = (await metrics_page(bench.status)()).decode()
    told = {}
    for each in text_string_to_metric_families(page):
        labels = [label for label in each.samples[0].labels if label not in {"mountpoint", "le"}]
        by = f" by {', '.join(labels)}" if labels else ""
        told[each.name + suffixes.get(each.type, "")] = f"{each.type}{by}. {each.documentation}."
    assert guide == told


def test_alerts_of_the_guide_are_about_metrics() -> None:
    guide = (GUIDES / "metrics.rst").read_text()
    used = set(re.findall(r"cafsfs_[a-z_]+", guide)) - {"cafsfs_"}
    assert used <= documented().keys()
    assert used


def paths(value: object, above: str = "") -> Iterator[str]:
    """The fields of a JSON value, as the guide writes them."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from paths(each, f"{above}.{name}" if above else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from paths(value[0], f"{above}[]")
    else:
        yield above


async def test_every_field_of_stats_json_is_documented(bench: Bench) -> None:
    bench.upstream.blobs[hash_bytes(CONTENT)] = CONTENT
    bench.upstream.gate = trio.Event()
    blob = bench.store.open(hash_bytes(CONTENT))
    logging.getLogger("elsewhere").warning("a warning")
    told = set(paths(bench.status.stats()))
    bench.store.close(blob)
    text = (GUIDES / "metrics.rst").read_text()
    section = text.partition(".. fields: begin")[2].partition(".. fields: end")[0]
    guide = set(re.findall(r"``([a-z_]+(?:\[\])?(?:\.[a-z_]+(?:\[\])?(?:\.[a-z_]+)?)?)``", section))
    groups = {"counters", "inflight[]", "servers.members[]", "last_errors[]"}
    values = {"online", "offline", "up", "suspect", "down", "sound", "unsound", "untested"}
    values |= {"001", "002", "002-encrypted", "http", "https"}
    assert guide - groups - values - {"cafsfs_", "_total"} == told
