"""An arq worker that a bell wakes, instead of looking at the queue twice a second.

arq has no hook for this: what is overridden here is private, arq is pinned, and tests/test_doorbell.py holds the names.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog
from arq.constants import in_progress_key_prefix
from arq.worker import Worker

from service.jobs import MOST_TOKENS, UNAVAILABLE, name_worker

log = structlog.get_logger("worker")

# Without a bell the queue is looked at this often: for cron jobs, for the jobs of workers that died, and for tokens
# that were lost.
_LOOK_S = 1.0
_RECONNECT_S = 0.5
# A job belongs to its worker for this long, renewed at every look: the jobs of a worker that was killed run elsewhere
# after some seconds, not after the longest time limit of all functions as arq has it.
_LEASE_S = 6
_FORGET_WORKER_S = 60
_MISSED = timedelta(seconds=5)

# Take up to `free` jobs that are due and that nobody runs. In one step, where arq makes four round trips a job; and it
# knows whether it leaves any behind, for which it wakes the next worker.
_CLAIM = """
local queue, bell = KEYS[1], KEYS[2]
local now, free, lease_ms, running, most_tokens = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
local claimed, left = {}, 0
for i = 1, #due, 2 do
    local key = running .. due[i]
    if #claimed < 2 * free then
        if redis.call('SET', key, '1', 'NX', 'PX', lease_ms) then
            claimed[#claimed + 1] = due[i]
            claimed[#claimed + 1] = due[i + 1]
        end
    elseif redis.call('EXISTS', key) == 0 then
        left = 1
        redis.call('RPUSH', bell, '')
        redis.call('LTRIM', bell, -most_tokens, -1)
        break
    end
end
return {left, claimed}
"""


class DoorbellWorker(Worker):
    """Waits on the bell while it has a free place, and on its own jobs while it has none.

    `bell` is the list that whoever enqueues pushes a token on; `alive_key` a sorted set of workers by their last sign
    of life.
    """

    def __init__(self, *args: Any, bell: str, alive_key: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, poll_delay=0, **kwargs)
        self._bell = bell
        self._alive_key = alive_key
        self.in_progress_timeout_s = _LEASE_S
        self._name = name_worker()
        self._claim: Any = None
        self._left_behind = False
        self._next_sign_of_life = 0.0
        self._job_ended = asyncio.Event()

    async def main(self) -> None:
        """Wait for Redis first: arq ends where it is away at the start."""
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
            if not self.burst:
                await self._wait_for_work()
            if self.allow_pick_jobs and self._free_places():
                await self._take_jobs()
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
        return self.max_jobs - self.job_counter

    async def _wait_for_work(self) -> None:
        if not self.allow_pick_jobs or not self._free_places():
            self._job_ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._job_ended.wait()
        elif not self._left_behind:
            token: Any = await self.pool.blpop([self._bell], timeout=_LOOK_S)  # type: ignore[misc, arg-type]
            if token is not None and not self.allow_pick_jobs:
                await self.pool.rpush(self._bell, b"")  # told to stop meanwhile: the token is another's

    async def _take_jobs(self) -> None:
        if self._claim is None:
            self._claim = self.pool.register_script(_CLAIM)
        now_ms = time.time_ns() // 1_000_000
        left, claimed = await self._claim(
            keys=[self.queue_name, self._bell],
            args=[now_ms, self._free_places(), _LEASE_S * 1000, in_progress_key_prefix, MOST_TOKENS],
        )
        self._left_behind = bool(left)
        for job_id, score in zip(claimed[::2], claimed[1::2], strict=True):
            await self.sem.acquire()
            self.job_counter += 1
            task = self.loop.create_task(self.run_job(job_id.decode(), int(float(score))))
            task.add_done_callback(self._on_job_ended)
            self.tasks[job_id.decode()] = task

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
        with suppress(*UNAVAILABLE):  # it is away: the lease and the sign of life end by themselves
            if self._alive_key is not None:
                await self.pool.zrem(self._alive_key, self._name)
            await super().close()
