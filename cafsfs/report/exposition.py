"""The metrics of a mount in the words of OpenMetrics: as a page, over HTTP, as a textfile.

Threads do all this; only the numbers are taken from the mount, in one step of the event loop.
Nothing of this fails a read: a metric that cannot be told is left out, and the log says so once.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import trio
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cafsfs.metrics import BUCKETS, Metrics
from cafsfs.report import families
from cafsfs.report.families import FAMILIES, Family, Kind, Seen, look
from cafsfs.report.status import Status

log = logging.getLogger(__name__)

_EVERY = 15.0  # seconds between two textfiles; node_exporter is scraped that often by default
_CLIENT_PATIENCE = 10.0  # seconds that a client of the HTTP server may take for anything
_CLIENTS = 32  # at once: each has a thread, and whoever reaches the port is let in
_ACCEPT_PAUSE = 0.01  # seconds between two: without descriptors, accept() would fail all the time
_UNITS = ("bytes", "seconds")
# By default each name is looked over for what Prometheus before 3.0 did not let in, rune by rune:
# 0.7 ms of 2. Ours have nothing of that.
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"


class MetricsPage(Collector):
    """All metrics of one mount, told in threads. ``token``: of the event loop of the mount."""

    def __init__(self, status: Status, token: trio.lowlevel.TrioToken) -> None:
        self._status = status
        self._token = token
        self._failed: set[str] = set()

    def openmetrics(self) -> bytes:
        """As ``.cafsfs/metrics`` shows them; in a thread."""
        encode, _ = choose_encoder(_OPENMETRICS)
        return encode(_registry(self))

    def collect(self) -> list[Metric]:
        """What there is to tell now; in a thread."""
        about = self._status.about
        point = _as_label(about.mountpoint)
        seen = trio.from_thread.run_sync(look, self._status, trio_token=self._token)
        told = [self._told(each, seen, point) for each in FAMILIES]
        info = InfoMetricFamily(families.INFO, families.INFO_HELP, labels=["mountpoint"])
        info.add_metric([point], {"version": about.version, "uri": _as_label(about.uri)})
        return [*filter(None, told), _durations(seen.counted, point), info]

    def _told(self, family: Family, seen: Seen, point: str) -> Metric | None:
        kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
        labels = ["mountpoint", *family.labels]
        made = kind(family.name, family.help, labels=labels, unit=unit_of(family.name))
        try:
            for values, value in family.samples(seen):
                made.add_metric([point, *values], value)
        except Exception:
            if family.name not in self._failed:
                self._failed.add(family.name)
                log.exception("the metric %s cannot be told", family.name)
            return None
        return made


def _as_label(path: str) -> str:
    """A path may be any bytes, and a page is UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def unit_of(name: str) -> str:
    """The unit at the end of a name, if it has one."""
    last = name.rpartition("_")[2]
    return last if last in _UNITS else ""


def _durations(counted: Metrics, point: str) -> Metric:
    made = HistogramMetricFamily(
        families.REQUEST_SECONDS,
        families.REQUEST_SECONDS_HELP,
        labels=["mountpoint", "operation", "result"],
        unit="seconds",
    )
    bounds = [*map(str, BUCKETS), "+Inf"]
    for (operation, result), histogram in counted.requests.taken.items():
        buckets, total = [], 0
        for bound, count in zip(bounds, histogram.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        made.add_metric([point, operation, result], buckets, histogram.seconds)
    return made


def _registry(page: MetricsPage) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    return registry


# --- as a textfile


async def write_textfile(page: MetricsPage, path: Path) -> None:
    """Write it every 15 s until cancelled, and remove it then: what is old would be taken for true.

    It is never seen half written. That it cannot be written is said once.
    """
    said = False
    try:
        while True:
            try:
                await trio.to_thread.run_sync(_write, path, page)
                said = False
            except Exception as error:  # it is no reason for a mount to end
                if not said:
                    why = getattr(error, "strerror", None) or repr(error)
                    log.warning("cannot write metrics to `%s`: %s", path, why)
                said = True
            await trio.sleep(_EVERY)
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _write(path: Path, page: MetricsPage) -> None:
    """In the older text format, the only one that node_exporter reads."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(generate_latest(_registry(page)))
        fresh.chmod(0o644)  # node_exporter is another user
        fresh.replace(path)
    except OSError:
        _remove(fresh)
        raise


# --- over HTTP


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_PATIENCE

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        log.debug("%s: " + format, self.client_address[0], *args)  # noqa: G003


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128  # of five that are in the queue the sixth waits for seconds

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...]) -> None:
        self.address_family = family
        self._clients: set[object] = set()
        super().__init__(address[:2], _Handler)
        self.socket.setblocking(False)  # who is announced may have gone again

    def server_bind(self) -> None:
        """Without looking up its own name, which may take a resolver's patience."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def verify_request(self, request: Any, client_address: object) -> bool:  # noqa: ARG002
        """One of too many is closed at once."""
        if len(self._clients) >= _CLIENTS:
            return False
        self._clients.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:
        """Whatever became of it."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("the metrics' client %s has failed: %r", client_address, sys.exception())


async def serve_metrics(
    page: MetricsPage,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer GET with all metrics, in the format that the client asks for, until cancelled.

    Tells by task_status where it listens. A thread for each client. Raises OSError if it cannot
    listen.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = found[0]
    with _Server(family, address) as server:
        server.set_app(make_wsgi_app(_registry(page)))
        task_status.started((server.server_name, server.server_port))
        while True:
            await trio.lowlevel.wait_readable(server.socket)
            server.handle_request()
            await trio.sleep(_ACCEPT_PAUSE)
