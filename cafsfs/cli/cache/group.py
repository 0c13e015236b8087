"""``cafsfs cache`` as a group of its commands."""

from __future__ import annotations

import click

from cafsfs.cli.cache.ls import ls
from cafsfs.cli.cache.pins import pin, unpin
from cafsfs.cli.cache.removing import evict, gc
from cafsfs.cli.cache.status import status
from cafsfs.cli.cache.verify import verify


@click.group()
def cache() -> None:
    """Look after the cache, mounted or not.

    \b
    cafsfs cache status
    cafsfs cache verify --repair
    cafsfs cache pin --from SUMS
    """


for each in (status, ls, verify, gc, evict, pin, unpin):
    cache.add_command(each)
