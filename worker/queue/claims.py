"""The jobs of one worker in Redis: claims, renews, releases and finishes them, in groups, with a fair share for each
account.

The queue is arq's, with its keys, payloads and leases. arq needs several round trips for each job; here one script
handles a group.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis.exceptions import NoScriptError

from service.dependencies.outages import QUEUE
from service.errors import ServiceError
from service.queue.connection import Argument, Redis, Script
from service.queue.fair_dispatch import JOIN, FairQueueKeys, others_wakeup_key
from service.queue.jobs import MAX_WAKEUP_TOKENS, REPLY_CHANNELS_PREFIX, UNAVAILABLE
from service.queue.waiter import encode_message

# A job belongs to its worker for this long, and the worker renews its leases every second. So the jobs of a killed
# worker run elsewhere after some seconds. With arq's leases they would wait for the longest time limit of all
# functions.
LEASE_S = 6
_TRIES_EXPIRE_S = 24 * 60 * 60
# The maximum of a job's delay. A job that is due later, or a longer lease, was written before the clock of Redis was
# set back.
MAX_DEFER_S = 60
# How often a worker searches for jobs that have no turn, and how many it reads, which takes Redis less than a
# millisecond.
_SCAN_INTERVAL_S = 0.5
_PAGE_SIZE = 1000
# The name of the group of all slow accounts. Every other account is its own group.
_SLOW_GROUP = "slow"

_CLAIM = Script(JOIN + Path(__file__).with_name("claim.lua").read_text())
_FINISH = Script(Path(__file__).with_name("finish.lua").read_text())


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker has claimed. `score` is the time when it was due, in milliseconds, and `waited_s` how long
    ago that was, by the clock of Redis. `tries` counts earlier runs. `account` is empty if the client set none.
    """

    id: str
    account: str
    score: int
    waited_s: float
    payload: bytes | None
    tries: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a run: the job is finished, with a reply to its waiters, or runs again after `retry_after_ms`."""

    job_id: str
    reply: object = None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    """How many more jobs each account may get: `share`, except for accounts in `groups`, as (account, group, room).
    The accounts of a group share its room.
    """

    share: int
    groups: Sequence[tuple[str, str, int]] = ()

    @property
    def full_accounts(self) -> frozenset[str]:
        return frozenset(account for account, _, room in self.groups if room <= 0)


class AccountShares:
    """Counts the jobs of one worker by account, and decides how many more it should claim.

    An account, or the slow accounts together, may have `share` jobs, and the other accounts `spare` more. The values
    change with the speed of the pictures, so all three parameters are functions. Jobs are claimed in groups: a share
    has no room until half of it is free.
    """

    def __init__(
        self,
        share: Callable[[], int],
        spare: Callable[[], int] = lambda: 0,
        slow: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._share = share
        self._spare = spare
        self._slow = slow
        self._jobs: Counter[str] = Counter()

    def add(self, account: str) -> None:
        self._jobs[account] += 1

    def remove(self, account: str) -> None:
        self._jobs[account] -= 1
        if not self._jobs[account]:
            del self._jobs[account]

    def free_slots(self) -> int:
        """Returns how many jobs to claim. An account with more than its share takes no room from others."""
        share, spare, total = self._share(), self._spare(), self._jobs.total()
        if 2 * total <= share:
            return share + spare - total
        largest = max(self._count_by_group(set(self._slow())).values())
        free = max(share, largest) + spare - total
        return free if spare and 2 * free >= spare else 0

    def claim_limits(self) -> ClaimLimits:
        share, slow = self._share(), set(self._slow())
        counts = self._count_by_group(slow)
        return ClaimLimits(
            share,
            [
                (account, group, share - counts[group] if 2 * counts[group] <= share else 0)
                for account in self._jobs.keys() | slow
                for group in [_group_of(account, slow)]
            ],
        )

    def _count_by_group(self, slow: Collection[str]) -> Counter[str]:
        groups: Counter[str] = Counter()
        for account, count in self._jobs.items():
            groups[_group_of(account, slow)] += count
        return groups


def _group_of(account: str, slow: Collection[str]) -> str:
    return _SLOW_GROUP if account in slow else account


class Claims:
    """The claims of one worker on the jobs of one queue.

    `wakeup_key` is the list onto which clients push a token for each job that they enqueue.
    """

    def __init__(self, redis: Redis, queue: str, wakeup_key: str, *, lease_s: float = LEASE_S) -> None:
        self.has_more = True  # the last claim left jobs behind; unknown before the first
        self.has_skipped = False  # the last claim skipped jobs of accounts without room
        self._others_wakeup_key = others_wakeup_key(wakeup_key)
        self._redis = redis
        self._lease_ms = round(lease_s * 1000)
        turns = FairQueueKeys.of(queue)
        self._claim_keys = [queue, wakeup_key, self._others_wakeup_key, turns.turns, turns.later, turns.accounts]
        self._finish_keys = [queue, turns.later, turns.accounts]
        self._wakeup_key = wakeup_key
        self._prefixes = [in_progress_key_prefix, job_key_prefix, retry_key_prefix, turns.line]
        self._later = turns.later
        self._offset = 0  # in arq's set, where the next search for jobs without a turn starts
        self._next_scan = 0.0
        # Apart from others, because their commands wait for a wake-up.
        self._waiting = redis.add_pipeline()
        self._waiting_for_others = redis.add_pipeline()

    async def claim(self, count: int, limits: ClaimLimits, *, wait_s: float) -> list[ClaimedJob]:
        """Claims at most `count` jobs in one round trip. Waits for a wake-up first, for at most `wait_s`, unless it is
        0.
        """
        args: list[Argument] = [
            *self._prefixes,
            count,
            self._lease_ms,
            MAX_WAKEUP_TOKENS,
            _PAGE_SIZE,
            self._choose_offset(),
            int(wait_s > 0),
        ]
        args += [limits.share, MAX_DEFER_S * 1000, *(value for group in limits.groups for value in group)]
        commands = [_CLAIM.command(self._claim_keys, args)]
        if wait_s:
            commands.insert(0, ("BLPOP", self._wakeup_key, wait_s))
        try:
            has_more, skipped, claimed, now, offset = await self._waiting.send(*commands, wait_s=wait_s)
        except NoScriptError:  # this is the worker's first claim, or Redis was restarted
            await _CLAIM.load(self._waiting)
            self.has_more = True
            return []
        except asyncio.CancelledError:
            self._waiting.close()  # otherwise it would claim jobs later, for nobody
            raise
        self.has_more, self.has_skipped, self._offset = bool(has_more), bool(skipped), max(0, offset)
        return [
            ClaimedJob(job_id.decode(), account.decode(), due, max(0, now - due) / 1000, payload, int(tries or 0))
            for job_id, account, due, payload, tries in claimed
        ]

    async def wait_for_others(self, wait_s: float) -> None:
        """Waits for a wake-up because of an account that had no waiting jobs, for at most `wait_s`, and takes it."""
        try:
            await self._waiting_for_others.send(("BLPOP", self._others_wakeup_key, wait_s), wait_s=wait_s)
        except asyncio.CancelledError:
            self._waiting_for_others.close()  # otherwise it would take a wake-up later, for nobody
            raise

    def _choose_offset(self) -> int:
        """Returns the offset at which to search for jobs without a turn, or -1 if it is too early to search."""
        now = time.monotonic()
        if now < self._next_scan:
            return -1
        self._next_scan = now + _SCAN_INTERVAL_S
        return self._offset

    async def release(self, claimed: Sequence[ClaimedJob]) -> None:
        """Releases jobs that have not started, so that another worker claims them."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(*(in_progress_key_prefix + job.id for job in claimed))
            pipe.zadd(self._later, {job.id: job.score for job in claimed}, xx=True)  # so that the next claim finds them
            pipe.rpush(self._wakeup_key, b"")
            pipe.ltrim(self._wakeup_key, -MAX_WAKEUP_TOKENS, -1)
            await pipe.execute()

    async def renew(self, job_ids: Iterable[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.pexpire(in_progress_key_prefix + job_id, self._lease_ms)
            await pipe.execute()

    async def finish(self, results: Sequence[JobResult]) -> list[None]:
        """Raises `queue-unavailable`."""
        args: list[Argument] = [
            in_progress_key_prefix,
            job_key_prefix,
            retry_key_prefix,
            REPLY_CHANNELS_PREFIX,
        ]
        args.append(_TRIES_EXPIRE_S)
        for result in results:
            reply = b"" if result.reply is None else encode_message(result.reply)
            args += (result.job_id, "" if result.retry_after_ms is None else result.retry_after_ms, reply)
        try:
            await _FINISH.run(self._redis.pipelined, self._finish_keys, args)
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        return [None] * len(results)
