"""The cost of a million images in the database, compared with ten thousand: the same work on both, in turns."""

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
from bench.generated import fill, settle
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
GOAL = 1.3
CONNECTIONS = 16
PAGE = 10
DEEP_PAGE = 1000
_NUM_IDS = 20_000
# More than are answered in a second: each change needs an image or a tag of its own.
_CHANGES_PER_S = 4000
_CALLS = 15


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
        filled = [stack.enter_context(_filled(folder / str(count), count)) for count in images]
        _measure(folder, filled, rounds, seconds, tuple(only))


@dataclass(slots=True)
class Filled:
    """A running Daguerre whose first account has `images` images."""

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

    async def some_ids(self, count: int) -> list[str]:
        """Returns ids of random, different images of the account."""
        async with self.connection() as connection:
            rows = await connection.fetch(
                "select id from images where account_id = $1 and state = 'ready' order by random() limit $2",
                self.account_id,
                count,
            )
        return [row[0] for row in rows]

    async def add(self, count: int) -> None:
        async with self.connection() as connection:
            await fill(connection, self.account_id, count, after=self.added)
        self.added += count

    def url(self, path: str, query: str = "") -> str:
        return f"/v1/images/{path}?key={self.target.key}&{query}".rstrip("&")


@contextlib.contextmanager
def _filled(folder: Path, images: int) -> Iterator[Filled]:
    folder.mkdir()
    with daguerre(folder) as target:
        up = instance.find(target.folder)
        assert up is not None
        filled = Filled(
            replace(target, name=f"{images:,} images"), images, up.database_url, up.redis_url, AccountId(0), 0
        )
        asyncio.run(_fill(filled))
        yield filled


async def _fill(filled: Filled) -> None:
    async with filled.connection() as connection:
        await connection.execute("update accounts set max_bytes = $1", 1 << 60)
        filled.account_id = (await find_account(connection, "default")).id
    await filled.add(filled.images)
    async with filled.connection() as connection:
        await settle(connection)
        await connection.execute("checkpoint")


def _measure(folder: Path, filled: Sequence[Filled], rounds: int, seconds: float, only: tuple[str, ...]) -> None:
    body = folder / "s.jpg"
    body.write_bytes(photograph("s"))
    page = min(DEEP_PAGE, min(one.images for one in filled) // PAGE)

    def load(title: str, make: Callable[[Filled], wrk.Requests], *, has_goal: bool = True, anew: bool = False) -> None:
        """With `anew`, each turn gets requests of its own."""
        if not title.startswith(only):
            return
        by_name = {one.target.name: one for one in filled}
        paths: dict[str, list[str]] = {}

        def first(target: Target) -> wrk.Requests:
            requests = make(by_name[target.name])
            paths[target.name] = list(requests.paths)
            return replace(requests, paths=paths[target.name])

        def next_ones(target: Target) -> None:
            if anew:
                paths[target.name][:] = make(by_name[target.name]).paths

        small, *others = turns.take(
            [one.target for one in filled],
            first,
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
            between=next_ones,
        )
        turns.show(f"Growth, {title}: {CONNECTIONS} connections", [small, *others])
        for other in others:
            _print_cost(title, turns.ratios(small, other), has_goal=has_goal)

    load("metadata", lambda one: _get([one.url(each) for each in asyncio.run(one.some_ids(_NUM_IDS))]))
    load("list by a tag, first page", lambda one: _get([one.url("search", f"tags=common&limit={PAGE}")]))
    load(f"list by a tag, page {page}", lambda one: _get([_deep_url(one, page)]))
    load("search by two tags", lambda one: _get([one.url("search", f"tags=common,even&limit={PAGE}")]), has_goal=False)
    load("uploads s", lambda one: upload(one.target, body, "s"))
    load("add_tags", lambda one: _get(asyncio.run(_taggings(one, seconds))), anew=True)
    load("delete", lambda one: _get(asyncio.run(_deletions(one, seconds))), anew=True)
    asyncio.run(_time_jobs(filled))


def _get(paths: Sequence[str]) -> wrk.Requests:
    return wrk.Requests(paths=paths, expected=['"success":true'])


def _deep_url(one: Filled, page: int) -> str:
    """Returns the URL of a page, found by following cursors from the first page, in larger steps."""
    skipped, cursor = (page - 1) * PAGE, ""
    for step in [100] * (skipped // 100) + [skipped % 100] * (skipped % 100 > 0):
        url = f"http://127.0.0.1:{one.target.port}{one.url('search', f'tags=common&limit={step}{cursor}')}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            cursor = f"&cursor={json.load(answer)['response']['next_cursor']}"
    return one.url("search", f"tags=common&limit={PAGE}{cursor}")


async def _taggings(one: Filled, seconds: float) -> list[str]:
    """Returns requests that each add a new tag. Earlier tags are removed, because an image has 20 at most."""
    num_changes = round(max(1.0, seconds) * _CHANGES_PER_S)
    async with one.connection() as connection:
        await connection.execute("update images set tags = tags[1:4] where cardinality(tags) > 8", timeout=600)
    ids = await one.some_ids(num_changes)
    tags = [os.urandom(4).hex() for _ in range(-(-num_changes // len(ids)))]
    return [one.url(f"{image_id}/add_tags", f"tags={tag}") for tag in tags for image_id in ids]


async def _deletions(one: Filled, seconds: float) -> list[str]:
    """Returns requests that delete random images; as many new images are added before."""
    num_changes = round(max(1.0, seconds) * _CHANGES_PER_S)
    async with one.connection() as connection:
        before: int = await connection.fetchval("select num_images from accounts where id = $1", one.account_id)
    await one.add(max(0, one.images + num_changes - before))
    return [one.url(f"{image_id}/delete") for image_id in await one.some_ids(num_changes)]


async def _time_jobs(filled: Sequence[Filled]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_resources(one)) for one in filled]
        names = [one.target.name for one in filled]
        await _time("sweep", names, [lambda worker=worker: sweep({"resources": worker}) for worker in workers])  # type: ignore[misc]
        slowest = await _time(
            "refresh of the counters",
            names,
            [lambda worker=worker: _refresh(worker) for worker in workers],  # type: ignore[misc]
            has_goal=False,
        )
        kept = "kept" if slowest < BUDGET_S else "exceeded"
        print(f"Slowest refresh {slowest:.2f} s, its time budget {BUDGET_S} s: {kept}")


@contextlib.asynccontextmanager
async def _resources(one: Filled) -> AsyncIterator[Resources]:
    settings = configuration.load(data=one.target.folder, database_url=one.database_url, redis_url=one.redis_url)
    redis = jobs.open_redis(one.redis_url)
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
    """A table of the calls in turns; answers the longest time of all, in seconds."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        await call()
    for _ in range(_CALLS):
        for times, call in zip(taken, calls, strict=True):
            started = time.perf_counter()
            await call()
            times.append(time.perf_counter() - started)
    print(f"\nGrowth, {title}\n\n| service | ms, median (least to most) |\n|---|---|")
    for name, times in zip(names, taken, strict=True):
        print(f"| {name} | {turns.spread([each * 1000 for each in times])} |")
    for others in taken[1:]:
        found = [large / small for small, large in zip(taken[0], others, strict=True)]
        _print_cost(title, found, has_goal=has_goal)
    return max(max(times) for times in taken)


def _print_cost(title: str, costs: Sequence[float], *, has_goal: bool) -> None:
    """The cost with more images as a multiple of that with the fewest."""
    median = statistics.median(costs)
    verdict = "reached" if median <= GOAL else f"missed by {median / GOAL - 1:.0%}"
    aim = f", target at most {GOAL}: {verdict}" if has_goal else ", no target"
    print(f"\nCost of growth, {title}: {turns.spread(costs)}{aim}")
