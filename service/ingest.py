"""A received file becomes an image: its row, its place, its job, and the reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from service.batches import Batcher
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, new_image_id
from service.images.inserts import IdTaken, insert_pending
from service.images.outcomes import forget_failed
from service.images.records import Image, NewImage
from service.jobs import ProbeJob
from service.replies import Replies
from service.storage.disk import DiskStorage, IncomingFile
from service.uploads import Upload

_ENQUEUE_TIMEOUT_S = 1
# A job is enqueued again while its client waits: soon where that did not go well, and later since Redis may lose what
# it was given last.
_AGAIN_S = 0.5
_LOST_S = 2


@dataclass(frozen=True, slots=True)
class Arrival:
    """A received file, and what its row is to be."""

    file: IncomingFile
    image: NewImage


async def accept(database: Database, storage: DiskStorage, arrivals: Sequence[Arrival]) -> Sequence[Exception | None]:
    """Make received files images, a group at once: what syncs, commits and thread's turns cost is shared.

    Answers an outcome for each, as `DiskStorage.seal` and `insert_pending` do. Raises `storage-unavailable`.
    """
    unsealed = await storage.seal([arrival.file for arrival in arrivals])
    images = [arrival.image for arrival, error in zip(arrivals, unsealed, strict=True) if error is None]
    outcomes = await insert_pending(database, images)
    await storage.keep([image.id for image, outcome in zip(images, outcomes, strict=True) if outcome is None])
    inserted = iter(outcomes)
    return [error or next(inserted) for error in unsealed]


@dataclass(frozen=True, slots=True)
class Ingest:
    """`accepting` groups `accept`, `enqueuing` groups `JobQueue.enqueue`."""

    database: Database
    storage: DiskStorage
    accepting: Batcher[Arrival, None]
    enqueuing: Batcher[ProbeJob, None]
    replies: Replies
    wait_s: float

    async def store(
        self, upload: Upload, account_id: AccountId, tags: Sequence[str], *, request_id: str
    ) -> tuple[NewImage, Image | None]:
        """The stored row, and the image once a worker has looked at it: None if that takes longer than `wait_s`.

        From the moment the row is committed the image is durable, whatever happens here. Raises `quota-exceeded`,
        `image-deleted` if a client deletes it meanwhile, and the error of a picture that is refused.
        """
        new = await self._accept(upload.file, NewImage(upload.id, account_id, upload.size, upload.sha256, tags))
        with self.replies.expect(new.id, account_id) as waiter:
            deadline = time.monotonic() + self.wait_s
            image = None
            while image is None:
                is_queued = await self._enqueue(ProbeJob(new.id, self.replies.channel, request_id))
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                image = await waiter.wait(min(left, _LOST_S if is_queued else _AGAIN_S))
        if image is not None and image.error is not None:
            await self._forget(image)
            raise ServiceError(image.error)
        return new, image

    async def _enqueue(self, job: ProbeJob) -> bool:
        """Whether that went well. A job that is there is left alone; the sweep enqueues what stays pending."""
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_ENQUEUE_TIMEOUT_S):
                await self.enqueuing.submit(job)
                return True
        return False

    async def _accept(self, file: IncomingFile, new: NewImage) -> NewImage:
        while True:
            try:
                await self.accepting.submit(Arrival(file, new))
            except IdTaken:
                new = replace(new, id=new_image_id())
                await self.storage.rename_incoming(file, new.id)
            except ServiceError as refusal:
                # Of any other error it is unknown whether the row was committed: the file stays for the sweep.
                if refusal.code in ("quota-exceeded", "storage-unavailable"):
                    await self.storage.discard(file)
                raise
            else:
                return new

    async def _forget(self, image: Image) -> None:
        with suppress(ServiceError):  # the row goes by itself a day later
            async with self.database.connection() as connection:
                await forget_failed(connection, image.id)
