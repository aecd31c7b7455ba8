"""The jobs: the names of the queues, the encoding, and how jobs are enqueued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from redis.exceptions import RedisError

from service.dependencies.outages import QUEUE
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.queue.connection import Argument, Redis, Script
from service.queue.fair_dispatch import JOIN, FairQueueKeys, others_wakeup_key
from service.queue.heartbeats import Heartbeats
from service.queue.servers import open_pool
from service.telemetry.metrics import QueueState

PROBE_QUEUE = "daguerre:probe"
PROBE_IMAGE = "probe_image"
RENDER_QUEUE = "daguerre:render"
RENDER_IMAGE = "render_image"

# An idle worker waits for a token on this list. Each token wakes one worker. Their number is bounded, because unused
# tokens would wake workers for nothing after a rush.
WAKEUP_KEY = "daguerre:probe:bell"
RENDER_WAKEUP_KEY = "daguerre:render:bell"
MAX_WAKEUP_TOKENS = 8

# The prefix, before the id of a job, of the set of channels that get its reply.
REPLY_CHANNELS_PREFIX = "daguerre:waiting:"

# The key that the health check writes.
_CHECK_KEY = "daguerre:check"
_CHECK_TTL_MS = 10_000

# The maximum of the pool of one client. Its pipelines and subscribers have connections of their own.
_MAX_CONNECTIONS = 4

_JOB_TTL_MS = 24 * 60 * 60 * 1000

# arq's payloads have a time of this host's clock. Only the score of a job is used, by the clock of Redis.
_NO_TIME = 0

# arq passes exceptions to the codec as well.
encode = msgspec.msgpack.Encoder(enc_hook=repr).encode
decode = msgspec.msgpack.Decoder().decode

# If a connection is lost between redis-py's check and its write, uvloop raises a RuntimeError.
UNAVAILABLE = (RedisError, OSError, RuntimeError)


def open_redis(url: str) -> Redis:
    """Returns a client that connects when first used. Its timeouts are short, so that an outage is detected soon.

    Raises SettingsError for an invalid URL.
    """
    pool = open_pool(url, timeout_s=5, connect_timeout_s=2, max_connections=_MAX_CONNECTIONS)
    return Redis(pool, job_serializer=encode, job_deserializer=decode, default_queue_name=PROBE_QUEUE)


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Probe one image of the account. The reply goes to the channel `reply_to`, if that is not empty."""

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
    """Make one rendition. Requests of several processes share the job, and each gets the reply.

    `order` is an encoded `renditions.jobs.RenderOrder`; the account is that of the image.
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

_ENQUEUE = Script(JOIN + Path(__file__).with_name("enqueue.lua").read_text())


class JobQueue:
    """Enqueues batches of jobs in one round trip. arq's own `enqueue_job`, with the same keys, takes three for each."""

    def __init__(self, redis: Redis, *, name: str = PROBE_QUEUE, wakeup_key: str = WAKEUP_KEY) -> None:
        self._redis = redis
        fair = FairQueueKeys.of(name)
        self._name = name
        self._keys = [name, wakeup_key, others_wakeup_key(wakeup_key), fair.turns, fair.accounts]
        self._line = fair.line
        self._heartbeats = Heartbeats(redis)

    async def enqueue(self, jobs: Sequence[Job]) -> list[None]:
        """Raises `queue-unavailable`. If a probe job is lost, the sweep enqueues it again."""
        await self._add(jobs)
        return [None] * len(jobs)

    async def enqueue_again(self, images: Mapping[ImageId, AccountId]) -> int:
        """Enqueues probe jobs of images, with their accounts, unless they are in the queue.

        Returns how many were missing. Raises `queue-unavailable`.
        """
        return await self._add([ProbeJob(*image, "", "sweep") for image in images.items()])

    async def _add(self, jobs: Sequence[Job]) -> int:
        try:
            return await self._run_enqueue(jobs)
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error

    async def _run_enqueue(self, jobs: Sequence[Job]) -> int:
        args: list[Argument] = [job_key_prefix, REPLY_CHANNELS_PREFIX, self._line, _JOB_TTL_MS, MAX_WAKEUP_TOKENS]
        for job in jobs:
            args += (job.id, job.account_id, job.serialize(), job.reply_to)
        return int(await _ENQUEUE.run(self._redis.pipelined, self._keys, args))

    async def check(self) -> None:
        """Checks that jobs can be enqueued, without enqueueing one. Raises what redis-py raises."""
        await self._redis.set(_CHECK_KEY, b"", px=_CHECK_TTL_MS)
        await self._run_enqueue([])

    async def count_workers(self, *, host: str | None = None) -> int:
        """Returns how many workers are alive, on all hosts or on one. Raises `queue-unavailable`."""
        try:
            names = await self._heartbeats.list_alive()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        return sum(host is None or name.rpartition(":")[0] == host for name in names)

    async def measure(self) -> QueueState:
        """Returns the depth of the queue, the age of its oldest job and the number of workers.

        Raises `queue-unavailable`.
        """
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()  # the scores are by the clock of Redis
                pipe.zcard(self._name)
                pipe.zrange(self._name, 0, 0, withscores=True)
                (seconds, microseconds), depth, oldest = await pipe.execute()
        except UNAVAILABLE as error:
            QUEUE.report(error)
            raise ServiceError("queue-unavailable") from error
        now = seconds + microseconds / 1_000_000
        return QueueState(depth, max(0.0, now - oldest[0][1] / 1000) if oldest else 0.0, await self.count_workers())
