"""Periodic jobs: one of all workers runs each of them once in its interval, whatever the hosts' clocks say. A run that
takes longer than the interval may overlap with the next one, in another worker.

arq's cron goes by the clock of its host: one that is two hours ahead gives its jobs times that no other worker reaches
for two hours, and one that is set back runs none until it is there again. Here every worker waits by its monotonic
clock, and a lease in Redis decides whose turn it is.
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

# Takes the lease for `lease_ms` if nobody holds it, or if the holder is `replaceable`. Returns the holder, and the
# milliseconds until its lease ends.
_TAKE = """
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
    """A function to call every `interval_s`, for `timeout_s` at most. Its parameter has the key "resources"."""

    function: Callable[[dict[str, Any]], Awaitable[None]]
    interval_s: float
    timeout_s: float

    @property
    def name(self) -> str:
        return self.function.__name__


class Lease:
    """One worker's view of the turn of a job, which lasts for `interval_s`.

    Redis ends a lease by its own clock. Where that was set back the lease would not end for as long: so a holder that
    this worker has seen for a whole interval, by its monotonic clock, is replaced.
    """

    def __init__(self, redis: Any, name: str, interval_s: float) -> None:
        self._key = _PREFIX + name
        self._interval_s = interval_s
        self._take = redis.register_script(_TAKE)
        self._holder = ""
        self._seen_at = 0.0  # when this holder was first seen

    async def take(self) -> float:
        """Returns 0 if the turn is this worker's, else the seconds until it is worth another try."""
        now, token = time.monotonic(), secrets.token_hex(8)
        replaceable = self._holder if now - self._seen_at >= self._interval_s else ""
        holder, left_ms = await self._take(keys=[self._key], args=[token, round(self._interval_s * 1000), replaceable])
        if holder.decode() != self._holder:
            self._holder, self._seen_at = holder.decode(), now
        if self._holder == token:
            return 0
        left_s: float = left_ms / 1000
        return max(_MIN_PAUSE_S, min(left_s, self._seen_at + self._interval_s - now))


class PeriodicJobs:
    """Runs the jobs until `stop` is called; one that takes long or fails holds up no other."""

    def __init__(self, redis: Any, jobs: Sequence[PeriodicJob], context: dict[str, Any]) -> None:
        self._redis = redis
        self._jobs = jobs
        self._context = context
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begins no more runs."""
        self._stopping.set()

    async def run(self, *, drain_s: float) -> None:
        """Returns once `stop` was called and the runs have ended; those that take longer than `drain_s` are cut."""
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
                wait_s = await lease.take()
            except UNAVAILABLE as error:
                QUEUE.report(error)
                wait_s = _RETRY_S
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
