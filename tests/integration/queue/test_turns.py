"""Accounts take turns: neither many jobs of an account nor slow ones delay those of another."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from arq import Retry
from arq.constants import in_progress_key_prefix

from service.config.settings import Settings
from service.ids import AccountId, ImageId
from service.queue import jobs
from service.queue.connection import Redis
from service.queue.fair_dispatch import FairQueueKeys
from service.queue.jobs import PROBE_IMAGE, PROBE_QUEUE, WAKEUP_KEY, Job, JobQueue, ProbeJob, RenderJob
from service.renditions.jobs import RenderOrder, encode_order
from service.renditions.transformation import Transformation
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, NewTenant, Tenant, run_worker
from tests.support import pictures
from tests.support.api import upload_image
from tests.support.queue_workers import LONG_POLL_S, enqueue, run_queue_worker
from tests.support.samples import insert_image, slow_svg
from tests.support.waiting import until
from worker.queue.claims import LEASE_S, AccountShares, ClaimLimits, Claims, JobResult

KEYS = FairQueueKeys.of(PROBE_QUEUE)
ROOMY = ClaimLimits(share=100)
# Takes a decoder some seconds.
SLOW = slow_svg(60)
FLOOD = 200
SAMPLES = 20
# Times below this are noise of a busy machine. Behind one slow picture it is seconds.
MIN_WAIT_S = 0.3


async def claim(redis: Redis, count: int, limits: ClaimLimits = ROOMY, *, lease_s: float = LEASE_S) -> list[str]:
    claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY, lease_s=lease_s)
    await claims.claim(0, limits, wait_s=0)  # loads the script
    return [job.id for job in await claims.claim(count, limits, wait_s=0)]


async def enqueue_all(settings: Settings, waiting: Sequence[Job], **queue: str) -> None:
    redis = jobs.open_redis(settings.redis_url)
    await JobQueue(redis, **queue).enqueue(waiting)
    await redis.aclose(close_connection_pool=True)


async def flood_probes(settings: Settings, connection: Any, tenant: Tenant) -> None:
    """Slow pictures as uploads leave them, with their jobs."""
    storage = LocalOriginals(settings.storage_folder)
    ids = [ImageId(f"slow{number:04}") for number in range(FLOOD)]
    for image_id in ids:
        storage.path(image_id).write_bytes(SLOW)
        await insert_image(connection, tenant, image_id, state="pending")
    await enqueue_all(settings, [ProbeJob(image_id, tenant.id, "", "") for image_id in ids])


async def flood_renditions(settings: Settings, image_id: ImageId, tenant: Tenant) -> None:
    orders = [
        RenderOrder.rendition(image_id, Transformation("avif", 90, width=2000 + number, blur=50.0))
        for number in range(FLOOD)
    ]
    waiting = [RenderJob(f"{image_id}:{each.digest}", tenant.id, encode_order(each), "", "") for each in orders]
    await enqueue_all(settings, waiting, name=jobs.RENDER_QUEUE, wakeup_key=jobs.RENDER_WAKEUP_KEY)


async def find_p95(ask: Callable[[], Awaitable[None]]) -> float:
    await ask()  # which starts what is started when needed
    times = []
    for _ in range(SAMPLES):
        began = time.monotonic()
        await ask()
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    return statistics.quantiles(times, n=20)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
async def test_slow_pictures_delay_no_other_account(
    api: Client, settings: Settings, connection: Any, new_tenant: NewTenant, processes: int
) -> None:
    quiet, loud = await new_tenant(), await new_tenant()
    picture = pictures.encode("jpeg", pictures.landscape(1600, 1200))

    async def ask() -> None:
        await upload_image(api, quiet, picture)

    async with run_worker(settings, probe_processes=processes):
        alone = await find_p95(ask)
        await flood_probes(settings, connection, loud)
        await asyncio.sleep(1)
        assert await find_p95(ask) <= 3 * max(alone, MIN_WAIT_S)
        assert await connection.fetchval("select count(*) from images where state = 'pending'") > FLOOD / 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
async def test_slow_renditions_delay_no_other_account(
    api: Client, settings: Settings, new_tenant: NewTenant, processes: int
) -> None:
    quiet, loud = await new_tenant(), await new_tenant()
    widths = iter(range(100, 200))
    async with run_worker(settings, render_processes=processes):
        large = await upload_image(api, loud, pictures.encode("jpeg", pictures.landscape(3000, 2000), quality=30))
        small = await upload_image(api, quiet, pictures.encode("jpeg", pictures.landscape(800, 600)))

        async def ask() -> None:
            async with api.get(f"/i/{small}?width={next(widths)}") as answer:
                assert answer.status == 200, await answer.text()

        alone = await find_p95(ask)
        await flood_renditions(settings, large, loud)
        await asyncio.sleep(1)
        assert await find_p95(ask) <= 3 * max(alone, MIN_WAIT_S)
    redis = jobs.open_redis(settings.redis_url)
    assert await redis.zcard(jobs.RENDER_QUEUE) > FLOOD / 2
    await redis.aclose(close_connection_pool=True)


async def test_accounts_take_turns(redis: Redis) -> None:
    await enqueue(redis, "a1", "a2", "a3", "a4", account=1)
    await enqueue(redis, "b1", "b2", account=2)
    await enqueue(redis, "c1", account=3)
    assert await claim(redis, 2) == ["a1", "b1"]
    await enqueue(redis, "d1", account=4)
    assert await claim(redis, 10) == ["c1", "a2", "b2", "d1", "a3", "a4"]


async def test_account_without_room_is_skipped(redis: Redis) -> None:
    await enqueue(redis, "a1", "a2", "a3", account=1)
    await enqueue(redis, "b1", "b2", "b3", account=2)
    claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY)
    await claims.claim(0, ROOMY, wait_s=0)
    claimed = await claims.claim(10, ClaimLimits(1, [("1", "1", 0)]), wait_s=0)
    assert [(job.id, job.account) for job in claimed] == [("b1", "2")]
    assert claims.has_skipped
    assert not claims.has_more  # none that this worker may have
    claimed = await claims.claim(10, ClaimLimits(5, [("1", "slow", 2), ("2", "slow", 2)]), wait_s=0)
    assert [job.id for job in claimed] == ["a1", "b2"]


async def test_long_line_does_not_slow_claims(redis: Redis) -> None:
    """Neither of the same account nor of others, nor if the account is skipped."""

    async def measure(limits: ClaimLimits) -> float:
        claims, times = Claims(redis, PROBE_QUEUE, WAKEUP_KEY), []
        await claims.claim(0, limits, wait_s=0)
        for number in range(40):
            await enqueue(redis, f"other{number}", account=2)
            began = time.perf_counter()
            claimed = await claims.claim(2, limits, wait_s=0)
            times.append(time.perf_counter() - began)
            assert "2" in {job.account for job in claimed}
            await claims.finish([JobResult(job.id) for job in claimed])
        return min(times)  # other work of the machine adds to some of them

    full = ClaimLimits(2, [("1", "1", 0)])
    short = await measure(ROOMY), await measure(full)
    queue = JobQueue(redis)
    for first in range(0, 10_000, 1000):
        ids = [ImageId(f"image{number:05}") for number in range(first, first + 1000)]
        await queue.enqueue([ProbeJob(image_id, AccountId(1), "", "") for image_id in ids])
    long = await measure(ROOMY), await measure(full)
    assert long[0] < 2 * short[0] + 0.001
    assert long[1] < 2 * short[1] + 0.001


@pytest.mark.parametrize("defer_s", [0, 1])
async def test_job_of_a_plain_arq_client_runs(redis: Redis, redis_url: str, defer_s: int) -> None:
    """Behind a line of another account, and without a wake-up."""
    started: list[str] = []

    async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        started.append(image_id)
        if image_id != "plain":
            await asyncio.sleep(0.05)

    await enqueue(redis, *(f"image{number:03}" for number in range(200)))
    await redis.enqueue_job(PROBE_IMAGE, "plain", request_id="", _queue_name=PROBE_QUEUE, _defer_by=defer_s)
    async with run_queue_worker(redis_url, job, max_jobs=2):
        await until(lambda: "plain" in started)
    assert len(started) < 150


async def test_jobs_of_a_version_without_turns_run(redis: Redis) -> None:
    ids = [f"image{number:04}" for number in range(2500)]
    await JobQueue(redis).enqueue([ProbeJob(ImageId(image_id), AccountId(1), "", "") for image_id in ids])
    await redis.delete(KEYS.turns, KEYS.later, KEYS.accounts, f"{KEYS.line}1")  # which that version does not write
    claimed: set[str] = set()
    claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY)
    async with asyncio.timeout(10):
        while len(claimed) < len(ids):
            group = [job.id for job in await claims.claim(100, ROOMY, wait_s=0)]
            assert not claimed & set(group)
            claimed.update(group)
            await claims.finish([JobResult(job_id) for job_id in group])


async def test_job_that_an_older_worker_finished(redis: Redis) -> None:
    """That worker knows arq's keys only. Nothing of the job remains."""
    await enqueue(redis, "a1", "a2", account=1)
    await enqueue(redis, "b1", account=2)
    await redis.zrem(PROBE_QUEUE, "a1")
    assert await claim(redis, 10) == ["a2", "b1"]
    await redis.zrem(PROBE_QUEUE, "a2", "b1")
    assert await claim(redis, 10) == []
    assert not await redis.exists(*KEYS[:3], f"{KEYS.line}1", f"{KEYS.line}2")


async def test_job_that_an_older_worker_runs(redis: Redis) -> None:
    await enqueue(redis, "a1")
    await redis.set(in_progress_key_prefix + "a1", b"1", px=60_000)
    assert await claim(redis, 10) == []
    await redis.delete(in_progress_key_prefix + "a1")  # it died
    await redis.zadd(KEYS.later, {"a1": 0})
    assert await claim(redis, 10) == ["a1"]


async def test_jobs_of_a_dead_worker_keep_their_account(redis: Redis) -> None:
    await enqueue(redis, "a1", "a2", account=1)
    await enqueue(redis, "b1", account=2)
    assert await claim(redis, 2, lease_s=0.2) == ["a1", "b1"]
    await asyncio.sleep(0.25)
    assert await claim(redis, 10, ClaimLimits(10, [("1", "1", 1)])) == ["a1", "b1"]


@pytest.mark.slow
async def test_retried_job_keeps_its_account(redis: Redis, redis_url: str) -> None:
    accounts: list[str] = []

    async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        accounts.append(ctx["account"])
        if len(accounts) < 3:
            raise Retry(defer=0.1)

    await enqueue(redis, "image01", account=7)
    async with run_queue_worker(redis_url, job):
        await until(lambda: len(accounts) == 3)
    assert accounts == ["7"] * 3


async def test_released_job_keeps_its_account(redis: Redis) -> None:
    await enqueue(redis, "a1", "a2", account=1)
    claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY)
    await claims.claim(0, ROOMY, wait_s=0)
    await claims.release(await claims.claim(1, ROOMY, wait_s=0))
    claimed = await claims.claim(10, ROOMY, wait_s=0)
    assert [(job.id, job.account) for job in claimed] == [("a1", "1"), ("a2", "1")]


async def test_empty_queue_has_neither_turns_nor_wakeups(redis: Redis) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(30)), account=1)
    await enqueue(redis, "b1", account=2)
    await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult(job_id) for job_id in await claim(redis, 100)])
    assert await redis.keys("*") == []


async def test_full_share_leaves_room_for_others(redis: Redis, redis_url: str) -> None:
    started: list[tuple[str, float]] = []
    released: set[str] = set()

    async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        started.append((image_id, time.monotonic()))
        while image_id not in released and ctx["account"] == "1":
            await asyncio.sleep(0.002)

    await enqueue(redis, *(f"image{number}" for number in range(8)), account=1)
    shares = AccountShares(share=lambda: 3, spare=lambda: 2)
    async with run_queue_worker(redis_url, job, max_jobs=5, shares=shares, poll_interval_s=LONG_POLL_S):
        await until(lambda: len(started) == 3)
        await asyncio.sleep(0.2)
        assert len(started) == 3
        for number in range(5):
            began = time.monotonic()
            await enqueue(redis, f"other{number}", account=2)
            await until(lambda count=4 + number: len(started) == count)  # type: ignore[misc]
            assert started[-1][0] == f"other{number}"
            assert started[-1][1] - began < LONG_POLL_S - 1  # it did not wait for a poll
        released.update(image_id for image_id, _ in started)
        began = time.monotonic()
        await until(lambda: len(started) == 11)  # its own again
        assert started[-1][1] - began < LONG_POLL_S - 1
        assert {image_id for image_id, _ in started[8:]} == {"image3", "image4", "image5"}
        released.update(f"image{number}" for number in range(8))


async def test_single_account_drains_without_waits(redis: Redis, redis_url: str) -> None:
    done: list[str] = []

    async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        done.append(image_id)

    await enqueue(redis, *(f"image{number:03}" for number in range(300)))
    async with run_queue_worker(redis_url, job, max_jobs=5, shares=AccountShares(lambda: 3, lambda: 2)):
        await until(lambda: len(done) == 300, timeout_s=20)  # with a poll for each of a hundred claims: 100 s


async def test_account_without_room_wakes_once(redis: Redis, redis_url: str) -> None:
    """The worker claims when there is room again. A new line wakes workers for other accounts: one useless claim."""
    end = asyncio.Event()

    async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        await end.wait()

    async def count_scripts() -> int:
        stats: dict[str, Any] = await redis.info("commandstats")
        heartbeats = int(stats.get("cmdstat_zremrangebyscore", {"calls": 0})["calls"]) // 2
        return int(stats["cmdstat_evalsha"]["calls"]) - heartbeats

    useless = []
    async with run_queue_worker(redis_url, job, max_jobs=5, shares=AccountShares(lambda: 3, lambda: 2)) as worker:
        for turn in range(3):
            end.clear()
            await enqueue(redis, f"a{turn}", f"b{turn}")
            await until(lambda: worker.running_jobs == 2)  # of three slots: no room until half of them are free
            scripts = await count_scripts()
            await enqueue(redis, f"c{turn}")
            await asyncio.sleep(0.3)
            useless.append(await count_scripts() - scripts - 1)
            end.set()
            await until(lambda: not worker.running_jobs)
    assert min(useless) <= 1  # a busy machine adds polls


async def test_worker_with_room_takes_the_job(redis: Redis, redis_url: str) -> None:
    by_worker: list[tuple[int, float]] = []
    end = asyncio.Event()

    def job_of(number: int) -> Callable[..., Any]:
        async def job(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
            by_worker.append((number, time.monotonic()))
            await end.wait()

        return job

    options: dict[str, Any] = {"max_jobs": 4, "poll_interval_s": LONG_POLL_S}
    async with run_queue_worker(redis_url, job_of(1), shares=AccountShares(lambda: 2, lambda: 2), **options):
        await enqueue(redis, "a1", "a2")
        await until(lambda: len(by_worker) == 2)
        async with run_queue_worker(redis_url, job_of(2), shares=AccountShares(lambda: 2, lambda: 2), **options):
            await asyncio.sleep(0.3)
            began = time.monotonic()
            await enqueue(redis, "a3", "a4")
            await until(lambda: len(by_worker) == 4)
            assert [number for number, _ in by_worker] == [1, 1, 2, 2]
            assert by_worker[-1][1] - began < LONG_POLL_S - 1
            end.set()
