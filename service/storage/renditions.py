"""Renditions as files: a cache that may be lost, so nothing is synced; each is whole or not there."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from service.config.settings import SettingsError
from service.folders import make_folder
from service.ids import ImageId
from service.storage.ages import read_clock
from service.storage.disk import SHARDS
from service.storage.files import SMALL_BYTES, Stored, disk_threads, in_thread, look_at, size_on_disk, unavailable
from service.telemetry.metrics import metrics

Owner = TypeVar("Owner", bound=Hashable)

log = structlog.get_logger("service")

_INCOMING = "incoming"
_TAKES_NOTHING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Of a disk that fails: what is on it is made again, and not kept.
_UNREADABLE = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP})
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class RenditionKey(NamedTuple):
    """`digest` is 32 hexadecimal digits."""

    image_id: ImageId
    digest: str


class RenditionFiles:
    """256 folders of files, made when needed, and one for what is being written.

    Methods without `async` block and raise OSError.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._device: int | None = None  # of the folder at the start
        self.threads = disk_threads("renditions")
        self._name, self._numbers = secrets.token_hex(8), itertools.count()  # of what is being written

    def prepare(self) -> None:
        """Make the folders. Raises SettingsError, but not if the disk is full or read-only: then nothing is kept."""
        try:
            make_folder(self.root / _INCOMING)
            self._device = self.root.stat().st_dev
        except OSError as error:
            if error.errno in _TAKES_NOTHING:
                return
            reason = (error.strerror or str(error)).lower()
            raise SettingsError(f"DAGUERRE_RENDITIONS_DIR: {self.root} cannot be used: {reason}") from error

    def path(self, key: RenditionKey) -> Path:
        return self._shard(key.image_id) / f"{key.image_id}-{key.digest}"

    def _shard(self, image_id: ImageId) -> Path:
        return self.root / f"{zlib.crc32(image_id.encode()) % SHARDS:02x}"

    async def find(self, key: RenditionKey, is_whole: Callable[[Stored], bool]) -> Stored | None:
        """None where it has not been made, or is gone, or is not whole: then it is removed, to be made anew.

        Raises `storage-unavailable`.
        """
        with unavailable():
            return await in_thread(self.threads, partial(self._find, key, is_whole))

    def _find(self, key: RenditionKey, is_whole: Callable[[Stored], bool]) -> Stored | None:
        path = self.path(key)
        try:
            stored = look_at(path)
            if is_whole(stored):
                return stored
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _UNREADABLE:
                return None
            raise
        metrics.renditions_damaged.inc()
        log.warning("renditions.damaged", path=str(path), bytes=stored.size)
        with suppress(OSError):
            path.unlink()
        return None

    def find_disk_size(self, key: RenditionKey, is_whole: Callable[[Stored], bool]) -> int | None:
        """What it takes on disk, in bytes; None where `find` finds none."""
        try:
            return size_on_disk(self.path(key).stat()) if self._find(key, is_whole) else None
        except FileNotFoundError:
            return None

    def write(self, key: RenditionKey, data: bytes) -> Stored:
        def fill(descriptor: int) -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

        return self._write(key, fill, data if len(data) <= SMALL_BYTES else None)

    def write_patched(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> Stored:
        """A copy of a file with these bytes, by their offsets, in place of as many others."""

        def fill(descriptor: int) -> None:
            with source.open("rb") as original, open(descriptor, "wb", closefd=False) as file:
                shutil.copyfileobj(original, file, 1 << 20)
                size = file.tell()
                for offset, data in patches:
                    _check_patch(offset, data, size)
                    file.seek(offset)
                    file.write(data)

        return self._write(key, fill)

    def _write(self, key: RenditionKey, fill: Callable[[int], None], data: bytes | None = None) -> Stored:
        """With few system calls: each may hand the interpreter to another thread and wait for it again."""
        incoming, path = self.root / _INCOMING / f"{self._name}{next(self._numbers)}", self.path(key)
        try:
            descriptor = self._create(incoming)
            try:
                fill(descriptor)
                status = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            try:
                incoming.rename(path)
            except FileNotFoundError:
                self._make_shard(path.parent)
                incoming.rename(path)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise
        return Stored(path, status.st_size, status.st_mtime_ns, data, size_on_disk(status))

    def _make_shard(self, folder: Path) -> None:
        """With the mode of the folder beside it, which the operator may have opened for a proxy that sends files."""
        folder.mkdir(mode=stat.S_IMODE((self.root / _INCOMING).stat().st_mode) & 0o777, exist_ok=True)

    def _create(self, path: Path) -> int:
        """The folders may be lost at any time; the one that they are in must not be made anew, nor they themselves on
        the disk below when theirs is not mounted.
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
        except FileNotFoundError as error:  # a picture's file would be meant by that
            raise OSError(errno.ESTALE, f"there is no folder for {self.root}") from error

    def _require_device(self) -> None:
        """Raises OSError if the folder is on another disk than at the start."""
        if self._device is not None and self.root.stat().st_dev != self._device:
            raise OSError(errno.ENODEV, f"the disk of {self.root} is not mounted")

    def _require_there(self) -> None:
        """Raises OSError if the folder is away, since what was made is then there all the same. An empty one is not:
        renditions may be lost.
        """
        if not (self.root / _INCOMING).exists():
            try:
                self._require_device()
                self.root.stat()
            except FileNotFoundError as error:
                raise OSError(errno.ENODEV, f"the folder {self.root} is away") from error

    def remove(self, keys: Iterable[RenditionKey]) -> set[RenditionKey]:
        """Returns those that cannot be removed, and stops at none of them. It is no error if they are gone, but if the
        folder as a whole is away.
        """
        keys = list(keys)
        if keys:
            self._require_there()
        return _log_failures(_remove_each((key, self.path(key)) for key in keys))

    def remove_of_images(self, image_ids: Iterable[ImageId]) -> set[ImageId]:
        """All that is there of these images, known of or not: rows may have been lost.

        Returns those of which something cannot be removed, and stops at none of them; unless the folder is away.
        """
        if self._device is not None:  # else, in a command, there may be no folder yet
            self._require_there()
        failures: dict[ImageId, OSError] = {}
        for image_id in image_ids:
            try:
                failures |= _remove_each((image_id, path) for path in self._list_of_image(image_id))
            except OSError as error:  # its folder cannot be read
                failures[image_id] = error
        return _log_failures(failures)

    def _list_of_image(self, image_id: ImageId) -> list[Path]:
        with suppress(FileNotFoundError), os.scandir(self._shard(image_id)) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(f"{image_id}-")]
        return []

    def list_shard(self, number: int, age_s: float) -> dict[RenditionKey, int]:
        """The files in one of the folders, 0 to 255, that have not changed for so long, with their sizes on disk."""
        folder = self.root / f"{number:02x}"
        sizes = {}
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            before = read_clock(folder) - age_s
            for entry in entries:
                image_id, _, digest = entry.name.partition("-")
                with suppress(FileNotFoundError):
                    if len(digest) == 32 and (status := entry.stat()).st_mtime < before:
                        sizes[RenditionKey(ImageId(image_id), digest)] = size_on_disk(status)
        return sizes

    def remove_abandoned(self, age_s: float) -> None:
        """What was being written and has not changed for so long."""
        folder, old = self.root / _INCOMING, []
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            before = read_clock(folder) - age_s
            old = [entry for entry in entries if _is_older(entry, before)]
        _log_failures(_remove_each((entry.name, Path(entry.path)) for entry in old))


def patch(data: bytes, patches: Sequence[tuple[int, bytes]]) -> bytes:
    """As `RenditionFiles.write_patched` in memory."""
    patched = bytearray(data)
    for offset, replacement in patches:
        _check_patch(offset, replacement, len(data))
        patched[offset : offset + len(replacement)] = replacement
    return bytes(patched)


def _check_patch(offset: int, data: bytes, size: int) -> None:
    if offset < 0 or offset + len(data) > size:
        raise OSError(errno.EINVAL, "a patch outside of its file")


def _is_older(entry: os.DirEntry[str], before: float) -> bool:
    try:
        return entry.stat().st_mtime < before
    except FileNotFoundError:
        return False


def _remove_each(paths: Iterable[tuple[Owner, Path]]) -> dict[Owner, OSError]:
    """Returns the owners of the files that cannot be removed."""
    failures = {}
    for owner, path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            failures[owner] = error
    return failures


def _log_failures(failures: Mapping[Owner, OSError]) -> set[Owner]:
    """One line for all of them."""
    if failures:
        first = next(iter(failures.values()))
        log.warning("renditions.not_removed", count=len(failures), first_error=repr(first))
    return set(failures)
