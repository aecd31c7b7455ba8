"""What the delivery of pictures works with: made at start-up, one for the whole process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

from arq.connections import ArqRedis

from service.batcher import Batcher, running
from service.config.rates import Rate
from service.config.settings import Network, Settings, parse_networks, parse_widths
from service.database import Database
from service.delivery.image_cache import Subjects
from service.delivery.memory_cache import HotPictures
from service.delivery.not_found_limiter import Misses
from service.delivery.unkept import UnkeptBytes
from service.limits.rate_limiter import RateLimiter
from service.queue.jobs import RENDER_QUEUE, RENDER_WAKEUP_KEY, Job, JobQueue
from service.renditions.charges import Charges
from service.renditions.service import Renditions
from service.storage.disk import DiskStorage
from service.storage.renditions import RenditionFiles

# Of the rate of an account's renditions: what one address leaves to others.
_ADDRESS_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Delivery:
    """`widths` are in rising order; all are allowed where there are none. `accel_prefix` is empty without a proxy that
    sends files.
    """

    storage: DiskStorage
    files: RenditionFiles
    subjects: Subjects
    renditions: Renditions
    hot: HotPictures
    unkept: UnkeptBytes
    misses: Misses
    widths: Sequence[int]
    trusted_proxies: Sequence[Network]
    max_age_s: int
    accel_prefix: str

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, database: Database, storage: DiskStorage, redis: ArqRedis
    ) -> AsyncIterator[Self]:
        """Its tasks end with the block. Raises SettingsError where the folder of renditions cannot be used."""
        files = RenditionFiles(settings.renditions_folder)
        await asyncio.to_thread(files.prepare)
        subjects, hot = Subjects(database), HotPictures(settings.renditions_memory)
        queue = JobQueue(redis, name=RENDER_QUEUE, wakeup_key=RENDER_WAKEUP_KEY)
        enqueuing: Batcher[Job, None] = Batcher(queue.enqueue)
        async with AsyncExitStack() as stack:
            for batcher in (subjects.finding_images, subjects.finding_policies, enqueuing):
                await stack.enter_async_context(running(batcher.run()))
            renditions = await stack.enter_async_context(
                Renditions.open(
                    redis,
                    database,
                    files,
                    enqueuing,
                    (subjects, hot),
                    wait_s=settings.wait_s,
                    max_in_flight=settings.renditions_in_flight,
                    charges=await _open_charges(stack, settings),
                )
            )
            misses = Misses(await _open_limiter(stack, settings, Rate.parse(settings.miss_rate), "misses"))
            yield cls(
                storage=storage,
                files=files,
                subjects=subjects,
                renditions=renditions,
                hot=hot,
                unkept=UnkeptBytes(),
                misses=misses,
                widths=parse_widths(settings.rendition_widths),
                trusted_proxies=parse_networks(settings.trusted_proxies),
                max_age_s=settings.max_age_s,
                accel_prefix=settings.x_accel_redirect,
            )


async def _open_charges(stack: AsyncExitStack, settings: Settings) -> Charges:
    rate = Rate.parse(settings.rendition_rate)
    return Charges(
        await _open_limiter(stack, settings, rate, "renditions"),
        await _open_limiter(stack, settings, rate and rate.part(_ADDRESS_SHARE), "renditions-of-address"),
    )


async def _open_limiter(stack: AsyncExitStack, settings: Settings, rate: Rate | None, name: str) -> RateLimiter | None:
    if rate is None:
        return None
    return await stack.enter_async_context(RateLimiter.open(settings.redis_url, rate, name))
