"""The same work on databases with ten thousand and with a million images, in turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from bench import turns, wrk
from bench.generated import insert_images, vacuum
from bench.photographs import photograph
from bench.rows.uploads import upload
from bench.targets import Target, daguerre
from service.accounts.accounts import find_account
from service.config import settings as configuration
from service.database import Connection, Database
from service.ids import AccountId
from service.launcher.embedded import instance
from service.queue import jobs
from worker.cron.counters import BUDGET_S, refresh_accounts
from worker.cron.sweep import sweep
from worker.resources import Resources, open_resources

IMAGES = (10_000, 1_000_000)
GOAL = 1.1
CONNECTIONS = 16
PAGE = 10
DEEP_PAGE = 1000
_NUM_IDS = 20_000
# More than any system here manages. Each change needs its own image or tag.
_MAX_CHANGES_PER_S = 4000
_CALLS_PER_JOB = 15


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[str],
    images: Sequence[int] = IMAGES,
    only: Sequence[str] = ("",),
) -> None:
    """Runs the work whose name begins with one of `only`."""
    del sizes
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(_run_site(folder / str(count), count)) for count in images]
        _measure(folder, sites, rounds, seconds, tuple(only))


@dataclass(slots=True)
class Site:
    """A running Daguerre whose first account has `images` images. `added` is the number ever inserted."""

    target: Target
    images: int
    database_url: str
    redis_url: str
    account_id: AccountId
    added: int

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with (
            Database.open(self.database_url, connections=1, command_timeout_s=600) as database,
            database.connection() as connection,
        ):
            yield connection

    async def sample_ids(self, count: int) -> list[str]:
        """Returns the ids of `count` random, distinct images of the account."""
        async with self.connection() as connection:
            rows = await connection.fetch(
                "select id from images where account_id = $1 and state = 'ready' order by random() limit $2",
                self.account_id,
                count,
            )
        return [row[0] for row in rows]

    async def add(self, count: int) -> None:
        async with self.connection() as connection:
            await insert_images(connection, self.account_id, count, after=self.added)
        self.added += count

    def url(self, path: str, query: str = "") -> str:
        return f"/v1/images/{path}?key={self.target.key}&{query}".rstrip("&")


@contextlib.contextmanager
def _run_site(folder: Path, images: int) -> Iterator[Site]:
    folder.mkdir()
    with daguerre(folder) as target:
        running = instance.find(target.folder)
        assert running is not None
        site = Site(
            replace(target, name=f"{images:,} images"), images, running.database_url, running.redis_url, AccountId(0), 0
        )
        asyncio.run(_fill(site))
        yield site


async def _fill(site: Site) -> None:
    async with site.connection() as connection:
        await connection.execute("update accounts set max_bytes = $1", 1 << 60)
        site.account_id = (await find_account(connection, "default")).id
    await site.add(site.images)
    async with site.connection() as connection:
        await vacuum(connection)
        await connection.execute("checkpoint")


def _measure(folder: Path, sites: Sequence[Site], rounds: int, seconds: float, only: tuple[str, ...]) -> None:
    body = folder / "s.jpg"
    body.write_bytes(photograph("s"))
    page = min(DEEP_PAGE, min(site.images for site in sites) // PAGE)

    def measure(
        title: str, make: Callable[[Site], wrk.Requests], *, has_goal: bool = True, renew: bool = False
    ) -> None:
        """With `renew`, each turn gets new requests."""
        if not title.startswith(only):
            return
        by_name = {site.target.name: site for site in sites}
        paths: dict[str, list[str]] = {}

        def make_first(target: Target) -> wrk.Requests:
            requests = make(by_name[target.name])
            paths[target.name] = list(requests.paths)
            return replace(requests, paths=paths[target.name])

        def make_next(target: Target) -> None:
            if renew:
                paths[target.name][:] = make(by_name[target.name]).paths

        small, *others = turns.measure(
            [site.target for site in sites],
            make_first,
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
            after_turn=make_next,
        )
        turns.print_table(f"Growth, {title}: {CONNECTIONS} connections", [small, *others])
        for other in others:
            _print_cost(title, turns.ratios(small, other), has_goal=has_goal)

    measure("metadata", lambda site: _get([site.url(each) for each in asyncio.run(site.sample_ids(_NUM_IDS))]))
    measure("list by a tag, first page", lambda site: _get([site.url("search", f"tags=common&limit={PAGE}")]))
    measure(f"list by a tag, page {page}", lambda site: _get([_deep_page_path(site, page)]))
    measure(
        "search by two tags", lambda site: _get([site.url("search", f"tags=common,even&limit={PAGE}")]), has_goal=False
    )
    measure("uploads s", lambda site: upload(site.target, body, "s"))
    measure("add_tags", lambda site: _get(asyncio.run(_add_tag_paths(site, seconds))), renew=True)
    measure("delete", lambda site: _get(asyncio.run(_delete_paths(site, seconds))), renew=True)
    asyncio.run(_time_jobs(sites))


def _get(paths: Sequence[str]) -> wrk.Requests:
    return wrk.Requests(paths=paths, expected=['"success":true'])


def _deep_page_path(site: Site, page: int) -> str:
    """Returns the path of a page. Follows cursors from the first page, in larger steps, to find its cursor."""
    skipped, cursor = (page - 1) * PAGE, ""
    for step in [100] * (skipped // 100) + [skipped % 100] * (skipped % 100 > 0):
        url = f"http://127.0.0.1:{site.target.port}{site.url('search', f'tags=common&limit={step}{cursor}')}"
        with urllib.request.urlopen(url, timeout=60) as response:
            cursor = f"&cursor={json.load(response)['response']['next_cursor']}"
    return site.url("search", f"tags=common&limit={PAGE}{cursor}")


async def _add_tag_paths(site: Site, seconds: float) -> list[str]:
    """Returns paths that each add a new tag. Removes earlier tags first, because an image has at most 20."""
    num_changes = round(max(1.0, seconds) * _MAX_CHANGES_PER_S)
    async with site.connection() as connection:
        await connection.execute("update images set tags = tags[1:4] where cardinality(tags) > 8", timeout=600)
    ids = await site.sample_ids(num_changes)
    tags = [os.urandom(4).hex() for _ in range(-(-num_changes // len(ids)))]
    return [site.url(f"{image_id}/add_tags", f"tags={tag}") for tag in tags for image_id in ids]


async def _delete_paths(site: Site, seconds: float) -> list[str]:
    """Returns paths that delete random images. Inserts as many new images as were deleted."""
    num_changes = round(max(1.0, seconds) * _MAX_CHANGES_PER_S)
    async with site.connection() as connection:
        before: int = await connection.fetchval("select num_images from accounts where id = $1", site.account_id)
    await site.add(max(0, site.images + num_changes - before))
    return [site.url(f"{image_id}/delete") for image_id in await site.sample_ids(num_changes)]


async def _time_jobs(sites: Sequence[Site]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_resources(site)) for site in sites]
        names = [site.target.name for site in sites]
        await _time("sweep", names, [lambda worker=worker: sweep({"resources": worker}) for worker in workers])  # type: ignore[misc]
        slowest = await _time(
            "refresh of the counters",
            names,
            [lambda worker=worker: _refresh(worker) for worker in workers],  # type: ignore[misc]
            has_goal=False,
        )
        verdict = "kept" if slowest < BUDGET_S else "exceeded"
        print(f"Slowest refresh {slowest:.2f} s, its time budget {BUDGET_S} s: {verdict}")


@contextlib.asynccontextmanager
async def _resources(site: Site) -> AsyncIterator[Resources]:
    settings = configuration.load(data=site.target.folder, database_url=site.database_url, redis_url=site.redis_url)
    redis = jobs.open_redis(site.redis_url)
    try:
        async with open_resources(settings, redis) as worker:
            yield worker
    finally:
        await redis.aclose(close_connection_pool=True)


async def _refresh(worker: Resources) -> None:
    async with worker.database.connection() as connection:
        await connection.execute("update accounts set changed_at = now()")
    await refresh_accounts({"resources": worker})
    if worker.failed_refreshes:
        raise wrk.BenchError("the counters could not be refreshed")


async def _time(
    title: str, names: Sequence[str], calls: Sequence[Callable[[], Awaitable[Any]]], *, has_goal: bool = True
) -> float:
    """Makes the calls in turns and prints a table of their times. Returns the longest time in seconds."""
    all_times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        await call()
    for _ in range(_CALLS_PER_JOB):
        for times, call in zip(all_times, calls, strict=True):
            started = time.perf_counter()
            await call()
            times.append(time.perf_counter() - started)
    print(f"\nGrowth, {title}\n\n| service | ms, median (min to max) |\n|---|---|")
    for name, times in zip(names, all_times, strict=True):
        print(f"| {name} | {turns.format_spread([each * 1000 for each in times])} |")
    for others in all_times[1:]:
        costs = [large / small for small, large in zip(all_times[0], others, strict=True)]
        _print_cost(title, costs, has_goal=has_goal)
    return max(max(times) for times in all_times)


def _print_cost(title: str, costs: Sequence[float], *, has_goal: bool) -> None:
    """Prints `costs`, each the time with more images divided by the time with the fewest."""
    median = statistics.median(costs)
    verdict = "reached" if median <= GOAL else f"missed by {median / GOAL - 1:.0%}"
    target = f", target at most {GOAL}: {verdict}" if has_goal else ", no target"
    print(f"\nCost of growth, {title}: {turns.format_spread(costs)}{target}")
