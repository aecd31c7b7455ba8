"""The worker of a queue: what it does by each name of arq that worker/queue/arq_worker.py overrides or uses, several
workers, a backlog, retries, dead workers, and a Redis that restarts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from arq import Retry
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from arq.worker import Worker

from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.queue import jobs
from service.queue.fair_dispatch import FairQueueKeys
from service.queue.heartbeats import WORKERS_KEY
from service.queue.jobs import MAX_WAKEUP_TOKENS, PROBE_IMAGE, PROBE_QUEUE, WAKEUP_KEY, JobQueue
from tests.conftest import Servers
from tests.support.queue_workers import LONG_POLL_S, Job, enqueue, run_queue_worker
from tests.support.waiting import until
from worker import probe, render
from worker.queue.arq_worker import PushWorker
from worker.queue.claims import LEASE_S, MAX_DEFER_S, AccountShares, ClaimLimits, Claims, JobResult


class Recorder:
    """A job that records the images it ran for. Each run waits for `release`, which is set at first."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.finished: list[str] = []
        self.tries: list[int] = []
        self.release = asyncio.Event()
        self.release.set()

    async def __call__(self, ctx: Any, image_id: str, **_: Any) -> None:
        self.runs.append(image_id)
        self.tries.append(ctx["job_try"])
        await self.release.wait()
        self.finished.append(image_id)


@pytest.fixture
def job() -> Recorder:
    return Recorder()


async def nothing(ctx: Any, image_id: str, **_: Any) -> None: ...


def has_ended(worker: PushWorker) -> bool:
    return worker.main_task is not None and worker.main_task.done()


def has_run(job: Recorder, count: int) -> bool:
    return len(job.runs) == count


async def is_empty(redis: ArqRedis) -> bool:
    return int(await redis.zcard(PROBE_QUEUE)) == 0


# The names of arq.Worker


async def test_arq_polls_and_runs_no_jobs_itself(
    redis: ArqRedis, redis_url: str, job: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_poll_iteration` is overridden, and arq's main loop calls it."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("arq does it itself")

    for name in ("_poll_iteration", "start_jobs", "run_job", "heart_beat", "finish_job", "finish_failed_job"):
        assert hasattr(Worker, name)
        monkeypatch.setattr(Worker, name, fail)
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job):
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]


async def test_waiting_worker_starts_a_job_at_once(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """Neither arq's `poll_delay_s` nor the poll interval delays it: 30 polls would take two minutes."""
    async with run_queue_worker(redis_url, job, poll_interval_s=LONG_POLL_S) as worker:
        assert worker.poll_delay_s == 0
        async with asyncio.timeout(20):
            for number in range(30):
                await enqueue(redis, f"job{number}")
                await until(partial(has_run, job, number + 1))


async def test_main_waits_for_redis(servers: Servers, redis_url: str, job: Recorder) -> None:
    """arq's own `main` would raise."""
    servers.valkey.stop()
    async with run_queue_worker(redis_url, job) as worker:
        await asyncio.sleep(0.3)
        servers.valkey.start()
        assert not has_ended(worker)
        client = jobs.open_redis(redis_url)
        await enqueue(client, "image01")
        await until(lambda: job.finished == ["image01"])
        await client.aclose(close_connection_pool=True)


async def test_main_outlives_an_error_of_redis(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """arq's own `main` sends INFO first."""
    permit: Any = partial(redis.execute_command, "ACL", "SETUSER", "default")
    await permit("-info")
    try:
        async with run_queue_worker(redis_url, job):
            await asyncio.sleep(0.3)
            await permit("+info")
            await enqueue(redis, "image01")
            await until(lambda: job.finished == ["image01"])
    finally:
        await permit("+info")


async def test_signal_lets_tasks_finish_and_starts_none(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """arq's handler sets `allow_pick_jobs` to False, and waits until `tasks` is empty."""
    job.release.clear()
    await enqueue(redis, *(f"image{number:03}" for number in range(10)))
    async with run_queue_worker(redis_url, job, max_jobs=2, job_completion_wait=30) as worker:
        await until(lambda: len(job.runs) == 2)
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        assert not worker.allow_pick_jobs
        job.release.set()
        await until(partial(has_ended, worker))
    assert job.runs == job.finished
    assert len(job.finished) == 2
    assert await redis.zcard(PROBE_QUEUE) == 8


async def test_signal_cancels_tasks_at_the_time_limit(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """arq's handler cancels what is in `tasks`, and another worker runs it at once."""
    job.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job, job_completion_wait=1) as worker:
        await until(lambda: len(job.runs) == 1)
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        await until(partial(has_ended, worker))
    assert job.finished == []
    assert not await redis.exists(in_progress_key_prefix + "image01")
    other = Recorder()
    async with run_queue_worker(redis_url, other):
        await until(lambda: other.finished == ["image01"])


async def test_close_hands_unfinished_jobs_over(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    stuck = Recorder()
    stuck.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, stuck) as worker:
        await until(lambda: len(stuck.runs) == 1)
    assert worker.tasks == {}
    async with run_queue_worker(redis_url, job):
        await until(lambda: job.finished == ["image01"])


async def test_close_is_quiet_while_redis_is_away(servers: Servers, redis_url: str) -> None:
    async with run_queue_worker(redis_url, nothing):
        servers.valkey.stop()
    servers.valkey.start()


async def test_undecodable_jobs_are_dropped(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """By `job_deserializer` and `functions`. The next job runs."""
    payloads = {
        "noise01": b"\xc1",
        "unknown": serialize_job("another_function", ("unknown",), {}, None, 0, serializer=jobs.encode),
        "image01": serialize_job(PROBE_IMAGE, ("image01",), {}, None, 0, serializer=jobs.encode),
    }
    for image_id, payload in payloads.items():
        await redis.set(job_key_prefix + image_id, payload or b"")
        await redis.zadd(PROBE_QUEUE, {image_id: 0})
    await redis.zadd(PROBE_QUEUE, {"lost001": 0})  # without a payload
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 3)
    assert await redis.keys("arq:*") == []


async def test_ends_of_jobs_are_counted(redis: ArqRedis, redis_url: str) -> None:
    """By `jobs_complete`, `jobs_retried` and `jobs_failed`. arq's maximum of five tries does not hold."""

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        if image_id == "broken1":
            raise ValueError
        if ctx["job_try"] < 8:
            raise Retry(defer=0)

    await enqueue(redis, "image01", "broken1")
    async with run_queue_worker(redis_url, run) as worker:
        await until(lambda: worker.jobs_complete == 1)
        await until(lambda: worker.jobs_failed == 1)
        await until(lambda: is_empty(redis))
    assert worker.jobs_retried == 7


async def test_burst_ends_with_the_queue(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(10)))
    async with run_queue_worker(redis_url, job, burst=True, poll_interval_s=LONG_POLL_S) as worker:
        await until(partial(has_ended, worker))
        assert len(job.finished) == worker.jobs_complete == 10


async def test_context_reaches_jobs(redis: ArqRedis, redis_url: str) -> None:
    """That of the constructor, `ctx`, and what is known of the job."""
    contexts: list[dict[str, Any]] = []

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        contexts.append(ctx)

    await enqueue(redis, "image01", account=7)
    async with run_queue_worker(redis_url, run, ctx={"resources": "all"}):
        await until(lambda: len(contexts) == 1)
    [context] = contexts
    assert context["resources"] == "all"
    assert (context["job_id"], context["account"], context["job_try"]) == ("image01", "7", 1)
    assert 0 <= context["waited_s"] < 60


async def test_job_at_its_time_limit_is_retried(redis: ArqRedis, redis_url: str) -> None:
    """By `job_timeout_s`: most likely it waited for a decoder."""
    tries: list[int] = []

    async def run(ctx: dict[str, Any], image_id: str, **_: Any) -> None:
        tries.append(ctx["job_try"])
        if len(tries) == 1:
            await asyncio.sleep(60)

    async with run_queue_worker(redis_url, run, job_timeout=0.5) as worker:
        await enqueue(redis, "image01")
        await until(lambda: worker.jobs_complete == 1)
    assert tries == [1, 2]
    assert worker.jobs_failed == 0


async def test_max_jobs_is_never_exceeded(redis: ArqRedis, redis_url: str) -> None:
    now, maximum, finished = 0, 0, 0

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal now, maximum, finished
        now += 1
        maximum = max(maximum, now)
        await asyncio.sleep(0.01)
        now -= 1
        finished += 1

    await enqueue(redis, *(f"image{number:03}" for number in range(40)))
    async with run_queue_worker(redis_url, run, max_jobs=3):
        await until(lambda: finished == 40)
    assert maximum == 3


# Several workers, and wake-ups


async def test_workers_share_a_backlog_on_one_token(redis: ArqRedis, redis_url: str) -> None:
    runs: Counter[str] = Counter()
    by_worker: Counter[int] = Counter()

    def job_of(number: int) -> Job:
        async def run(ctx: Any, image_id: str, **_: Any) -> None:
            runs[image_id] += 1
            by_worker[number] += 1
            await asyncio.sleep(0.002)

        return run

    await enqueue(redis, *(f"image{number:03}" for number in range(500)))
    await redis.delete(WAKEUP_KEY)
    await redis.rpush(WAKEUP_KEY, b"")  # type: ignore[misc]
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(run_queue_worker(redis_url, job_of(number)))
        await until(lambda: is_empty(redis))
    assert len(runs) == 500
    assert set(runs.values()) == {1}
    assert len(by_worker) == 3
    assert await redis.keys("arq:*") == []


async def test_wakeup_list_is_bounded(redis: ArqRedis) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(50)))
    assert await redis.llen(WAKEUP_KEY) == MAX_WAKEUP_TOKENS  # type: ignore[misc]


async def test_backlog_is_claimed_at_start(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """Without a token, and without a wait for one."""
    await enqueue(redis, "image01")
    await redis.delete(WAKEUP_KEY)
    started = time.monotonic()
    async with run_queue_worker(redis_url, job, poll_interval_s=LONG_POLL_S):
        await until(lambda: job.finished == ["image01"])
    assert time.monotonic() - started < LONG_POLL_S


async def test_stopped_worker_leaves_the_token(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    stopped = Recorder()
    async with run_queue_worker(redis_url, stopped) as worker:
        await until(lambda: JobQueue(redis).count_workers())
        await asyncio.sleep(0.3)  # it waits for a wake-up
        worker.allow_pick_jobs = False
        await enqueue(redis, "image01")
        await until(partial(has_ended, worker))
        assert not await redis.exists(in_progress_key_prefix + "image01")
        assert await redis.llen(WAKEUP_KEY) == 1  # type: ignore[misc]
    async with run_queue_worker(redis_url, job):
        await until(lambda: job.finished == ["image01"])
    assert job.tries == [1]
    assert stopped.runs == []


async def test_token_without_a_slot_goes_back(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    share = 4
    job.release.clear()
    await enqueue(redis, "a", "b")
    async with run_queue_worker(redis_url, job, shares=AccountShares(lambda: share)):
        await until(lambda: len(job.runs) == 2)
        await asyncio.sleep(0.2)  # it waits for a wake-up
        share = 3
        await enqueue(redis, "c")
        await asyncio.sleep(0.2)
        assert len(job.runs) == 2
        await until(lambda: redis.llen(WAKEUP_KEY))
        job.release.set()
        await until(lambda: len(job.runs) == 3)


async def test_idle_worker_needs_next_to_no_cpu(redis_url: str) -> None:
    async with run_queue_worker(redis_url, nothing):
        await asyncio.sleep(1)
        cpu_s, began = time.process_time(), time.monotonic()
        await asyncio.sleep(3)
        assert (time.process_time() - cpu_s) / (time.monotonic() - began) < 0.02


# Jobs and their results


async def test_job_is_enqueued_once(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    job.release.clear()
    await enqueue(redis, "image01", "image01")
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: len(job.runs) == 1)
        await enqueue(redis, "image01")
        await JobQueue(redis).enqueue_again({ImageId("image01"): AccountId(1)})
        await asyncio.sleep(0.2)
        job.release.set()
        await until(lambda: is_empty(redis))
        await until(lambda: not worker.running_jobs)
    assert job.runs == ["image01"]


async def test_retried_job_runs_after_its_delay(redis: ArqRedis, redis_url: str) -> None:
    tries: list[float] = []

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Retry(defer=0.3)

    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, run):
        await until(lambda: len(tries) == 3)
    assert tries[1] - tries[0] > 0.25


async def test_reply_goes_to_all_who_wait(redis: ArqRedis, redis_url: str) -> None:
    """Also after a retry, and nothing remains in Redis."""
    received: dict[str, list[object]] = {"one": [], "two": []}

    def receive(message: dict[str, Any]) -> None:
        received[message["channel"].decode()] += jobs.decode(message["data"])

    async def run(ctx: Any, image_id: str, **_: Any) -> str:
        if ctx["job_try"] == 1:
            raise Retry(defer=0.1)
        return f"of {image_id}"

    queue = JobQueue(redis)
    a, b = (jobs.ProbeJob(ImageId(image_id), AccountId(1), "one", "q") for image_id in ("image01", "image02"))
    await queue.enqueue([a, b, dataclasses.replace(a, reply_to="two"), a, dataclasses.replace(b, reply_to="")])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(one=receive, two=receive)
        async with run_queue_worker(redis_url, run):
            async with asyncio.timeout(20):
                while len(received["one"]) < 2 or not received["two"]:
                    await pubsub.get_message(timeout=0.1)
    assert set(received["one"]) == {"of image01", "of image02"}
    assert received["two"] == ["of image01"]
    assert await redis.keys("arq:*") == await redis.keys("daguerre:waiting:*") == []


async def test_channel_gets_replies_in_one_message(redis: ArqRedis) -> None:
    ids = [f"image{number:03}" for number in range(300)]
    await JobQueue(redis).enqueue([jobs.ProbeJob(ImageId(each), AccountId(1), "channel", "q") for each in ids])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.get_message(timeout=5)  # the confirmation
        await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult(image_id, image_id) for image_id in ids])
        message = await pubsub.get_message(timeout=5)
    assert message is not None
    assert jobs.decode(message["data"]) == ids


async def test_job_of_an_earlier_version_runs(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """It names where to reply, and is in the queue after an upgrade. Nobody listens there any more."""
    options = {"reply_to": "r", "request_id": "q"}
    await redis.set(
        job_key_prefix + "image01", serialize_job(PROBE_IMAGE, ("image01",), options, None, 0, serializer=jobs.encode)
    )
    await redis.zadd(PROBE_QUEUE, {"image01": 0})
    async with run_queue_worker(redis_url, job):
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"]


async def test_finished_job_is_not_retried(redis: ArqRedis) -> None:
    """Otherwise the next job with its id would begin with a try that was never made."""
    await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult("image01", retry_after_ms=0)])
    assert await redis.keys("*") == []


async def test_payload_is_no_pickle_and_has_no_time(redis: ArqRedis) -> None:
    """The clock of Redis counts, and that of the client's host may differ."""
    await enqueue(redis, "image01")
    payload = jobs.decode(await redis.get(job_key_prefix + "image01"))
    assert payload["a"] == ["image01"]
    assert payload["et"] == 0


# Leases and outages


async def test_job_of_a_dead_worker_runs_elsewhere(redis: ArqRedis, redis_url: str) -> None:
    started: list[float] = []

    async def run(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(time.monotonic())

    await enqueue(redis, "image01")
    # What a worker leaves behind that was killed right after its claim.
    began = time.monotonic()
    await redis.psetex(in_progress_key_prefix + "image01", 1500, b"1")
    async with run_queue_worker(redis_url, run):
        await until(lambda: bool(started))
    assert started[0] - began >= 1.4


async def test_lease_of_a_running_job_is_renewed(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    key = in_progress_key_prefix + "image01"
    job.release.clear()
    await enqueue(redis, "image01")
    async with run_queue_worker(redis_url, job, lease_s=20, poll_interval_s=0.1):
        await until(lambda: len(job.runs) == 1)
        for _ in range(3):
            await redis.pexpire(key, 10_000)
            await until(lambda: is_longer(redis, key, 15_000))
        job.release.set()
        await until(lambda: job.finished == ["image01"])


async def is_longer(redis: ArqRedis, key: str, ttl_ms: int) -> bool:
    return int(await redis.pttl(key)) > ttl_ms


async def test_worker_outlives_a_restart_of_redis(servers: Servers, redis_url: str, job: Recorder) -> None:
    client = jobs.open_redis(redis_url)
    async with run_queue_worker(redis_url, job):
        await enqueue(client, "before1")
        await until(lambda: job.finished == ["before1"])
        servers.valkey.stop()
        shutil.rmtree(servers.valkey.folder)
        await asyncio.sleep(1)
        servers.valkey.start()
        await client.connection_pool.disconnect()
        await enqueue(client, "after01")
        await until(lambda: job.finished == ["before1", "after01"])
    await client.aclose(close_connection_pool=True)


async def test_job_that_still_runs_is_not_started_again(redis: ArqRedis, redis_url: str, job: Recorder) -> None:
    """Its lease has expired, e.g. during an outage of Redis, and its own worker claims it."""
    job.release.clear()
    await enqueue(redis, "a")
    async with run_queue_worker(redis_url, job) as worker:
        await until(lambda: len(job.runs) == 1)
        await redis.delete(in_progress_key_prefix + "a")
        await redis.zadd(FairQueueKeys.of(PROBE_QUEUE).later, {"a": 0})
        await enqueue(redis, "b")
        await until(lambda: len(job.runs) == 2)
        assert job.runs == ["a", "b"]
        await until(lambda: redis.exists(in_progress_key_prefix + "a"))
        assert worker.running_jobs == 2


async def test_lost_result_makes_the_job_run_again(
    redis: ArqRedis, redis_url: str, job: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Claims.finish
    calls = 0
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def fail_once(claims: Claims, results: Sequence[JobResult]) -> list[None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ServiceError("queue-unavailable")
        return await finish(claims, results)

    monkeypatch.setattr(Claims, "finish", fail_once)
    async with run_queue_worker(redis_url, job):
        await enqueue(redis, "image01")
        await until(lambda: calls == 1)
        await asyncio.sleep(0.1)
        # The lease expires, and the job is claimed before the worker has seen what has ended.
        await redis.delete(in_progress_key_prefix + "image01")
        await redis.rpush(WAKEUP_KEY, b"")  # type: ignore[misc]
        await until(lambda: is_empty(redis))
    assert job.finished == ["image01"] * 2
    gc.collect()
    assert unhandled == []


@pytest.mark.parametrize("state", ["waiting", "deferred", "claimed by a worker that died"])
async def test_jobs_outlast_a_redis_clock_set_back(redis: ArqRedis, redis_url: str, job: Recorder, state: str) -> None:
    """All times from before lie a day in the future."""
    keys, day_ms = FairQueueKeys.of(PROBE_QUEUE), 86_400_000
    await enqueue(redis, "image01")
    if state != "waiting":
        claims = Claims(redis, PROBE_QUEUE, WAKEUP_KEY)
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)  # loads the script
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)
        assert await redis.exists(in_progress_key_prefix + "image01")
    if state == "deferred":
        await Claims(redis, PROBE_QUEUE, WAKEUP_KEY).finish([JobResult("image01", retry_after_ms=0)])
    await redis.zincrby(PROBE_QUEUE, day_ms, "image01")
    for key in (keys.later, keys.line + "1"):
        if await redis.exists(key):
            await redis.zincrby(key, day_ms, "image01")
    if state == "claimed by a worker that died":
        await redis.pexpire(in_progress_key_prefix + "image01", day_ms)
    async with run_queue_worker(redis_url, job, lease_s=1):
        await until(lambda: job.finished == ["image01"])


def test_no_job_is_deferred_beyond_the_maximum() -> None:
    """Otherwise it would seem to be from before a correction of the clock, and run at once."""
    assert max(probe.RETRY_S, probe.RETRY_MISSING_S, render.RETRY_S, LEASE_S) < MAX_DEFER_S


# Heartbeats


async def test_worker_is_counted_while_it_runs(redis: ArqRedis, redis_url: str) -> None:
    queue = JobQueue(redis)
    assert await queue.count_workers() == 0
    async with run_queue_worker(redis_url, nothing), run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(queue, 2))
    assert await queue.count_workers() == 0


async def has_workers(queue: JobQueue, count: int) -> bool:
    return await queue.count_workers() == count


@pytest.mark.parametrize("age_s", [20, -20, -86400])
async def test_dead_worker_is_not_counted(redis: ArqRedis, redis_url: str, age_s: float) -> None:
    """A heartbeat from the future was given before the clock of Redis was set back."""
    seconds, _ = await redis.time()
    await redis.zadd(WORKERS_KEY, {"host:dead": seconds - age_s})
    assert await JobQueue(redis).count_workers() == 0
    async with run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(JobQueue(redis), 1))


@pytest.mark.parametrize("ahead_s", [0.5, 5])
async def test_heartbeat_of_a_clock_ahead_counts(redis: ArqRedis, redis_url: str, ahead_s: float) -> None:
    """As a worker of an earlier version gives it, by its host's clock; or before a small correction of Redis's."""
    seconds, microseconds = await redis.time()
    await redis.zadd(WORKERS_KEY, {"host:old": seconds + microseconds / 1e6 + ahead_s})
    assert await JobQueue(redis).count_workers() == 1
    async with run_queue_worker(redis_url, nothing):
        await until(lambda: has_workers(JobQueue(redis), 2))
