"""The resources that jobs share, opened at start-up, once per worker process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from service.batcher import Batcher, running
from service.config.settings import Settings
from service.database import Database
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.images.pending import mark_ready
from service.images.probe import Probe
from service.queue.jobs import JobQueue
from service.storage.backends import open_originals, open_renditions
from service.storage.identity import load_id
from service.storage.interface import OriginalStorage, RenditionStorage
from service.telemetry.metrics import metrics
from worker.rendition_recorder import RenditionRecorder
from worker.rendition_writer import RenditionWriter
from worker.sandbox.decoder import DEFAULT_LIMITS, DecoderLimits
from worker.sandbox.pool import DecoderPool

# The sum over a large account may be slow, and no client waits for it.
_COMMAND_TIMEOUT_S = 10
# In addition to the share of one account: a slow picture cannot be interrupted, and other accounts must not wait for
# it.
SPARE_DECODERS = 1
# The client of an upload waits for its probe, so probes have priority over renditions.
_RENDER_NICENESS = 5


@dataclass(frozen=True, slots=True)
class Resources:
    database: Database
    storage: OriginalStorage
    redis: Any
    jobs: JobQueue
    probers: DecoderPool
    renderers: DecoderPool
    renditions: RenditionStorage
    rendition_writer: RenditionWriter
    rendition_recorder: RenditionRecorder
    probe_results: Batcher[tuple[ImageId, Probe], Image | None]
    renditions_size: int
    # Accounts whose last refresh failed, the latest last.
    failed_refreshes: dict[AccountId, None] = field(default_factory=dict)


@asynccontextmanager
async def open_resources(
    settings: Settings, redis: Any, *, limits: DecoderLimits = DEFAULT_LIMITS
) -> AsyncIterator[Resources]:
    """Opens the resources, and closes them with the block. Decoders start with the first pictures."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(
                settings.database_url,
                connections=settings.database_connections,
                command_timeout_s=_COMMAND_TIMEOUT_S,
                pooler=settings.database_pooler,
            )
        )
        storage = open_originals(settings, database, partial(load_id, database))
        probers = DecoderPool(
            settings.probe_processes + SPARE_DECODERS,
            share=settings.probe_processes,
            max_pixels=settings.max_pixels,
            timeout_s=settings.probe_timeout_s,
            limits=limits,
            is_local=storage.is_local,
        )
        stack.push_async_callback(probers.close)
        renderers = DecoderPool(
            settings.render_processes + SPARE_DECODERS,
            share=settings.render_processes,
            max_pixels=settings.max_pixels,
            timeout_s=settings.render_timeout_s,
            durations=metrics.render_seconds,
            niceness=_RENDER_NICENESS,
            limits=limits,
            is_local=storage.is_local,
        )
        stack.push_async_callback(renderers.close)
        renditions = open_renditions(settings)
        await asyncio.to_thread(renditions.prepare)
        recorder = await stack.enter_async_context(RenditionRecorder.open(database, renditions))
        probe_results = Batcher(partial(mark_ready, database), wait_s=probers.choose_result_wait_s)
        await stack.enter_async_context(running(probe_results.run()))
        yield Resources(
            database=database,
            storage=storage,
            redis=redis,
            jobs=JobQueue(redis),
            probers=probers,
            renderers=renderers,
            renditions=renditions,
            rendition_writer=RenditionWriter(renditions),
            rendition_recorder=recorder,
            probe_results=probe_results,
            renditions_size=settings.renditions_size,
        )
