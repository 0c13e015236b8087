"""``cafsfs dashboard``: the dashboard for Grafana that ships in the package."""

from __future__ import annotations

from importlib.resources import files

import click

from cafsfs.cli.talk import emit


@click.command()
def dashboard() -> None:
    """Print a dashboard for Grafana, of the metrics of mounts.

    Where they come from: `cafsfs help metrics`.

    \b
    cafsfs dashboard >cafsfs.json
    """
    emit(files("cafsfs").joinpath("report", "dashboard.json").read_bytes())
