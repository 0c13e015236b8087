"""The dashboard: it parses, and each expression is about metrics and labels that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cafsfs.report.publishing import metrics_page
from tests.cli.guides import REPOSITORY
from tests.cli.running import run
from tests.report.conftest import Bench

DASHBOARD: dict[str, Any] = json.loads((REPOSITORY / "cafsfs/report/dashboard.json").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
OF_PROMETHEUS = {"instance"}


@pytest.fixture
async def exposed(bench: Bench) -> dict[str, set[str]]:
    """The names of all samples, as Prometheus stores them, and their labels."""
    bench.metrics.requests.end(bench.metrics.requests.begin("read"), "ok")
    page = (await metrics_page(bench.status)()).decode()
    return {
        sample.name: set(sample.labels) | OF_PROMETHEUS
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression, with the labels that it is chosen by."""
    for name, chosen in re.findall(r"(cafsfs_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", chosen))


async def test_expressions_are_about_metrics_that_there_are(
    exposed: dict[str, set[str]],
) -> None:
    queries = [each.get("definition", "") for each in DASHBOARD["templating"]["list"]]
    for expression in EXPRESSIONS + queries:
        for name, labels in selectors(expression):
            assert name in exposed, expression
            assert labels <= exposed[name], expression
        assert expression.count("(") == expression.count(")")
        for by in re.findall(r"by \(([\w, ]+)\)", expression):
            known = set[str]().union(*(exposed[name] for name, _ in selectors(expression)))
            assert set(by.split(", ")) <= known, expression


def test_panels_have_titles_and_places_of_their_own() -> None:
    numbers = [each["id"] for each in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for each in DASHBOARD["panels"]:
        place = each["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken, each["title"]
        taken |= cells
        assert each["title"]
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"}
    assert used <= variables
    assert all("$mountpoint" in each for each in EXPRESSIONS)


def shown_as(panel: dict[str, Any], target: dict[str, Any]) -> str:
    """The unit in which a panel shows a target."""
    fields = panel["fieldConfig"]
    for each in fields["overrides"]:
        if each["matcher"] == {"id": "byFrameRefID", "options": target["refId"]}:
            return str(each["properties"][0]["value"])
    return str(fields["defaults"]["unit"])


def units_of(expression: str) -> set[str]:
    """Those in which an expression can be shown, by the metric that it begins with."""
    [name, *_] = [name for name, _ in selectors(expression)]
    if " / " in expression or "processor_seconds" in name:
        return {"percentunit"}
    if "histogram_quantile" in expression or name.endswith("_seconds"):
        return {"s"}
    if "rate(" in expression:
        return {"Bps"} if name.endswith("_bytes_total") else {"ops", "reqps"}
    return {"bytes"} if name.endswith("_bytes") else {"none"}


def test_units_of_panels_are_those_of_their_metrics() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            assert shown_as(panel, target) in units_of(target["expr"]), target["expr"]


@pytest.mark.process
def test_the_command_prints_it() -> None:
    assert json.loads(run("dashboard").ok().text) == DASHBOARD
