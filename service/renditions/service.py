"""Finds renditions on disk, or has a worker render them, once for all concurrent requests of a rendition."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import msgspec

from service.batcher import Batcher, running
from service.database import Database
from service.errors import ServiceError, picture_error
from service.expiring_cache import ExpiringCache
from service.ids import ImageId
from service.limits.slots import SharedSlots, ShareExceeded, SlotsFull
from service.queue.jobs import UNAVAILABLE, Job, RenderJob
from service.queue.waiter import JobWaiter, Subscriber, publish
from service.renditions.cost_limiter import CostLimiter, Requester
from service.renditions.costs import count_tokens
from service.renditions.integrity import is_complete
from service.renditions.jobs import ImagesDeleted, RenderOrder, RenderResult, RenditionEvent, encode_order
from service.renditions.queries import record_uses
from service.storage.interface import RenditionKey, RenditionStorage, StoredFile
from service.telemetry.metrics import metrics

# Every process subscribes to this channel.
_DELETIONS_CHANNEL = "daguerre:renditions"
# A rendition that failed is not retried for this long.
_REFUSAL_TTL_S = 30.0
_MAX_REFUSALS = 10_000
_PUBLISH_TIMEOUT_S = 1.0
# A rendition in flight takes a slot for each token that it costs, so the slots measure the time that the next one
# waits. Without others, an address gets at most a quarter of them, and an account three quarters. One rendition takes
# at most a quarter of the free slots: otherwise an expensive one could take all, and all others would be `busy`.
_ADDRESS_WEIGHT, _ACCOUNT_WEIGHT = 1 / 3, 3.0
_MAX_PART_OF_FREE = 4
# Waiting connections are cheaper than renditions. At most half of them may wait for one rendition.
_REQUESTS_PER_SLOT, _RENDITION_WEIGHT = 16, 1.0
_SHARE_EXCEEDED_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The fields of a ServiceError. An exception that is raised again would collect tracebacks."""

    code: str
    message: str


class Invalidates(Protocol):
    """A cache of images, or of data derived from them."""

    def invalidate(self, image_ids: Iterable[ImageId]) -> None: ...

    def invalidate_all(self) -> None: ...


class Renditions:
    """One for each process. `caches` drop the images that any process deletes.

    `wait_s` bounds the wait for a rendition. Uses are written to the database every `usage_interval_s`.
    """

    def __init__(
        self,
        redis: Any,
        database: Database,
        files: RenditionStorage,
        enqueue_batcher: Batcher[Job, None],
        caches: Sequence[Invalidates],
        *,
        wait_s: float,
        max_in_flight: int,
        cost_limiter: CostLimiter,
        usage_interval_s: float = 30.0,
    ) -> None:
        self.wait_s = wait_s
        self.waiter: JobWaiter[RenditionKey, RenderResult] = JobWaiter(enqueue_batcher.enqueue)
        self.waiting = SharedSlots(max_in_flight * _REQUESTS_PER_SLOT)
        self.in_progress: dict[RenditionKey, asyncio.Task[StoredFile]] = {}
        self.refusals: ExpiringCache[RenditionKey, _Refusal] = ExpiringCache(_MAX_REFUSALS)
        self._redis = redis
        self._database = database
        self._files = files
        self._caches = caches
        self._in_flight = SharedSlots(max_in_flight)
        self._cost_limiter = cost_limiter
        self._usage_interval_s = usage_interval_s
        self._used: dict[RenditionKey, None] = {}
        self._reply_channel = f"daguerre:renditions:{secrets.token_hex(8)}"
        self.events: Subscriber[RenditionEvent] = Subscriber(
            redis,
            [self._reply_channel, _DELETIONS_CHANNEL],
            RenditionEvent,
            on_message=self._on_event,
            on_gap=self._resync,
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, *args: Any, **options: Any) -> AsyncIterator[Self]:
        """Runs its tasks for the length of a block."""
        self = cls(*args, **options)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._cancel_all)
            await stack.enter_async_context(running(self.events.run()))
            await stack.enter_async_context(running(self._write_uses()))
            yield self

    async def get(self, order: RenderOrder, requester: Requester, *, seconds: float, request_id: str) -> StoredFile:
        """Returns the file, as soon as it is stored.

        The first request for a new rendition is charged for the decoder's time, `seconds`. Raises
        `too-many-renditions`, `busy`, `rendition-not-ready`, `storage-unavailable` and the worker's error.
        """
        key = RenditionKey(order.image_id, order.digest)
        stored = None if key in self.in_progress else await self._files.find(key, partial(is_complete, order))
        if stored is not None:
            self._used[key] = None
            metrics.pictures_from_disk.inc()
            return stored
        if (refusal := self.refusals.get(key)) is not None:
            raise ServiceError(refusal.code, refusal.message)
        weights = {**_slot_weights(requester), key: _RENDITION_WEIGHT}
        _acquire(self.waiting, weights)
        try:
            task = self.in_progress.get(key) or await self._charge_and_start(key, order, requester, seconds, request_id)
            stored = await asyncio.shield(task)
        finally:
            self.waiting.release(weights)
        metrics.pictures_rendered.inc()
        return stored

    async def delete(self, image_ids: Sequence[ImageId]) -> None:
        """Removes deleted images from the caches of this process, and publishes that to all processes."""
        self._invalidate(image_ids)
        with suppress(*UNAVAILABLE, TimeoutError):  # without Redis, caches of other processes expire soon
            async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                await publish(self._redis, _DELETIONS_CHANNEL, [ImagesDeleted(list(image_ids))])

    async def _charge_and_start(
        self, key: RenditionKey, order: RenderOrder, requester: Requester, seconds: float, request_id: str
    ) -> asyncio.Task[StoredFile]:
        """Charges the rendition and starts it, unless another request has started it meanwhile."""
        _check_slots(self._in_flight, _slot_weights(requester))
        try:
            await self._cost_limiter.charge(key, requester, seconds)
        except ServiceError:
            if (task := self.in_progress.get(key)) is not None:
                return task
            raise
        tokens = math.ceil(count_tokens(seconds))
        return self.in_progress.get(key) or self._start(key, order, requester, tokens, request_id)

    def _start(
        self, key: RenditionKey, order: RenderOrder, requester: Requester, slots: int, request_id: str
    ) -> asyncio.Task[StoredFile]:
        weights = _slot_weights(requester)
        slots = min(slots, max(1, self._in_flight.free // _MAX_PART_OF_FREE))
        try:
            _acquire(self._in_flight, weights, slots)
        except ServiceError:
            self._cost_limiter.refund(key)
            raise
        encoded = encode_order(msgspec.structs.replace(order, ordered_by=self._reply_channel))
        job = RenderJob(f"{key.image_id}:{key.digest}", requester.account_id, encoded, self._reply_channel, request_id)
        task = self.in_progress[key] = asyncio.create_task(self._wait(key, order, job))
        task.add_done_callback(_retrieve_error)
        task.add_done_callback(lambda _: self._in_flight.release(weights, slots))
        return task

    async def _wait(self, key: RenditionKey, order: RenderOrder, job: RenderJob) -> StoredFile:
        """Continues after all its requests are gone, because the worker may have started."""
        try:
            stored = await self.waiter.wait(key, job, partial(self._check, key, order), timeout_s=self.wait_s)
        finally:
            del self.in_progress[key]
        if stored is None:
            raise ServiceError("rendition-not-ready")
        return stored

    async def _check(self, key: RenditionKey, order: RenderOrder, result: RenderResult | None) -> StoredFile | None:
        if result is not None and result.error is not None:
            refusal = picture_error(result.error, result.kind)
            if refusal.status < 500:
                self.refusals.put(key, _Refusal(refusal.code, refusal.message), time.monotonic() + _REFUSAL_TTL_S)
            raise refusal
        if result is not None and result.file is not None:
            data = result.file.data
            return StoredFile(self._files.path(key), len(data), result.file.modified_ns, data)
        return await self._files.find(key, partial(is_complete, order))

    def _on_event(self, event: RenditionEvent) -> None:
        match event:
            case RenderResult():
                key = RenditionKey(event.image_id, event.digest)
                if event.ordered_by in {"", self._reply_channel}:
                    self._cost_limiter.settle(key, event.seconds)
                else:  # the request of another process pays
                    self._cost_limiter.refund(key)
                self.waiter.deliver(key, event)
            case ImagesDeleted(image_ids):
                self._invalidate(image_ids)

    def _invalidate(self, image_ids: Iterable[ImageId]) -> None:
        for cache in self._caches:
            cache.invalidate(image_ids)

    def _resync(self) -> None:
        """Events may have been lost, including deletions."""
        for cache in self._caches:
            cache.invalidate_all()
        self.waiter.wake_all()

    async def _write_uses(self) -> None:
        while True:
            await asyncio.sleep(self._usage_interval_s)
            await self.write_uses()

    async def write_uses(self) -> None:
        """Writes which renditions were used, for the eviction."""
        used, self._used = list(self._used), {}
        if used:
            with suppress(ServiceError):  # they may be evicted a little early
                async with self._database.connection() as connection:
                    await record_uses(connection, used)

    async def _cancel_all(self) -> None:
        tasks = list(self.in_progress.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _slot_weights(requester: Requester) -> dict[Hashable, float]:
    """Returns the holders of a slot with their weights. A signed URL is the account's own, so no address is a
    holder.
    """
    weights: dict[Hashable, float] = {requester.account_id: _ACCOUNT_WEIGHT}
    if requester.address is not None:
        weights[requester.address] = _ADDRESS_WEIGHT
    return weights


def _check_slots(slots: SharedSlots, weights: Mapping[Hashable, float]) -> None:
    """Raises `busy` if all slots are taken, or `too-many-renditions` if one of the holders has its share."""
    try:
        slots.check(weights)
    except SlotsFull:
        raise ServiceError("busy", "Too many requests are waiting for renditions; try again shortly.") from None
    except ShareExceeded as error:
        match error.holder:
            case str():
                cause = "Too many new renditions for this address are pending"
            case int():
                cause = "Too many new renditions of this account's images are pending"
            case _:
                cause = "Too many requests are waiting for this rendition"
        raise ServiceError(
            "too-many-renditions", f"{cause}; try again shortly.", retry_after_s=_SHARE_EXCEEDED_RETRY_S
        ) from None


def _acquire(slots: SharedSlots, weights: Mapping[Hashable, float], count: int = 1) -> None:
    """Raises what `_check_slots` does."""
    _check_slots(slots, weights)
    slots.acquire(weights, count)


def _retrieve_error(task: asyncio.Task[StoredFile]) -> None:
    """Keeps asyncio from logging an error after all requests are gone."""
    if not task.cancelled():
        task.exception()
