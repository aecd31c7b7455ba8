"""The jobs of one worker in Redis: claims, renews, releases and finishes them, in groups.

The queue is arq's own, with its keys, payloads and leases. arq makes several round trips for a job; here one script
handles a group.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis.exceptions import NoScriptError

from service.dependencies.outages import QUEUE
from service.errors import ServiceError
from service.queue.fair_dispatch import JOIN, FairQueueKeys, others_wakeup_key
from service.queue.jobs import MAX_WAKEUP_TOKENS, REPLY_CHANNELS_PREFIX, UNAVAILABLE
from service.queue.waiter import encode_message
from worker.fairness import ClaimLimits

# A job belongs to its worker for this long, and the worker renews its leases every second. So the jobs of a worker that
# was killed run elsewhere after some seconds; with arq's leases only after the longest time limit of all functions.
LEASE_S = 6
_TRIES_EXPIRE_S = 24 * 60 * 60
# The maximum of a job's delay. A job that is due later, or a longer lease, was written before the clock of Redis was
# set back.
MAX_DEFER_S = 60
# How often a worker looks for jobs that have no turn, and how many it reads: less than a millisecond of Redis's time.
_SCAN_INTERVAL_S = 0.5
_PAGE_SIZE = 1000

# Claims at most `free` jobs that are due and that no worker runs, with their payloads, in the order of their accounts'
# turns (service/queue/fair_dispatch.py). arq needs five round trips for each job instead. The script also returns
# whether it left jobs behind, and wakes the next worker for them. The time is that of Redis, as it is where jobs are
# enqueued, because the clocks of hosts differ. If that clock was set back, a job that is due too far in the future runs
# now, and a lease that is too long is shortened: its worker renews it if it is alive.
#
# First, jobs of `later` whose time has come join the line of their account. Then jobs without a turn get one: the
# script reads at most `page` jobs of arq's set from `offset` on, unless `offset` is negative and there is other work.
# An account gets no more jobs than the room of its group, or `share` if no room is given.
_CLAIM = (
    """
local queue, wakeups, turns, later, accounts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local running, job, retry, line = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local free, lease_ms, max_wakeups, page = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local offset, was_woken, share = tonumber(ARGV[9]), ARGV[10] == '1', tonumber(ARGV[11])
local max_defer_ms = tonumber(ARGV[12])
"""
    + JOIN
    + """
local group, room = {}, {}
for i = 13, #ARGV, 3 do
    group[ARGV[i]], room[ARGV[i + 1]] = ARGV[i + 1], tonumber(ARGV[i + 2])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(id)
    redis.call('HDEL', accounts, id)
    redis.call('ZREM', later, id)
end
local function is_deferred(due)
    return due > now and due <= now + max_defer_ms
end
local function check_later(id, account, due)
    redis.call('HSET', accounts, id, account)
    redis.call('ZADD', later, due, id)
end
local function check_after_lease(id, account)
    local ttl_ms = redis.call('PTTL', running .. id)
    if ttl_ms > lease_ms then
        redis.call('PEXPIRE', running .. id, lease_ms)
        ttl_ms = lease_ms
    end
    check_later(id, account, now + (ttl_ms > 0 and ttl_ms or lease_ms))
end

local function check(id)
    local due = tonumber(redis.call('ZSCORE', queue, id))
    local account = redis.call('HGET', accounts, id) or ''
    if not due then
        forget(id)
    elseif is_deferred(due) then
        check_later(id, account, due)
    elseif redis.call('EXISTS', running .. id) == 1 then
        check_after_lease(id, account)
    else
        redis.call('ZREM', later, id)
        join(id, account, due)
    end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, page)) do
    check(id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, now + max_defer_ms + 1, '+inf', 'LIMIT', 0, page)) do
    check(id)
end

local depth, known = redis.call('ZCARD', queue), redis.call('HLEN', accounts)
if depth == 0 and known > 0 then
    for _, account in ipairs(redis.call('ZRANGE', turns, 0, -1)) do
        redis.call('DEL', line .. account)
    end
    redis.call('DEL', turns, later, accounts)
elseif offset >= 0 or (depth ~= known and redis.call('EXISTS', turns) == 0) then
    offset = math.max(offset, 0)
    local jobs = redis.call('ZRANGE', queue, offset, offset + page - 1, 'WITHSCORES')
    for i = 1, #jobs, 2 do
        local id, due = jobs[i], tonumber(jobs[i + 1])
        if redis.call('HEXISTS', accounts, id) == 0 then
            if is_deferred(due) then
                check_later(id, '', due)
            else
                join(id, '', due)
            end
        end
    end
    offset = #jobs == 2 * page and offset + page or 0
end

local claimed, has_more, skipped, dropped = {}, 0, 0, 0
local is_alone = redis.call('ZCARD', turns) == 1
while true do
    local account = redis.call('ZRANGE', turns, skipped, skipped)[1]
    if not account then
        break
    end
    local owner = group[account] or account
    if (room[owner] or share) <= 0 then
        skipped = skipped + 1
    elseif #claimed >= free or dropped >= page then
        has_more = 1
        break
    else
        local id = redis.call('ZPOPMIN', line .. account)[1]
        local due = id and tonumber(redis.call('ZSCORE', queue, id))
        local is_claimed = false
        if not due then
            if id then forget(id) end
        elseif is_deferred(due) then
            check_later(id, account, due)
        else
            is_claimed = redis.call('SET', running .. id, '1', 'NX', 'PX', lease_ms)
            if not is_claimed then check_after_lease(id, account) end
        end
        if is_claimed then
            redis.call('ZADD', later, now + lease_ms, id)
            room[owner] = (room[owner] or share) - 1
            local payload, tries = redis.call('GET', job .. id), redis.call('GET', retry .. id)
            claimed[#claimed + 1] = {id, account, due, payload, tries}
        else
            dropped = dropped + 1
        end
        if redis.call('EXISTS', line .. account) == 0 then
            redis.call('ZREM', turns, account)
        elseif is_claimed and not is_alone then
            give_last_turn(account)
        end
    end
end
if (was_woken or #claimed > 0) and redis.call('EXISTS', turns) == 1 then
    redis.call('RPUSH', wakeups, '')
    redis.call('LTRIM', wakeups, -max_wakeups, -1)
end
return {has_more, skipped, claimed, now, offset}
"""
)

# For each job: its id, the milliseconds after which it runs again (empty if it is finished), and the reply (empty if
# there is none). In one step, so that no job is in the queue without its payload, and that no client begins to wait
# between the reply and the end of the job. A channel gets its replies as one message, a msgpack array.
_FINISH = """
local queue, later, accounts = KEYS[1], KEYS[2], KEYS[3]
local running, job, retry, waiting, tries_expire_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replies = {}
for i = 6, #ARGV, 3 do
    local id, retry_after_ms, reply = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if retry_after_ms ~= '' then
        if redis.call('ZSCORE', queue, id) then  -- unless another worker has finished it meanwhile
            redis.call('ZADD', queue, now + retry_after_ms, id)
            redis.call('ZADD', later, now + retry_after_ms, id)
            redis.call('INCR', retry .. id)
            redis.call('EXPIRE', retry .. id, tries_expire_s)
        end
        redis.call('DEL', running .. id)
    else
        if reply ~= '' then
            for _, channel in ipairs(redis.call('SMEMBERS', waiting .. id)) do
                replies[channel] = replies[channel] or {}
                table.insert(replies[channel], reply)
            end
        end
        redis.call('ZREM', queue, id)
        redis.call('ZREM', later, id)
        redis.call('HDEL', accounts, id)
        redis.call('DEL', running .. id, job .. id, retry .. id, waiting .. id)
    end
end
for channel, list in pairs(replies) do
    local header = string.char(0xdc, math.floor(#list / 256), #list % 256)
    redis.call('PUBLISH', channel, header .. table.concat(list))
end
"""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job of this worker. `score` is the time when it was due, in milliseconds, and `waited_s` how long ago that was
    by
    the clock of Redis. `tries` counts earlier runs that were retried. `account` is empty if the client named none.
    """

    id: str
    account: str
    score: int
    waited_s: float
    payload: bytes | None
    tries: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """Of a finished job, with the reply to those who wait for it; or of one that runs again after `retry_after_ms`."""

    job_id: str
    reply: object = None
    retry_after_ms: int | None = None


class Claims:
    """The claims of one worker on the jobs of one queue.

    `wakeup_key` is the list onto which clients push a token for each job that they enqueue.
    """

    def __init__(self, redis: ArqRedis, queue: str, wakeup_key: str, *, lease_s: float = LEASE_S) -> None:
        self.has_more = True  # the last claim left jobs behind; unknown before the first
        self.has_skipped = False  # the last claim skipped jobs of accounts without room
        self.others_wakeup_key = others_wakeup_key(wakeup_key)
        self._redis = redis
        self._lease_ms = round(lease_s * 1000)
        turns = FairQueueKeys.of(queue)
        self._keys = [queue, wakeup_key, turns.turns, turns.later, turns.accounts]
        self._wakeup_key = wakeup_key
        self._prefixes = [in_progress_key_prefix, job_key_prefix, retry_key_prefix, turns.line]
        self._later = turns.later
        self._offset = 0  # in arq's set, where the next search for jobs without a turn begins
        self._next_scan = 0.0
        self._claim_sha = ""
        self._finish = redis.register_script(_FINISH)

    async def claim(self, count: int, limits: ClaimLimits, *, wait_s: float) -> list[ClaimedJob]:
        """Claims at most `count` jobs in one round trip. Waits for a wake-up first, for at most `wait_s`, unless it is
        0.
        """
        args = [
            *self._prefixes,
            count,
            self._lease_ms,
            MAX_WAKEUP_TOKENS,
            _PAGE_SIZE,
            self._choose_offset(),
            int(wait_s > 0),
        ]
        args += [limits.share, MAX_DEFER_S * 1000, *chain.from_iterable(limits.groups)]
        async with self._redis.pipeline(transaction=False) as pipe:
            if wait_s:
                pipe.blpop([self._wakeup_key], timeout=wait_s)  # type: ignore[arg-type] # fractions are allowed
            pipe.evalsha(self._claim_sha, len(self._keys), *self._keys, *args)  # type: ignore[arg-type]
            try:
                *_, (has_more, skipped, claimed, now, offset) = await pipe.execute()
            except NoScriptError:  # this is the worker's first claim, or Redis was restarted
                self._claim_sha = await self._redis.script_load(_CLAIM)
                self.has_more = True
                return []
        self.has_more, self.has_skipped, self._offset = bool(has_more), bool(skipped), max(0, offset)
        return [
            ClaimedJob(job_id.decode(), account.decode(), due, max(0, now - due) / 1000, payload, int(tries or 0))
            for job_id, account, due, payload, tries in claimed
        ]

    def _choose_offset(self) -> int:
        """Where to search for jobs without a turn, or -1 if it is too early to."""
        now = time.monotonic()
        if now < self._next_scan:
            return -1
        self._next_scan = now + _SCAN_INTERVAL_S
        return self._offset

    async def release(self, claimed: Sequence[ClaimedJob]) -> None:
        """Gives jobs that have not started to another worker."""
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
        args: list[str | int | bytes] = [
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
            await self._finish(keys=[self._keys[0], *self._keys[3:]], args=args)
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        return [None] * len(results)
