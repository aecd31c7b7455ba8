"""The jobs of one worker as they stand in Redis: claimed, renewed, given back and ended, in groups.

The queue is arq's own, with its keys, payloads and leases; where arq makes several round trips a job, a script makes
one a group.
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
from service.queue.pubsub import encode_message
from worker.queue.shares import Rooms

# A job belongs to its worker for this long, renewed at every look: the jobs of a worker that was killed run elsewhere
# after some seconds, not after the longest time limit of all functions as arq has it.
LEASE_S = 6
_TRIES_KEPT_S = 24 * 60 * 60
# No job is put off for longer. One that is due later, or a lease that is longer than any, is from before the clock of
# Redis was set back.
MAX_DEFER_S = 60
# Jobs without a turn are looked for this often, and this many jobs are read then: less than a millisecond of Redis.
_LOOK_S = 0.5
_PAGE = 1000

# Claims up to `free` jobs that are due and that nobody runs, with all that is known of them, by the turns of their
# accounts (queue/fair_dispatch.py). In one step, where arq makes five round trips a job; and it knows whether it leaves
# any behind, for which it wakes the next worker. The time is that of Redis, as it is where jobs are enqueued: hosts may
# differ. Where that clock was set back, a job that lies too far ahead is due, and a lease that is too long is cut: its
# worker renews it if it lives.
#
# First the jobs of `later` whose time has come get a place in line. Then jobs that nobody gave a turn get one: at most
# `page` jobs of arq's set are read, from `offset` on, if that is not negative, or if there is nothing else to do. An
# account takes no more than the room of its group, `share` if no room is given.
_CLAIM = (
    """
local queue, bell, turns, later, accounts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local running, job, retry, line = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local free, lease_ms, most_tokens, page = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local offset, rung, share = tonumber(ARGV[9]), ARGV[10] == '1', tonumber(ARGV[11])
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
local function is_put_off(due)
    return due > now and due <= now + max_defer_ms
end
local function look_later(id, account, due)
    redis.call('HSET', accounts, id, account)
    redis.call('ZADD', later, due, id)
end
local function look_after_lease(id, account)
    local left_ms = redis.call('PTTL', running .. id)
    if left_ms > lease_ms then
        redis.call('PEXPIRE', running .. id, lease_ms)
        left_ms = lease_ms
    end
    look_later(id, account, now + (left_ms > 0 and left_ms or lease_ms))
end

local function look_at(id)
    local due = tonumber(redis.call('ZSCORE', queue, id))
    local account = redis.call('HGET', accounts, id) or ''
    if not due then
        forget(id)
    elseif is_put_off(due) then
        look_later(id, account, due)
    elseif redis.call('EXISTS', running .. id) == 1 then
        look_after_lease(id, account)
    else
        redis.call('ZREM', later, id)
        join(id, account, due)
    end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, page)) do
    look_at(id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', later, now + max_defer_ms + 1, '+inf', 'LIMIT', 0, page)) do
    look_at(id)
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
            if is_put_off(due) then
                look_later(id, '', due)
            else
                join(id, '', due)
            end
        end
    end
    offset = #jobs == 2 * page and offset + page or 0
end

local claimed, left, skipped, dropped = {}, 0, 0, 0
local is_alone = redis.call('ZCARD', turns) == 1
while true do
    local account = redis.call('ZRANGE', turns, skipped, skipped)[1]
    if not account then
        break
    end
    local of = group[account] or account
    if (room[of] or share) <= 0 then
        skipped = skipped + 1
    elseif #claimed >= free or dropped >= page then
        left = 1
        break
    else
        local id = redis.call('ZPOPMIN', line .. account)[1]
        local due = id and tonumber(redis.call('ZSCORE', queue, id))
        local is_claimed = false
        if not due then
            if id then forget(id) end
        elseif is_put_off(due) then
            look_later(id, account, due)
        else
            is_claimed = redis.call('SET', running .. id, '1', 'NX', 'PX', lease_ms)
            if not is_claimed then look_after_lease(id, account) end
        end
        if is_claimed then
            redis.call('ZADD', later, now + lease_ms, id)
            room[of] = (room[of] or share) - 1
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
if (rung or #claimed > 0) and redis.call('EXISTS', turns) == 1 then
    redis.call('RPUSH', bell, '')
    redis.call('LTRIM', bell, -most_tokens, -1)
end
return {left, skipped, claimed, now, offset}
"""
)

# Of each job its id, after how many milliseconds it runs again (nothing if it is done), and the reply (nothing if there
# is none). In one step, so that no job is in the queue without its payload, and that nobody begins to wait for one
# between its reply and its end. A channel gets its replies as one message, a msgpack array.
_END = """
local queue, later, accounts = KEYS[1], KEYS[2], KEYS[3]
local running, job, retry, waiting, tries_kept_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replies = {}
for i = 6, #ARGV, 3 do
    local id, again_after_ms, reply = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if again_after_ms ~= '' then
        if redis.call('ZSCORE', queue, id) then  -- else another worker ended it meanwhile
            redis.call('ZADD', queue, now + again_after_ms, id)
            redis.call('ZADD', later, now + again_after_ms, id)
            redis.call('INCR', retry .. id)
            redis.call('EXPIRE', retry .. id, tries_kept_s)
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
    """A job of this worker's. `score` is when it was due, in milliseconds, and `waited_s` how long ago that was by the
    clock of Redis; `tries` are those that were put off. `account` is empty if nobody named one.
    """

    id: str
    account: str
    score: int
    waited_s: float
    payload: bytes | None
    tries: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job is done, and whoever waits for it is told the reply if there is one; or it runs again after some time."""

    job_id: str
    reply: object = None
    again_after_ms: int | None = None


class Claims:
    """Of one queue; `bell` is the list that whoever enqueues pushes a token on."""

    def __init__(self, redis: ArqRedis, queue: str, bell: str) -> None:
        self.left_behind = True  # there are more than the last claim took; perhaps, before the first
        self.skipped = False  # the last claim skipped jobs of accounts without room
        self.others_bell = others_wakeup_key(bell)
        self._redis = redis
        turns = FairQueueKeys.of(queue)
        self._keys = [queue, bell, turns.turns, turns.later, turns.accounts]
        self._bell = bell
        self._words = [in_progress_key_prefix, job_key_prefix, retry_key_prefix, turns.line]
        self._later = turns.later
        self._offset = 0  # in arq's set, of the next look for jobs without a turn
        self._next_look = 0.0
        self._claim = ""  # the script's name in Redis
        self._end = redis.register_script(_END)

    async def claim(self, count: int, rooms: Rooms, *, wait_s: float) -> list[ClaimedJob]:
        """Claims at most `count` jobs in one round trip, which waits for the bell first, unless for 0 seconds."""
        words = [*self._words, count, LEASE_S * 1000, MAX_WAKEUP_TOKENS, _PAGE, self._choose_offset(), int(wait_s > 0)]
        words += [rooms.share, MAX_DEFER_S * 1000, *chain.from_iterable(rooms.groups)]
        async with self._redis.pipeline(transaction=False) as pipe:
            if wait_s:
                pipe.blpop([self._bell], timeout=wait_s)  # type: ignore[arg-type] # a list, and parts of a second
            pipe.evalsha(self._claim, len(self._keys), *self._keys, *words)  # type: ignore[arg-type]
            try:
                *_, (left, skipped, claimed, now, offset) = await pipe.execute()
            except NoScriptError:  # this worker's first time, or Redis was restarted
                self._claim = await self._redis.script_load(_CLAIM)
                self.left_behind = True
                return []
        self.left_behind, self.skipped, self._offset = bool(left), bool(skipped), max(0, offset)
        return [
            ClaimedJob(job_id.decode(), account.decode(), due, max(0, now - due) / 1000, payload, int(tries or 0))
            for job_id, account, due, payload, tries in claimed
        ]

    def _choose_offset(self) -> int:
        """Where to look for jobs without a turn; -1 if it is too early."""
        now = time.monotonic()
        if now < self._next_look:
            return -1
        self._next_look = now + _LOOK_S
        return self._offset

    async def give_back(self, claimed: Sequence[ClaimedJob]) -> None:
        """For another worker."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(*(in_progress_key_prefix + job.id for job in claimed))
            pipe.zadd(self._later, {job.id: job.score for job in claimed}, xx=True)  # so the next claim finds them
            pipe.rpush(self._bell, b"")
            pipe.ltrim(self._bell, -MAX_WAKEUP_TOKENS, -1)
            await pipe.execute()

    async def renew(self, job_ids: Iterable[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.pexpire(in_progress_key_prefix + job_id, LEASE_S * 1000)
            await pipe.execute()

    async def end(self, ends: Sequence[JobEnd]) -> list[None]:
        """Raises `queue-unavailable`."""
        words: list[str | int | bytes] = [
            in_progress_key_prefix,
            job_key_prefix,
            retry_key_prefix,
            REPLY_CHANNELS_PREFIX,
        ]
        words.append(_TRIES_KEPT_S)
        for end in ends:
            reply = b"" if end.reply is None else encode_message(end.reply)
            words += (end.job_id, "" if end.again_after_ms is None else end.again_after_ms, reply)
        try:
            await self._end(keys=[self._keys[0], *self._keys[3:]], args=words)
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        return [None] * len(ends)
