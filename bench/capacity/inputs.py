"""What the computation assumes, and the prices. Both can be changed on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

PRICES_SOURCE = "Amazon's list for us-east-1, without discounts, 2026-06"


def _value(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class Inputs:
    share_s: float = _value(0.3, "share of uploads like the photograph s")
    share_m: float = _value(0.6, "share of uploads like the photograph m")
    share_l: float = _value(0.1, "share of uploads like the photograph l")
    tags: float = _value(2, "tags of an image")
    renditions: float = _value(3, "new renditions for each upload; all are kept")
    views: float = _value(100, "requests for renditions for each upload, over its life")
    cdn: float = _value(0.9, "share of them that a CDN or proxy answers")
    in_memory: float = _value(0.5, "share of the rest, but for new ones, that an API process has in memory")
    on_host: float = _value(0.9, "share of those not in memory that the host has in its cache")
    reads: float = _value(5, "requests for metadata for each upload")
    fetches: float = _value(2, "times that workers fetch an original from the store: for its probe, for its renditions")
    utilisation: float = _value(0.6, "share of a core, process or limit that is used; the rest is headroom")
    replicas: float = _value(2, "servers of PostgreSQL and of Redis: a primary and its standbys")
    host_cores: float = _value(16, "cores of a host for API processes, workers and decoders")
    decoders: float = _value(8, "decoders of a worker, by its two settings")
    connections: float = _value(10, "connections of a process to PostgreSQL, by `DAGUERRE_DATABASE_CONNECTIONS`")
    max_connections: float = _value(500, "connections that one wants PostgreSQL to have without a pooler")
    commit_ms: float = _value(2, "ms of a commit that waits for its disk, and for a standby")
    put_ms: float = _value(40, "ms of a PUT to the object store")
    backlog_s: float = _value(600, "seconds for which jobs may pile up in Redis")
    postgres_cores: float = _value(64, "cores of the largest PostgreSQL server that one wants")
    wal_mb_s: float = _value(250, "MB of WAL a second that its disk and its standbys take")
    store_puts: float = _value(3500, "PUTs a second of one partition of S3, as Amazon documents it")
    store_gets: float = _value(5500, "GETs a second of one partition of S3, likewise")
    verify_mb_s: float = _value(200, "MB a second that `daguerre verify` reads")

    def mean(self, by_size: Mapping[str, float]) -> float:
        """Returns the mean over the uploads of a value for each size of photograph."""
        shares = {"s": self.share_s, "m": self.share_m, "l": self.share_l}
        return sum(share * by_size[size] for size, share in shares.items())


@dataclass(frozen=True, slots=True)
class Prices:
    """In dollars."""

    vcpu_hour: float = _value(0.0408, "a core with 4 GB for an hour (half of an m7g.large)")
    disk_gb_month: float = _value(0.08, "a GB of a network disk for a month (gp3)")
    store_gb_month: float = _value(0.023, "a GB in the object store for a month (S3 Standard, first 50 TB)")
    store_put_1000: float = _value(0.005, "1,000 PUTs (S3 Standard)")
    store_get_1000: float = _value(0.0004, "1,000 GETs (S3 Standard)")
    egress_gb: float = _value(0.09, "a GB to the internet (first 10 TB)")


Values = TypeVar("Values", Inputs, Prices)


def change(values: Values, assignments: Sequence[str]) -> Values:
    """Applies texts like "name=0.5". Raises ValueError for another name, and for what is no number."""
    changes: dict[str, Any] = {}
    names = [one.name for one in fields(values)]
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if name not in names:
            raise ValueError(f"unknown name {name!r}; the names are {', '.join(names)}")
        changes[name] = float(value)
    return replace(values, **changes)


def describe(values: Inputs | Prices) -> Iterator[tuple[str, float, str]]:
    """Yields name, value and meaning."""
    for one in fields(values):
        yield one.name, getattr(values, one.name), one.metadata["meaning"]
