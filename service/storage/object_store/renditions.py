"""Renditions as objects of a store, so that every machine serves what another one rendered, with local copies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from service.folders import make_folder
from service.ids import ImageId
from service.storage.files import SMALL_BYTES, copy_patched, in_thread, read_file, storage_errors
from service.storage.interface import RenditionKey, StoredFile
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import Attributes, ObjectStore
from service.storage.shards import shard_name, shard_of
from service.telemetry.metrics import metrics

log = structlog.get_logger("service")

_FOLDER = "renditions"


def _folder(image_id: ImageId) -> str:
    """Returns the folder of an image's renditions, because only folders can be listed."""
    return f"{_FOLDER}/{shard_of(image_id)}/{image_id}"


def _name(key: RenditionKey) -> str:
    return f"{_folder(key.image_id)}/{key.digest}"


def _copy_name(key: RenditionKey) -> str:
    """Returns the name of the local copy, which needs no folder for each image."""
    return f"{_folder(key.image_id)}-{key.digest}"


class ObjectRenditions:
    """The `RenditionStorage` of an object store. The note of an object is the time of its file in ns, which is part of
    the ETag of a response, and so must be the same on all machines.

    No shard is compared with the rows, because that would list the bucket. So a rendition whose worker was killed
    before its row was written stays until its image is deleted; if that was before, until `daguerre verify --repair`.
    """

    num_shards = 0

    def __init__(self, store: ObjectStore, cache: FileCache) -> None:
        self._store = store
        self._cache = cache

    @property
    def threads(self) -> Executor:
        return self._cache.threads

    @property
    def location(self) -> str:
        return f"{self._store.url}/{_FOLDER}"

    @property
    def disks(self) -> Mapping[str, Path]:
        return {"cache": self._cache.folder}

    def prepare(self) -> None:
        self._cache.prepare()

    def path(self, key: RenditionKey) -> Path:
        return self._cache.path(_copy_name(key))

    async def find(self, key: RenditionKey, is_complete: Callable[[StoredFile], bool]) -> StoredFile | None:
        with storage_errors():
            try:
                path = await self._cache.fetch(_copy_name(key), partial(self._download, key))
                file = await self._cache.short_calls.run(partial(read_file, path))
            except FileNotFoundError:
                return None
            if is_complete(file):
                return file
            metrics.renditions_damaged.inc()
            log.warning("renditions.damaged", path=str(path), bytes=file.size)
            with suppress(OSError):
                await self.remove([key])
        return None

    async def _download(self, key: RenditionKey, path: Path) -> int:
        info, attributes = await self._store.download(_name(key), path)
        return int(attributes.note) if attributes.note.isdecimal() else info.modified_ns

    async def write(self, key: RenditionKey, data: bytes) -> StoredFile:
        run = self._cache.short_calls.run if len(data) <= SMALL_BYTES else partial(in_thread, self.threads)
        return await self._store_draft(key, lambda draft: draft.write_bytes(data), run)

    async def write_patched(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> StoredFile:
        def write(draft: Path) -> None:
            with draft.open("xb") as file:
                copy_patched(source, file, patches)

        return await self._store_draft(key, write, partial(in_thread, self.threads))

    async def _store_draft(
        self,
        key: RenditionKey,
        write: Callable[[Path], object],
        run: Callable[[Callable[[], StoredFile]], Awaitable[StoredFile]],
    ) -> StoredFile:
        draft = self._cache.draft_path()
        try:
            file = await run(partial(_write_and_read, draft, write))
            attributes = Attributes(note=str(file.modified_ns))
            if file.data is not None:
                await self._store.put(_name(key), file.data, attributes, replace=True)
            else:
                await self._store.put_file(_name(key), draft, file.size, attributes, replace=True)
            path = await self._cache.short_calls.run(partial(self._cache.add, _copy_name(key), draft))
        except BaseException as error:
            draft.unlink(missing_ok=True)
            self._cache.make_room(error)
            raise
        return replace(file, path=path)

    async def remove(self, keys: Collection[RenditionKey]) -> set[RenditionKey]:
        await self._store.delete(list(map(_name, keys)))
        await in_thread(self.threads, partial(self._cache.remove, map(_copy_name, keys)))
        return set()

    async def remove_for_images(self, image_ids: Collection[ImageId]) -> set[ImageId]:
        await asyncio.gather(*map(self._remove_for_image, image_ids))
        return set()

    async def _remove_for_image(self, image_id: ImageId) -> None:
        async for objects in self._store.list_all(_folder(image_id)):
            await self._store.delete([one.name for one in objects])
        await in_thread(self.threads, partial(self._cache.remove_prefix, f"{_folder(image_id)}-"))

    async def list_images(self, number: int) -> list[ImageId]:
        image_ids: set[ImageId] = set()
        async for objects in self._store.list_all(f"{_FOLDER}/{shard_name(number)}"):
            image_ids.update(ImageId(one.name.split("/")[2]) for one in objects)
        return sorted(image_ids)

    async def list_shard(self, number: int, age_s: float) -> dict[RenditionKey, int]:  # noqa: ARG002 - there is none
        return {}

    async def remove_stale_drafts(self, age_s: float) -> None:
        """The cache removes them."""


def _write_and_read(path: Path, write: Callable[[Path], object]) -> StoredFile:
    """Creates the folder again if it was removed. Blocks; raises OSError."""
    make_folder(path.parent)
    write(path)
    return read_file(path)
