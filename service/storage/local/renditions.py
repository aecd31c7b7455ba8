"""Renditions as files of a disk: a cache that may be lost, so nothing is synced. A file is complete or missing."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from service.config.settings import SettingsError
from service.folders import make_folder
from service.ids import ImageId
from service.storage.clock import read_clock
from service.storage.files import (
    SMALL_BYTES,
    LoopCalls,
    ShortCalls,
    copy_patched,
    disk_threads,
    in_thread,
    read_file,
    size_on_disk,
    storage_errors,
)
from service.storage.interface import RenditionKey, StoredFile
from service.storage.local.disk import INCOMING
from service.storage.shards import NUM_SHARDS, shard_name, shard_of
from service.telemetry.metrics import metrics

Owner = TypeVar("Owner", bound=Hashable)

log = structlog.get_logger("service")

_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Errors of a failing disk: its renditions are rendered again, and sent without being stored.
_CANNOT_READ = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP})
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class LocalRenditions:
    """The `RenditionStorage` of a disk: 256 folders of files, created when needed, and `incoming` for files that are
    being written. `device` is the disk that the folder is on, if it is known. `is_local` means that short calls may run
    on the event loop.

    Methods without `async` block, except for `path`, and raise OSError.
    """

    num_shards = NUM_SHARDS

    def __init__(self, root: Path, device: int | None = None, *, is_local: bool = False) -> None:
        self.root = root
        self.device = device
        self._incoming = root / INCOMING
        # Built once, because joining paths would be a large part of a search.
        self._shards = {name: root / name for name in map(shard_name, range(NUM_SHARDS))}
        self.threads = disk_threads("renditions")
        self._short_calls = ShortCalls(self.threads, LoopCalls(is_local=is_local))
        self._draft_name, self._draft_numbers = secrets.token_hex(8), itertools.count()

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def disks(self) -> Mapping[str, Path]:
        return {"renditions": self.root}

    def prepare(self) -> None:
        """Creates the folders, and records their disk.

        Raises SettingsError if they cannot be used. A full or read-only disk is accepted: renditions are then sent
        without being stored.
        """
        try:
            make_folder(self._incoming)
            self.device = self.root.stat().st_dev
        except OSError as error:
            if error.errno in _CANNOT_WRITE:
                return
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"DAGUERRE_RENDITIONS_DIR: {self.root} cannot be used: {reason}") from error

    def path(self, key: RenditionKey) -> Path:
        return self._shard(key.image_id) / f"{key.image_id}-{key.digest}"

    def _shard(self, image_id: ImageId) -> Path:
        return self._shards[shard_of(image_id)]

    async def find(self, key: RenditionKey, is_complete: Callable[[StoredFile], bool]) -> StoredFile | None:
        with storage_errors():
            if not await self._short_calls.run(partial(_may_exist, self.path(key))):
                return None  # as for every new rendition: a thread would only find that out
            return await in_thread(self.threads, partial(self._find, key, is_complete))

    def _find(self, key: RenditionKey, is_complete: Callable[[StoredFile], bool]) -> StoredFile | None:
        path = self.path(key)
        try:
            file = read_file(path)
            if is_complete(file):
                return file
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _CANNOT_READ:
                return None
            raise
        metrics.renditions_damaged.inc()
        log.warning("renditions.damaged", path=str(path), bytes=file.size)
        with suppress(OSError):
            path.unlink()
        return None

    async def write(self, key: RenditionKey, data: bytes) -> StoredFile:
        write = partial(self._write_data, key, data)
        return await (self._short_calls.run(write) if len(data) <= SMALL_BYTES else in_thread(self.threads, write))

    def _write_data(self, key: RenditionKey, data: bytes) -> StoredFile:
        def fill(descriptor: int) -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

        return self._write(key, fill, data if len(data) <= SMALL_BYTES else None)

    async def write_patched(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> StoredFile:
        return await in_thread(self.threads, partial(self._write_patched, key, source, patches))

    def _write_patched(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> StoredFile:
        def fill(descriptor: int) -> None:
            with open(descriptor, "wb", closefd=False) as file:
                copy_patched(source, file, patches)

        return self._write(key, fill)

    def _write(self, key: RenditionKey, fill: Callable[[int], None], data: bytes | None = None) -> StoredFile:
        """Uses few system calls, because each may pass the interpreter's lock to another thread and wait for it again.

        An existing rendition is replaced, unlike an original: it has the same content, or it is damaged.
        """
        draft, path = self._incoming / f"{self._draft_name}{next(self._draft_numbers)}", self.path(key)
        try:
            descriptor = self._create(draft)
            try:
                fill(descriptor)
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            try:
                draft.rename(path)
            except FileNotFoundError:
                self._make_shard(path.parent)
                draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return StoredFile(path, status.st_size, status.st_mtime_ns, data, size_on_disk(status))

    def _make_shard(self, folder: Path) -> None:
        """Creates a folder with the mode of `incoming`, which the operator may have opened to a proxy for X-Accel."""
        folder.mkdir(mode=stat.S_IMODE(self._incoming.stat().st_mode) & 0o777, exist_ok=True)

    def _create(self, path: Path) -> int:
        """Opens a new file. Folders that were removed are created again, except for the parent of the root, and except
        under a mount point whose disk is not mounted.
        """
        try:
            return os.open(path, _CREATE, 0o666)
        except FileNotFoundError:
            pass
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)
            self._require_device()
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, _CREATE, 0o666)
        except FileNotFoundError as error:  # callers would treat it as a missing original
            raise OSError(errno.ESTALE, f"there is no folder for {self.root}") from error

    def _require_device(self) -> None:
        """Raises OSError if the folder is on another disk than at the start."""
        if self.device is not None and self.root.stat().st_dev != self.device:
            raise OSError(errno.ENODEV, f"the disk of {self.root} is not mounted")

    def _require_mounted(self) -> None:
        """Raises OSError if the disk is not mounted, because the renditions on it still exist. An empty folder is
        accepted, because renditions may be lost.
        """
        if not self._incoming.exists():
            try:
                self._require_device()
                self.root.stat()
            except FileNotFoundError as error:
                raise OSError(errno.ENODEV, f"the folder {self.root} is missing") from error

    async def remove(self, keys: Collection[RenditionKey]) -> set[RenditionKey]:
        return await in_thread(self.threads, partial(self._remove, list(keys))) if keys else set()

    def _remove(self, keys: Sequence[RenditionKey]) -> set[RenditionKey]:
        self._require_mounted()
        return _log_failures(_remove_each((key, self.path(key)) for key in keys))

    async def remove_for_images(self, image_ids: Collection[ImageId]) -> set[ImageId]:
        return await in_thread(self.threads, partial(self._remove_for_images, image_ids))

    def _remove_for_images(self, image_ids: Collection[ImageId]) -> set[ImageId]:
        if self.device is not None:  # in a command, the folder may not exist yet
            self._require_mounted()
        failures: dict[ImageId, OSError] = {}
        for image_id in image_ids:
            try:
                failures |= _remove_each((image_id, path) for path in self._list_for_image(image_id))
            except OSError as error:  # the shard cannot be read
                failures[image_id] = error
        return _log_failures(failures)

    def _list_for_image(self, image_id: ImageId) -> list[Path]:
        with suppress(FileNotFoundError), os.scandir(self._shard(image_id)) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(f"{image_id}-")]
        return []

    async def list_images(self, number: int) -> list[ImageId]:
        keys = await self.list_shard(number, 0)
        return sorted({key.image_id for key in keys})

    async def list_shard(self, number: int, age_s: float) -> dict[RenditionKey, int]:
        return await in_thread(self.threads, partial(self._list_shard, number, age_s))

    def _list_shard(self, number: int, age_s: float) -> dict[RenditionKey, int]:
        folder = self.root / shard_name(number)
        sizes = {}
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            before = read_clock(folder) - age_s
            for entry in entries:
                image_id, _, digest = entry.name.partition("-")
                with suppress(FileNotFoundError):
                    if len(digest) == 32 and (status := entry.stat()).st_mtime < before:
                        sizes[RenditionKey(ImageId(image_id), digest)] = size_on_disk(status)
        return sizes

    async def remove_stale_drafts(self, age_s: float) -> None:
        await in_thread(self.threads, partial(self._remove_stale_drafts, age_s))

    def _remove_stale_drafts(self, age_s: float) -> None:
        folder, stale = self._incoming, []
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            before = read_clock(folder) - age_s
            stale = [entry for entry in entries if _is_older(entry, before)]
        _log_failures(_remove_each((entry.name, Path(entry.path)) for entry in stale))


def _may_exist(path: Path) -> bool:
    """Returns False only if there is certainly no file."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        pass  # reading the file will raise it
    return True


def _is_older(entry: os.DirEntry[str], before: float) -> bool:
    try:
        return entry.stat().st_mtime < before
    except FileNotFoundError:
        return False


def _remove_each(paths: Iterable[tuple[Owner, Path]]) -> dict[Owner, OSError]:
    """Removes files, and returns the errors by owner."""
    failures = {}
    for owner, path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            failures[owner] = error
    return failures


def _log_failures(failures: Mapping[Owner, OSError]) -> set[Owner]:
    """Logs one line for all of them, and returns their owners."""
    if failures:
        first = next(iter(failures.values()))
        log.warning("renditions.not_removed", count=len(failures), first_error=repr(first))
    return set(failures)
