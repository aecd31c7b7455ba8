"""Turns a received file into an image: publishes the file, inserts its row, and waits for its probe."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import structlog

from service.batcher import Batcher, running
from service.database import Database, changed_nothing
from service.errors import ServiceError, picture_error
from service.ids import AccountId, ImageId
from service.images.idempotency import find_by_key, release_key
from service.images.models import IdempotencyKey, Image, NewImage
from service.images.pending import (
    FILE_MISSING,
    KeyTaken,
    delete_failed_image,
    expire_failed_image,
    insert_pending,
    mark_failed,
    new_image_id,
)
from service.images.queries import ImageQuery, find_images, load_image
from service.queue.jobs import Job, JobQueue, ProbeJob
from service.queue.waiter import JobWaiter, Subscriber
from service.storage.files import storage_errors
from service.storage.interface import IdTaken, OriginalStorage, UploadFile
from service.uploads.receiving import Reservation, Upload

# These errors are raised before a row is inserted.
_NOT_INSERTED = frozenset({"account-suspended", "quota-exceeded", "storage-unavailable", "unauthorized"})
# The maximum time of a check for a file. A disk that hangs is no reason to refuse a file that was synced.
_FILE_CHECK_TIMEOUT_S = 2

# With this many uploads waiting for their probes, others will come soon.
_CROWDED_UPLOADS = 4
_CROWDED_WAIT_S = 0.002

log = structlog.get_logger("service")


class FileLost(Exception):
    """The row is committed, but the storage has no file for it."""


@dataclass(frozen=True, slots=True)
class IngestItem:
    """A received file, the row to insert for it, and the bytes that are reserved for it."""

    file: UploadFile
    image: NewImage
    reservation: Reservation | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The reply to a probe job: the image's row afterwards, or None if it was deleted."""

    image_id: ImageId
    image: Image | None


async def ingest_batch(
    database: Database, storage: OriginalStorage, items: Sequence[IngestItem]
) -> Sequence[Exception | None]:
    """Turns received files into images. A batch shares the cost of syncs, commits and threads.

    Returns an outcome for each, as `OriginalStorage.sync_batch` and `insert_pending` do, and FileLost for a row whose
    file is lost. Raises `storage-unavailable`.
    """
    sync_errors = await storage.sync_batch([item.file for item in items])
    synced = [item for item, error in zip(items, sync_errors, strict=True) if error is None]
    for item in synced:
        if item.reservation is not None:
            item.reservation.hand_over()
    images = [item.image for item in synced]
    outcomes = await insert_pending(database, images)
    lost = await storage.publish([image.id for image, outcome in zip(images, outcomes, strict=True) if outcome is None])
    published = iter(
        FileLost(image.id) if outcome is None and image.id in lost else outcome
        for image, outcome in zip(images, outcomes, strict=True)
    )
    return [error or next(published) for error in sync_errors]


class Ingest:
    """Stores uploads. One for each API process; `results` receives the replies to its probe jobs."""

    def __init__(
        self, database: Database, storage: OriginalStorage, redis: Any, queue: JobQueue, *, wait_s: float
    ) -> None:
        self._database = database
        self._storage = storage
        self._wait_s = wait_s
        self.ingest_batcher = Batcher(partial(ingest_batch, database, storage), wait_s=self._choose_wait_s)
        self.enqueue_batcher: Batcher[Job, None] = Batcher(queue.enqueue)
        self.waiter: JobWaiter[ImageId, ProbeResult] = JobWaiter(self.enqueue_batcher.enqueue)
        self.reply_channel = f"daguerre:replies:{secrets.token_hex(8)}"
        self.results: Subscriber[ProbeResult] = Subscriber(
            redis,
            [self.reply_channel],
            ProbeResult,
            on_message=lambda result: self.waiter.deliver(result.image_id, result),
            on_gap=self.waiter.wake_all,
        )

    def _choose_wait_s(self) -> float:
        """Returns how long a new upload should wait for others, to be stored together."""
        return _CROWDED_WAIT_S if self.waiter.waiting >= _CROWDED_UPLOADS else 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, database: Database, storage: OriginalStorage, redis: Any, queue: JobQueue, *, wait_s: float
    ) -> AsyncIterator[Self]:
        """Runs its tasks for the length of a block."""
        self = cls(database, storage, redis, queue, wait_s=wait_s)
        async with AsyncExitStack() as stack:
            for task in (self.ingest_batcher.run(), self.enqueue_batcher.run(), self.results.run()):
                await stack.enter_async_context(running(task))
            yield self

    async def store(
        self,
        upload: Upload,
        account_id: AccountId,
        tags: Sequence[str],
        key: IdempotencyKey | None = None,
        *,
        request_id: str,
    ) -> tuple[NewImage, Image | None]:
        """Returns the stored row, and the image once a worker has probed it: None if that takes longer than `wait_s`.

        The image is durable as soon as its row is committed, whatever happens afterwards. If the key belongs to an
        image with the same content, that image is returned and the upload is discarded. Raises `quota-exceeded`,
        `account-suspended`, `unauthorized` if the account was deleted meanwhile, `idempotency-key-reused`,
        `image-deleted` if a client deletes it meanwhile, and the error of a picture that is refused.
        """
        new = NewImage(upload.id, account_id, upload.size, upload.sha256, tags, key)
        stored = await self._store(upload, new)
        if isinstance(stored, NewImage):
            return stored, await self.wait(stored, request_id)
        return await self._join(stored, request_id)

    async def find_stored(
        self, account_id: AccountId, key: IdempotencyKey, *, request_id: str
    ) -> tuple[NewImage, Image | None] | None:
        """Returns what `store` would return if the key belongs to the picture of this URL, or None if it is unused.

        Raises what `store` does.
        """
        image = await self._find_by_key(account_id, key)
        return None if image is None else await self._join(image, request_id)

    async def _store(self, upload: Upload, new: NewImage) -> NewImage | Image:
        """Returns the row that was inserted, or the image that has its key already."""
        file = upload.file
        while True:
            try:
                await self.ingest_batcher.submit(IngestItem(file, new, upload.reservation))
            except IdTaken:
                image_id = new_image_id()
                # If a concurrent upload has the new id, the next attempt fails with IdTaken again.
                if await self._storage.rename_upload(file, image_id):
                    new = replace(new, id=image_id)
            except KeyTaken:
                # None: that image was deleted or refused meanwhile, so the key is free again.
                if (image := await self._yield_to_existing(file, new)) is not None:
                    return image
            except FileLost as error:
                await self._mark_lost(new)
                raise ServiceError("storage-unavailable") from error
            except ServiceError as refusal:
                # After any other error the row may have been committed, so the file is left for the sweep.
                if refusal.code in _NOT_INSERTED or changed_nothing(refusal):
                    await self._storage.discard(file)
                raise
            else:
                return new

    async def _yield_to_existing(self, file: UploadFile, new: NewImage) -> Image | None:
        assert new.idempotency_key is not None  # noqa: S101 - it is taken
        try:
            image = await self._find_by_key(new.account_id, new.idempotency_key, new.sha256)
        except BaseException:
            file.abandon()
            raise
        if image is not None and image.id != new.id:  # it is its own image if a batch was retried
            await self._storage.discard(file)
        return image

    async def _find_by_key(
        self, account_id: AccountId, key: IdempotencyKey, sha256: bytes | None = None
    ) -> Image | None:
        async with self._database.connection() as connection:
            earlier = await find_by_key(connection, account_id, key.text)
        if earlier is None:
            return None
        if not earlier.matches(key, sha256):
            raise ServiceError("idempotency-key-reused")
        if await self._is_lost(earlier.image.id):
            # The repeated upload replaces it. The row stays, because the file may be restored from a backup.
            async with self._database.connection() as connection:
                await release_key(connection, earlier.image.id)
            return None
        return earlier.image

    async def _join(self, image: Image, request_id: str) -> tuple[NewImage, Image | None]:
        """Returns an image that another request stored. It is probed again if necessary, because that request may have
        failed.
        """
        stored = NewImage(image.id, image.account_id, image.size, image.sha256, image.tags)
        return stored, image if image.state == "ready" else await self.wait(stored, request_id, joined=True)

    async def wait(self, new: NewImage, request_id: str, *, joined: bool = False) -> Image | None:
        """Returns the image once it is ready, or None if it is still pending after `wait_s`.

        `joined` means that another request stored the image: its job may be finished, and only that request got the
        reply.
        """
        image = await self.waiter.wait(
            new.id,
            ProbeJob(new.id, new.account_id, self.reply_channel, request_id),
            partial(self._check, new),
            timeout_s=self._wait_s,
            check_first=joined,
            before_retry=partial(self._require_file, new, joined=joined),
        )
        if image is None or image.error is None:
            return image
        if image.error == FILE_MISSING:  # the row stays failed
            raise picture_error(image.error, None)
        await self._delete_failed(image, soon=joined or new.idempotency_key is not None)
        raise picture_error(image.error, image.error_kind)

    async def _check(self, new: NewImage, result: ProbeResult | None) -> Image | None:
        """Returns the image if it is ready or failed, or None if it is pending. Raises `image-deleted`."""
        if result is not None:
            image = result.image
        else:
            try:
                image = await self._find(new)
            except ServiceError:  # the database is unavailable, but a reply may still arrive
                return None
        if image is None:
            raise ServiceError("image-deleted")
        return None if image.state == "pending" else image

    async def _require_file(self, new: NewImage, *, joined: bool) -> Image | None:
        """Returns None if the file exists. Otherwise returns the image if its probe has finished nevertheless.

        Raises `storage-unavailable` if its file is lost, and `image-deleted`.
        """
        if not await self._is_lost(new.id):
            return None
        # Another host may see an outdated folder (NFS), so only the host that wrote the file marks it as lost.
        image = await self._load(new.id) if joined else await self._mark_lost(new)
        if image is None:
            raise ServiceError("image-deleted")
        if image.state == "pending" or image.error == FILE_MISSING:
            raise ServiceError("storage-unavailable") from FileLost(new.id)
        return image

    async def _is_lost(self, image_id: ImageId) -> bool:
        """Returns whether the file is missing. If the disk hangs, the file is assumed to exist, because it was synced.

        Raises `storage-unavailable` if that cannot be known.
        """
        check = asyncio.ensure_future(self._storage.find_missing([image_id]))
        check.add_done_callback(_retrieve_error)
        done, _ = await asyncio.wait([check], timeout=_FILE_CHECK_TIMEOUT_S)
        with storage_errors():
            return bool(done) and bool(check.result())

    async def _mark_lost(self, new: NewImage) -> Image | None:
        """Marks a pending image as failed; its row stays for a day. Returns the image, or None if it was deleted."""
        log.error("upload.file_lost", image_id=new.id)
        async with self._database.connection() as connection:
            failed = await mark_failed(connection, new.id, FILE_MISSING)
        return failed or await self._load(new.id)

    async def _find(self, new: NewImage) -> Image | None:
        async with self._database.connection() as connection:
            [image] = await find_images(connection, [ImageQuery(new.id, new.account_id)])
        return image

    async def _load(self, image_id: ImageId) -> Image | None:
        async with self._database.connection() as connection:
            return await load_image(connection, image_id)

    async def _delete_failed(self, image: Image, *, soon: bool) -> None:
        forget = expire_failed_image if soon else delete_failed_image
        with suppress(ServiceError):  # the sweep deletes the row a day later
            async with self._database.connection() as connection:
                await forget(connection, image.id)


def _retrieve_error(check: asyncio.Future[frozenset[ImageId]]) -> None:
    """Keeps asyncio from logging an error after its request is gone."""
    if not check.cancelled():
        check.exception()
