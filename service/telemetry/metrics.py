"""All metrics, each defined once, with bounded labels.

A process counts in memory until it calls `share`. From then on a scrape sums the processes of one folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
    start_http_server,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from service.errors import CATALOGUE
from service.telemetry import gauges, metric_files
from service.telemetry.gauges import ServiceState
from service.telemetry.requests import BUCKETS_S, RequestMetrics
from service.version import VERSION

log = structlog.get_logger("service")

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SCRAPE_TIMEOUT_S = 10

# They show only when a process started, and merged metrics do not have them.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of the queue, which only Redis knows. `oldest_s` is 0 if the queue is empty."""

    depth: int
    oldest_s: float
    workers: int


InFlight = Gauge
Durations = Histogram


class Metrics:
    def __init__(self) -> None:
        values.ValueClass = values.MutexValue  # until `share`, whatever the environment configures
        self._folder: Path | None = None
        self._define()

    def _define(self) -> None:
        self._registry = CollectorRegistry()
        requests = self._counter(
            "daguerre_http_requests",
            "Requests by method, route and status; 499 means that the client disconnected.",
            "method",
            "route",
            "status",
        )
        request_seconds = self._histogram(
            "daguerre_http_request_duration_seconds",
            "Time from the headers of a request to its response; for pictures over 256 KB, to the last byte.",
            "route",
        )
        errors = self._counter_by_code("daguerre_errors", "Error responses, by code.")
        self.upload_bytes = self._counter("daguerre_upload_bytes", "Bytes of uploads received, whether stored or not.")
        self.uploads_in_flight = self._in_flight("daguerre_uploads_in_flight", "Uploads that hold a slot now.")
        self.downloads_in_flight = self._in_flight(
            "daguerre_downloads_in_flight", "Downloads from URLs that hold a slot now."
        )
        self.rate_limit_unchecked = self._counter(
            "daguerre_rate_limit_unchecked",
            "Requests not checked against the rate limit, because Redis was unavailable or slow.",
        )
        self.queue_wait = self._histogram(
            "daguerre_queue_wait_seconds", "Time that an image waited until a worker first took it."
        )
        self.probe_seconds = self._histogram(
            "daguerre_probe_duration_seconds", "Time that a decoder process took to probe a picture."
        )
        self.render_seconds = self._histogram(
            "daguerre_render_duration_seconds", "Time that a decoder process took to render a rendition."
        )
        self.render_wait = self._histogram(
            "daguerre_render_wait_seconds", "Time that a rendition waited until a worker first took it."
        )
        self._pictures = self._counter(
            "daguerre_pictures", "Pictures delivered, by source: memory, disk or rendered.", "source"
        )
        self.pictures_from_memory = self._pictures.labels("memory")
        self.pictures_from_disk = self._pictures.labels("disk")
        self.pictures_rendered = self._pictures.labels("rendered")
        self.renditions_evicted = self._counter(
            "daguerre_renditions_evicted", "Renditions removed because their folder had reached its size."
        )
        self.renditions_unkept = self._counter(
            "daguerre_renditions_unkept",
            "Renditions that were rendered but not stored, because their disk cannot be written.",
        )
        self.renditions_damaged = self._counter(
            "daguerre_renditions_damaged", "Renditions that were rendered again, because their files were damaged."
        )
        self._render_failures = self._counter_by_code("daguerre_render_failures", "Renditions that failed, by code.")
        self._probe_failures = self._counter_by_code("daguerre_probe_failures", "Pictures that were refused, by code.")
        self.child_crashes = self._counter(
            "daguerre_child_crashes", "Decoder processes that crashed or were killed while they worked on a picture."
        )
        self.counter_corrections = self._counter(
            "daguerre_account_corrections", "Accounts whose counters differed from their images."
        )
        self.sweep_enqueued = self._counter("daguerre_sweep_enqueued", "Overdue images that the sweep enqueued again.")
        self.scrub_images = self._counter("daguerre_scrub_images", "Images whose files the scrub has read.")
        self.scrub_bytes = self._counter("daguerre_scrub_bytes", "Bytes of images that the scrub has read.")
        self.scrub_damaged = self._counter(
            "daguerre_scrub_damaged", "Images whose files the scrub found damaged; each is counted once."
        )
        self._registry.register(_BuildInfo())
        self.requests = RequestMetrics(requests, request_seconds, errors, self.pictures_from_memory)

    def share(self, folder: Path) -> None:
        """Shares the metrics with other processes in `folder`. Counts start from zero.

        Call it once, when a process starts. If the folder cannot be used, the process keeps counting in memory.
        """
        try:
            slot = metric_files.take_slot(folder)
        except OSError as error:
            log.warning("metrics.not_shared", error=repr(error))
            return
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # the library reads it only from there
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
        self._folder = folder
        self._define()

    def serve(self, host: str, port: int) -> None:
        """Serves the metrics of this process on a port of its own, in a thread. Raises OSError if it is in use."""
        server, _ = start_http_server(port, host, self._registry)
        server.RequestHandlerClass.timeout = _SCRAPE_TIMEOUT_S  # type: ignore[attr-defined]
        log.info("metrics.listening", port=port)

    def count_probe_failure(self, code: str) -> None:
        self._probe_failures[code].inc()

    def count_render_failure(self, code: str) -> None:
        self._render_failures[code].inc()

    def render(self, queue: QueueState | None, state: ServiceState | None = None) -> bytes:
        """Returns the text for Prometheus. `queue` is None if Redis is unavailable. Reads files: call it in a
        thread.
        """
        return generate_latest(_Families([*self._collect(), *_describe_queue(queue), *gauges.describe(state)]))

    def describe(self) -> Iterable[Metric]:
        """Returns every metric with its help, even if it has no value yet."""
        return [*self._registry.collect(), *_describe_queue(QueueState(0, 0, 0)), *gauges.describe(gauges.EXAMPLE)]

    def _collect(self) -> Iterable[Metric]:
        if self._folder is None:
            return self._registry.collect()
        files = metric_files.list_files(self._folder)
        return [*MultiProcessCollector.merge(files), *_BuildInfo().collect()]  # type: ignore[no-untyped-call]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=BUCKETS_S)

    def _in_flight(self, name: str, meaning: str) -> InFlight:
        """Creates a gauge that sums live processes only: requests of a dead process are no longer in flight."""
        return Gauge(name, meaning, registry=self._registry, multiprocess_mode="livesum")

    def _counter_by_code(self, name: str, text: str) -> _ByCode:
        """Creates all counters at the start, so that the first failure shows as a rise from 0."""
        counter = self._counter(name, text, "code")
        return _ByCode({code: counter.labels(code) for code in CATALOGUE})


class _ByCode(dict[str, Counter]):
    """A code that is not in the catalogue counts as `internal`."""

    def __missing__(self, code: str) -> Counter:
        return self["internal"]


@dataclass(frozen=True, slots=True)
class _Families:
    """Metric families as a collector, which is what the library can print."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


class _BuildInfo:
    """A collector, because the library's own Info cannot be merged."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("daguerre_build_info", "Always 1; the label is the version.", labels=["version"])
        family.add_metric([VERSION], 1)
        return [family]


def _describe_queue(queue: QueueState | None) -> list[Metric]:
    if queue is None:
        return []
    return [
        GaugeMetricFamily("daguerre_queue_depth", "Images that wait for a worker or are being probed.", queue.depth),
        GaugeMetricFamily(
            "daguerre_queue_oldest_seconds", "How long the oldest job in the queue has been due.", queue.oldest_s
        ),
        GaugeMetricFamily("daguerre_workers", "Workers that send heartbeats.", queue.workers),
    ]


metrics = Metrics()
