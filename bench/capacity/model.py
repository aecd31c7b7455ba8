"""The computation. Costs are taken to be proportional to the rate, except for what batches share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.capacity.costs import Costs
from bench.capacity.inputs import Inputs, Prices

# Constants of the code, the documents and the servers.
MAX_BATCH = 256  # service/batcher.py
REDIS_PER_API_PROCESS, REDIS_PER_WORKER = 11, 18  # docs/operations.md, connections
EVICTIONS_PER_S = 100 * 1000 / 30  # worker/cron/eviction.py: batches of a run, every 30 s
STATEMENT_LIMIT_S = 10  # worker/resources.py
REFRESH_BUDGET_S = 10  # worker/cron/counters.py
SCRUB_MB_S = 105  # worker/cron/scrub.py: 100 MiB
NUM_IDS = 62**7  # service/images/pending.py
NUM_SHARDS = 256  # service/storage/shards.py
JOURNAL_COMMITS = 3  # begin, insert and finish wait for the disk; the result of the probe does not
FREEZE_AGE = 200_000_000  # PostgreSQL: autovacuum_freeze_max_age
VACUUM_MB_S = 8192 * (200 / 2) / 0.002 / 1e6  # PostgreSQL: vacuum_cost_limit, _page_miss and autovacuum's delay
GB_PER_CORE = 4  # of the machines whose price is taken
HOURS_PER_MONTH, SECONDS_PER_MONTH = 730, 730 * 3600
_MIN_PROCESSES = 2  # for availability
_MIN_POOL = 20


@dataclass(frozen=True, slots=True)
class Flow:
    """What a rate of uploads needs. Cores are those that are busy; counts of processes have headroom."""

    rate: float
    api_cores: float
    worker_cores: float
    decoder_cores: float
    postgres_cores: float
    redis_cores: float
    api_processes: int
    workers: int
    decoders: int
    hosts: int
    batch: float
    commits: float
    wal_mb_s: float
    direct_connections: float
    pooled_connections: float
    redis_connections: int
    api_mb: float
    worker_mb: float
    decoder_mb: float
    redis_mb: float
    connections_mb: float
    puts: float
    gets: float
    in_gbit: float
    store_gbit: float
    out_gbit: float
    client_gbit: float


def compute_flow(rate: float, costs: Costs, inputs: Inputs) -> Flow:
    new = rate * inputs.renditions
    cached = max(0.0, rate * inputs.views * (1 - inputs.cdn) - new)
    not_in_memory = cached * (1 - inputs.in_memory)
    reads = rate * inputs.reads
    api_cores = (
        rate * inputs.mean(costs.api)
        + new * costs.rendition_api
        + (cached - not_in_memory) * costs.from_memory
        + not_in_memory * costs.from_disk
        + reads * costs.read_api
    ) / 1000
    api_processes = _count(api_cores, inputs.utilisation)
    batch = _batch(rate, api_processes, inputs)
    decoder_cores = (rate * inputs.mean(costs.decoder) + new * inputs.mean(costs.rendition_decoder)) / 1000
    worker_cores = (rate * inputs.mean(costs.worker) + new * costs.rendition_worker) / 1000
    decoders = _count(decoder_cores, inputs.utilisation)
    workers = max(
        _count(worker_cores, inputs.utilisation),
        _count((rate + new) / costs.jobs_per_s, inputs.utilisation),
        math.ceil(decoders / inputs.decoders),
    )
    postgres_cores = (
        rate * costs.image_rows.per_item(batch)
        + new * costs.rendition_rows.per_item(new / workers / 2)  # a batch each half second
        + (reads + not_in_memory) * costs.read_postgres
    ) / 1000
    commits = rate / batch * JOURNAL_COMMITS
    connections = (api_processes + workers) * inputs.connections
    pooled = max(_MIN_POOL, math.ceil((commits * inputs.commit_ms / 1000 + postgres_cores) / inputs.utilisation))
    fetched = not_in_memory * (1 - inputs.on_host)
    from_store = rate * inputs.fetches * inputs.mean(costs.kb) + fetched * costs.rendition_kb
    to_store = rate * inputs.mean(costs.kb) + new * costs.rendition_kb
    return Flow(
        rate=rate,
        api_cores=api_cores,
        worker_cores=worker_cores,
        decoder_cores=decoder_cores,
        postgres_cores=postgres_cores,
        redis_cores=(rate * costs.queue.per_item(batch) + new * costs.rendition_queue) / 1000,
        api_processes=api_processes,
        workers=workers,
        decoders=max(decoders, workers * 2),
        hosts=_count(api_cores + worker_cores + decoder_cores, inputs.utilisation * inputs.host_cores),
        batch=batch,
        commits=commits,
        wal_mb_s=(rate * costs.image_wal_first + new * costs.rendition_wal_first) / 1e6,
        direct_connections=connections,
        pooled_connections=min(connections, pooled),
        redis_connections=api_processes * REDIS_PER_API_PROCESS + workers * REDIS_PER_WORKER,
        api_mb=api_processes * costs.api_mb,
        worker_mb=workers * costs.worker_mb,
        decoder_mb=max(decoders, workers * 2) * costs.decoder_mb,
        redis_mb=rate * inputs.backlog_s * costs.job_bytes / 1e6,
        connections_mb=min(connections, pooled) * costs.connection_mb,
        puts=rate + new,
        gets=rate * inputs.fetches + 2 * new + fetched,
        in_gbit=_gbit(rate * inputs.mean(costs.kb)),
        store_gbit=_gbit(from_store + to_store),
        out_gbit=_gbit(rate * inputs.views * (1 - inputs.cdn) * costs.rendition_kb),
        client_gbit=_gbit(rate * inputs.views * costs.rendition_kb),
    )


def _batch(rate: float, api_processes: int, inputs: Inputs) -> float:
    """Returns how many uploads an API process stores together: those that arrive while the batch before is stored."""
    batch_s = (inputs.put_ms + JOURNAL_COMMITS * inputs.commit_ms) / 1000
    return min(MAX_BATCH, max(1.0, rate / api_processes * batch_s))


def _count(needed: float, utilisation: float) -> int:
    return max(_MIN_PROCESSES, math.ceil(needed / utilisation))


def _gbit(kilobytes_per_s: float) -> float:
    return kilobytes_per_s * 8 / 1e6


@dataclass(frozen=True, slots=True)
class Limit:
    """`uploads_per_s` is where a part is full, with its headroom."""

    part: str
    computation: str
    uploads_per_s: float


def compute_limits(costs: Costs, inputs: Inputs) -> list[Limit]:
    """Returns what does not grow by adding processes or hosts, the first to saturate first."""
    return sorted(_limits(costs, inputs), key=lambda limit: limit.uploads_per_s)


def _limits(costs: Costs, inputs: Inputs) -> Iterator[Limit]:
    share = inputs.utilisation
    # Batches depend on the rate per process, which hardly changes once there are many processes.
    flow = compute_flow(10_000, costs, inputs)
    redis_ms = flow.redis_cores / flow.rate * 1000
    yield Limit(
        "One Redis: scripts run on one core",
        f"{share:.0%} of 1,000 ms / {redis_ms:.2f} ms for an upload and its renditions",
        share * 1000 / redis_ms,
    )
    yield Limit(
        "Eviction of renditions, if the store may not grow",
        f"{EVICTIONS_PER_S:,.0f} a second / {inputs.renditions:g} for an upload",
        EVICTIONS_PER_S / inputs.renditions,
    )
    yield Limit(
        "A new bucket, PUTs: one partition",
        f"{inputs.store_puts:,.0f} a second / {1 + inputs.renditions:g} for an upload",
        inputs.store_puts / (1 + inputs.renditions),
    )
    gets = flow.gets / flow.rate
    yield Limit(
        "A new bucket, GETs: one partition",
        f"{inputs.store_gets:,.0f} a second / {gets:.1f} for an upload",
        inputs.store_gets / gets,
    )
    wal_kb = flow.wal_mb_s / flow.rate * 1000
    yield Limit(
        "PostgreSQL: WAL of the primary",
        f"{share:.0%} of {inputs.wal_mb_s:g} MB/s / {wal_kb:.1f} KB for an upload and its renditions",
        share * inputs.wal_mb_s * 1000 / wal_kb,
    )
    postgres_ms = flow.postgres_cores / flow.rate * 1000
    yield Limit(
        "PostgreSQL: cores of the primary",
        f"{share:.0%} of {inputs.postgres_cores:g} cores / {postgres_ms:.2f} ms for an upload and its renditions",
        share * inputs.postgres_cores * 1000 / postgres_ms,
    )
    connections = flow.direct_connections / flow.rate
    yield Limit(
        "PostgreSQL: connections, without a pooler",
        f"{inputs.max_connections:g} / {connections * 1000:.0f} for 1,000 uploads a second",
        inputs.max_connections / connections,
    )
    yield Limit(
        "One account: its row is locked until the commit",
        f"{share:.0%} of {1000 / inputs.commit_ms:g} commits of {MAX_BATCH} uploads at most",
        share * 1000 / inputs.commit_ms * MAX_BATCH,
    )


@dataclass(frozen=True, slots=True)
class Stock:
    """What a number of stored images takes. Bytes of PostgreSQL are those of one server."""

    images: float
    table_gb: float
    index_gb: float
    random_index_gb: float
    originals_tb: float
    renditions_tb: float
    ids_taken: float
    refresh_s: float
    sum_s: float
    verify_days: float
    scrub_days: float
    vacuum_hours: float
    files_per_folder: float


# Each new row goes to a random page of these, so that page has to be in memory.
RANDOM_INDEXES = ("images_pkey", "images_by_sha256", "renditions_pkey")


def compute_stock(images: float, costs: Costs, inputs: Inputs) -> Stock:
    per_image = {"image_tags": inputs.tags, "renditions": inputs.renditions, "images": 1.0}

    def count_of(relation: str) -> float:
        return next(count for rows, count in per_image.items() if relation.startswith(rows))

    by_relation = {name: num_bytes * count_of(name) * images / 1e9 for name, num_bytes in costs.row_bytes.items()}
    tables_gb = sum(gb for name, gb in by_relation.items() if name in per_image)
    original_tb = images * inputs.mean(costs.kb) / 1e9
    total_gb = sum(by_relation.values())
    return Stock(
        images=images,
        table_gb=tables_gb,
        index_gb=total_gb - tables_gb,
        random_index_gb=sum(by_relation.get(name, 0) for name in RANDOM_INDEXES),
        originals_tb=original_tb,
        renditions_tb=images * inputs.renditions * costs.rendition_kb / 1e9,
        ids_taken=images / NUM_IDS,
        refresh_s=images * costs.refresh_ns / 1e9,
        sum_s=images * inputs.renditions * costs.sum_ns / 1e9,
        verify_days=original_tb * 1e6 / inputs.verify_mb_s / 86400,
        scrub_days=original_tb * 1e6 / SCRUB_MB_S / 86400,
        vacuum_hours=total_gb * 1000 / VACUUM_MB_S / 3600,
        files_per_folder=images / NUM_SHARDS,
    )


@dataclass(frozen=True, slots=True)
class Money:
    """Dollars a month."""

    processes: float
    servers: float
    disk: float
    objects: float
    requests: float
    clients: float

    @property
    def total(self) -> float:
        """Without the traffic to clients, which a CDN sells at another price."""
        return self.processes + self.servers + self.disk + self.objects + self.requests


def compute_money(flow: Flow, stock: Stock, inputs: Inputs, prices: Prices) -> Money:
    def cores(busy: float, least: float) -> float:
        return max(least, math.ceil(busy / inputs.utilisation)) * prices.vcpu_hour * HOURS_PER_MONTH

    # A server is also paid for the memory that its indexes need.
    postgres_cores = max(2.0, 2 * stock.random_index_gb / GB_PER_CORE)

    return Money(
        processes=cores(flow.api_cores + flow.worker_cores + flow.decoder_cores, 2 * _MIN_PROCESSES),
        servers=(cores(flow.postgres_cores, postgres_cores) + cores(flow.redis_cores, 1)) * inputs.replicas,
        disk=(stock.table_gb + stock.index_gb) / inputs.utilisation * inputs.replicas * prices.disk_gb_month,
        objects=(stock.originals_tb + stock.renditions_tb) * 1000 * prices.store_gb_month,
        requests=(flow.puts * prices.store_put_1000 + flow.gets * prices.store_get_1000) / 1000 * SECONDS_PER_MONTH,
        clients=flow.client_gbit / 8 * SECONDS_PER_MONTH * prices.egress_gb,
    )


def id_years(rate: float) -> float:
    """Returns after how many years a tenth of all ids is taken."""
    return NUM_IDS / 10 / rate / (365 * 86400)


def freeze_hours(flow: Flow) -> float:
    """Returns how often PostgreSQL reads each table to freeze old transactions."""
    transactions = flow.commits * (JOURNAL_COMMITS + 1) / JOURNAL_COMMITS + 2 * flow.workers
    return FREEZE_AGE / transactions / 3600
