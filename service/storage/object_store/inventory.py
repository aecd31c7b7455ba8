"""The originals in an object store with the operations of `daguerre verify`."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.ids import IMAGE_ID_PATTERN, ImageId
from service.storage.files import in_thread
from service.storage.interface import BadFolder, StorageUnavailable, StoredName, UnreadableFile
from service.storage.object_store.client import Attributes
from service.storage.object_store.originals import ObjectOriginals, object_name
from service.storage.shards import NUM_SHARDS, shard_name, shard_of

Result = TypeVar("Result")

_QUARANTINE = "unclaimed"


class ObjectInventory(ObjectOriginals):
    """The `OriginalInventory` of an object store. The quarantine has a folder for each name, with numbered objects."""

    num_shards = NUM_SHARDS
    max_readers = 32

    def require_any(self) -> None:
        self.require()

    async def find_bad_folders(self) -> list[BadFolder]:
        """A store has no folders of its own."""
        return []

    async def create_folder(self, folder: BadFolder) -> None:
        raise OSError(errno.ENOTSUP, "an object store has no folders", folder.location)

    def locate_shard(self, number: int) -> str:
        return f"{self.location}/{shard_name(number)}"

    async def list_shard(self, number: int) -> AsyncIterator[Sequence[StoredName]]:
        shard = shard_name(number)
        async for objects in self._store.list_all(shard):
            names = [one.name.removeprefix(f"{shard}/") for one in objects]
            yield [StoredName(name, self._locate(f"{shard}/{name}"), _is_misplaced(name, shard)) for name in names]

    async def examine(self, image_id: ImageId, *, read: bool) -> tuple[int, bytes | None]:
        name = object_name(image_id)
        if read:
            return await self._read(partial(self._store.digest, name))
        return await self._read(partial(self._store.size, name)), None

    async def _read(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Returns the result of reading an object. Raises UnreadableFile if that fails twice and the store responds."""
        with suppress(StorageUnavailable):
            return await call()
        await self._require_available_now()
        try:
            return await call()
        except StorageUnavailable as error:
            raise UnreadableFile(*error.args) from error

    async def has_file(self, file: StoredName) -> bool:
        return await self._store.find(self._name_at(file.location)) is not None

    async def quarantine(self, file: StoredName) -> str:
        return self._locate(await self._quarantine(self._name_at(file.location), file.name))

    async def _quarantine(self, source: str, name: str) -> str:
        number = len(await self._list_quarantined(name))
        while await self._store.find(target := f"{_QUARANTINE}/{name}/{number}") is not None:
            number += 1
        await self._store.move(source, target)
        return target

    async def find_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> str | None:
        found = await self._find_quarantined(image_id, size, sha256)
        return None if found is None else self._locate(found)

    async def _find_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> str | None:
        for name, its_size in (await self._list_quarantined(image_id)).items():
            if its_size == size and await self._store.digest(name) == (size, sha256):
                return name
        return None

    async def _list_quarantined(self, name: str) -> dict[str, int]:
        """Returns the names of objects that had this name, and their sizes."""
        groups = [group async for group in self._store.list_all(f"{_QUARANTINE}/{name}")]
        return {one.name: one.size for group in groups for one in group}

    async def restore_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> bool:
        source, target = await self._find_quarantined(image_id, size, sha256), object_name(image_id)
        if source is None:
            return False
        if await self._store.find(target) is not None:
            await self._quarantine(target, image_id)
        await self._store.move(source, target)
        await in_thread(self.threads, partial(self._cache.remove, [target]))
        return True

    def prepare_target(self) -> None:
        self._cache.prepare()

    async def find_size(self, image_id: ImageId) -> int | None:
        found = await self._store.find(object_name(image_id))
        return None if found is None else found[0].size

    async def export(self, image_id: ImageId, path: Path) -> None:
        async def download() -> None:
            await in_thread(self.threads, partial(path.unlink, missing_ok=True))  # from a download that failed
            await self._store.download(object_name(image_id), path)

        await self._read(download)

    def draft_path(self, image_id: ImageId) -> Path:  # noqa: ARG002 - a draft has no name
        return self._cache.draft_path()

    async def adopt(self, image_id: ImageId, draft: Path, *, replace: bool) -> None:
        size = await in_thread(self.threads, lambda: draft.stat().st_size)
        await self._store.put_file(object_name(image_id), draft, size, Attributes(), replace=replace)

    async def find_conflicts(self, expected: Mapping[ImageId, bytes]) -> dict[ImageId, bool]:  # noqa: ARG002
        """Nothing is ever overwritten, so an id has one object."""
        return {}

    def locate_upload(self, name: str) -> str:
        return self._locate(object_name(ImageId(name)))

    async def is_unfinished(self, name: str) -> bool:
        return bool(await self._journal.find_tokens([ImageId(name)]))

    async def quarantine_upload(self, name: str) -> str:
        raise OSError(errno.ENOTSUP, "the journal has only ids of images", name)

    def _locate(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _name_at(self, location: str) -> str:
        return location.removeprefix(f"{self.location}/")


def _is_misplaced(name: str, shard: str) -> bool:
    return IMAGE_ID_PATTERN.fullmatch(name) is not None and shard_of(ImageId(name)) != shard
