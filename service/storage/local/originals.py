"""Originals as files of a disk.

A body is written to `incoming/ID`, synced there, and moved to its final path after its row is committed. So `incoming`
is the journal of unfinished uploads, no sweep has to list the folders of published files, and readers try both paths.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from service.dependencies.reasons import Unready
from service.errors import ServiceError
from service.ids import ImageId
from service.storage.clock import FolderClock
from service.storage.files import (
    LoopCalls,
    ShortCalls,
    disk_threads,
    in_thread,
    open_regular,
    read_file,
    storage_errors,
)
from service.storage.interface import Failures, StorageUnavailable, StoredFile, UploadFile
from service.storage.local import disk
from service.storage.local.disk import ID_FILE, StorageFolders, StorageRoot, create_id, publish, read_folder_id
from service.storage.local.publishing import Publisher, for_each
from service.storage.local.quarantine import Quarantine

log = structlog.get_logger("service")


class LocalOriginals(StorageFolders):
    """The `OriginalStorage` of a disk. `load_id` loads the id of the database's storage, as for StorageRoot. `is_local`
    means that short calls may run on the event loop.
    """

    def __init__(
        self,
        folder: Path,
        load_id: Callable[[], Awaitable[str | None]] | None = None,
        *,
        is_local: bool = False,
    ) -> None:
        super().__init__(folder)
        self.unclaimed = Quarantine(folder / "unclaimed")
        self.publisher = Publisher(self, self.unclaimed)
        self.threads = disk_threads("storage")
        self.is_local = is_local
        self._short_calls = ShortCalls(self.threads, LoopCalls(is_local=is_local))
        self.root = StorageRoot(folder, load_id, self.threads)
        self._clock = FolderClock(self.incoming)

    @property
    def id(self) -> str | None:
        return self.root.recorded_id.value

    @property
    def location(self) -> str:
        return str(self.folder)

    @property
    def disks(self) -> Mapping[str, Path]:
        return {"storage": self.folder}

    def read_own_id(self) -> str | None:
        return read_folder_id(self.folder)

    def create_own_id(self, storage_id: str | None = None) -> str:
        return create_id(self.folder, storage_id)

    def adopt_command(self, storage_id: str | None) -> str:
        folder = shlex.quote(str(self.folder))
        make = f"mkdir -p {folder}/{disk.INCOMING}"
        return make if storage_id is None else f"{make} && echo {storage_id} >{folder}/{ID_FILE}"

    async def require_available(self) -> None:
        await self.root.call(lambda _: None)

    async def check(self) -> None:
        """Raises OSError if nothing can be written, or the storage of the database is not mounted. Until its id is
        loaded, any writable folder is accepted. Raises Unready if the disk has no inode left.
        """
        try:
            await self.root.call(lambda _: disk.try_write(self.incoming), needs_id=False)
        except OSError as error:
            if error.errno == errno.ENOSPC and await in_thread(self.threads, self._count_free_inodes) == 0:
                raise Unready("its disk has no inode left") from error
            raise

    def _count_free_inodes(self) -> int:
        return os.statvfs(self.folder).f_ffree

    @asynccontextmanager
    async def receive(self, image_id: ImageId) -> AsyncIterator[UploadFile]:
        file = LocalUploadFile(self.incoming_path(image_id), self.threads, self._short_calls)
        try:
            yield file
        except BaseException:
            file.abandon()
            raise

    async def sync_batch(self, files: Sequence[UploadFile]) -> Sequence[ServiceError | None]:
        """Makes finished files and their names durable, with one sync of the folder for all of them."""
        received = cast("Sequence[LocalUploadFile]", files)  # created by `receive`
        with storage_errors():
            return await self.root.call(lambda _: self._sync_batch(received))

    def _sync_batch(self, files: Sequence[LocalUploadFile]) -> Sequence[ServiceError | None]:
        errors: dict[int, ServiceError] = {}
        for step in (LocalUploadFile.flush, LocalUploadFile.sync):
            for number, file in enumerate(files):
                try:
                    if number not in errors:
                        with storage_errors():
                            step(file)
                except ServiceError as error:
                    file.abandon()
                    errors[number] = error
        disk.sync_folder(self.incoming)
        return [errors.get(number) for number in range(len(files))]

    async def rename_upload(self, file: UploadFile, to: ImageId) -> bool:
        received = cast("LocalUploadFile", file)
        with storage_errors():
            try:
                await in_thread(self.threads, partial(received.move, self.incoming_path(to)))
            except FileExistsError:
                return False
        return True

    async def discard(self, file: UploadFile) -> None:
        received = cast("LocalUploadFile", file)
        with suppress(OSError):
            await in_thread(self.threads, received.abandon)

    async def publish(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """Moves files whose rows were committed to their final paths. Returns the images whose files are lost.

        The sweep retries a file that cannot be moved. Nothing is raised: a committed batch must not look like a failed
        one, which would be retried.
        """
        try:
            missing = await self._short_calls.run(partial(self._publish, image_ids))
            return await self.find_missing(missing) if missing else frozenset()
        except (OSError, ServiceError) as error:
            log.warning("storage.move_failed", images=len(image_ids), error=repr(error))
            return frozenset()

    def _publish(self, image_ids: Sequence[ImageId]) -> Sequence[ImageId]:
        """Returns the images whose files were not found."""
        failures = self.publisher.publish(image_ids)
        for image_id, error in failures.items():
            log.warning("storage.move_failed", image_id=image_id, error=repr(error))
        return [image_id for image_id, error in failures.items() if isinstance(error, FileNotFoundError)]

    async def list_stale_uploads(self, age_s: float, limit: int, *, skip: Collection[str] = ()) -> list[ImageId]:
        """Ages are by the clock of the storage's file system."""
        return await self.root.call(lambda _: list(self._find_stale_uploads(age_s, limit, skip)))

    def _find_stale_uploads(self, age_s: float, limit: int, skip: Collection[str]) -> Iterator[ImageId]:
        before = self._clock.read(age_s) - age_s
        with os.scandir(self.incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name not in skip and entry.stat().st_mtime < before:
                        yield ImageId(entry.name)
                        limit -= 1
                        if limit == 0:
                            return

    async def reconcile(self, expected: Mapping[ImageId, bytes]) -> Failures:
        return await in_thread(self.threads, partial(self.publisher.reconcile, expected))

    async def remove_stale_uploads(self, image_ids: Sequence[ImageId]) -> Failures:
        return await in_thread(self.threads, partial(for_each, image_ids, self.publisher.remove_upload))

    async def find(self, image_id: ImageId, size: int | None = None) -> StoredFile | None:  # noqa: ARG002 - no copies
        """Returns the file of an image, or None if it is lost. Raises `storage-unavailable`, `database-unavailable`."""
        with storage_errors():
            file = await in_thread(self.threads, partial(self._find, image_id))
            if file is None and not await self.find_missing([image_id]):  # the storage was not mounted for a moment
                file = await in_thread(self.threads, partial(self._find, image_id))
        return file

    def _find(self, image_id: ImageId) -> StoredFile | None:
        for path in self.candidate_paths(image_id):
            with suppress(FileNotFoundError):
                return read_file(Path(path))
        return None

    async def find_missing(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        return await self.root.call(lambda root: frozenset(one for one in image_ids if disk.is_missing(one, root)))

    async def list_present(self, image_ids: Sequence[ImageId]) -> list[ImageId]:
        return await in_thread(self.threads, lambda: [image_id for image_id in image_ids if self._exists(image_id)])

    def _exists(self, image_id: ImageId) -> bool:
        return any(Path(path).exists() for path in self.candidate_paths(image_id))

    def locate(self, image_id: ImageId) -> str:
        return str(self.path(image_id))

    async def paths_for_decoding(
        self,
        image_id: ImageId,
        size: int | None = None,  # noqa: ARG002 - there are no copies
    ) -> tuple[str, str, str]:
        return self.candidate_paths(image_id)

    async def sign(self, image_id: ImageId, seconds: int) -> None:
        """A disk has no URLs."""

    def open_file(self, image_id: ImageId) -> BufferedReader:
        for path in self.candidate_paths(image_id):
            with suppress(FileNotFoundError):
                return open_regular(path)
        if not self.root.run(partial(disk.is_missing, image_id)):
            raise StorageUnavailable(errno.EAGAIN, "the storage was not mounted, and is mounted again")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image_id)

    async def drop_damaged_copy(self, image_id: ImageId) -> bool:  # noqa: ARG002
        """There are no copies."""
        return False

    async def remove(self, image_ids: Sequence[ImageId]) -> Failures:
        """Removes them from both folders."""
        return await self.root.call(lambda root: for_each(image_ids, partial(disk.remove, root=root)))


class LocalUploadFile:
    """The `UploadFile` of a disk.

    On a disk that is not local, each call waits for a thread, which costs more than the write itself. So callers gather
    chunks up to some hundred kilobytes, and `LocalOriginals.sync_batch` writes smaller bodies together.
    """

    def __init__(self, path: Path, threads: Executor, short_calls: ShortCalls) -> None:
        self._path = path
        self._threads = threads
        self._short_calls = short_calls
        self._file: BinaryIO | None = None
        self._rest: Sequence[bytes] = ()
        self._durable = self._abandoned = False

    async def write(self, chunks: Sequence[bytes]) -> None:
        with storage_errors():
            await self._short_calls.run(partial(self._write, chunks))

    async def finish(self, chunks: Sequence[bytes]) -> None:
        """Takes the last chunks. A large body is synced here, so that others do not wait for it."""
        self._rest = chunks
        if self._file is not None:
            with storage_errors():
                await in_thread(self._threads, self._flush_and_sync)

    def flush(self) -> None:
        """Writes the last chunks, and starts writing to the disk. Blocks; raises OSError."""
        if self._durable:
            return
        if self._abandoned:
            raise OSError(errno.EIO, "the file could not be written before")
        self._write(self._rest)
        self._rest = ()
        assert self._file is not None  # noqa: S101 - _write opened it
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux starts to write at this advice. A file system like ext4 then commits the files of a batch together,
            # instead of one by one at each sync.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Makes the content durable; the name is durable after a sync of its folder. Blocks; raises OSError."""
        if not self._durable:
            assert self._file is not None  # noqa: S101 - _write opened it
            os.fsync(self._file.fileno())
            self._file.close()
            self._durable = True

    def move(self, path: Path) -> None:
        """Blocks; raises OSError, and FileExistsError if the path is taken."""
        publish(self._path, path)
        self._path = path

    def abandon(self) -> None:
        """Removes the file if this object created it. Not a coroutine, so that a cancelled request cleans up as
        well.
        """
        self._durable, self._abandoned = False, True
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk fails the close, too
                self._file.close()

    def _flush_and_sync(self) -> None:
        self.flush()
        self.sync()

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        self._file.writelines(chunks)
