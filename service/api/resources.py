"""What handlers work with: made at start-up, one for the whole application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web

from service.accounts.api_keys import KeyRing
from service.addresses import AllowedAddresses
from service.api.admission import Admission
from service.api.startup import load_or_note_id, prepare_storage
from service.batcher import Batcher, running
from service.config.rates import Rate
from service.config.settings import Settings
from service.database import Database
from service.delivery.context import Delivery
from service.dependencies.outages import DATABASE, QUEUE, STORAGE
from service.dependencies.watch import CHECK_TIMEOUT_S, Dependency, watched
from service.downloads.origins import Origins, OriginTimeouts
from service.health.checks import DatabaseCheck, QueueCheck, StorageCheck
from service.health.measures import Measures
from service.http.client_addresses import ProxyWarnings
from service.images.models import Image
from service.images.queries import Wanted, find_together
from service.limits.rate_limiter import RateLimiter
from service.queue import jobs
from service.queue.jobs import JobQueue
from service.shared_memory.arriving_bytes import ArrivingBytes
from service.single_flight import SingleFlight
from service.storage.disk import DiskStorage
from service.uploads.ingest import Ingest
from service.uploads.receiving import UploadLimits
from service.uploads.reservations import Reservations

# Of the scrape of all metrics. Anybody may ask, so there is one at a time.
_SCRAPE_S = 5.0
# A scrape costs 12 ms of a core, and needs no key.
_SCRAPE_KEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    storage: DiskStorage
    keys: KeyRing
    rate_limiter: RateLimiter | None
    jobs: JobQueue
    admission: Admission
    ingest: Ingest
    finding: Batcher[Wanted, Image | None]
    upload_limits: UploadLimits
    origins: Origins
    download_limits: UploadLimits
    delivery: Delivery
    proxies: ProxyWarnings
    dependencies: Mapping[str, Dependency]
    measures: Measures
    removals: set[asyncio.Task[None]] = field(default_factory=set)  # of files, under way
    counting_workers: SingleFlight[int] = field(default_factory=partial(SingleFlight[int], CHECK_TIMEOUT_S))
    scraping: SingleFlight[bytes] = field(default_factory=partial(SingleFlight[bytes], _SCRAPE_S, ttl_s=_SCRAPE_KEEP_S))


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
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(settings.database_url, connections=settings.database_connections)
        )
        storage = DiskStorage(settings.storage_folder, lambda: load_or_note_id(storage, database))
        await prepare_storage(storage, database)
        redis = jobs.open_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        queue = jobs.JobQueue(redis)
        ingest = await stack.enter_async_context(Ingest.open(database, storage, redis, queue, wait_s=settings.wait_s))
        finding = Batcher(partial(find_together, database), limit=_FOUND_TOGETHER)
        await stack.enter_async_context(running(finding.run()))
        keys = KeyRing(database)
        await stack.enter_async_context(running(keys.run()))
        origins = await stack.enter_async_context(
            Origins.connect(
                AllowedAddresses.parse(settings.fetch_allow), lookups=settings.downloads_in_flight, timeouts=timeouts
            )
        )
        rate, rate_limiter = Rate.parse(settings.rate_limit), None
        if rate is not None:
            rate_limiter = await stack.enter_async_context(RateLimiter.open(settings.redis_url, rate))
        delivery = await stack.enter_async_context(Delivery.open(settings, database, storage, redis))
        await ingest.results.wait_connected(_CONNECT_S)
        dependencies = {
            "database": Dependency(DATABASE, DatabaseCheck(database).run),
            "queue": Dependency(QUEUE, QueueCheck(queue, ingest.results.find_error).run),
            "storage": Dependency(STORAGE, StorageCheck(storage, settings.storage_folder).run),
        }
        await stack.enter_async_context(watched(dependencies.values()))
        yield Resources(
            settings=settings,
            database=database,
            storage=storage,
            keys=keys,
            rate_limiter=rate_limiter,
            jobs=queue,
            admission=Admission(settings, Reservations(database, arriving or ArrivingBytes.alone()), ingest.results),
            ingest=ingest,
            finding=finding,
            upload_limits=UploadLimits(settings.max_upload, settings.upload_idle_timeout_s, settings.upload_timeout_s),
            origins=origins,
            # An origin's own time-outs come first.
            download_limits=UploadLimits(settings.max_upload, 2 * timeouts.total_s, 2 * timeouts.total_s),
            delivery=delivery,
            proxies=ProxyWarnings(delivery.trusted_proxies),
            dependencies=dependencies,
            measures=Measures(
                database,
                {
                    "storage": (settings.storage_folder, storage.threads),
                    "renditions": (settings.renditions_folder, delivery.files.threads),
                },
            ),
        )
