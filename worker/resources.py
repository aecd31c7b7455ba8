"""What jobs work with: made at start-up, one for the whole worker."""

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
from service.images.probe import Probe
from service.images.updates import mark_ready
from service.queue.jobs import JobQueue
from service.storage.backends import open_originals, open_renditions
from service.storage.identity import load_id
from service.storage.interface import OriginalStorage, RenditionStorage
from service.telemetry.metrics import metrics
from worker.keeping import RenditionKeeper
from worker.rendition_recorder import RenditionLedger
from worker.sandbox.pool import Children

# The sum over a large account may take a while, and nobody waits for it.
_COMMAND_TIMEOUT_S = 10
# Pictures that the children have; with fewer, each image is answered as soon as can be.
_CROWD = 4
# Beside those that one account may have: a slow picture cannot be interrupted, and others do not wait for its end.
SPARE_CHILDREN = 1
# An upload's client waits for its probe: renditions take the cores that are left.
_RENDERERS_NICENESS = 5


@dataclass(frozen=True, slots=True)
class Resources:
    database: Database
    storage: OriginalStorage
    redis: Any
    jobs: JobQueue
    children: Children
    renderers: Children
    renditions: RenditionStorage
    keeper: RenditionKeeper
    ledger: RenditionLedger
    findings: Batcher[tuple[ImageId, Probe], Image | None]
    renditions_size: int
    unrefreshed: dict[AccountId, None] = field(default_factory=dict)  # whose last refresh failed, the latest last


@asynccontextmanager
async def open_resources(settings: Settings, redis: Any) -> AsyncIterator[Resources]:
    """Connect to everything and start the child processes; all of it ends with the block."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database.open(
                settings.database_url,
                connections=settings.database_connections,
                command_timeout_s=_COMMAND_TIMEOUT_S,
            )
        )
        storage = open_originals(settings.storage_folder, partial(load_id, database))
        children = Children(
            settings.probe_processes + SPARE_CHILDREN,
            share=settings.probe_processes,
            max_pixels=settings.max_pixels,
            timeout_s=settings.probe_timeout_s,
        )
        stack.push_async_callback(children.end)
        await children.start()
        renderers = Children(
            settings.render_processes + SPARE_CHILDREN,
            share=settings.render_processes,
            max_pixels=settings.max_pixels,
            timeout_s=settings.render_timeout_s,
            durations=metrics.render_seconds,
            niceness=_RENDERERS_NICENESS,
        )
        stack.push_async_callback(renderers.end)  # each starts with its first rendition
        renditions = open_renditions(settings.renditions_folder)
        await asyncio.to_thread(renditions.prepare)
        ledger = await stack.enter_async_context(RenditionLedger.open(database, renditions))
        findings = Batcher(partial(mark_ready, database), crowded=lambda: children.unanswered >= _CROWD)
        await stack.enter_async_context(running(findings.run()))
        yield Resources(
            database=database,
            storage=storage,
            redis=redis,
            jobs=JobQueue(redis),
            children=children,
            renderers=renderers,
            renditions=renditions,
            keeper=RenditionKeeper(renditions),
            ledger=ledger,
            findings=findings,
            renditions_size=settings.renditions_size,
        )
