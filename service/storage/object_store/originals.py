"""Originals as objects of a store.

A body is written to a local draft, recorded in the journal, and sent to the store under the image's id, where nothing
is ever overwritten. The draft then becomes the local copy, which the workers of this machine read. Once the row of the
image is committed, the journal forgets the upload.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import cast

import structlog

from service.errors import ServiceError
from service.ids import ImageId
from service.storage.files import in_thread, read_file, storage_errors
from service.storage.interface import Failures, IdTaken, StorageUnavailable, StoredFile, UploadFile
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import Attributes, ObjectStore
from service.storage.object_store.journal import Journal
from service.storage.object_store.setup import ID_OBJECT, ObjectSetup, decode_id
from service.storage.object_store.upload_file import ObjectUploadFile
from service.storage.recorded_id import RecordedId
from service.storage.shards import shard_of

log = structlog.get_logger("service")

# The id of the store is read at most once in this time.
_ID_TTL_S = 5.0
# No image is inserted later after its journal began, because the sweep removes what began an hour ago.
_MAX_UNFINISHED_S = 1800
_MAX_BATCHED_BYTES = 1 << 20
_FINISH_WAIT_S = 1.0


def object_name(image_id: ImageId) -> str:
    return f"{shard_of(image_id)}/{image_id}"


class ObjectOriginals(ObjectSetup):
    """The `OriginalStorage` of an object store, in which an object has the name that its file would have in a folder.

    `load_id` loads the id of the database's storage. The object `storage-id` has it too, so that a wrong bucket is
    noticed; without `load_id`, any bucket is accepted.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: FileCache,
        journal: Journal,
        load_id: Callable[[], Awaitable[str | None]] | None = None,
    ) -> None:
        super().__init__(store, cache)
        self._journal = journal
        self._recorded_id = RecordedId(load_id)
        self._id_read_at = -_ID_TTL_S
        self._finishing: set[asyncio.Task[frozenset[ImageId]]] = set()

    @property
    def id(self) -> str | None:
        return self._recorded_id.value

    @property
    def disks(self) -> Mapping[str, Path]:
        return {"cache": self._cache.folder}

    @property
    def threads(self) -> Executor:
        return self._cache.threads

    @property
    def is_local(self) -> bool:
        return self._cache.is_local

    # The store of this database

    async def require_available(self) -> None:
        """Raises StorageUnavailable if the store has another id than the database, OSError, and `database-unavailable`
        if the id has to be loaded.
        """
        await self._require_own(self._recorded_id.load)

    async def _require_available_now(self) -> None:
        """Like `require_available`, but always asks the store."""
        self._id_read_at = -_ID_TTL_S
        await self.require_available()

    async def check(self) -> None:
        await in_thread(self.threads, self._cache.try_write)
        self._id_read_at = -_ID_TTL_S
        await self._require_own(self._recorded_id.load_soon)

    async def _require_own(self, load: Callable[[], Awaitable[bool]]) -> None:
        if self.id is None:
            await load()
        if time.monotonic() - self._id_read_at < _ID_TTL_S:
            return
        own_id = await self._load_own_id()
        if self._recorded_id.is_required and own_id != self.id and (not await load() or own_id != self.id):
            raise StorageUnavailable(
                errno.ENODEV, f"its {ID_OBJECT} is {own_id}, and that of this database's storage is {self.id}"
            )
        self._id_read_at = time.monotonic()

    async def _load_own_id(self) -> str | None:
        try:
            return decode_id(await self._store.read(ID_OBJECT))
        except FileNotFoundError:
            return None

    # Uploads

    @asynccontextmanager
    async def receive(self, image_id: ImageId) -> AsyncIterator[UploadFile]:
        """Sends a large file at the end of the block, because all of a batch wait for the slowest of its files."""
        file = ObjectUploadFile(image_id, self._cache.draft_path(), self._cache.short_calls)
        try:
            yield file
            if file.size > _MAX_BATCHED_BYTES:
                await self._send_alone(file)
        except BaseException:
            file.abandon()
            raise

    async def _send_alone(self, file: ObjectUploadFile) -> None:
        with storage_errors():
            await self.require_available()
        await self._record([file])
        error = await self._send(file)
        if error is not None and not isinstance(error, IdTaken):  # `sync_batch` finds that out again
            raise error

    async def sync_batch(self, files: Sequence[UploadFile]) -> Sequence[Exception | None]:
        """Records the uploads in the journal with one statement, and then sends them to the store."""
        received = cast("Sequence[ObjectUploadFile]", files)  # created by `receive`
        with storage_errors():
            await self.require_available()
        await self._record([file for file in received if not file.is_recorded])
        errors = await asyncio.gather(*map(self._send, received))
        return [error or _find_delay(file) for file, error in zip(received, errors, strict=True)]

    async def _record(self, files: Sequence[ObjectUploadFile]) -> None:
        if not files:
            return
        by_id = {file.image_id: file for file in files}
        began_at = time.monotonic()
        for image_id in await self._journal.begin({image_id: file.token for image_id, file in by_id.items()}):
            by_id[image_id].is_recorded, by_id[image_id].began_at = True, began_at

    async def _send(self, file: ObjectUploadFile) -> Exception | None:
        if not file.is_recorded:
            return IdTaken(file.image_id)
        if file.is_stored:  # the batch is tried again
            return None
        try:
            with storage_errors():
                if not await self._create(file):
                    await self._forget([file.image_id])
                    file.is_recorded = False
                    return IdTaken(file.image_id)
        except ServiceError as error:
            file.abandon()
            return error
        file.is_stored = True
        with suppress(OSError):  # without the copy, workers read the object
            file.path = await self._cache.short_calls.run(
                partial(self._cache.add, object_name(file.image_id), file.path)
            )
        return None

    async def _create(self, file: ObjectUploadFile) -> bool:
        """Returns False if the object of another upload has this name."""
        name, attributes = object_name(file.image_id), Attributes(file.media_type, note=file.token)
        try:
            if file.content is not None:
                await self._store.put(name, file.content, attributes)
            else:
                await self._store.put_file(name, file.path, file.size, attributes)
        except FileExistsError:  # perhaps by this request, whose response was lost and which was repeated
            return await self._has_token(file.image_id, file.token)
        return True

    async def _has_token(self, image_id: ImageId, token: str) -> bool:
        found = await self._store.find(object_name(image_id))
        return found is not None and found[1].note == token

    async def rename_upload(self, file: UploadFile, to: ImageId) -> bool:
        """Accepts any id: `sync_batch` finds out whether it is free."""
        received = cast("ObjectUploadFile", file)
        with storage_errors():
            if received.is_stored:
                await in_thread(self.threads, partial(received.move, self._cache.draft_path()))
                await self._remove_unfinished(received.image_id)
        received.image_id, received.is_recorded, received.is_stored = to, False, False
        return True

    async def discard(self, file: UploadFile) -> None:
        """If the store failed, the object may exist nevertheless. Then it is left for the sweep."""
        received = cast("ObjectUploadFile", file)
        with suppress(OSError):
            await in_thread(self.threads, received.abandon)
        if received.is_stored:
            with suppress(OSError, ServiceError):
                await self._remove_unfinished(received.image_id)

    async def _remove_unfinished(self, image_id: ImageId) -> None:
        await self._store.delete([object_name(image_id)])
        await self._forget([image_id])

    async def _forget(self, image_ids: Sequence[ImageId]) -> None:
        with suppress(ServiceError):  # the sweep does it later
            await self._journal.finish(image_ids)

    async def publish(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """The clients of the images wait for this, so it goes on without them if the database hangs."""
        finishing = asyncio.create_task(self._finish(image_ids))
        self._finishing.add(finishing)
        finishing.add_done_callback(self._finishing.discard)
        done, _ = await asyncio.wait([finishing], timeout=_FINISH_WAIT_S)
        return finishing.result() if done else frozenset()

    async def _finish(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """An upload that the journal does not have took so long that the sweep may have removed it."""
        try:
            finished = await self._journal.finish(image_ids)
            unknown = [image_id for image_id in image_ids if image_id not in finished]
            return await self.find_missing(unknown) if unknown else frozenset()
        except (OSError, ServiceError) as error:
            log.warning("storage.publish_failed", images=len(image_ids), error=repr(error))
            return frozenset()

    async def list_stale_uploads(self, age_s: float, limit: int, *, skip: Collection[str] = ()) -> list[ImageId]:
        """Ages are by the clock of PostgreSQL."""
        await self.require_available()
        return await self._journal.list_stale(age_s, limit, skip=skip)

    async def reconcile(self, expected: Mapping[ImageId, bytes]) -> Failures:
        missing = await self.find_missing(list(expected))
        await self._journal.finish(list(expected))
        return {image_id: FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image_id) for image_id in missing}

    async def remove_stale_uploads(self, image_ids: Sequence[ImageId]) -> Failures:
        tokens = await self._journal.find_tokens(image_ids)
        results = await asyncio.gather(*(self._remove_stale(*upload) for upload in tokens.items()))
        return {image_id: error for image_id, error in zip(tokens, results, strict=True) if error is not None}

    async def _remove_stale(self, image_id: ImageId, token: str) -> OSError | None:
        """Removes the object if it is that of the upload, and not one that had its name before."""
        try:
            if await self._has_token(image_id, token):
                await self._store.delete([object_name(image_id)])
        except OSError as error:
            return error
        await self._forget([image_id])
        return None

    # Reading and removing

    async def find(self, image_id: ImageId, size: int | None = None) -> StoredFile | None:
        with storage_errors():
            for _ in range(2):
                with suppress(FileNotFoundError):
                    path = await self._fetch(image_id, size)
                    return await self._cache.short_calls.run(partial(read_file, path))
                if await self.find_missing([image_id]):
                    return None
                # the copy was removed before it was read
            raise StorageUnavailable(errno.EAGAIN, "the object was missing for a moment")

    async def paths_for_decoding(self, image_id: ImageId, size: int | None = None) -> tuple[str]:
        """Fetches the file if this machine has no copy. Raises FileNotFoundError if it is lost, and OSError."""
        return (str(await self._fetch(image_id, size)),)

    async def drop_damaged_copy(self, image_id: ImageId) -> bool:
        name = object_name(image_id)
        path = self._cache.path(name)
        found = await self._store.find(name)
        try:
            size = (await self._cache.short_calls.run(path.stat)).st_size
        except FileNotFoundError:
            return False
        if found is None or found[0].size == size:
            return False
        log.warning("cache.copy_damaged", path=str(path), size=size, expected=found[0].size)
        await self._cache.short_calls.run(partial(self._cache.remove, [name]))
        return True

    async def _fetch(self, image_id: ImageId, size: int | None) -> Path:
        name = object_name(image_id)

        async def download(path: Path) -> int:
            return (await self._store.download(name, path))[0].modified_ns

        path = await self._cache.fetch(name, download)
        if size is not None and (await self._cache.short_calls.run(path.stat)).st_size != size:
            await self._cache.short_calls.run(partial(self._cache.remove, [name]))
            path = await self._cache.fetch(name, download)
        return path

    async def find_missing(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        await self.require_available()
        missing = await self._list_absent(image_ids)
        if not missing:
            return frozenset()
        # What is in front of a store may say of everything that it does not exist. Then the store has no id either.
        await self._require_available_now()
        return frozenset(await self._list_absent(missing))

    async def _list_absent(self, image_ids: Sequence[ImageId]) -> list[ImageId]:
        present = set(await self.list_present(image_ids))
        return [image_id for image_id in image_ids if image_id not in present]

    async def list_present(self, image_ids: Sequence[ImageId]) -> list[ImageId]:
        found = await asyncio.gather(*(self._store.find(object_name(image_id)) for image_id in image_ids))
        return [image_id for image_id, one in zip(image_ids, found, strict=True) if one is not None]

    async def sign(self, image_id: ImageId, seconds: int) -> str:
        return await self._store.sign(object_name(image_id), seconds)

    def open_file(self, image_id: ImageId) -> BufferedReader:
        return self._store.open_now(object_name(image_id))

    def locate(self, image_id: ImageId) -> str:
        return f"{self._store.url}/{object_name(image_id)}"

    async def remove(self, image_ids: Sequence[ImageId]) -> Failures:
        names = list(map(object_name, image_ids))
        await self.require_available()
        await self._store.delete(names)
        await in_thread(self.threads, partial(self._cache.remove, names))
        await self._journal.finish(image_ids)
        return {}


def _find_delay(file: ObjectUploadFile) -> ServiceError | None:
    """Returns `storage-unavailable` if the upload took so long that the sweep may remove its object at any moment."""
    if time.monotonic() - file.began_at < _MAX_UNFINISHED_S:
        return None
    return ServiceError("storage-unavailable")
