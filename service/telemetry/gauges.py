"""Metrics that are measured at each scrape: dependencies, disks, and what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.metrics_core import GaugeMetricFamily

_UP = {
    "database": ("daguerre_database_up", "1 if PostgreSQL accepts what an upload writes, else 0."),
    "queue": ("daguerre_redis_up", "1 if Redis accepts jobs and delivers replies, else 0."),
    "storage": ("daguerre_storage_up", "1 if the folder for the images is writable, else 0."),
}


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """In bytes. `free` is what this process may use, which is less than the rest if the disk reserves some space for
    root.
    """

    size: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class StoredState:
    """What is stored, which only PostgreSQL knows."""

    images: int
    bytes: int
    database_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceState:
    """`up` has the names of `/readyz`. A disk, or `stored`, is missing if it could not be measured in time."""

    up: Mapping[str, bool]
    disks: Mapping[str, DiskSpace]
    stored: StoredState | None


EXAMPLE = ServiceState(dict.fromkeys(_UP, True), {"storage": DiskSpace(0, 0, 0)}, StoredState(0, 0, 0))


def describe(state: ServiceState | None) -> Sequence[Metric]:
    if state is None:
        return []
    up = [GaugeMetricFamily(*_UP[name], value=int(is_up)) for name, is_up in state.up.items()]
    return [*up, *_describe_disks(state.disks), *_describe_stored(state.stored)]


def _describe_disks(disks: Mapping[str, DiskSpace]) -> Sequence[Metric]:
    size = GaugeMetricFamily("daguerre_disk_size_bytes", "Size of the disk that holds a folder.", labels=["disk"])
    used = GaugeMetricFamily(
        "daguerre_disk_used_bytes", "Bytes of the disk that are in use, by any program.", labels=["disk"]
    )
    free = GaugeMetricFamily(
        "daguerre_disk_free_bytes", "Bytes of the disk that Daguerre can still use.", labels=["disk"]
    )
    for name, space in disks.items():
        size.add_metric([name], space.size)
        used.add_metric([name], space.used)
        free.add_metric([name], space.free)
    return [size, used, free]


def _describe_stored(stored: StoredState | None) -> Sequence[Metric]:
    if stored is None:
        return []
    return [
        GaugeMetricFamily("daguerre_database_size_bytes", "Size of the database.", stored.database_bytes),
        GaugeMetricFamily(
            "daguerre_stored_images", "Images of all accounts, according to their counters.", stored.images
        ),
        GaugeMetricFamily(
            "daguerre_stored_bytes", "Bytes of the images of all accounts, according to their counters.", stored.bytes
        ),
    ]
