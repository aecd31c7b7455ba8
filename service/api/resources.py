"""What handlers work with: made at start-up, one for the whole application."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web

from service.accounts.keys import KeyRing
from service.addresses import AllowedAddresses
from service.api.admission import Admission
from service.api.clients import ProxyWarnings
from service.api.shared_calls import SharedCall
from service.batches import Batcher, running
from service.database import Database
from service.delivery.delivery import Delivery
from service.downloads.origins import Origins, OriginTimeouts
from service.errors import ServiceError
from service.images.lookups import Wanted, find_together, is_any_stored
from service.images.records import Image
from service.limits.buckets import RateLimiter
from service.limits.rates import Rate
from service.processes.arriving_bytes import ArrivingBytes
from service.queue import jobs
from service.queue.jobs import JobQueue
from service.queue.replies import Replies
from service.settings import Settings
from service.storage.disk import DiskStorage
from service.uploads.ingest import Ingest, accept
from service.uploads.receiving import UploadLimits
from service.uploads.reservations import Reservations
from service.verification.pairing import NOT_MOUNTED

# Of each dependency's check, and of the scrape of all metrics. Anybody may ask, so there is one of each at a time.
_CHECK_S = 2.0
_SCRAPE_S = 5.0
# A scrape costs 12 ms of a core, and needs no key.
_SCRAPE_KEEP_S = 1.0


def _make_checks() -> Mapping[str, SharedCall[None]]:
    return defaultdict(partial(SharedCall[None], _CHECK_S))


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    storage: DiskStorage
    keys: KeyRing
    rate_limiter: RateLimiter | None
    jobs: JobQueue
    replies: Replies
    admission: Admission
    ingest: Ingest
    finding: Batcher[Wanted, Image | None]
    upload_limits: UploadLimits
    origins: Origins
    download_limits: UploadLimits
    delivery: Delivery
    proxies: ProxyWarnings
    readiness: Mapping[str, SharedCall[None]] = field(default_factory=_make_checks)
    scraping: SharedCall[bytes] = field(default_factory=partial(SharedCall[bytes], _SCRAPE_S, keep_s=_SCRAPE_KEEP_S))


# A process that has just started takes no connection before it can hear of its jobs; unless Redis is away.
_CONNECT_S = 1.0
# Each may bring 16 KB of EXIF.
_FOUND_TOGETHER = 64

RESOURCES = web.AppKey("resources", Resources)


def resources(request: web.Request) -> Resources:
    return request.app[RESOURCES]


@asynccontextmanager
async def open_resources(settings: Settings, arriving: ArrivingBytes | None = None) -> AsyncIterator[Resources]:
    """Connect to everything; tasks and connections end with the block. `arriving` is shared with other API processes of
    this machine, if there are any.
    """
    timeouts = OriginTimeouts()
    storage = DiskStorage(settings.storage_folder)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(settings.database_url, connections=settings.database_connections)
        )
        await _prepare(storage, database)
        redis = jobs.open_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        accepting = Batcher(partial(accept, database, storage))
        replies = Replies(redis, database)
        queue = jobs.JobQueue(redis)
        enqueuing: Batcher[jobs.Job, None] = Batcher(queue.enqueue)
        await stack.enter_async_context(running(accepting.run()))
        await stack.enter_async_context(running(enqueuing.run()))
        finding = Batcher(partial(find_together, database), limit=_FOUND_TOGETHER)
        await stack.enter_async_context(running(finding.run()))
        keys = KeyRing(database)
        await stack.enter_async_context(running(keys.run()))
        await stack.enter_async_context(running(replies.listen()))
        origins = await stack.enter_async_context(
            Origins.connect(
                AllowedAddresses.parse(settings.fetch_allow), lookups=settings.downloads_in_flight, timeouts=timeouts
            )
        )
        rate, rate_limiter = Rate.parse(settings.rate_limit), None
        if rate is not None:
            rate_limiter = await stack.enter_async_context(RateLimiter.open(settings.redis_url, rate))
        delivery = await stack.enter_async_context(Delivery.open(settings, database, storage, redis))
        await replies.wait_connected(_CONNECT_S)
        yield Resources(
            settings=settings,
            database=database,
            storage=storage,
            keys=keys,
            rate_limiter=rate_limiter,
            jobs=queue,
            replies=replies,
            admission=Admission(settings, Reservations(database, arriving or ArrivingBytes.alone()), replies),
            ingest=Ingest(database, storage, accepting, enqueuing, replies, settings.wait_s),
            finding=finding,
            upload_limits=UploadLimits(settings.max_upload, settings.upload_idle_timeout_s, settings.upload_timeout_s),
            origins=origins,
            # An origin's own time-outs come first.
            download_limits=UploadLimits(settings.max_upload, 2 * timeouts.total_s, 2 * timeouts.total_s),
            delivery=delivery,
            proxies=ProxyWarnings(delivery.trusted_proxies),
        )


async def _prepare(storage: DiskStorage, database: Database) -> None:
    """Make the folders, but not beside rows of images: a disk that is not mounted must not look like a new one."""
    if await asyncio.to_thread(storage.is_new):
        try:
            async with database.connection() as connection:
                stored = await is_any_stored(connection)
        except ServiceError as error:
            raise storage.unusable("it is empty, and PostgreSQL, which knows whether it should be, is away") from error
        # Looked at again, since another process may have made them and stored an image meanwhile.
        if stored and await asyncio.to_thread(storage.is_new):
            raise storage.unusable(NOT_MOUNTED)
    await asyncio.to_thread(storage.prepare)
