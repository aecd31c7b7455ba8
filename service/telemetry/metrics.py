"""Every metric, defined once, and the labels kept within bounds.

A process counts in memory until it calls `share`; from then on the processes of one folder are shown as one.
"""

from __future__ import annotations

import importlib.metadata
import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from service.telemetry import metric_files

log = structlog.get_logger("service")

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
UNMATCHED = "unmatched"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
CLIENT_LEFT = 499  # nginx's number for a client who left before the end of the answer
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SCRAPE_TIMEOUT_S = 10
_VERSION = importlib.metadata.version("daguerre")

# They only tell when a process began, and the merged ones have none.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What only Redis knows. `oldest_s` is 0 for an empty queue."""

    depth: int
    oldest_s: float
    workers: int


InFlight = Gauge
Durations = Histogram


class Metrics:
    def __init__(self) -> None:
        values.ValueClass = values.MutexValue  # until `share`, whatever the environment says to the library
        self._folder: Path | None = None
        self._define()

    def _define(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "daguerre_http_requests",
            "Requests by method, route and status; 499 is a client who left.",
            "method",
            "route",
            "status",
        )
        self._request_seconds = self._histogram(
            "daguerre_http_request_duration_seconds",
            "Time from a request's headers to its answer; of a picture over 256 KB, to its last byte.",
            "route",
        )
        self._errors = self._by_code("daguerre_errors", "Errors that clients were told, by code.")
        self.upload_bytes = self._counter("daguerre_upload_bytes", "Bytes of images received, kept or not.")
        self.uploads_in_flight = self._in_flight("daguerre_uploads_in_flight", "Uploads that hold a place now.")
        self.downloads_in_flight = self._in_flight(
            "daguerre_downloads_in_flight", "Pictures from URLs that hold a place now."
        )
        self.rate_limit_unchecked = self._counter(
            "daguerre_rate_limit_unchecked", "Requests let through unchecked, since Redis was away."
        )
        self.queue_wait = self._histogram(
            "daguerre_queue_wait_seconds", "Time that an image waited until a worker first took it."
        )
        self.probe_seconds = self._histogram(
            "daguerre_probe_duration_seconds", "Time that a child process worked on a picture."
        )
        self.render_seconds = self._histogram(
            "daguerre_render_duration_seconds", "Time that a child process worked on a rendition."
        )
        self.render_wait = self._histogram(
            "daguerre_render_wait_seconds", "Time that a rendition waited until a worker first took it."
        )
        self._pictures = self._counter(
            "daguerre_pictures", "Pictures delivered, by where they came from: memory, disk or made.", "source"
        )
        self.pictures_from_memory = self._pictures.labels("memory")
        self.pictures_from_disk = self._pictures.labels("disk")
        self.pictures_made = self._pictures.labels("made")
        self.renditions_evicted = self._counter(
            "daguerre_renditions_evicted", "Renditions removed since their folder had reached its size."
        )
        self._render_failures = self._by_code("daguerre_render_failures", "Renditions that failed, by code.")
        self._probe_failures = self._by_code("daguerre_probe_failures", "Pictures that were refused, by code.")
        self.child_crashes = self._counter(
            "daguerre_child_crashes", "Child processes that died or were ended over a picture."
        )
        self.counter_corrections = self._counter(
            "daguerre_counter_corrections", "Accounts whose counters differed from their images."
        )
        self.sweep_enqueued = self._counter("daguerre_sweep_enqueued", "Overdue images that the sweep enqueued again.")
        self.scrub_images = self._counter("daguerre_scrub_images", "Images whose files were read in the background.")
        self.scrub_bytes = self._counter("daguerre_scrub_bytes", "Bytes of images that were read in the background.")
        self.scrub_damaged = self._counter(
            "daguerre_scrub_damaged", "Images whose files were found damaged, once each."
        )
        self._registry.register(_BuildInfo())
        self._by_answer: dict[tuple[str, str, int], Any] = {}
        self._by_route: dict[str, Any] = {}

    def share(self, folder: Path) -> None:
        """Count into `folder`, together with the other processes there; what was counted before is dropped.

        Call it once, at the start of a process. Where the folder cannot be used, counting goes on in memory.
        """
        try:
            slot = metric_files.take_slot(folder)
        except OSError as error:
            log.warning("metrics.not_shared", error=repr(error))
            return
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # the library takes it from nowhere else
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
        self._folder = folder
        self._define()

    def serve(self, host: str, port: int) -> None:
        """Show what this process counts at a port of its own, from a thread. Raises OSError if it is taken."""
        server, _ = start_http_server(port, host, self._registry)
        server.RequestHandlerClass.timeout = _SCRAPE_TIMEOUT_S  # type: ignore[attr-defined]
        log.info("metrics.listening", port=port)

    def count_answer(self, method: str, route: str, status: int, code: str | None, seconds: float) -> None:
        """`route` is a template such as `/v1/images/{id}`, or UNMATCHED."""
        self._count_request(method, route, status)
        timed = self._by_route.get(route)
        if timed is None:
            timed = self._by_route[route] = self._request_seconds.labels(route)
        timed.observe(seconds)
        if code is not None:
            self._of_code(self._errors, code).inc()

    def tally(self, method: str, route: str, status: int) -> PictureTally:
        """Counts answers of pictures from memory; call it after `share`."""
        return PictureTally(
            self._requests.labels(method, route, str(status)), self._request_seconds.labels(route), self
        )

    def count_cut_off(self, method: str, route: str) -> None:
        """A client left before the end of the answer."""
        self._count_request(method, route, CLIENT_LEFT)

    def count_refusal(self, method: str, code: str) -> None:
        """A request that was refused before it had a route."""
        self._count_request(method, UNMATCHED, CATALOGUE[code][0])
        self._of_code(self._errors, code).inc()

    def count_probe_failure(self, code: str) -> None:
        self._of_code(self._probe_failures, code).inc()

    def count_render_failure(self, code: str) -> None:
        self._of_code(self._render_failures, code).inc()

    def _count_request(self, method: str, route: str, status: int) -> None:
        key = (method if method in _METHODS else _OTHER, route, status)
        counter = self._by_answer.get(key)
        if counter is None:
            counter = self._by_answer[key] = self._requests.labels(*key)
        counter.inc()

    @staticmethod
    def _of_code(counters: dict[str, Counter], code: str) -> Counter:
        return counters.get(code) or counters["internal"]

    def render(self, queue: QueueState | None) -> bytes:
        """The text for Prometheus. `queue` is None while Redis is away. Reads files: call it in a thread."""
        return generate_latest(_Shown([*self._collect(), *_of_queue(queue)]))

    def describe(self) -> Iterable[Metric]:
        """Every metric with its help, whether or not there is anything to show of it."""
        return [*self._registry.collect(), *_of_queue(QueueState(0, 0, 0))]

    def _collect(self) -> Iterable[Metric]:
        if self._folder is None:
            return self._registry.collect()
        files = metric_files.list_files(self._folder)
        return [*MultiProcessCollector.merge(files), *_BuildInfo().collect()]  # type: ignore[no-untyped-call]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=_SECONDS)

    def _in_flight(self, name: str, meaning: str) -> InFlight:
        """Of the processes that live: what a dead one had under way is under way no more."""
        return Gauge(name, meaning, registry=self._registry, multiprocess_mode="livesum")

    def _by_code(self, name: str, text: str) -> dict[str, Counter]:
        """From the start, so that the first failure shows as a rise from 0."""
        counter = self._counter(name, text, "code")
        return {code: counter.labels(code) for code in CATALOGUE}


class PictureTally:
    """Answers in memory until they are put into the metrics, some at once: to write one down would be a tenth of what
    such an answer costs.
    """

    def __init__(self, answers: Counter, seconds: Histogram, shown: Metrics) -> None:
        self._answers = answers
        self._seconds = seconds
        self._shown = shown
        self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._places = [0] * (len(_SECONDS) + 1)

    def add(self, seconds: float) -> None:
        self._count += 1
        self._sum += seconds
        self._places[bisect_left(_SECONDS, seconds)] += 1

    def put(self) -> None:
        if not self._count:
            return
        self._answers.inc(self._count)
        self._shown.pictures_from_memory.inc(self._count)
        self._seconds._sum.inc(self._sum)
        for place, count in enumerate(self._places):
            if count:
                self._seconds._buckets[place].inc(count)
        self._clear()


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the library can print."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


class _BuildInfo:
    """A collector: the library's own Info cannot be merged."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("daguerre_build_info", "Always 1; the label tells the version.", labels=["version"])
        family.add_metric([_VERSION], 1)
        return [family]


def _of_queue(queue: QueueState | None) -> list[Metric]:
    if queue is None:
        return []
    return [
        GaugeMetricFamily("daguerre_queue_depth", "Images that wait for a worker or are with one.", queue.depth),
        GaugeMetricFamily(
            "daguerre_queue_oldest_seconds", "How long the oldest job of the queue has been due.", queue.oldest_s
        ),
        GaugeMetricFamily("daguerre_workers", "Workers that show signs of life.", queue.workers),
    ]


metrics = Metrics()
