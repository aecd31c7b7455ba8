"""The worker that a bell wakes: several workers, a backlog, retries, a dead worker, a Redis that restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from arq import Retry, func
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.jobs import serialize_job
from arq.worker import Worker

from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.queue import jobs
from service.queue.heartbeats import WORKERS, SignsOfLife
from service.queue.jobs import BELL, MOST_TOKENS, PROBE_IMAGE, PROBE_QUEUE, JobQueue
from service.queue.turns import TurnKeys
from tests.conftest import Servers
from worker import probe, render
from worker.fairness import AccountShares, ClaimLimits
from worker.queue.arq_worker import PushWorker
from worker.queue.claims import LEASE_S, MAX_DEFER_S, Claims, JobResult

Job = Callable[..., Coroutine[Any, Any, object]]


@asynccontextmanager
async def working(url: str, job: Job, *, max_jobs: int = 4, **options: Any) -> AsyncIterator[PushWorker]:
    redis = jobs.open_redis(url)
    worker = PushWorker(
        functions=[func(job, name=PROBE_IMAGE)],
        queue_name=PROBE_QUEUE,
        wakeup_key=BELL,
        heartbeats=SignsOfLife(redis),
        redis_pool=redis,
        max_jobs=max_jobs,
        keep_result=0,
        job_timeout=10,
        handle_signals=False,
        job_serializer=jobs.encode,
        job_deserializer=jobs.decode,
        **options,
    )
    task = asyncio.create_task(worker.async_run())
    try:
        yield worker
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        await worker.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[ArqRedis]:
    client = jobs.open_redis(redis_url)
    yield client
    await client.aclose(close_connection_pool=True)


async def enqueue(redis: ArqRedis, *ids: str, account: int = 1) -> None:
    queue = JobQueue(redis)
    for image_id in ids:
        await queue.enqueue([jobs.ProbeJob(ImageId(image_id), AccountId(account), "r", "q")])


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def test_the_private_names_of_arq_are_there() -> None:
    source = inspect.getsource(Worker)
    for name in ("_poll_iteration", "run_job", "job_counter", "sem", "in_progress_timeout_s"):
        assert name in source
    assert "self.in_progress_timeout_s * 1000" in inspect.getsource(Worker.start_jobs)
    assert hasattr(Worker, "_release_sem_dec_counter_on_complete")
    assert "for f in map(func, functions)" in inspect.getsource(Worker.__init__)


async def test_a_waiting_worker_takes_a_job_at_once(redis: ArqRedis, redis_url: str) -> None:
    started: list[float] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(time.perf_counter())

    async with working(redis_url, job):
        await asyncio.sleep(0.3)
        hops = []
        for number in range(30):
            rung = time.perf_counter()
            await enqueue(redis, f"job{number}")
            await until(lambda expected=number + 1: len(started) == expected)  # type: ignore[misc]
            hops.append(started[-1] - rung)
    # Polling twice a second would make this 250 ms.
    assert sorted(hops)[15] < 0.05


async def test_several_workers_drain_a_backlog_on_one_token_and_run_each_job_once(
    redis: ArqRedis, redis_url: str
) -> None:
    runs: Counter[str] = Counter()
    by_worker: Counter[int] = Counter()

    def job_of(number: int) -> Job:
        async def job(ctx: Any, image_id: str, **_: Any) -> None:
            runs[image_id] += 1
            by_worker[number] += 1
            await asyncio.sleep(0.002)

        return job

    ids = [f"image{number:03}" for number in range(500)]
    await enqueue(redis, *ids)
    await redis.delete(BELL)
    await redis.rpush(BELL, b"")  # type: ignore[misc]
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(working(redis_url, job_of(number)))
        await until(lambda: len(runs) == 500)
        await asyncio.sleep(0.2)
    assert set(runs.values()) == {1}
    assert len(by_worker) == 3
    assert await redis.zcard(PROBE_QUEUE) == 0
    assert await redis.keys("arq:*") == []


async def test_one_worker_never_runs_more_jobs_than_it_has_places(redis: ArqRedis, redis_url: str) -> None:
    now, most, done = 0, 0, 0

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal now, most, done
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        done += 1

    await enqueue(redis, *(f"image{number:03}" for number in range(40)))
    async with working(redis_url, job, max_jobs=3):
        await until(lambda: done == 40)
    assert most == 3


async def test_the_bell_holds_few_tokens_however_many_jobs_come(redis: ArqRedis) -> None:
    await enqueue(redis, *(f"image{number:03}" for number in range(50)))
    assert await redis.llen(BELL) == MOST_TOKENS  # type: ignore[misc]


async def test_jobs_carry_no_time_of_their_host(redis: ArqRedis) -> None:
    await enqueue(redis, "image01")
    assert jobs.decode(await redis.get(job_key_prefix + "image01"))["et"] == 0


async def test_a_backlog_without_a_token_is_taken_when_a_worker_starts(redis: ArqRedis, redis_url: str) -> None:
    done: list[float] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(time.monotonic())

    await enqueue(redis, "image01")
    await redis.delete(BELL)
    started = time.monotonic()
    async with working(redis_url, job):
        await until(lambda: bool(done))
    assert done[0] - started < 0.7  # a wait for the bell takes a second


async def test_a_job_that_was_claimed_after_the_worker_was_told_to_stop_is_another_ones(
    redis: ArqRedis, redis_url: str
) -> None:
    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append("a job of the one that stops")

    async def other(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(image_id)

    async with working(redis_url, job) as worker:
        await asyncio.sleep(0.3)  # it waits for the bell
        worker.allow_pick_jobs = False
        await enqueue(redis, "image01")
        await asyncio.sleep(0.2)
        assert not await redis.exists(in_progress_key_prefix + "image01")
        assert await redis.llen(BELL) == 1  # type: ignore[misc]
    async with working(redis_url, other):
        await until(lambda: done == ["image01"], timeout_s=2)


async def test_a_job_is_enqueued_once_however_often_it_is_asked_for(redis: ArqRedis, redis_url: str) -> None:
    runs = 0
    release = asyncio.Event()

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal runs
        runs += 1
        await release.wait()

    await enqueue(redis, "image01", "image01")
    async with working(redis_url, job):
        await until(lambda: runs == 1)
        await enqueue(redis, "image01")
        await JobQueue(redis).enqueue_again({ImageId("image01"): AccountId(1)})
        await asyncio.sleep(0.2)
        release.set()
        await asyncio.sleep(0.2)
    assert runs == 1


async def test_a_job_that_is_put_off_comes_back(redis: ArqRedis, redis_url: str) -> None:
    tries: list[float] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Retry(defer=0.3)

    await enqueue(redis, "image01")
    async with working(redis_url, job):
        await until(lambda: len(tries) == 3)
    assert tries[1] - tries[0] > 0.25


async def test_the_reply_goes_to_all_who_asked_also_after_a_put_off_and_nothing_is_left(
    redis: ArqRedis, redis_url: str
) -> None:
    heard: dict[str, list[object]] = {"one": [], "two": []}

    def hear(message: dict[str, Any]) -> None:
        heard[message["channel"].decode()] += jobs.decode(message["data"])

    async def job(ctx: Any, image_id: str, **_: Any) -> str:
        if ctx["job_try"] == 1:
            raise Retry(defer=0.1)
        return f"of {image_id}"

    queue = JobQueue(redis)
    a, b = (jobs.ProbeJob(ImageId(image_id), AccountId(1), "one", "q") for image_id in ("image01", "image02"))
    await queue.enqueue([a, b, dataclasses.replace(a, reply_to="two"), a, dataclasses.replace(b, reply_to="")])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(one=hear, two=hear)
        async with working(redis_url, job):
            async with asyncio.timeout(10):
                while len(heard["one"]) < 2 or not heard["two"]:
                    await pubsub.get_message(timeout=0.1)
    assert set(heard["one"]) == {"of image01", "of image02"}
    assert heard["two"] == ["of image01"]
    assert await redis.keys("arq:*") == await redis.keys("daguerre:waiting:*") == []


async def test_a_channel_gets_all_replies_of_a_group_in_one_message(redis: ArqRedis) -> None:
    ids = [f"image{number:03}" for number in range(300)]
    await JobQueue(redis).enqueue([jobs.ProbeJob(ImageId(each), AccountId(1), "channel", "q") for each in ids])
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.get_message(timeout=5)  # that it is subscribed
        await Claims(redis, PROBE_QUEUE, BELL).finish([JobResult(image_id, image_id) for image_id in ids])
        message = await pubsub.get_message(timeout=5)
    assert message is not None
    assert jobs.decode(message["data"]) == ids


async def test_a_job_that_names_whom_to_reply_to_runs_too(redis: ArqRedis, redis_url: str) -> None:
    """As those of the version before do, which are in the queue after an upgrade; nobody listens there any more."""
    done: list[str] = []

    async def job(ctx: Any, image_id: str, *, request_id: str) -> None:
        done.append(image_id)

    payload = serialize_job(
        PROBE_IMAGE, ("image01",), {"reply_to": "r", "request_id": "q"}, None, 0, serializer=jobs.encode
    )
    await redis.set(job_key_prefix + "image01", payload)
    await redis.zadd(PROBE_QUEUE, {"image01": 0})
    async with working(redis_url, job):
        async with asyncio.timeout(10):
            while await redis.zcard(PROBE_QUEUE):
                await asyncio.sleep(0.01)
    assert done == ["image01"]


async def test_a_job_that_another_worker_has_ended_is_not_put_off(redis: ArqRedis) -> None:
    """Else the next one of its id would begin with a try that was never made."""
    await Claims(redis, PROBE_QUEUE, BELL).finish([JobResult("image01", retry_after_ms=0)])
    assert await redis.keys("*") == []


async def test_a_job_that_reaches_its_time_limit_is_put_off(redis: ArqRedis, redis_url: str) -> None:
    tries: list[int] = []

    async def wait_in_line(ctx: dict[str, Any], image_id: str, *, request_id: str) -> None:
        tries.append(ctx["job_try"])
        if len(tries) == 1:
            await asyncio.sleep(60)

    async with working(redis_url, wait_in_line) as worker:
        worker.job_timeout_s = 0.2
        await enqueue(redis, "image01")
        await until(lambda: worker.jobs_complete == 1)
    assert tries == [1, 2]
    assert worker.jobs_failed == 0


async def test_the_job_of_a_dead_worker_runs_elsewhere_within_seconds(redis: ArqRedis, redis_url: str) -> None:
    runs = 0

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal runs
        runs += 1

    await enqueue(redis, "image01")
    # What a worker leaves that was killed right after it had claimed the job.
    await redis.psetex(in_progress_key_prefix + "image01", 1500, b"1")
    async with working(redis_url, job):
        await asyncio.sleep(1)
        assert runs == 0
        await until(lambda: runs == 1, timeout_s=3)


async def test_the_lease_of_a_long_job_is_renewed(
    redis: ArqRedis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.claims.LEASE_S", 2)
    runs = 0

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(4)

    await enqueue(redis, "image01")
    async with working(redis_url, job), working(redis_url, job):
        await asyncio.sleep(4.5)
    assert runs == 1


async def test_a_worker_outlives_a_restart_of_redis_and_finds_its_work(servers: Servers, redis_url: str) -> None:
    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(image_id)

    client = jobs.open_redis(redis_url)
    async with working(redis_url, job):
        await enqueue(client, "before1")
        await until(lambda: done == ["before1"])
        servers.valkey.stop()
        shutil.rmtree(servers.valkey.folder)
        await asyncio.sleep(1)
        servers.valkey.start()
        await client.connection_pool.disconnect()
        await enqueue(client, "after01")
        await until(lambda: done == ["before1", "after01"])
    await client.aclose(close_connection_pool=True)


async def test_an_idle_worker_costs_next_to_nothing(redis_url: str) -> None:
    async def job(ctx: Any, image_id: str, **_: Any) -> None: ...

    async with working(redis_url, job):
        await asyncio.sleep(1)
        before = time.process_time()
        await asyncio.sleep(3)
        assert (time.process_time() - before) / 3 < 0.02


async def test_a_worker_shows_that_it_lives_and_leaves_when_it_ends(redis: ArqRedis, redis_url: str) -> None:
    async def job(ctx: Any, image_id: str, **_: Any) -> None: ...

    queue = JobQueue(redis)
    assert await queue.count_workers() == 0
    async with working(redis_url, job), working(redis_url, job):
        async with asyncio.timeout(3):
            while await queue.count_workers() != 2:
                await asyncio.sleep(0.05)
    assert await queue.count_workers() == 0


@pytest.mark.parametrize("age_s", [20, -20, -86400])
async def test_dead_worker_is_not_counted(redis: ArqRedis, redis_url: str, age_s: float) -> None:
    """A sign of life from the future was given before the clock of Redis was set back."""

    async def job(ctx: Any, image_id: str, **_: Any) -> None: ...

    seconds, _ = await redis.time()
    await redis.zadd(WORKERS, {"host:dead": seconds - age_s})
    assert await JobQueue(redis).count_workers() == 0
    async with working(redis_url, job):
        async with asyncio.timeout(10):
            while await JobQueue(redis).count_workers() != 1:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("ahead_s", [0.5, 5])
async def test_sign_of_a_clock_ahead_counts(redis: ArqRedis, redis_url: str, ahead_s: float) -> None:
    """As a worker of the version before gives it, by its host's clock; or before a small correction of Redis's."""

    async def job(ctx: Any, image_id: str, **_: Any) -> None: ...

    seconds, microseconds = await redis.time()
    await redis.zadd(WORKERS, {"host:old": seconds + microseconds / 1e6 + ahead_s})
    assert await JobQueue(redis).count_workers() == 1
    async with working(redis_url, job):
        async with asyncio.timeout(10):
            while await JobQueue(redis).count_workers() != 2:
                await asyncio.sleep(0.02)


async def test_jobs_carry_no_pickle(redis: ArqRedis) -> None:
    await enqueue(redis, "image01")
    payload = await redis.get(job_key_prefix + "image01")
    assert jobs.decode(payload)["a"] == ["image01"]


async def test_a_worker_ends_quietly_while_redis_is_away(servers: Servers, redis_url: str) -> None:
    async def job(ctx: Any, image_id: str, **_: Any) -> None: ...

    async with working(redis_url, job):
        servers.valkey.stop()
    servers.valkey.start()


async def test_a_worker_that_is_told_to_stop_finishes_its_jobs_and_takes_no_more(
    redis: ArqRedis, redis_url: str
) -> None:
    started, finished = [], []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(image_id)
        await asyncio.sleep(0.3)
        finished.append(image_id)

    await enqueue(redis, *(f"image{number:03}" for number in range(10)))
    async with working(redis_url, job, max_jobs=2, job_completion_wait=5) as worker:
        await until(lambda: len(started) == 2)
        worker.handle_sig_wait_for_completion(signal.SIGTERM)
        assert worker.main_task is not None
        await until(worker.main_task.done)
    assert started == finished
    assert len(finished) == 2
    assert await redis.zcard(PROBE_QUEUE) == 8


async def test_a_worker_that_starts_without_redis_waits_for_it(servers: Servers, redis_url: str) -> None:
    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(image_id)

    servers.valkey.stop()
    async with working(redis_url, job):
        await asyncio.sleep(0.3)
        servers.valkey.start()
        client = jobs.open_redis(redis_url)
        await enqueue(client, "image01")
        await until(lambda: done == ["image01"])
        await client.aclose(close_connection_pool=True)


async def test_worker_outlives_an_error_at_its_start(redis: ArqRedis, redis_url: str) -> None:
    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(image_id)

    permit: Any = partial(redis.execute_command, "ACL", "SETUSER", "default")
    await permit("-info")
    try:
        async with working(redis_url, job):
            await asyncio.sleep(0.3)
            await permit("+info")
            await enqueue(redis, "image01")
            await until(lambda: done == ["image01"])
    finally:
        await permit("+info")


async def test_a_job_that_outlasts_the_drain_is_handed_over(redis: ArqRedis, redis_url: str) -> None:
    async def endless(ctx: Any, image_id: str, **_: Any) -> None:
        await asyncio.sleep(60)

    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        done.append(image_id)

    await enqueue(redis, "image01")
    async with working(redis_url, endless) as worker:
        await until(lambda: bool(worker.tasks))
    async with working(redis_url, job):
        await until(lambda: done == ["image01"])


async def test_a_job_whose_lease_ended_is_not_taken_twice_by_its_own_worker(redis: ArqRedis, redis_url: str) -> None:
    started: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(image_id)
        await asyncio.sleep(30)

    await enqueue(redis, "a")
    async with working(redis_url, job) as worker:
        await until(lambda: bool(started))
        await redis.delete(in_progress_key_prefix + "a")  # as after an outage of Redis
        await redis.zadd(TurnKeys.of(PROBE_QUEUE).later, {"a": 0})
        await enqueue(redis, "b")
        await until(lambda: len(started) == 2)
        assert started == ["a", "b"]
        assert await redis.exists(in_progress_key_prefix + "a")
        assert worker.running_jobs == len(worker.tasks) == 2


async def test_a_job_whose_end_was_not_recorded_runs_again_and_its_error_is_heard(
    redis: ArqRedis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    finish = Claims.finish
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    async def finish_the_second_time(claims: Claims, results: Sequence[JobResult]) -> list[None]:
        if runs == 1:
            raise ServiceError("queue-unavailable")
        return await finish(claims, results)

    monkeypatch.setattr(Claims, "finish", finish_the_second_time)

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.1)

    async with working(redis_url, job):
        await enqueue(redis, "image01")
        await until(lambda: runs == 1)
        await asyncio.sleep(0.2)
        # Its lease is over, and it is claimed, before its worker has looked at what ended.
        await redis.delete(in_progress_key_prefix + "image01")
        await redis.rpush(BELL, b"")  # type: ignore[misc]
        async with asyncio.timeout(10):
            while await redis.zcard(PROBE_QUEUE):
                await asyncio.sleep(0.01)
    assert runs == 2
    gc.collect()
    assert unheard == []


async def test_a_token_that_is_taken_without_a_place_goes_back(redis: ArqRedis, redis_url: str) -> None:
    places = 4
    started: list[str] = []
    end = asyncio.Event()

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        started.append(image_id)
        await end.wait()

    await enqueue(redis, "a", "b")
    async with working(redis_url, job, shares=AccountShares(lambda: places)):
        await until(lambda: len(started) == 2)
        await asyncio.sleep(0.2)  # it waits for the bell
        places = 3
        await enqueue(redis, "c")
        await asyncio.sleep(0.2)
        assert await redis.llen(BELL) == 1  # type: ignore[misc]
        end.set()
        await until(lambda: len(started) == 3)


@pytest.mark.parametrize("state", ["waiting", "put off", "claimed by a worker that died"])
async def test_jobs_outlast_a_redis_clock_set_back(
    redis: ArqRedis, redis_url: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """All that is left from before lies a day in the future."""
    monkeypatch.setattr("worker.queue.claims.LEASE_S", 1)
    keys, day_ms = TurnKeys.of(PROBE_QUEUE), 86_400_000
    done: list[str] = []

    async def job(ctx: Any, image_id: str, **_: Any) -> None:
        assert ctx["waited_s"] >= 0
        done.append(image_id)

    await enqueue(redis, "image01")
    if state != "waiting":
        claims = Claims(redis, PROBE_QUEUE, BELL)
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)  # loads the script
        await claims.claim(1, ClaimLimits(share=1), wait_s=0)
        assert await redis.exists(in_progress_key_prefix + "image01")
    if state == "put off":
        await Claims(redis, PROBE_QUEUE, BELL).finish([JobResult("image01", retry_after_ms=0)])
    await redis.zincrby(PROBE_QUEUE, day_ms, "image01")
    for key in (keys.later, keys.line + "1"):
        if await redis.exists(key):
            await redis.zincrby(key, day_ms, "image01")
    if state == "claimed by a worker that died":
        await redis.pexpire(in_progress_key_prefix + "image01", day_ms)
    async with working(redis_url, job):
        await until(lambda: done == ["image01"])


async def test_no_job_is_put_off_for_longer_than_allowed() -> None:
    """Else it would be taken for one from before a correction of the clock, and run at once."""
    assert max(probe.RETRY_S, probe.RETRY_MISSING_S, render.RETRY_S, LEASE_S) < MAX_DEFER_S
