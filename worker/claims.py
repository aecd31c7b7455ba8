"""The jobs of one worker as they stand in Redis: claimed, renewed, given back and ended, in groups.

The queue is arq's own, with its keys, payloads and leases; where arq makes several round trips a job, a script makes
one a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis.exceptions import NoScriptError

from service.errors import ServiceError
from service.queue.channels import encode_message
from service.queue.jobs import MOST_TOKENS, UNAVAILABLE, WAITING

# A job belongs to its worker for this long, renewed at every look: the jobs of a worker that was killed run elsewhere
# after some seconds, not after the longest time limit of all functions as arq has it.
LEASE_S = 6
_TRIES_KEPT_S = 24 * 60 * 60

# Take up to `free` jobs that are due and that nobody runs, with all that is known of them. In one step, where arq makes
# five round trips a job; and it knows whether it leaves any behind, for which it wakes the next worker. The time is
# Redis's, as it is where jobs are enqueued: hosts may differ.
_CLAIM = """
local queue, bell = KEYS[1], KEYS[2]
local free, lease_ms, most_tokens = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local running, job, retry = ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1000)
local claimed, left = {}, 0
for i = 1, #due, 2 do
    local key = running .. due[i]
    if #claimed < free then
        if redis.call('SET', key, '1', 'NX', 'PX', lease_ms) then
            local id = due[i]
            claimed[#claimed + 1] = {id, due[i + 1], redis.call('GET', job .. id), redis.call('GET', retry .. id)}
        end
    elseif redis.call('EXISTS', key) == 0 then
        left = 1
        redis.call('RPUSH', bell, '')
        redis.call('LTRIM', bell, -most_tokens, -1)
        break
    end
end
return {left, claimed, now}
"""

# Of each job its id, after how many milliseconds it runs again (nothing if it is done), and the reply (nothing if there
# is none). In one step, so that no job is in the queue without its payload, and that nobody begins to wait for one
# between its reply and its end. A channel gets its replies as one message, a msgpack array.
_END = """
local queue = KEYS[1]
local running, job, retry, waiting, tries_kept_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replies = {}
for i = 6, #ARGV, 3 do
    local id, again_after_ms, reply = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if again_after_ms ~= '' then
        if redis.call('ZSCORE', queue, id) then  -- else another worker ended it meanwhile
            redis.call('ZADD', queue, now + again_after_ms, id)
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
    clock of Redis; `tries` are those that were put off.
    """

    id: str
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
        self._redis = redis
        self._queue = queue
        self._bell = bell
        self._claim = ""  # the script's name in Redis
        self._end = redis.register_script(_END)

    async def claim(self, most: int, *, wait_s: float) -> list[ClaimedJob]:
        """In one round trip, which waits for the bell first, unless for 0 seconds."""
        keys = [self._queue, self._bell]
        lease = [LEASE_S * 1000, MOST_TOKENS, in_progress_key_prefix, job_key_prefix, retry_key_prefix]
        async with self._redis.pipeline(transaction=False) as pipe:
            if wait_s:
                pipe.blpop([self._bell], timeout=wait_s)  # type: ignore[arg-type] # a list, and parts of a second
            pipe.evalsha(self._claim, len(keys), *keys, most, *lease)  # type: ignore[arg-type]
            try:
                *_, (left, claimed, now) = await pipe.execute()
            except NoScriptError:  # this worker's first time, or Redis was restarted
                self._claim = await self._redis.script_load(_CLAIM)
                self.left_behind = True
                return []
        self.left_behind = bool(left)
        return [
            ClaimedJob(job_id.decode(), int(float(score)), (now - float(score)) / 1000, payload, int(tries or 0))
            for job_id, score, payload, tries in claimed
        ]

    async def give_back(self, claimed: Sequence[ClaimedJob]) -> None:
        """For another worker."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(*(in_progress_key_prefix + job.id for job in claimed))
            pipe.rpush(self._bell, b"")
            pipe.ltrim(self._bell, -MOST_TOKENS, -1)
            await pipe.execute()

    async def renew(self, job_ids: Iterable[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.pexpire(in_progress_key_prefix + job_id, LEASE_S * 1000)
            await pipe.execute()

    async def end(self, ends: Sequence[JobEnd]) -> list[None]:
        """Raises `queue-unavailable`."""
        words: list[str | int | bytes] = [in_progress_key_prefix, job_key_prefix, retry_key_prefix, WAITING]
        words.append(_TRIES_KEPT_S)
        for end in ends:
            reply = b"" if end.reply is None else encode_message(end.reply)
            words += (end.job_id, "" if end.again_after_ms is None else end.again_after_ms, reply)
        try:
            await self._end(keys=[self._queue], args=words)
        except UNAVAILABLE as error:
            raise ServiceError("queue-unavailable") from error
        return [None] * len(ends)
