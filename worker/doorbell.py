"""An arq worker that a bell wakes, instead of looking at the queue twice a second, and that handles jobs in groups.

arq has no hooks for this: what is overridden here is private, arq is pinned, and tests/test_doorbell.py holds the
names. The queue stays arq's own, its keys, payloads and leases.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from arq import Retry
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.cron import CronJob
from arq.jobs import SerializationError, deserialize_job_raw
from arq.worker import Function, Worker
from redis.exceptions import NoScriptError

from service.batches import Batcher, running
from service.errors import ServiceError
from service.queue.channels import send
from service.queue.jobs import MOST_TOKENS, UNAVAILABLE, name_worker

log = structlog.get_logger("worker")

# Without a bell the queue is looked at this often: for cron jobs, for the jobs of workers that died, and for tokens
# that were lost.
_LOOK_S = 1.0
# A burst does not wait for the bell, since it ends once the queue is empty.
_BURST_DELAY_S = 0.01
_RECONNECT_S = 0.5
# A job belongs to its worker for this long, renewed at every look: the jobs of a worker that was killed run elsewhere
# after some seconds, not after the longest time limit of all functions as arq has it.
_LEASE_S = 6
_FORGET_WORKER_S = 60
# A job that reached its time limit, most likely in line, is put off.
_OUT_OF_TIME_MS = 1000
_TRIES_KEPT_S = 24 * 60 * 60
_MISSED = timedelta(seconds=5)

# Take up to `free` jobs that are due and that nobody runs, with all that is known of them. In one step, where arq makes
# five round trips a job; and it knows whether it leaves any behind, for which it wakes the next worker. The time is
# Redis's, as it is where jobs are enqueued: hosts may differ.
_CLAIM = """
local queue, bell = KEYS[1], KEYS[2]
local free, lease_ms, most_tokens = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local running, job, retry = ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
local claimed, left = {}, 0
for i = 1, #due, 2 do
    local key = running .. due[i]
    if #claimed < free then
        if redis.call('SET', key, '1', 'NX', 'PX', lease_ms) then
            local id = due[i]
            claimed[#claimed + 1] = {id, due[i + 1], redis.call('GET', job .. id), redis.call('GET', retry .. id)}
        end
    elseif redis.call('EXISTS', key) == 0 then
        left = 1
        redis.call('RPUSH', bell, '')
        redis.call('LTRIM', bell, -most_tokens, -1)
        break
    end
end
return {left, claimed, now}
"""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job of this worker's. `score` is when it was due, in milliseconds, and `waited_s` how long ago that was by the
    clock of Redis; `tries` are those that were put off.
    """

    id: str
    score: int
    waited_s: float
    payload: bytes | None
    tries: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job is done, and whoever waits on the channel `reply_to` is told; or it runs again after some time."""

    job_id: str
    reply_to: str = ""
    reply: object = None
    again_after_ms: int | None = None


class DoorbellWorker(Worker):
    """Waits on the bell while it has a free place, and on its own jobs while it has none.

    `bell` is the list that whoever enqueues pushes a token on; `alive_key` a sorted set of workers by their last sign
    of life; `places` tells how many jobs are worth having at this time, up to `max_jobs`. What a function returns
    goes to the channel that the job's keyword `reply_to` names.
    """

    def __init__(
        self,
        *args: Any,
        bell: str,
        alive_key: str | None = None,
        places: Callable[[], int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, poll_delay=_BURST_DELAY_S if kwargs.get("burst") else 0, **kwargs)
        self._bell = bell
        self._alive_key = alive_key
        self._places = places or (lambda: self.max_jobs)
        self.in_progress_timeout_s = _LEASE_S
        self._name = name_worker()
        self._claim = ""  # the script's name in Redis
        self._left_behind = True  # perhaps, before the first look
        self._next_sign_of_life = 0.0
        self._job_ended = asyncio.Event()
        self._ends = Batcher(self._record)
        self._recording = AsyncExitStack()

    async def main(self) -> None:
        """Wait for Redis first: arq ends where it is away at the start."""
        await self._recording.enter_async_context(running(self._ends.run()))
        while True:
            try:
                await self.pool.ping()
                break
            except UNAVAILABLE as error:
                log.warning("worker.queue_unavailable", error=repr(error))
                await asyncio.sleep(_RECONNECT_S)
        await super().main()

    async def _poll_iteration(self) -> None:
        try:
            if self._free_places():
                await self._take_jobs(wait=not self._left_behind)
            elif not self.burst:
                await self._wait_for_an_end()
                if self._free_places():
                    await self._take_jobs(wait=False)
            self._reap()
            if self.allow_pick_jobs:
                self._skip_missed_crons()
                await self.heart_beat()
            elif not self.tasks:
                raise asyncio.CancelledError  # drained; arq's own cancellation can be swallowed before Python 3.12
            await self._show_life()
        except UNAVAILABLE as error:
            log.warning("worker.queue_unavailable", error=repr(error))
            await asyncio.sleep(_RECONNECT_S)

    def _free_places(self) -> int:
        """None until half of them are free, since jobs are claimed in groups; and none once told to stop."""
        places = self._places() if self.allow_pick_jobs else 0
        return places - self.job_counter if 2 * self.job_counter <= places else 0

    async def _wait_for_an_end(self) -> None:
        self._job_ended.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._job_ended.wait()

    async def _take_jobs(self, *, wait: bool) -> None:
        """In one round trip, which waits for the bell first."""
        claimed = await self._claim_jobs(self._free_places(), wait=wait and not self.burst)
        self._reap()  # a job that ended meanwhile, unrecorded, may be among those claimed
        ours = [job for job in claimed if not self._runs(job)]
        free = self._free_places()
        if len(ours) > free:
            # Meanwhile told to stop, or the pictures became slow: another worker's.
            await self._give_back(ours[free:])
        for job in ours[:free]:
            await self.sem.acquire()
            self.job_counter += 1
            task = self.loop.create_task(self.run_claimed(job))
            task.add_done_callback(self._on_job_ended)
            self.tasks[job.id] = task

    async def _claim_jobs(self, most: int, *, wait: bool) -> list[ClaimedJob]:
        keys = [self.queue_name, self._bell]
        lease = [_LEASE_S * 1000, MOST_TOKENS, in_progress_key_prefix, job_key_prefix, retry_key_prefix]
        async with self.pool.pipeline(transaction=False) as pipe:
            if wait:
                pipe.blpop([self._bell], timeout=_LOOK_S)  # type: ignore[arg-type] # a list, and parts of a second
            pipe.evalsha(self._claim, len(keys), *keys, most, *lease)  # type: ignore[arg-type]
            try:
                *_, (left, claimed, now) = await pipe.execute()
            except NoScriptError:  # this worker's first time, or Redis was restarted
                self._claim = await self.pool.script_load(_CLAIM)
                self._left_behind = True
                return []
        self._left_behind = bool(left)
        return [
            ClaimedJob(job_id.decode(), int(float(score)), (now - float(score)) / 1000, payload, int(tries or 0))
            for job_id, score, payload, tries in claimed
        ]

    def _runs(self, job: ClaimedJob) -> bool:
        """Still, though its lease had ended: Redis was away."""
        return job.id in self.tasks and not self.tasks[job.id].done()

    async def _give_back(self, claimed: Sequence[ClaimedJob]) -> None:
        async with self.pool.pipeline(transaction=True) as pipe:
            pipe.delete(*(in_progress_key_prefix + job.id for job in claimed))
            pipe.rpush(self._bell, b"")
            pipe.ltrim(self._bell, -MOST_TOKENS, -1)
            await pipe.execute()

    async def run_claimed(self, job: ClaimedJob) -> None:
        """What arq's `run_job` does, without its two round trips for each job, and without an end to the tries: a
        dependency that is away never makes a job give up."""
        try:
            name, args, options, _, _ = deserialize_job_raw(job.payload or b"", deserializer=self.job_deserializer)
            function = self.functions[name]
        except (SerializationError, KeyError) as error:
            log.warning("worker.job_unreadable", job_id=job.id, error=repr(error))
            self.jobs_failed += 1
            await self._ends.submit(JobEnd(job.id))
            return
        if isinstance(function, CronJob):
            await self.run_job(job.id, job.score)
        else:
            await self._ends.submit(await self._perform(job, function, args, options))

    async def _perform(self, job: ClaimedJob, function: Function, args: Sequence[Any], options: Any) -> JobEnd:
        reply_to = options.pop("reply_to", "")
        known = {"job_id": job.id, "job_try": job.tries + 1, "score": job.score, "waited_s": job.waited_s}
        context = {**self.ctx, **known}
        try:
            async with asyncio.timeout(self.job_timeout_s):
                reply = await function.coroutine(context, *args, **options)
        except Retry as retry:
            self.jobs_retried += 1
            return JobEnd(job.id, again_after_ms=retry.defer_score or 0)
        except asyncio.CancelledError:
            self.jobs_retried += 1
            await self._ends.submit(JobEnd(job.id, again_after_ms=0))  # for another worker, at once
            raise
        except TimeoutError:  # of the job as a whole: what it waited for had its own
            log.warning("worker.job_out_of_time", job_id=job.id)
            self.jobs_retried += 1
            return JobEnd(job.id, again_after_ms=_OUT_OF_TIME_MS)
        except Exception:
            log.exception("worker.job_failed", job_id=job.id)
            self.jobs_failed += 1
            return JobEnd(job.id)
        self.jobs_complete += 1
        return JobEnd(job.id, reply_to, reply)

    async def _record(self, ends: Sequence[JobEnd]) -> list[None]:
        """In one step, so that no job is in the queue without its payload; the replies go along."""
        now_ms = time.time_ns() // 1_000_000
        done = [end.job_id for end in ends if end.again_after_ms is None]
        spent = [in_progress_key_prefix + end.job_id for end in ends]
        spent += [prefix + job_id for job_id in done for prefix in (job_key_prefix, retry_key_prefix)]
        waiting: defaultdict[str, list[object]] = defaultdict(list)
        async with self.pool.pipeline(transaction=True) as pipe:
            if done:
                pipe.zrem(self.queue_name, *done)
            for end in ends:
                if end.again_after_ms is not None:
                    pipe.zadd(self.queue_name, {end.job_id: now_ms + end.again_after_ms}, xx=True)
                    pipe.incr(retry_key_prefix + end.job_id)
                    pipe.expire(retry_key_prefix + end.job_id, _TRIES_KEPT_S)
                elif end.reply is not None and end.reply_to:
                    waiting[end.reply_to].append(end.reply)
            pipe.delete(*spent)
            for channel, replies in waiting.items():
                send(pipe, channel, replies)
            try:
                await pipe.execute()
            except UNAVAILABLE as error:
                raise ServiceError("queue-unavailable") from error
        return [None] * len(ends)

    def _on_job_ended(self, _: asyncio.Task[None]) -> None:
        self._release_sem_dec_counter_on_complete()
        self._job_ended.set()

    def _reap(self) -> None:
        """Forget the jobs that ended. One whose end could not be recorded runs again when its lease is over."""
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.warning("worker.job_not_recorded", job_id=job_id, error=repr(error))

    def _skip_missed_crons(self) -> None:
        """After an outage of Redis arq would catch up run by run, one each look."""
        now = datetime.now(tz=self.timezone)
        for job in self.cron_jobs:
            if job.next_run is not None and now - job.next_run > _MISSED:
                job.calculate_next(now)

    async def _show_life(self) -> None:
        if time.monotonic() < self._next_sign_of_life:
            return
        self._next_sign_of_life = time.monotonic() + _LOOK_S
        now = time.time()
        async with self.pool.pipeline(transaction=False) as pipe:
            if self._alive_key is not None:
                pipe.zadd(self._alive_key, {self._name: now})
                pipe.zremrangebyscore(self._alive_key, "-inf", now - _FORGET_WORKER_S)
            for job_id, task in self.tasks.items():
                if not task.done():
                    pipe.pexpire(in_progress_key_prefix + job_id, _LEASE_S * 1000)
            await pipe.execute()

    async def close(self) -> None:
        if unfinished := [task for task in self.tasks.values() if not task.done()]:
            log.warning("worker.jobs_handed_over", jobs=len(unfinished))
            for task in unfinished:
                task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        await self._recording.aclose()
        with suppress(*UNAVAILABLE):  # it is away: the lease and the sign of life end by themselves
            if self._alive_key is not None:
                await self.pool.zrem(self._alive_key, self._name)
            await super().close()
