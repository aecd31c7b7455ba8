"""A received file becomes an image: its row, its place, its job, and the reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from service.batcher import Batcher
from service.database import Database, changed_nothing
from service.errors import ServiceError, refuse_picture
from service.ids import AccountId, ImageId, new_image_id
from service.images.idempotency import IdempotencyKey
from service.images.insert import IdTaken, KeyTaken, insert_pending
from service.images.models import Image, NewImage
from service.images.queries import load_image
from service.images.repeats import find_earlier, free_key
from service.images.updates import FILE_MISSING, forget_failed, forget_failed_soon, mark_failed
from service.queue.jobs import Job, ProbeJob
from service.storage.disk import DiskStorage
from service.storage.files import unavailable
from service.storage.incoming import IncomingFile
from service.uploads.receiving import Upload
from service.uploads.replies import Replies
from service.uploads.reservations import Reservation

_ENQUEUE_TIMEOUT_S = 1
# A job is enqueued again while its client waits: soon where that did not go well, and later since Redis may lose what
# it was given last.
_AGAIN_S = 0.5
_LOST_S = 2
# With these errors it is known that no row was inserted.
_NOT_INSERTED = frozenset({"account-suspended", "quota-exceeded", "storage-unavailable", "unauthorized"})
# For a look at whether a file is there; a disk that hangs is no reason to refuse what was synced.
_LOOK_TIMEOUT_S = 2

log = structlog.get_logger("service")


class FileLost(Exception):
    """The row is committed, and its file is nowhere in the storage."""


@dataclass(frozen=True, slots=True)
class IngestItem:
    """A received file, what its row is to be, and the bytes that are reserved for it."""

    file: IncomingFile
    image: NewImage
    reservation: Reservation | None = None


async def accept(
    database: Database, storage: DiskStorage, arrivals: Sequence[IngestItem]
) -> Sequence[Exception | None]:
    """Make received files images, a group at once: what syncs, commits and thread's turns cost is shared.

    Answers an outcome for each, as `DiskStorage.seal` and `insert_pending` do, and FileLost for a row whose file is
    lost. Raises `storage-unavailable`.
    """
    unsealed = await storage.seal([arrival.file for arrival in arrivals])
    sealed = [arrival for arrival, error in zip(arrivals, unsealed, strict=True) if error is None]
    for arrival in sealed:
        if arrival.reservation is not None:
            arrival.reservation.hand_over()
    images = [arrival.image for arrival in sealed]
    outcomes = await insert_pending(database, images)
    lost = await storage.keep([image.id for image, outcome in zip(images, outcomes, strict=True) if outcome is None])
    kept = iter(
        FileLost(image.id) if outcome is None and image.id in lost else outcome
        for image, outcome in zip(images, outcomes, strict=True)
    )
    return [error or next(kept) for error in unsealed]


@dataclass(frozen=True, slots=True)
class Ingest:
    """`accepting` groups `accept`, `enqueuing` groups `JobQueue.enqueue`."""

    database: Database
    storage: DiskStorage
    accepting: Batcher[IngestItem, None]
    enqueuing: Batcher[Job, None]
    replies: Replies
    wait_s: float

    async def store(
        self,
        upload: Upload,
        account_id: AccountId,
        tags: Sequence[str],
        key: IdempotencyKey | None = None,
        *,
        request_id: str,
    ) -> tuple[NewImage, Image | None]:
        """The stored row, and the image once a worker has looked at it: None if that takes longer than `wait_s`.

        From the moment the row is committed the image is durable, whatever happens here. Under a key that stands for
        an image of the same content it is that image, and the upload is dropped. Raises `quota-exceeded`,
        `account-suspended`, `unauthorized` if the account was deleted meanwhile, `idempotency-key-reused`,
        `image-deleted` if a client deletes it meanwhile, and the error of a picture that is refused.
        """
        new = NewImage(upload.id, account_id, upload.size, upload.sha256, tags, key)
        accepted = await self._accept(upload, new)
        if isinstance(accepted, NewImage):
            return accepted, await self._wait(accepted, request_id)
        return await self._join(accepted, request_id)

    async def repeat(
        self, account_id: AccountId, key: IdempotencyKey, *, request_id: str
    ) -> tuple[NewImage, Image | None] | None:
        """What `store` answers where the key stands for the picture from this URL, and None where it is free.

        Raises as `store` does.
        """
        earlier = await self._find_earlier(account_id, key)
        return None if earlier is None else await self._join(earlier, request_id)

    async def _accept(self, upload: Upload, new: NewImage) -> NewImage | Image:
        """The row that was inserted, or the image that has its key."""
        file = upload.file
        while True:
            try:
                await self.accepting.submit(IngestItem(file, new, upload.reservation))
            except IdTaken:
                image_id = new_image_id()
                # An id that another upload of this moment has is tried again: its insert is refused as well.
                if await self.storage.rename_incoming(file, image_id):
                    new = replace(new, id=image_id)
            except KeyTaken:
                # None: it was deleted or refused meanwhile, and the key is free again.
                if (earlier := await self._yield_to_earlier(file, new)) is not None:
                    return earlier
            except FileLost as error:
                await self._refuse_lost(new)
                raise ServiceError("storage-unavailable") from error
            except ServiceError as refusal:
                # Of any other error it is unknown whether the row was committed: the file stays for the sweep.
                if refusal.code in _NOT_INSERTED or changed_nothing(refusal):
                    await self.storage.discard(file)
                raise
            else:
                return new

    async def _yield_to_earlier(self, file: IncomingFile, new: NewImage) -> Image | None:
        assert new.idempotency_key is not None  # noqa: S101 - it is taken
        try:
            earlier = await self._find_earlier(new.account_id, new.idempotency_key, new.sha256)
        except BaseException:
            file.abandon()
            raise
        if earlier is not None and earlier.id != new.id:  # its own, if a group was written again
            await self.storage.discard(file)
        return earlier

    async def _find_earlier(
        self, account_id: AccountId, key: IdempotencyKey, sha256: bytes | None = None
    ) -> Image | None:
        async with self.database.connection() as connection:
            earlier = await find_earlier(connection, account_id, key.text)
        if earlier is None:
            return None
        if not earlier.is_of(key, sha256):
            raise ServiceError("idempotency-key-reused")
        if await self._is_lost(earlier.image.id):
            # What is sent again takes its place. The row stays, since the file may come back from a backup.
            async with self.database.connection() as connection:
                await free_key(connection, earlier.image.id)
            return None
        return earlier.image

    async def _is_lost(self, image_id: ImageId) -> bool:
        """Raises `storage-unavailable` where nobody knows; a disk that hangs has the file, which was synced."""
        looking = asyncio.ensure_future(self.storage.find_missing([image_id]))
        looking.add_done_callback(_retrieve)
        done, _ = await asyncio.wait([looking], timeout=_LOOK_TIMEOUT_S)
        with unavailable():
            return bool(done) and bool(looking.result())

    async def _join(self, image: Image, request_id: str) -> tuple[NewImage, Image | None]:
        """Answer an image that another request stored, waiting as that one does, which may have died."""
        stored = NewImage(image.id, image.account_id, image.size, image.sha256, image.tags)
        return stored, image if image.state == "ready" else await self._wait(stored, request_id, joined=True)

    async def _wait(self, new: NewImage, request_id: str, *, joined: bool = False) -> Image | None:
        """`joined` is the wait for an image that another request stored."""
        with self.replies.expect(new.id, new.account_id) as waiter:
            deadline = time.monotonic() + self.wait_s
            if joined:  # the job may be done already, and its reply gone to the other
                waiter.look.set()
            image = None
            while image is None:
                is_queued = await self._enqueue(ProbeJob(new.id, new.account_id, self.replies.channel, request_id))
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                image = await waiter.wait(min(left, _LOST_S if is_queued else _AGAIN_S))
                if image is None:
                    image = await self._require_file(new, joined=joined)
        if image is not None and image.error == FILE_MISSING:  # the row goes on saying so
            raise refuse_picture(image.error, None)
        if image is not None and image.error is not None:
            await self._forget(image, soon=joined or new.idempotency_key is not None)
            raise refuse_picture(image.error, image.error_kind)
        return image

    async def _require_file(self, new: NewImage, *, joined: bool) -> Image | None:
        """The image as it is by now, or None if it is still pending.

        Raises `storage-unavailable` if its file is lost, and `image-deleted`.
        """
        if not await self._is_lost(new.id):
            return None
        # Another host may see a folder as it was a moment ago (NFS): only the one that wrote the file gives it up.
        image = await self._load(new.id) if joined else await self._refuse_lost(new)
        if image is None:
            raise ServiceError("image-deleted")
        if image.state == "pending" or image.error == FILE_MISSING:
            raise ServiceError("storage-unavailable") from FileLost(new.id)
        return image

    async def _refuse_lost(self, new: NewImage) -> Image | None:
        """The row says why from now on, unless it has ended already; it is not forgotten before its time."""
        log.error("upload.file_lost", image_id=new.id)
        async with self.database.connection() as connection:
            failed = await mark_failed(connection, new.id, FILE_MISSING)
        return failed or await self._load(new.id)

    async def _load(self, image_id: ImageId) -> Image | None:
        async with self.database.connection() as connection:
            return await load_image(connection, image_id)

    async def _enqueue(self, job: ProbeJob) -> bool:
        """Whether that went well. A job that is there is left alone; the sweep enqueues what stays pending."""
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_ENQUEUE_TIMEOUT_S):
                await self.enqueuing.submit(job)
                return True
        return False

    async def _forget(self, image: Image, *, soon: bool) -> None:
        forget = forget_failed_soon if soon else forget_failed
        with suppress(ServiceError):  # the row goes by itself a day later
            async with self.database.connection() as connection:
                await forget(connection, image.id)


def _retrieve(looking: asyncio.Future[frozenset[ImageId]]) -> None:
    """Its error is for a request that has gone."""
    if not looking.cancelled():
        looking.exception()
