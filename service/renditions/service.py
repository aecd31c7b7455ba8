"""Renditions to be had: found on disk, or made once, whoever asks and however many."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import msgspec

from service.batcher import Batcher, running
from service.database import Database
from service.errors import ServiceError, refuse_picture
from service.ids import ImageId
from service.limits.slots import SharedSlots, ShareExceeded, SlotsFull
from service.queue.jobs import UNAVAILABLE, Job, RenderJob
from service.queue.pubsub import Listener, send
from service.renditions.charges import Charges, Payer
from service.renditions.integrity import is_whole
from service.renditions.jobs import Deleted, News, RenderOrder, RenderResult, encode_order
from service.renditions.prices import count_tokens
from service.renditions.queries import note_uses
from service.storage.files import Stored
from service.storage.renditions import RenditionFiles, RenditionKey
from service.telemetry.metrics import metrics

# All processes hear of deletions.
_DELETIONS = "daguerre:renditions"
# News may be lost: whoever waits looks at the disk this often, and enqueues again what Redis may have lost.
_LOOK_S = 1.0
_LOST_S = 2.0
_ENQUEUE_TIMEOUT_S = 1.0
# What could not be made is not tried again at once.
_REFUSED_S = 30.0
_MOST_REFUSED = 10_000
_NOTE_S = 30.0
_ANNOUNCE_TIMEOUT_S = 1.0
# A rendition in flight takes a place for each token that it costs, so the places are seconds that the next one waits.
# Alone, an address has at most a quarter of them, and an account three quarters. One rendition takes at most a quarter
# of those that are free: else a single dear one could take all, and all others would be `busy`.
_ADDRESS_WEIGHT, _ACCOUNT_WEIGHT = 1 / 3, 3.0
_DEAR_PART = 4
# Connections that wait are cheaper than renditions. Those for one rendition are at most half of them.
_REQUESTS_PER_PLACE, _RENDITION_WEIGHT = 16, 1.0
_OVER_SHARE_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class _Refused:
    code: str
    message: str
    until: float


class _Making:
    """One rendition that is being made; `end` is set by news of it."""

    def __init__(self) -> None:
        self.look = asyncio.Event()
        self.end: RenderResult | None = None
        self.task: asyncio.Task[Stored] | None = None


class Forgetful(Protocol):
    """What remembers something of images."""

    def forget(self, image_ids: Iterable[ImageId]) -> None: ...

    def forget_all(self) -> None: ...


class Renditions:
    """One for each process; `memories` are told of images that are deleted, by whichever process."""

    def __init__(
        self,
        redis: Any,
        database: Database,
        files: RenditionFiles,
        enqueuing: Batcher[Job, None],
        memories: Sequence[Forgetful],
        *,
        wait_s: float,
        max_in_flight: int,
        charges: Charges,
    ) -> None:
        self._redis = redis
        self._database = database
        self._files = files
        self._enqueuing = enqueuing
        self._memories = memories
        self._wait_s = wait_s
        self._in_flight = SharedSlots(max_in_flight)
        self._waiting = SharedSlots(max_in_flight * _REQUESTS_PER_PLACE)
        self._charges = charges
        self._making: dict[RenditionKey, _Making] = {}
        self._refused: OrderedDict[RenditionKey, _Refused] = OrderedDict()  # least recently used first
        self._used: dict[RenditionKey, None] = {}
        self._own_channel = f"daguerre:renditions:{secrets.token_hex(8)}"  # for the ends of what it has ordered
        self._news: Listener[News] = Listener(
            redis, [self._own_channel, _DELETIONS], News, deliver=self._hear, changed=self._check_all
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, *args: Any, **options: Any) -> AsyncIterator[Self]:
        """With its tasks, which end with the block."""
        self = cls(*args, **options)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            await stack.enter_async_context(running(self._news.listen()))
            await stack.enter_async_context(running(self._note_uses()))
            yield self

    async def get(self, order: RenderOrder, payer: Payer, *, seconds: float, request_id: str) -> Stored:
        """The file, once it is there. The first request for a new one pays for the seconds that a child will take.

        Raises `too-many-renditions`, `busy`, `rendition-not-ready`, `storage-unavailable` and what a worker says.
        """
        key = RenditionKey(order.image_id, order.digest)
        stored = None if key in self._making else await self._files.find(key, partial(is_whole, order))
        if stored is not None:
            self._used[key] = None
            metrics.pictures_from_disk.inc()
            return stored
        self._refuse_again(key)
        weights = {**_weigh(payer), key: _RENDITION_WEIGHT}
        _take(self._waiting, weights)
        try:
            making = self._making.get(key) or await self._order(key, order, payer, seconds, request_id)
            assert making.task is not None  # noqa: S101 - what _begin made
            stored = await asyncio.shield(making.task)
        finally:
            self._waiting.release(weights)
        metrics.pictures_made.inc()
        return stored

    async def delete(self, image_ids: Sequence[ImageId]) -> None:
        """Tell every process that these images are no more; this one has forgotten them when it returns."""
        self._forget(image_ids)
        with suppress(*UNAVAILABLE, TimeoutError):  # then the others hear nothing at all, and trust nothing
            async with asyncio.timeout(_ANNOUNCE_TIMEOUT_S):
                await send(self._redis, _DELETIONS, [Deleted(list(image_ids))])

    async def _order(
        self, key: RenditionKey, order: RenderOrder, payer: Payer, seconds: float, request_id: str
    ) -> _Making:
        """Pay for it and begin, unless another request does so meanwhile."""
        _require(self._in_flight, _weigh(payer))
        try:
            await self._charges.debit(key, payer, seconds)
        except ServiceError:
            if (making := self._making.get(key)) is not None:
                return making
            raise
        return self._making.get(key) or self._begin(key, order, payer, math.ceil(count_tokens(seconds)), request_id)

    def _refuse_again(self, key: RenditionKey) -> None:
        refused = self._refused.get(key)
        if refused is not None:
            if time.monotonic() < refused.until:
                self._refused.move_to_end(key)
                raise ServiceError(refused.code, refused.message)
            del self._refused[key]

    def _begin(self, key: RenditionKey, order: RenderOrder, payer: Payer, places: int, request_id: str) -> _Making:
        weights = _weigh(payer)
        places = min(places, max(1, self._in_flight.free // _DEAR_PART))
        try:
            _take(self._in_flight, weights, places)
        except ServiceError:
            self._charges.cancel(key)
            raise
        making = self._making[key] = _Making()
        encoded = encode_order(msgspec.structs.replace(order, ordered_by=self._own_channel))
        job = RenderJob(f"{key.image_id}:{key.digest}", payer.account_id, encoded, self._own_channel, request_id)
        making.task = asyncio.create_task(self._make(key, order, job, making))
        making.task.add_done_callback(_retrieve)
        making.task.add_done_callback(lambda _: self._in_flight.release(weights, places))
        return making

    async def _make(self, key: RenditionKey, order: RenderOrder, job: RenderJob, making: _Making) -> Stored:
        """Until it is there; its requests may all be gone by then."""
        try:
            deadline = time.monotonic() + self._wait_s
            enqueue_at = 0.0
            while True:
                now = time.monotonic()
                if now >= enqueue_at:
                    enqueue_at = now + (_LOST_S if await self._enqueue(job) else _LOOK_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
                        await making.look.wait()
                making.look.clear()
                end, making.end = making.end, None
                if end is not None and end.error is not None:
                    refusal = refuse_picture(end.error, end.kind)
                    self._remember_refusal(key, refusal)
                    raise refusal
                if end is not None and end.file is not None:
                    return Stored(self._files.path(key), len(end.file.data), end.file.modified_ns, end.file.data)
                if (stored := await self._files.find(key, partial(is_whole, order))) is not None:
                    return stored
                if time.monotonic() >= deadline:
                    raise ServiceError("rendition-not-ready")
        finally:
            del self._making[key]

    async def _enqueue(self, job: RenderJob) -> bool:
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_ENQUEUE_TIMEOUT_S):
                await self._enqueuing.submit(job)
                return True
        return False

    def _remember_refusal(self, key: RenditionKey, refusal: ServiceError) -> None:
        if refusal.status >= 500:
            return
        self._refused[key] = _Refused(refusal.code, refusal.message, time.monotonic() + _REFUSED_S)
        self._refused.move_to_end(key)
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def _hear(self, news: News) -> None:
        match news:
            case RenderResult():
                key = RenditionKey(news.image_id, news.digest)
                if news.ordered_by in {"", self._own_channel}:
                    self._charges.settle(key, news.seconds)
                else:  # another process, whose request pays
                    self._charges.cancel(key)
                making = self._making.get(key)
                if making is not None:
                    making.end = news
                    making.look.set()
            case Deleted(image_ids):
                self._forget(image_ids)

    def _forget(self, image_ids: Iterable[ImageId]) -> None:
        for memory in self._memories:
            memory.forget(image_ids)

    def _check_all(self) -> None:
        """News may have been lost, of deletions too."""
        for memory in self._memories:
            memory.forget_all()
        for making in self._making.values():
            making.look.set()

    async def _note_uses(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_S)
            used, self._used = list(self._used), {}
            if used:
                with suppress(ServiceError):  # they may be thrown away a little early
                    async with self._database.connection() as connection:
                        await note_uses(connection, used)

    async def _end(self) -> None:
        tasks = [making.task for making in self._making.values() if making.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _weigh(payer: Payer) -> dict[Hashable, float]:
    """The holders of a place, with their weights. A signed URL is the account's own: its address does not count."""
    weights: dict[Hashable, float] = {payer.account_id: _ACCOUNT_WEIGHT}
    if payer.address is not None:
        weights[payer.address] = _ADDRESS_WEIGHT
    return weights


def _require(places: SharedSlots, weights: Mapping[Hashable, float]) -> None:
    """Raises `busy` if all places are taken, `too-many-renditions` if one of the holders has its share."""
    try:
        places.check(weights)
    except SlotsFull:
        raise ServiceError("busy", "Too many requests wait for renditions; try again shortly.") from None
    except ShareExceeded as error:
        match error.holder:
            case str():
                cause = "This address waits for too many new renditions"
            case int():
                cause = "Too many new renditions of this account's images are waited for"
            case _:
                cause = "Too many requests wait for this rendition"
        raise ServiceError(
            "too-many-renditions", f"{cause}; try again shortly.", retry_after_s=_OVER_SHARE_RETRY_S
        ) from None


def _take(places: SharedSlots, weights: Mapping[Hashable, float], count: int = 1) -> None:
    """Raises what `_require` does."""
    _require(places, weights)
    places.acquire(weights, count)


def _retrieve(task: asyncio.Task[Stored]) -> None:
    """Its error is for whoever waits, and nobody may."""
    if not task.cancelled():
        task.exception()
