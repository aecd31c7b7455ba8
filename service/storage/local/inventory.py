"""The originals on a disk with the operations of `daguerre verify`."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from service.ids import IMAGE_ID_PATTERN, ImageId
from service.storage.files import in_thread, open_regular
from service.storage.interface import BadFolder, StoredName, UnreadableFile
from service.storage.local.disk import publish
from service.storage.local.originals import LocalOriginals
from service.storage.shards import NUM_SHARDS

_READ_BYTES = 1 << 20


class LocalInventory(LocalOriginals):
    """The `OriginalInventory` of a disk."""

    num_shards = NUM_SHARDS
    max_readers = 4

    def require_any(self) -> None:
        if not any(os.access(self.shard_folder(shard), os.F_OK) for shard in range(NUM_SHARDS)):
            self.require()

    async def find_bad_folders(self) -> list[BadFolder]:
        return await in_thread(self.threads, lambda: list(self._find_bad_folders()))

    def _find_bad_folders(self) -> Iterator[BadFolder]:
        shards = ((self.shard_folder(shard), shard) for shard in range(NUM_SHARDS))
        for folder, shard in ((self.incoming, None), *shards):
            try:
                with os.scandir(folder) as entries:
                    next(entries, None)
            except OSError as error:
                is_missing = isinstance(error, FileNotFoundError) and not os.path.lexists(folder)
                yield BadFolder(str(folder), shard, error, is_missing)

    async def create_folder(self, folder: BadFolder) -> None:
        await in_thread(self.threads, partial(Path(folder.location).mkdir, mode=0o700))

    def locate_shard(self, number: int) -> str:
        return str(self.shard_folder(number))

    async def list_shard(self, number: int) -> AsyncIterator[Sequence[StoredName]]:
        yield await in_thread(self.threads, partial(self._list_shard, number))

    def _list_shard(self, number: int) -> list[StoredName]:
        return [
            StoredName(path.name, str(path), is_misplaced=self._is_misplaced(path))
            for path in self.shard_folder(number).iterdir()
        ]

    def _is_misplaced(self, path: Path) -> bool:
        return IMAGE_ID_PATTERN.fullmatch(path.name) is not None and self.path(ImageId(path.name)) != path

    async def examine(self, image_id: ImageId, *, read: bool) -> tuple[int, bytes | None]:
        return await in_thread(self.threads, partial(self._examine, image_id, read=read))

    def _examine(self, image_id: ImageId, *, read: bool) -> tuple[int, bytes | None]:
        with self.open_file(image_id) as file:
            size = os.fstat(file.fileno()).st_size
            return size, hashlib.file_digest(file, "sha256").digest() if read else None

    async def has_file(self, file: StoredName) -> bool:
        return await in_thread(self.threads, partial(os.path.lexists, file.location))

    async def quarantine(self, file: StoredName) -> str:
        return str(await in_thread(self.threads, partial(self.unclaimed.add, Path(file.location))))

    async def find_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> str | None:
        path = await in_thread(self.threads, partial(self.unclaimed.find, image_id, size, sha256))
        return None if path is None else str(path)

    async def restore_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> bool:
        restore = partial(self.publisher.restore, image_id, size, sha256)
        return await in_thread(self.threads, restore) is not None

    def prepare_target(self) -> None:
        self.prepare()

    async def find_size(self, image_id: ImageId) -> int | None:
        return await in_thread(self.threads, partial(self._find_size, image_id))

    def _find_size(self, image_id: ImageId) -> int | None:
        for path in self.candidate_paths(image_id):
            with suppress(FileNotFoundError):
                return Path(path).stat().st_size
        return None

    async def export(self, image_id: ImageId, path: Path) -> None:
        await in_thread(self.threads, partial(self._export, image_id, path))

    def _export(self, image_id: ImageId, target: Path) -> None:
        for path in self.candidate_paths(image_id):
            try:
                shutil.copyfile(path, target)
            except FileNotFoundError:  # it has another path, or was deleted meanwhile
                continue
            except OSError as error:
                _require_readable(path, error)
                raise
            return
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image_id)

    def draft_path(self, image_id: ImageId) -> Path:
        path = self.path(image_id)
        return path.with_name(f"{path.name}.partial")

    async def adopt(self, image_id: ImageId, draft: Path, *, replace: bool) -> None:
        move = draft.replace if replace else partial(publish, draft)
        await in_thread(self.threads, partial(move, self.path(image_id)))

    async def find_conflicts(self, expected: Mapping[ImageId, bytes]) -> dict[ImageId, bool]:
        return await in_thread(self.threads, partial(self.publisher.find_conflicts, expected))

    def locate_upload(self, name: str) -> str:
        return f"incoming/{name}"

    async def is_unfinished(self, name: str) -> bool:
        return await in_thread(self.threads, partial(os.path.lexists, self.incoming / name))

    async def quarantine_upload(self, name: str) -> str:
        return str(await in_thread(self.threads, partial(self.unclaimed.add, self.incoming / name)))


def _require_readable(path: str, cause: OSError) -> None:
    """Raises UnreadableFile if the file cannot be read to its end, e.g. because a block of its disk is damaged."""
    try:
        with open_regular(path) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as error:
        raise UnreadableFile(*error.args) from cause
