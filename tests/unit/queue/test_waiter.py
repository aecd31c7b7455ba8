"""A wait ends with a reply, a check or its timeout; a job that was lost is enqueued again."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.queue.jobs import Job, ProbeJob
from service.queue.waiter import JobWaiter
from tests.support.waiting import until

JOB = ProbeJob(ImageId("AAAAAAA"), AccountId(1), "channel", "request")


class Site:
    """A queue, a waiter, and the result that checks find."""

    def __init__(self, **timings: float) -> None:
        self.enqueued: list[Job] = []
        self.error: Exception | None = None
        self.checks: list[str | None] = []
        self.stored: str | None = None
        self.waiter: JobWaiter[str, str] = JobWaiter(self.enqueue, **timings)

    def enqueue(self, job: Job) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._enqueue(job))

    async def _enqueue(self, job: Job) -> None:
        assert self.waiter.count("key")  # a reply from now on is not missed
        self.enqueued.append(job)
        if self.error is not None:
            raise self.error

    async def check(self, reply: str | None) -> str | None:
        self.checks.append(reply)
        return reply or self.stored

    async def wait(self, timeout_s: float = 30, **options: Any) -> str | None:
        return await self.waiter.wait("key", JOB, self.check, timeout_s=timeout_s, **options)


async def test_reply_ends_all_waits_for_its_key() -> None:
    site = Site(poll_interval_s=60, lost_after_s=60)
    waits = [asyncio.create_task(site.wait()) for _ in range(2)]
    await until(lambda: len(site.enqueued) == 2)
    site.waiter.deliver("other", "nothing")
    assert site.waiter.count("key") == 2
    site.waiter.deliver("key", "reply")
    assert await asyncio.gather(*waits) == ["reply", "reply"]
    assert site.checks == ["reply", "reply"]
    assert site.waiter.count("key") == 0


async def test_lost_reply_is_found_by_a_check() -> None:
    site = Site(poll_interval_s=0.02, lost_after_s=60)
    wait = asyncio.create_task(site.wait())
    await until(lambda: len(site.checks) >= 2)
    site.stored = "stored"
    assert await wait == "stored"
    assert len(site.enqueued) == 1


async def test_gap_makes_every_wait_check() -> None:
    site = Site(poll_interval_s=60, lost_after_s=60)
    wait = asyncio.create_task(site.wait())
    await until(lambda: site.enqueued)
    site.stored = "stored"
    site.waiter.wake_all()
    assert await wait == "stored"


async def test_lost_job_is_enqueued_again() -> None:
    site = Site(poll_interval_s=60, lost_after_s=0.02)
    wait = asyncio.create_task(site.wait())
    await until(lambda: len(site.enqueued) >= 3)
    site.waiter.deliver("key", "reply")
    assert await wait == "reply"


@pytest.mark.parametrize("error", [ServiceError("queue-unavailable"), TimeoutError()])
async def test_failed_job_is_retried_soon(error: Exception) -> None:
    site = Site(poll_interval_s=0.02, lost_after_s=60)
    site.error = error
    wait = asyncio.create_task(site.wait())
    await until(lambda: len(site.enqueued) >= 3)
    assert len(site.checks) in {len(site.enqueued), len(site.enqueued) - 1}  # one read of the row for each retry
    site.waiter.deliver("key", "reply")
    assert await wait == "reply"


@pytest.mark.parametrize("timeout_s", [0, 30])
async def test_error_that_is_no_outage_is_raised(timeout_s: float) -> None:
    site = Site(poll_interval_s=0.02)
    site.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await site.wait(timeout_s)
    assert site.waiter.count("key") == 0


async def test_enqueueing_that_hangs_ends_in_time() -> None:
    site = Site()
    hanging = 0

    def hang(_: Job) -> asyncio.Future[None]:
        nonlocal hanging
        hanging += 1
        return asyncio.get_running_loop().create_future()

    waiter: JobWaiter[str, str] = JobWaiter(hang, poll_interval_s=60, lost_after_s=0.02)
    wait = asyncio.create_task(waiter.wait("key", JOB, site.check, timeout_s=30))
    await until(lambda: hanging >= 2)
    waiter.deliver("key", "reply")
    assert await wait == "reply"


@pytest.mark.parametrize("ending", ["timeout", "cancellation", "result"])
async def test_error_after_the_wait_is_not_logged(ending: str) -> None:
    """Otherwise an outage of Redis writes a traceback for each client that has disconnected meanwhile."""
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    enqueued: list[asyncio.Future[None]] = []

    def enqueue(_: Job) -> asyncio.Future[None]:
        enqueued.append(loop.create_future())
        return enqueued[-1]

    site = Site()
    site.stored = "stored"
    timeout_s, lost_after_s = (0, 0.02) if ending == "timeout" else (30, 60)
    waiter: JobWaiter[str, str] = JobWaiter(enqueue, poll_interval_s=60, lost_after_s=lost_after_s)
    wait = asyncio.create_task(waiter.wait("key", JOB, site.check, timeout_s=timeout_s, check_first=ending == "result"))
    await until(lambda: enqueued)
    if ending == "cancellation":
        wait.cancel()
    await asyncio.wait([wait])
    del wait
    enqueued.pop().set_exception(ServiceError("queue-unavailable"))
    await asyncio.sleep(0)
    gc.collect()
    assert unhandled == []


async def test_wait_ends_at_its_timeout() -> None:
    site = Site(poll_interval_s=0.02)
    assert await site.wait(timeout_s=0.1) is None
    assert len(site.enqueued) == 1
    assert site.waiter.count("key") == 0


async def test_wait_of_no_time_only_enqueues() -> None:
    site = Site()
    assert await site.wait(timeout_s=0, before_retry=site.wait, check_first=True) is None
    assert len(site.enqueued) == 1
    assert site.checks == []


async def test_finished_job_is_found_at_once() -> None:
    site = Site(poll_interval_s=60)
    site.stored = "stored"
    assert await site.wait(check_first=True) == "stored"
    assert site.checks == [None]


async def test_last_resort_ends_the_wait() -> None:
    """Before a job is enqueued again, and at the end."""
    site = Site(poll_interval_s=60, lost_after_s=0.02)
    outcomes = iter([None, "lost"])

    async def look() -> str | None:
        return next(outcomes)

    assert await site.wait(before_retry=look) == "lost"
    assert len(site.enqueued) == 2

    async def give_up() -> str | None:
        raise ServiceError("storage-unavailable")

    with pytest.raises(ServiceError, match="storage-unavailable"):
        await site.wait(timeout_s=0.01, before_retry=give_up)
    assert site.waiter.count("key") == 0


async def test_cancelled_wait_leaves_the_others() -> None:
    site = Site(poll_interval_s=60, lost_after_s=60)
    first, second = (asyncio.create_task(site.wait()) for _ in range(2))
    await until(lambda: len(site.enqueued) == 2)
    first.cancel()
    await asyncio.wait([first])
    assert site.waiter.count("key") == 1
    site.waiter.deliver("key", "reply")
    assert await second == "reply"
