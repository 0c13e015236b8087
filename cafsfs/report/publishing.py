"""The metrics of a mount where people get them: as a file of the mount, over HTTP, as a textfile.

Without the libraries that render them, which take 45 ms to import: only who asks has them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from cafsfs.client.servers import Server
from cafsfs.config.options import MountOptions
from cafsfs.report.status import Status

log = logging.getLogger(__name__)

_PAGE_LIVES = 1.0  # second that a page of metrics is shown: to make one takes 2 ms


def metrics_page(status: Status) -> Callable[[], Awaitable[bytes]]:
    """A stat and a read of it are answered with the same page, at most a second old."""
    page, until = b"", -math.inf
    rendering, limiter = trio.Lock(), trio.CapacityLimiter(1)

    def make(token: trio.lowlevel.TrioToken) -> bytes:
        from cafsfs.report.exposition import MetricsPage  # noqa: PLC0415  # as said above

        return MetricsPage(status, token).openmetrics()

    async def render() -> bytes:
        nonlocal page, until
        async with rendering:  # who comes meanwhile gets the same
            if trio.current_time() > until:
                token = trio.lowlevel.current_trio_token()
                page = await trio.to_thread.run_sync(make, token, limiter=limiter)
                until = trio.current_time() + _PAGE_LIVES
            return page

    return render


async def publish_metrics(nursery: trio.Nursery, options: MountOptions, status: Status) -> None:
    """Over HTTP and as a textfile, as far as the options ask for it."""
    listen, textfile = options.metrics_listen, options.metrics_textfile
    if listen is None and textfile is None:
        return
    from cafsfs.report import exposition  # noqa: PLC0415  # as said above

    page = exposition.MetricsPage(status, trio.lowlevel.current_trio_token())
    if textfile is not None:
        nursery.start_soon(exposition.write_textfile, page, textfile)
    if listen is None:
        return
    try:
        host, port = await nursery.start(exposition.serve_metrics, page, listen.host, listen.port)
    except OSError as error:  # a mount without them is a mount all the same
        log.warning("nobody can get metrics at %s: %s", listen, error.strerror)
    else:
        log.info("metrics are at http://%s/metrics", Server(host, port))
