"""The job contract: the queues' names, the codec, and how a job is enqueued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from service.config.settings import SettingsError
from service.dependencies.outages import QUEUE
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.queue.fair_dispatch import JOIN, FairQueueKeys, others_wakeup_key
from service.queue.heartbeats import Heartbeats
from service.telemetry.metrics import QueueState

PROBE_QUEUE = "daguerre:probe"
PROBE_IMAGE = "probe_image"
RENDER_QUEUE = "daguerre:render"
RENDER_IMAGE = "render_image"

# A worker without work waits for a token on this list; it holds as many as may wake a worker each, and no more,
# since tokens that nobody takes would keep the workers turning after a rush.
WAKEUP_KEY = "daguerre:probe:bell"
RENDER_WAKEUP_KEY = "daguerre:render:bell"
MAX_WAKEUP_TOKENS = 8

# With the id of a job: the set of channels that its reply goes to.
REPLY_CHANNELS_PREFIX = "daguerre:waiting:"

# What a check writes.
_CHECK = "daguerre:check"
_CHECK_EXPIRES_MS = 10_000

_EXPIRES_MS = 24 * 60 * 60 * 1000

# arq's payloads have the time of this host's clock. The score of a job, by the clock of Redis, is the one that counts.
_NO_TIME = 0

# arq hands its exceptions to the codec too.
encode = msgspec.msgpack.Encoder(enc_hook=repr).encode
decode = msgspec.msgpack.Decoder().decode

# A connection that is lost between redis-py's look at it and the write is a RuntimeError of uvloop's.
UNAVAILABLE = (RedisError, OSError, RuntimeError)


def open_redis(url: str) -> ArqRedis:
    """A client that connects when first used. Short time-outs: a Redis that is away is an answer too.

    Raises SettingsError for a URL that it cannot use.
    """
    try:
        pool = ConnectionPool.from_url(url, socket_connect_timeout=2, socket_timeout=5)
        pool.make_connection()  # type: ignore[no-untyped-call] # it does not connect yet
    except TypeError as error:  # of a parameter that no connection has
        raise SettingsError(f"DAGUERRE_REDIS_URL: {str(error).rpartition('() ')[2]}") from None
    except ValueError as error:
        raise SettingsError(f"DAGUERRE_REDIS_URL: {error}") from None
    return ArqRedis(pool, job_serializer=encode, job_deserializer=decode, default_queue_name=PROBE_QUEUE)


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """A look at one image of the account. Its reply goes to the channel `reply_to`, if that is not empty."""

    image_id: ImageId
    account_id: AccountId
    reply_to: str
    request_id: str

    @property
    def id(self) -> str:
        return self.image_id

    def serialize(self) -> bytes:
        return _serialize(PROBE_IMAGE, self.image_id, self.request_id)


@dataclass(frozen=True, slots=True)
class RenderJob:
    """One rendition, to be made once for all who ask: the reply goes to each of them. `order` is a
    `delivery.orders.RenderOrder`, encoded; the account is that of the image.
    """

    id: str
    account_id: AccountId
    order: bytes
    reply_to: str
    request_id: str

    def serialize(self) -> bytes:
        return _serialize(RENDER_IMAGE, self.order, self.request_id)


def _serialize(function: str, argument: object, request_id: str) -> bytes:
    context = {"request_id": request_id}
    data: bytes = serialize_job(function, (argument,), context, None, _NO_TIME, serializer=encode)
    return data


Job: TypeAlias = ProbeJob | RenderJob

# A job that waits or runs under its id is left alone; its reply goes to one more channel. It is due now by the clock of
# Redis, which claims go by too. Each token may wake a worker.
_ENQUEUE = (
    """
local queue, bell, others, turns, accounts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local job, waiting, line, expires_ms, most_tokens = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
"""
    + JOIN
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added, lines = 0, 0
for i = 6, #ARGV, 4 do
    local id, account, payload, reply_to = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    redis.call('SET', job .. id, payload, 'PX', expires_ms, 'NX')
    if reply_to ~= '' then
        redis.call('SADD', waiting .. id, reply_to)
        redis.call('PEXPIRE', waiting .. id, expires_ms)
    end
    if redis.call('ZADD', queue, 'NX', now, id) == 1 then
        added = added + 1
        if join(id, account, now) then
            lines = lines + 1
        end
    end
end
for list, tokens in pairs({[bell] = added, [others] = lines}) do
    for _ = 1, math.min(tokens, most_tokens) do
        redis.call('RPUSH', list, '')
    end
    redis.call('LTRIM', list, -most_tokens, -1)
end
return added
"""
)


class JobQueue:
    """Enqueues groups of jobs in one step: arq's own `enqueue_job`, with the same keys, takes three for each."""

    def __init__(self, redis: ArqRedis, *, name: str = PROBE_QUEUE, wakeup_key: str = WAKEUP_KEY) -> None:
        self._redis = redis
        turns = FairQueueKeys.of(name)
        self._name = name
        self._keys = [name, wakeup_key, others_wakeup_key(wakeup_key), turns.turns, turns.accounts]
        self._line = turns.line
        self._enqueue = redis.register_script(_ENQUEUE)
        self._heartbeats = Heartbeats(redis)

    async def enqueue(self, jobs: Sequence[Job]) -> list[None]:
        """Raises `queue-unavailable`. The sweep enqueues again whatever image was lost here."""
        await self._add(jobs)
        return [None] * len(jobs)

    async def enqueue_again(self, images: Mapping[ImageId, AccountId]) -> int:
        """Put images that wait for too long back, with their accounts; those in the queue stay where they are.

        Returns how many were not in the queue. Raises `queue-unavailable`.
        """
        return await self._add([ProbeJob(*image, "", "sweep") for image in images.items()])

    async def _add(self, jobs: Sequence[Job]) -> int:
        words: list[Any] = [job_key_prefix, REPLY_CHANNELS_PREFIX, self._line, _EXPIRES_MS, MAX_WAKEUP_TOKENS]
        for job in jobs:
            words += (job.id, job.account_id, job.serialize(), job.reply_to)
        try:
            return int(await self._enqueue(keys=self._keys, args=words))
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error

    async def check(self) -> None:
        """Take the steps of `enqueue`, with a value that expires in place of a job. Raises what redis-py raises."""
        await self._redis.set(_CHECK, b"", px=_CHECK_EXPIRES_MS)
        await self._enqueue(
            keys=self._keys, args=[job_key_prefix, REPLY_CHANNELS_PREFIX, self._line, _EXPIRES_MS, MAX_WAKEUP_TOKENS]
        )

    async def count_workers(self, *, host: str | None = None) -> int:
        """How many workers (of that host) have shown a sign of life lately. Raises `queue-unavailable`."""
        try:
            names = await self._heartbeats.list_alive()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        return sum(host is None or name.rpartition(":")[0] == host for name in names)

    async def measure(self) -> QueueState:
        """Raises `queue-unavailable`."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()  # what the scores were made with; the clock of this host may differ
                pipe.zcard(self._name)
                pipe.zrange(self._name, 0, 0, withscores=True)
                (seconds, microseconds), depth, oldest = await pipe.execute()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        now = seconds + microseconds / 1_000_000
        return QueueState(depth, max(0.0, now - oldest[0][1] / 1000) if oldest else 0.0, await self.count_workers())
