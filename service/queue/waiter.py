"""Waits for the result of a job.

A reply is a hint that makes the wait short. What counts is the row or the file itself, which is checked at intervals,
since Redis may lose a reply or the job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import ServiceError
from service.queue.jobs import Job

Key = TypeVar("Key", bound=Hashable)
Reply = TypeVar("Reply")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Wait(Generic[Reply]):
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Reply | None = None

    def take_reply(self) -> Reply | None:
        reply, self.reply = self.reply, None
        return reply


class JobWaiter(Generic[Key, Reply]):
    """The waits of one process by the key of their result. Several may wait for one key.

    `deliver` and `wake_all` are for the subscriber of the process's reply channel. The intervals: results are checked
    every `poll_interval_s`; a job is enqueued again `lost_after_s` after it went well, since Redis may lose what it was
    given last, and `retry_after_s` after it failed. One attempt takes at most `enqueue_timeout_s`.
    """

    def __init__(
        self,
        enqueue: Callable[[Job], Awaitable[None]],
        *,
        poll_interval_s: float = 1.0,
        lost_after_s: float = 2.0,
        retry_after_s: float = 0.5,
        enqueue_timeout_s: float = 1.0,
    ) -> None:
        self.poll_interval_s = poll_interval_s
        self.lost_after_s = lost_after_s
        self.retry_after_s = retry_after_s
        self.enqueue_timeout_s = enqueue_timeout_s
        self._enqueue_job = enqueue
        self._waits: dict[Key, list[_Wait[Reply]]] = {}

    def count(self, key: Key) -> int:
        """Returns how many wait for the key."""
        return len(self._waits.get(key, ()))

    def deliver(self, key: Key, reply: Reply) -> None:
        """Hands a reply to all that wait for the key."""
        for wait in self._waits.get(key, ()):
            wait.reply = reply
            wait.wakeup.set()

    def wake_all(self) -> None:
        """Makes every wait check its result, because replies may have been lost."""
        for waits in self._waits.values():
            for wait in waits:
                wait.wakeup.set()

    async def wait(
        self,
        key: Key,
        job: Job,
        check: Callable[[Reply | None], Awaitable[Result | None]],
        *,
        timeout_s: float,
        check_at_once: bool = False,
        before_retry: Callable[[], Awaitable[Result | None]] | None = None,
    ) -> Result | None:
        """Enqueues the job and returns what `check` returns, or None if that is still None after `timeout_s`.

        `check` gets the reply, or None if it should look at the row or the file itself. `check_at_once` is for a job
        that may be finished already. `before_retry` may end the wait before the job is enqueued again, and at its end.
        Raises what the two raise.
        """
        deadline = time.monotonic() + timeout_s
        wait: _Wait[Reply] = _Wait()
        waits = self._waits.setdefault(key, [])
        waits.append(wait)  # before the job is enqueued, so that no reply is missed
        if check_at_once:
            wait.wakeup.set()
        try:
            while True:
                retry_after_s = self.lost_after_s if await self._enqueue(job) else self.retry_after_s
                retry_at = min(deadline, time.monotonic() + retry_after_s)
                if time.monotonic() >= deadline and wait.reply is None:
                    return None
                if (result := await self._wait_until(retry_at, wait, check)) is not None:
                    return result
                if before_retry is not None and (result := await before_retry()) is not None:
                    return result
                if time.monotonic() >= deadline:
                    return None
        finally:
            waits.remove(wait)
            if not waits:
                del self._waits[key]

    async def _wait_until(
        self, end: float, wait: _Wait[Reply], check: Callable[[Reply | None], Awaitable[Result | None]]
    ) -> Result | None:
        while (remaining := end - time.monotonic()) > 0 or wait.reply is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, self.poll_interval_s)):
                    await wait.wakeup.wait()
            wait.wakeup.clear()
            if (result := await check(wait.take_reply())) is not None:
                return result
        return None

    async def _enqueue(self, job: Job) -> bool:
        """Returns whether the job is in the queue. If it was there before, it is left alone."""
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(self.enqueue_timeout_s):
                await self._enqueue_job(job)
                return True
        return False
