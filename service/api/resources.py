"""The resources that handlers share: connections, caches and limits, opened when the application starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
from aiohttp import web

from service.accounts.accounts import KeyRing
from service.batcher import Batcher, running
from service.config.settings import Settings
from service.database import Database
from service.deletion.removals import remove_files
from service.delivery.context import DeliveryContext
from service.dependencies.outages import DATABASE, QUEUE, STORAGE
from service.dependencies.watch import CHECK_TIMEOUT_S, Dependency, watched
from service.downloads.client import DownloadClient, DownloadTimeouts
from service.health.checks import DatabaseCheck, QueueCheck
from service.health.usage import UsageMeter
from service.http.client_addresses import ProxyWarnings
from service.ids import ImageId
from service.images.models import Image
from service.images.queries import ImageQuery, find_image_batch
from service.limits.rate_limiter import RateLimiter
from service.queue import jobs
from service.queue.jobs import JobQueue
from service.shared_memory.in_flight_bytes import InFlightBytes
from service.single_flight import SingleFlight
from service.storage.backends import open_originals
from service.storage.interface import OriginalStorage
from service.uploads.ingest import Ingest
from service.uploads.receiving import Admission, Reservations, UploadLimits
from service.verification.pairing import load_or_record_id, prepare_storage

log = structlog.get_logger("service.api")

# A scrape of all metrics costs 12 ms of a core and needs no key: only one runs at a time, and its result is reused.
_SCRAPE_TIMEOUT_S = 5.0
_SCRAPE_REUSE_S = 1.0
# A process that has just started accepts no connection before it receives the results of jobs, unless Redis is down.
_CONNECT_TIMEOUT_S = 1.0
# The maximum number of images that one statement loads; each may have 16 KB of EXIF.
_LOOKUP_BATCH_SIZE = 64


class FileRemoval:
    """Removes the files of deleted images for requests that delete them.

    A request waits at most `timeout_s`: usually a removal takes milliseconds, but a disk can hang. Remaining files are
    not an error, because the worker's sweep removes them later.
    """

    def __init__(self, remove_files: Callable[[Sequence[ImageId]], Awaitable[None]], *, timeout_s: float = 2.0) -> None:
        self.timeout_s = timeout_s
        self._remove_files = remove_files
        self._tasks: set[asyncio.Future[None]] = set()

    async def remove(self, image_ids: Sequence[ImageId]) -> None:
        task = asyncio.ensure_future(self._remove_files(image_ids))
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        await asyncio.wait([task], timeout=self.timeout_s)

    def _finish(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("removal.failed", first_error=repr(error))


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    storage: OriginalStorage
    keys: KeyRing
    rate_limiter: RateLimiter | None
    jobs: JobQueue
    admission: Admission
    ingest: Ingest
    image_lookups: Batcher[ImageQuery, Image | None]
    upload_limits: UploadLimits
    downloads: DownloadClient
    download_limits: UploadLimits
    delivery: DeliveryContext
    proxy_warnings: ProxyWarnings
    dependencies: Mapping[str, Dependency]
    usage: UsageMeter
    file_removal: FileRemoval
    worker_count: SingleFlight[int] = field(default_factory=partial(SingleFlight[int], CHECK_TIMEOUT_S))
    metrics_scrape: SingleFlight[bytes] = field(
        default_factory=partial(SingleFlight[bytes], _SCRAPE_TIMEOUT_S, ttl_s=_SCRAPE_REUSE_S)
    )


RESOURCES = web.AppKey("resources", Resources)


@asynccontextmanager
async def open_resources(settings: Settings, in_flight_bytes: InFlightBytes | None = None) -> AsyncIterator[Resources]:
    """Opens everything; tasks and connections end with the block. The API processes of this machine share
    `in_flight_bytes`.
    """
    timeouts = DownloadTimeouts()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(
                settings.database_url, connections=settings.database_connections, pooler=settings.database_pooler
            )
        )
        storage = open_originals(settings, database, lambda: load_or_record_id(storage, database))
        await prepare_storage(storage, database)
        redis = jobs.open_redis(settings.redis_url)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        queue = jobs.JobQueue(redis)
        ingest = await stack.enter_async_context(Ingest.open(database, storage, redis, queue, wait_s=settings.wait_s))
        image_lookups = Batcher(partial(find_image_batch, database), limit=_LOOKUP_BATCH_SIZE)
        await stack.enter_async_context(running(image_lookups.run()))
        keys = KeyRing(database)
        await stack.enter_async_context(running(keys.run()))
        downloads = await stack.enter_async_context(
            DownloadClient.connect(settings.fetch_allow, lookups=settings.downloads_in_flight, timeouts=timeouts)
        )
        rate_limiter = None
        if settings.rate_limit is not None:
            rate_limiter = await stack.enter_async_context(RateLimiter.open(settings.redis_url, settings.rate_limit))
        delivery = await stack.enter_async_context(DeliveryContext.open(settings, database, storage, redis))
        await ingest.results.wait_connected(_CONNECT_TIMEOUT_S)
        dependencies = {
            "database": Dependency(DATABASE, DatabaseCheck(database).run),
            "queue": Dependency(QUEUE, QueueCheck(queue, ingest.results.find_error).run),
            "storage": Dependency(STORAGE, storage.check),
        }
        await stack.enter_async_context(watched(dependencies.values()))
        yield Resources(
            settings=settings,
            database=database,
            storage=storage,
            keys=keys,
            rate_limiter=rate_limiter,
            jobs=queue,
            admission=Admission(
                settings, Reservations(database, in_flight_bytes or InFlightBytes.unshared()), ingest.results
            ),
            ingest=ingest,
            image_lookups=image_lookups,
            upload_limits=UploadLimits(settings.max_upload, settings.upload_idle_timeout_s, settings.upload_timeout_s),
            downloads=downloads,
            # The timeouts of the origin expire first.
            download_limits=UploadLimits(settings.max_upload, 2 * timeouts.total_s, 2 * timeouts.total_s),
            delivery=delivery,
            proxy_warnings=ProxyWarnings(delivery.trusted_proxies),
            dependencies=dependencies,
            usage=UsageMeter(database, [storage, delivery.files]),
            file_removal=FileRemoval(partial(remove_files, database, storage, delivery.files)),
        )
