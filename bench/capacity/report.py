"""The tables of docs/capacity.md, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bench.capacity.costs import Costs, Measured
from bench.capacity.inputs import PRICES_SOURCE, Inputs, Prices, describe
from bench.capacity.model import (
    REFRESH_BUDGET_S,
    STATEMENT_LIMIT_S,
    Flow,
    Stock,
    compute_flow,
    compute_limits,
    compute_money,
    compute_stock,
    freeze_hours,
    id_years,
)
from bench.figures import Table

Rows = Sequence[tuple[str, ...]]


def table(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Returns what was counted in full, and everything else with two digits: 0.0034, 0.12, 3.4, 34, 34,000."""
    if isinstance(value, int):
        return f"{value:,}"
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    rounded = round(value, digits)
    if rounded >= 10:
        return f"{rounded:,.0f}"
    return f"{rounded:.{digits}f}" if digits <= 5 else f"{value:.1e}"


def count(value: float) -> str:
    """Returns a number of the command line in full."""
    return f"{value:,.10g}"


def write_measured(measured: Sequence[Measured]) -> str:
    rows = [(one.name, one.text, _describe(one.source)) for one in measured]
    machines = sorted({one.source.machine for one in measured})
    return table(["Measured", "Value", "Command and date"], rows) + "\n\nMachine: " + "; ".join(machines) + "."


def _describe(source: Table) -> str:
    command, _, _ = source.command.partition(" --json ")
    return f"`{command}`, {source.date}"


def write_inputs(inputs: Inputs) -> str:
    rows = [(f"`{name}`", f"{value:g}", text) for name, value, text in describe(inputs)]
    return table(["Input", "Value", "Meaning"], rows)


def write_prices(prices: Prices) -> str:
    rows = [(f"`{name}`", f"{value:g}", text) for name, value, text in describe(prices)]
    return table(["Price", "Dollars", "Of"], rows) + f"\n\n{PRICES_SOURCE}."


_FLOW: Sequence[tuple[str, Callable[[Flow], str]]] = [
    ("Busy cores: API", lambda flow: number(flow.api_cores)),
    ("Busy cores: decoders", lambda flow: number(flow.decoder_cores)),
    ("Busy cores: workers", lambda flow: number(flow.worker_cores)),
    ("Busy cores: PostgreSQL's primary", lambda flow: number(flow.postgres_cores)),
    ("Busy cores: Redis, all queues together", lambda flow: number(flow.redis_cores)),
    ("API processes", lambda flow: number(flow.api_processes)),
    ("Workers", lambda flow: number(flow.workers)),
    ("Decoders", lambda flow: number(flow.decoders)),
    ("Hosts for these three", lambda flow: number(flow.hosts)),
    ("Memory: API processes, GB", lambda flow: number(flow.api_mb / 1000)),
    ("Memory: workers and decoders, GB", lambda flow: number((flow.worker_mb + flow.decoder_mb) / 1000)),
    ("Memory: jobs in Redis, GB", lambda flow: number(flow.redis_mb / 1000)),
    ("Memory: connections of PostgreSQL, GB", lambda flow: number(flow.connections_mb / 1000)),
    ("Connections to PostgreSQL, at most", lambda flow: number(flow.direct_connections)),
    ("… in use, i.e. the pool of PgBouncer", lambda flow: number(flow.pooled_connections)),
    ("Connections to Redis, at most", lambda flow: number(flow.redis_connections)),
    ("Uploads in a batch of an API process", lambda flow: number(flow.batch)),
    ("Commits a second that wait for a disk", lambda flow: number(flow.commits)),
    ("WAL, MB/s", lambda flow: number(flow.wal_mb_s)),
    ("Hours until PostgreSQL freezes old transactions", lambda flow: number(freeze_hours(flow))),
    ("PUTs a second to the object store", lambda flow: number(flow.puts)),
    ("GETs a second to the object store", lambda flow: number(flow.gets)),
    ("Gbit/s from clients", lambda flow: number(flow.in_gbit)),
    ("Gbit/s between hosts and object store", lambda flow: number(flow.store_gbit)),
    ("Gbit/s from API processes to the CDN", lambda flow: number(flow.out_gbit)),
    ("Gbit/s from the CDN to clients", lambda flow: number(flow.client_gbit)),
    ("Images a day", lambda flow: number(flow.rate * 86400)),
    ("Years until a tenth of the ids of 7 characters is taken", lambda flow: number(id_years(flow.rate))),
]


def write_flows(rates: Sequence[float], costs: Costs, inputs: Inputs) -> str:
    flows = [compute_flow(rate, costs, inputs) for rate in rates]
    rows = [(name, *(show(flow) for flow in flows)) for name, show in _FLOW]
    return table(["Uploads a second", *(count(rate) for rate in rates)], rows)


def write_limits(rates: Sequence[float], costs: Costs, inputs: Inputs) -> str:
    """The last columns are the number of such parts that each rate needs."""
    rows = [
        (
            limit.part,
            limit.computation,
            number(limit.uploads_per_s),
            *(number(rate / limit.uploads_per_s) for rate in rates),
        )
        for limit in compute_limits(costs, inputs)
    ]
    header = ["Part", "Computation", "Full at uploads a second", *(f"times at {count(rate)}" for rate in rates)]
    return table(header, rows)


_STOCK: Sequence[tuple[str, Callable[[Stock], str]]] = [
    ("PostgreSQL: tables, GB", lambda stock: number(stock.table_gb)),
    ("PostgreSQL: indexes, GB", lambda stock: number(stock.index_gb)),
    ("… of which a new row hits a random page, GB", lambda stock: number(stock.random_index_gb)),
    ("Originals, TB", lambda stock: number(stock.originals_tb)),
    ("Renditions, TB", lambda stock: number(stock.renditions_tb)),
    ("Ids of 7 characters that are taken, %", lambda stock: number(stock.ids_taken * 100)),
    (
        f"Refresh of the counters, s, if one account has all images (limit {REFRESH_BUDGET_S})",
        lambda stock: number(stock.refresh_s),
    ),
    (f"Sum of the renditions, s, every 30 s (limit {STATEMENT_LIMIT_S})", lambda stock: number(stock.sum_s)),
    ("Vacuum that reads all pages, hours", lambda stock: number(stock.vacuum_hours)),
    ("`daguerre verify`, days", lambda stock: number(stock.verify_days)),
    ("One round of the scrub at its maximum, days", lambda stock: number(stock.scrub_days)),
    ("Files in each of the 256 folders, on a disk", lambda stock: number(stock.files_per_folder)),
]


def write_stocks(counts: Sequence[float], costs: Costs, inputs: Inputs) -> str:
    stocks = [compute_stock(images, costs, inputs) for images in counts]
    rows = [(name, *(show(stock) for stock in stocks)) for name, show in _STOCK]
    return table(["Images", *(f"{images / 1e6:,g} million" for images in counts)], rows)


def write_money(rates: Sequence[float], images: float, costs: Costs, inputs: Inputs, prices: Prices) -> str:
    stock = compute_stock(images, costs, inputs)
    bills = [compute_money(compute_flow(rate, costs, inputs), stock, inputs, prices) for rate in rates]
    rows = [
        ("Cores of API, workers, decoders", *(number(bill.processes) for bill in bills)),
        ("Servers of PostgreSQL and Redis", *(number(bill.servers) for bill in bills)),
        ("Disks of PostgreSQL", *(number(bill.disk) for bill in bills)),
        ("Objects", *(number(bill.objects) for bill in bills)),
        ("Requests to the object store", *(number(bill.requests) for bill in bills)),
        ("Together", *(number(bill.total) for bill in bills)),
        ("Traffic to clients, at the price of a cloud", *(number(bill.clients) for bill in bills)),
    ]
    title = f"Dollars a month, {images / 1e6:,.0f} million images"
    return table([title, *(f"{count(rate)} a second" for rate in rates)], rows)
