"""The resources of picture delivery, opened once per process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

from service.batcher import Batcher, running
from service.config.settings import Settings
from service.config.values import Network, Rate
from service.database import Database
from service.delivery.image_cache import ServedImageCache
from service.delivery.limits import MemoryBudget, NotFoundLimiter
from service.delivery.memory_cache import MemoryCache
from service.limits.rate_limiter import RateLimiter
from service.queue.connection import Redis
from service.queue.jobs import RENDER_QUEUE, RENDER_WAKEUP_KEY, Job, JobQueue
from service.renditions.cost_limiter import CostLimiter
from service.renditions.service import Renditions
from service.storage.backends import open_renditions
from service.storage.interface import OriginalStorage, RenditionStorage

# One address gets at most this share of the rate limit of new renditions, so that others get the rest.
_ADDRESS_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """`widths` are the allowed widths of unsigned requests in ascending order; empty means that all are allowed.
    `accel_prefix` is empty unless a proxy sends the files, and `redirects` says whether the object store does.
    """

    storage: OriginalStorage
    files: RenditionStorage
    image_cache: ServedImageCache
    renditions: Renditions
    memory_cache: MemoryCache
    memory_budget: MemoryBudget
    not_found_limiter: NotFoundLimiter
    widths: Sequence[int]
    trusted_proxies: Sequence[Network]
    max_age_s: int
    accel_prefix: str
    redirects: bool

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, database: Database, storage: OriginalStorage, redis: Redis
    ) -> AsyncIterator[Self]:
        """Opens the resources; tasks end with the block. Raises SettingsError if the folder of renditions cannot be
        used.
        """
        files = open_renditions(settings)
        await asyncio.to_thread(files.prepare)
        image_cache, memory_cache = ServedImageCache(database), MemoryCache(settings.renditions_memory)
        queue = JobQueue(redis, name=RENDER_QUEUE, wakeup_key=RENDER_WAKEUP_KEY)
        enqueue_batcher: Batcher[Job, None] = Batcher(queue.enqueue)
        async with AsyncExitStack() as stack:
            for batcher in (image_cache.image_lookups, image_cache.policy_lookups, enqueue_batcher):
                await stack.enter_async_context(running(batcher.run()))
            renditions = await stack.enter_async_context(
                Renditions.open(
                    redis,
                    database,
                    files,
                    enqueue_batcher,
                    (image_cache, memory_cache),
                    wait_s=settings.wait_s,
                    max_in_flight=settings.renditions_in_flight,
                    cost_limiter=await _open_cost_limiter(stack, settings),
                )
            )
            not_found_limiter = NotFoundLimiter(
                await _open_limiter(stack, settings, settings.not_found_rate_limit, "misses")
            )
            yield cls(
                storage=storage,
                files=files,
                image_cache=image_cache,
                renditions=renditions,
                memory_cache=memory_cache,
                memory_budget=MemoryBudget(),
                not_found_limiter=not_found_limiter,
                widths=settings.rendition_widths,
                trusted_proxies=settings.trusted_proxies,
                max_age_s=settings.cache_max_age_s,
                accel_prefix=settings.x_accel_redirect,
                redirects=settings.delivery_redirect,
            )


async def _open_cost_limiter(stack: AsyncExitStack, settings: Settings) -> CostLimiter:
    rate = settings.rendition_rate_limit
    return CostLimiter(
        await _open_limiter(stack, settings, rate, "renditions"),
        await _open_limiter(stack, settings, rate and rate.part(_ADDRESS_SHARE), "renditions-of-address"),
    )


async def _open_limiter(stack: AsyncExitStack, settings: Settings, rate: Rate | None, name: str) -> RateLimiter | None:
    if rate is None:
        return None
    return await stack.enter_async_context(RateLimiter.open(settings.redis_url, rate, name))
