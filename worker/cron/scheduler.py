"""Runs each periodic job once per interval, in one of the workers, independently of the clocks of hosts. A run that
takes longer than the interval may overlap with the next one, in another worker.

arq's cron uses the clock of its host. A host that is two hours ahead schedules its jobs for times that no other worker
reaches for two hours, and one whose clock is set back runs none until it has caught up. Here every worker uses its
monotonic clock, and a lease in Redis decides which worker runs the job.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from service.dependencies.outages import QUEUE
from service.queue.jobs import UNAVAILABLE

log = structlog.get_logger("worker")

_PREFIX = "daguerre:periodic:"
_RETRY_S = 1.0
_MIN_PAUSE_S = 0.05

# Acquires the lease for `lease_ms` if it is free, or if its holder is `replaceable`. Returns the holder, and the
# milliseconds until its lease expires.
_ACQUIRE = """
local lease, token, lease_ms, replaceable = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local holder = redis.call('GET', lease)
if not holder or holder == replaceable then
    redis.call('SET', lease, token, 'PX', lease_ms)
    holder = token
end
return {holder, redis.call('PTTL', lease)}
"""


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A function to call every `interval_s`, with a time limit of `timeout_s` and the context of the scheduler."""

    function: Callable[[dict[str, Any]], Awaitable[None]]
    interval_s: float
    timeout_s: float

    @property
    def name(self) -> str:
        return self.function.__name__


class Lease:
    """One worker's side of the lease of a job, which lasts for `interval_s`.

    Redis expires a lease by its own clock. If that clock was set back, the lease would last longer. So a holder is
    replaced when this worker has seen it for a whole interval of its own `clock`.
    """

    def __init__(
        self, redis: Any, name: str, interval_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = _PREFIX + name
        self._interval_s = interval_s
        self._clock = clock
        self._acquire = redis.register_script(_ACQUIRE)
        self._holder = ""
        self._seen_at = 0.0  # when this holder was first seen

    async def acquire(self) -> float:
        """Returns 0 if this worker has the lease now, or the seconds until the next attempt."""
        now, token = self._clock(), secrets.token_hex(8)
        replaceable = self._holder if now - self._seen_at >= self._interval_s else ""
        args = [token, round(self._interval_s * 1000), replaceable]
        holder, ttl_ms = await self._acquire(keys=[self._key], args=args)
        if holder.decode() != self._holder:
            self._holder, self._seen_at = holder.decode(), now
        if self._holder == token:
            return 0
        ttl_s: float = ttl_ms / 1000
        return max(_MIN_PAUSE_S, min(ttl_s, self._seen_at + self._interval_s - now))


class Scheduler:
    """Runs the jobs until `stop` is called. A slow or failing job delays no other one."""

    def __init__(
        self, redis: Any, jobs: Sequence[PeriodicJob], context: dict[str, Any], *, retry_s: float = _RETRY_S
    ) -> None:
        self._redis = redis
        self._jobs = jobs
        self._context = context
        self._retry_s = retry_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Starts no more runs."""
        self._stopping.set()

    async def run(self, *, drain_s: float) -> None:
        """Returns after `stop` was called and the current runs have finished. Cancels runs that take longer than
        `drain_s`.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._repeat(job)) for job in self._jobs]
            await self._stopping.wait()
            _, unfinished = await asyncio.wait(tasks, timeout=drain_s)
            for task in unfinished:
                task.cancel()

    async def _repeat(self, job: PeriodicJob) -> None:
        lease = Lease(self._redis, job.name, job.interval_s)
        while not self._stopping.is_set():
            try:
                wait_s = await lease.acquire()
            except UNAVAILABLE as error:
                QUEUE.report(error)
                wait_s = self._retry_s
            if wait_s:
                await self._pause(wait_s)
            else:
                await self._run_once(job)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _run_once(self, job: PeriodicJob) -> None:
        try:
            async with asyncio.timeout(job.timeout_s):
                await job.function(self._context)
        except TimeoutError:
            log.warning("periodic.timed_out", job=job.name)
        except Exception:
            log.exception("periodic.failed", job=job.name)
