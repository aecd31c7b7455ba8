"""An arq worker with push instead of polling: a Redis list wakes it, and it handles jobs in groups.

arq polls the queue twice a second, makes several round trips for each job and has no hooks to change that. This module
is the only one that uses arq's private or undocumented names. arq is pinned, and
tests/integration/queue/test_arq_worker.py has a test for the use of each name.

| Name of arq.Worker | Why |
|---|---|
| `main` | overridden: arq's own queries Redis first, and exits if Redis is unavailable |
| `_poll_iteration` | overridden: waits for a wake-up, claims a group, renews leases; arq calls it in an endless loop |
| `close` | overridden: hands unfinished jobs over, then arq's own closes the connections |
| `poll_delay_s` | 0, since `_poll_iteration` waits itself; arq polls at this interval |
| `functions`, `job_deserializer` | to run jobs here: arq's `run_job` makes two round trips, and limits the tries |
| `tasks` | the running jobs: arq's shutdown waits until it is empty, and cancels what is left at its time limit |
| `allow_pick_jobs` | arq's signal handler sets it to False, and no more jobs are claimed |
| `jobs_complete`, `jobs_retried`, `jobs_failed` | arq's counts, with which its shutdown is logged |
| `pool`, `loop`, `ctx`, `queue_name`, `burst`, `max_jobs`, `job_timeout_s` | the options of the constructor |

Names of arq for the same purposes that are not used here: `start_jobs`, `run_job`, `sem`, `job_counter`, `heart_beat`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, cast

import structlog
from arq import Retry
from arq.jobs import SerializationError, deserialize_job_raw
from arq.typing import WorkerCoroutine
from arq.worker import Worker

from service.batcher import Batcher, running
from service.dependencies.outages import QUEUE, level_of
from service.queue.connection import Redis
from service.queue.heartbeats import Heartbeats, name_worker
from service.queue.jobs import UNAVAILABLE
from worker.queue.claims import LEASE_S, AccountShares, ClaimedJob, Claims, JobResult

log = structlog.get_logger("worker")

# Without a wake-up, the queue is checked this often, for jobs of crashed workers and for lost tokens.
POLL_INTERVAL_S = 1.0
# A burst does not wait for wake-ups, since it ends when the queue is empty.
_BURST_DELAY_S = 0.01
_RECONNECT_S = 0.5
# A job that exceeded its time limit, most likely while it waited for a decoder, is retried after this time.
_TIMEOUT_RETRY_MS = 1000


class PushWorker(Worker):
    """Waits for wake-ups while it has free slots, and for its own jobs while it has none.

    `wakeup_key` is the list onto which clients push a token for each job. `heartbeats` records that this worker is
    alive. `shares` returns how many jobs to claim at this time, up to `max_jobs`, and of which accounts. The return
    value of a job's function is published as the reply, `result_wait_s()` later, together with others.

    Nothing here depends on the clock of this host. arq's cron and health check do, so neither is used.
    """

    def __init__(
        self,
        *args: Any,
        wakeup_key: str,
        heartbeats: Heartbeats | None = None,
        shares: AccountShares | None = None,
        lease_s: float = LEASE_S,
        poll_interval_s: float = POLL_INTERVAL_S,
        result_wait_s: Callable[[], float] = lambda: 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, poll_delay=_BURST_DELAY_S if kwargs.get("burst") else 0, **kwargs)
        self._poll_interval_s = poll_interval_s
        self._heartbeats = heartbeats
        self._shares = shares or AccountShares(lambda: self.max_jobs)
        self._name = name_worker()
        self._claims = Claims(cast("Redis", self.pool), self.queue_name, wakeup_key, lease_s=lease_s)
        self._next_heartbeat = 0.0
        self._job_finished = asyncio.Event()
        self._others_wakeup: asyncio.Task[None] | None = None  # waits for a token for other accounts
        self._full_accounts: frozenset[str] = frozenset()  # without room after the last claim
        self._results = Batcher(self._claims.finish, wait_s=result_wait_s)
        self._exit_stack = AsyncExitStack()

    async def main(self) -> None:
        """Restarts if Redis is unavailable or slow at the start."""
        await self._exit_stack.enter_async_context(running(self._results.run()))
        while True:
            try:
                return await super().main()
            except UNAVAILABLE as error:
                QUEUE.report(error)
                await asyncio.sleep(_RECONNECT_S)

    async def _poll_iteration(self) -> None:
        try:
            await self._wait_and_claim()
            self._reap()
            if not self.allow_pick_jobs and not self.tasks:
                raise asyncio.CancelledError  # drained; arq's own cancellation can be swallowed before Python 3.12
            await self._renew()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            await asyncio.sleep(_RECONNECT_S)

    async def _wait_and_claim(self) -> None:
        if self._free_slots():
            if (self._claims.has_skipped or self._full_accounts) and not self._claims.has_more and not self.burst:
                await self._wait_for_room_or_others()
                # If there is room for all, a job that came meanwhile has left a token, unless it was skipped before.
                await self._claim(wait=not self._claims.has_skipped and not self._shares.claim_limits().full_accounts)
            else:
                await self._claim(wait=not self._claims.has_more)
        elif not self.burst:
            await self._wait_for_finished_job(self._poll_interval_s)
            await self._claim(wait=False)

    def _free_slots(self) -> int:
        """Returns 0 until half of the slots are free, because jobs are claimed in groups, and during shutdown."""
        return self._shares.free_slots() if self.allow_pick_jobs else 0

    async def _wait_for_finished_job(self, timeout_s: float) -> None:
        self._job_finished.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._job_finished.wait()

    async def _wait_for_room_or_others(self) -> None:
        """Waits until a full account has room again or another account has a job, for at most one poll interval.

        It takes only tokens for other accounts. Workers with room for all accounts take the other tokens.
        """
        if self._others_wakeup is None:
            self._others_wakeup = asyncio.create_task(self._claims.wait_for_others(self._poll_interval_s))
            self._others_wakeup.add_done_callback(lambda _: self._job_finished.set())
        deadline = time.monotonic() + self._poll_interval_s
        while (
            not self._others_wakeup.done()
            and self._full_accounts
            and self._full_accounts <= self._shares.claim_limits().full_accounts
        ):
            if (remaining_s := deadline - time.monotonic()) <= 0 or not self.allow_pick_jobs:
                return
            await self._wait_for_finished_job(remaining_s)
        if self._others_wakeup.done():
            wakeup, self._others_wakeup = self._others_wakeup, None
            await wakeup

    async def _claim(self, *, wait: bool) -> None:
        """Claims and starts jobs in one round trip, which first waits for a wake-up if `wait` is set."""
        if not (free := self._free_slots()):
            return
        wait_s = self._poll_interval_s if wait and not self.burst else 0
        claimed = await self._claims.claim(free, self._shares.claim_limits(), wait_s=wait_s)
        self._reap()  # a job whose result could not be recorded may be among the claimed ones
        jobs = [job for job in claimed if not self._is_running(job)]
        free = self._free_slots()
        for job in jobs[:free]:
            self._shares.add(job.account)
            task = self.loop.create_task(self._run_claimed(job))
            task.add_done_callback(partial(self._on_job_finished, job.account))
            self.tasks[job.id] = task
        self._full_accounts = self._shares.claim_limits().full_accounts
        if len(jobs) > free:  # meanwhile a shutdown started, or the pictures became slow
            await self._claims.release(jobs[free:])

    @property
    def running_jobs(self) -> int:
        return sum(not task.done() for task in self.tasks.values())

    def _is_running(self, job: ClaimedJob) -> bool:
        """Returns whether the job still runs here, although its lease expired during an outage of Redis."""
        return job.id in self.tasks and not self.tasks[job.id].done()

    async def _run_claimed(self, job: ClaimedJob) -> None:
        """Does what arq's `run_job` does, without its two round trips and its maximum of tries: an unavailable
        dependency never makes a job fail.
        """
        try:
            name, args, options, _, _ = deserialize_job_raw(job.payload or b"", deserializer=self.job_deserializer)
            function = self.functions[name]
        except (SerializationError, KeyError) as error:
            log.warning("job.undecodable", job_id=job.id, error=repr(error))
            self.jobs_failed += 1
            await self._results.submit(JobResult(job.id))
            return
        await self._results.submit(await self._run_function(job, function.coroutine, args, options))

    async def _run_function(
        self, job: ClaimedJob, function: WorkerCoroutine, args: Sequence[Any], options: Any
    ) -> JobResult:
        options.pop("reply_to", None)  # sent by an earlier version of the API, which polls for the result
        fields = {"job_id": job.id, "account": job.account, "job_try": job.tries + 1}
        context = {**self.ctx, **fields, "score": job.score, "waited_s": job.waited_s}
        try:
            async with asyncio.timeout(self.job_timeout_s):
                reply = await function(context, *args, **options)
        except Retry as retry:
            self.jobs_retried += 1
            return JobResult(job.id, retry_after_ms=retry.defer_score or 0)
        except asyncio.CancelledError:
            self.jobs_retried += 1
            await self._results.submit(JobResult(job.id, retry_after_ms=0))  # another worker may run it at once
            raise
        except TimeoutError:  # of the whole job: each step inside has its own
            log.warning("job.timed_out", job_id=job.id)
            self.jobs_retried += 1
            return JobResult(job.id, retry_after_ms=_TIMEOUT_RETRY_MS)
        except Exception:
            log.exception("job.failed", job_id=job.id)
            self.jobs_failed += 1
            return JobResult(job.id)
        self.jobs_complete += 1
        return JobResult(job.id, reply)

    def _on_job_finished(self, account: str, _: asyncio.Task[None]) -> None:
        self._shares.remove(account)
        self._job_finished.set()

    def _reap(self) -> None:
        """Removes finished tasks. A job whose result could not be recorded runs again when its lease expires."""
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if task.cancelled() or (error := task.exception()) is None:
                    continue
                log.log(level_of(error), "job.result_lost", job_id=job_id, error=repr(error))

    async def _renew(self) -> None:
        """Renews the leases of the running jobs and records a heartbeat, once per poll interval."""
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + self._poll_interval_s
        await self._claims.renew([job_id for job_id, task in self.tasks.items() if not task.done()])
        if self._heartbeats is not None:
            await self._heartbeats.record(self._name)

    async def close(self) -> None:
        if unfinished := [task for task in self.tasks.values() if not task.done()]:
            log.warning("worker.jobs_released", jobs=len(unfinished))
            for task in unfinished:
                task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        if self._others_wakeup is not None:
            self._others_wakeup.cancel()
            await asyncio.wait([self._others_wakeup])
        await self._exit_stack.aclose()
        with suppress(*UNAVAILABLE):  # Redis is unavailable: leases and heartbeat expire by themselves
            if self._heartbeats is not None:
                await self._heartbeats.remove(self._name)
            await super().close()
