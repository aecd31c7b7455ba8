"""An arq worker that a bell wakes, instead of looking at the queue twice a second, and that handles jobs in groups.

arq has no hooks for this: what is overridden here is private, arq is pinned, and
tests/integration/queue/test_arq_worker.py holds the names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import structlog
from arq import Retry
from arq.jobs import SerializationError, deserialize_job_raw
from arq.typing import WorkerCoroutine
from arq.worker import Worker

from service.batcher import Batcher, running
from service.dependencies.outages import QUEUE, level_of
from service.queue.heartbeats import Heartbeats, name_worker
from service.queue.jobs import UNAVAILABLE
from worker.queue.claims import LEASE_S, ClaimedJob, Claims, JobEnd
from worker.queue.shares import Shares

log = structlog.get_logger("worker")

# Without a bell the queue is looked at this often: for the jobs of workers that died, and for tokens that were lost.
_LOOK_S = 1.0
# A burst does not wait for the bell, since it ends once the queue is empty.
_BURST_DELAY_S = 0.01
_RECONNECT_S = 0.5
# A job that reached its time limit, most likely in line, is put off.
_OUT_OF_TIME_MS = 1000


class DoorbellWorker(Worker):
    """Waits on the bell while it has a free place, and on its own jobs while it has none.

    `bell` is the list that whoever enqueues pushes a token on; `signs_of_life` is where this worker shows that it
    lives; `shares` says how many jobs are worth having at this time, up to `max_jobs`, and of which accounts. What a
    function returns is sent to those who wait for its job.

    Nothing here goes by the clock of this host, which arq's cron and health check do: neither is used.
    """

    def __init__(
        self,
        *args: Any,
        bell: str,
        signs_of_life: Heartbeats | None = None,
        shares: Shares | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, poll_delay=_BURST_DELAY_S if kwargs.get("burst") else 0, **kwargs)
        self._signs_of_life = signs_of_life
        self._shares = shares or Shares(lambda: self.max_jobs)
        self.in_progress_timeout_s = LEASE_S
        self._name = name_worker()
        self._claims = Claims(self.pool, self.queue_name, bell)
        self._next_sign_of_life = 0.0
        self._job_ended = asyncio.Event()
        self._ringing: asyncio.Task[object] | None = None  # a wait for a token of the bell for other accounts
        self._full: frozenset[str] = frozenset()  # accounts without room after the last claim
        self._ends = Batcher(self._claims.end)
        self._recording = AsyncExitStack()

    async def main(self) -> None:
        """Begins anew if Redis is away or slow at the start, where arq's own `main` asks for its version and ends."""
        await self._recording.enter_async_context(running(self._ends.run()))
        while True:
            try:
                return await super().main()
            except UNAVAILABLE as error:
                QUEUE.report(error)
                await asyncio.sleep(_RECONNECT_S)

    async def _poll_iteration(self) -> None:
        try:
            if self._free_places():
                if (self._claims.skipped or self._full) and not self._claims.left_behind and not self.burst:
                    await self._wait_for_room_or_others()
                    await self._take_jobs(wait=False)
                else:
                    await self._take_jobs(wait=not self._claims.left_behind)
            elif not self.burst:
                await self._wait_for_an_end(_LOOK_S)
                await self._take_jobs(wait=False)
            self._reap()
            if not self.allow_pick_jobs and not self.tasks:
                raise asyncio.CancelledError  # drained; arq's own cancellation can be swallowed before Python 3.12
            await self._show_life()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            await asyncio.sleep(_RECONNECT_S)

    def _free_places(self) -> int:
        """None until half of them are free, since jobs are claimed in groups; and none once told to stop."""
        return self._shares.free() if self.allow_pick_jobs else 0

    async def _wait_for_an_end(self, timeout_s: float) -> None:
        self._job_ended.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._job_ended.wait()

    async def _wait_for_room_or_others(self) -> None:
        """Wait until an account without room has room again, or another account has a job, for a second at most.

        A token that is taken here is one for other accounts: `bell` is left to workers that have room for all.
        """
        if self._ringing is None:
            self._ringing = asyncio.create_task(self._wait_for_others())
            self._ringing.add_done_callback(lambda _: self._job_ended.set())
        deadline = time.monotonic() + _LOOK_S
        while not self._ringing.done() and self._full and self._full <= self._shares.rooms().full:
            if (left_s := deadline - time.monotonic()) <= 0 or not self.allow_pick_jobs:
                return
            await self._wait_for_an_end(left_s)
        if self._ringing.done():
            ringing, self._ringing = self._ringing, None
            await ringing

    async def _wait_for_others(self) -> object:
        return await self.pool.blpop([self._claims.others_bell], timeout=_LOOK_S)  # type: ignore[arg-type, misc]

    async def _take_jobs(self, *, wait: bool) -> None:
        """In one round trip, which waits for the bell first."""
        if not (free := self._free_places()):
            return
        wait_s = _LOOK_S if wait and not self.burst else 0
        claimed = await self._claims.claim(free, self._shares.rooms(), wait_s=wait_s)
        self._reap()  # a job that ended meanwhile, unrecorded, may be among those claimed
        ours = [job for job in claimed if not self._runs(job)]
        free = self._free_places()
        if len(ours) > free:
            # Meanwhile told to stop, or the pictures became slow: another worker's.
            await self._claims.give_back(ours[free:])
        for job in ours[:free]:
            await self.sem.acquire()
            self.job_counter += 1
            self._shares.add(job.account)
            task = self.loop.create_task(self.run_claimed(job))
            task.add_done_callback(partial(self._on_job_ended, job.account))
            self.tasks[job.id] = task
        self._full = self._shares.rooms().full

    def _runs(self, job: ClaimedJob) -> bool:
        """Still, though its lease had ended: Redis was away."""
        return job.id in self.tasks and not self.tasks[job.id].done()

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
        await self._ends.submit(await self._perform(job, function.coroutine, args, options))

    async def _perform(self, job: ClaimedJob, function: WorkerCoroutine, args: Sequence[Any], options: Any) -> JobEnd:
        options.pop("reply_to", None)  # of another version's API, which looks for itself
        known = {"job_id": job.id, "account": job.account, "job_try": job.tries + 1}
        context = {**self.ctx, **known, "score": job.score, "waited_s": job.waited_s}
        try:
            async with asyncio.timeout(self.job_timeout_s):
                reply = await function(context, *args, **options)
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
        return JobEnd(job.id, reply)

    def _on_job_ended(self, account: str, _: asyncio.Task[None]) -> None:
        self._shares.remove(account)
        self._release_sem_dec_counter_on_complete()
        self._job_ended.set()

    def _reap(self) -> None:
        """Forget the jobs that ended. One whose end could not be recorded runs again when its lease is over."""
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if task.cancelled() or (error := task.exception()) is None:
                    continue
                log.log(level_of(error), "worker.job_not_recorded", job_id=job_id, error=repr(error))

    async def _show_life(self) -> None:
        if time.monotonic() < self._next_sign_of_life:
            return
        self._next_sign_of_life = time.monotonic() + _LOOK_S
        await self._claims.renew([job_id for job_id, task in self.tasks.items() if not task.done()])
        if self._signs_of_life is not None:
            await self._signs_of_life.record(self._name)

    async def close(self) -> None:
        if unfinished := [task for task in self.tasks.values() if not task.done()]:
            log.warning("worker.jobs_handed_over", jobs=len(unfinished))
            for task in unfinished:
                task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        if self._ringing is not None:
            self._ringing.cancel()
            await asyncio.wait([self._ringing])
        await self._recording.aclose()
        with suppress(*UNAVAILABLE):  # it is away: the lease and the sign of life end by themselves
            if self._signs_of_life is not None:
                await self._signs_of_life.remove(self._name)
            await super().close()
