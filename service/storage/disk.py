"""Images as files.

A body streams into `incoming/ID`, is synced there, and moves to its own path only after its row is committed. So
`incoming` is the journal of uploads that may have died half-way, and no sweep ever has to read the folders of what is
stored; a reader looks at both places. The 256 folders, the shards, exist from the start: a new image makes none.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import aiofiles.os
import structlog

from service.errors import ServiceError
from service.ids import ImageId
from service.settings import SettingsError
from service.storage.ages import FolderClock
from service.storage.files import Stored, disk_threads, in_thread, look_at, unavailable
from service.storage.incoming import IncomingFile, publish

SHARDS = 256
MAX_SET_ASIDE_NAMES = 1000

# Files that could not be moved or removed.
Failures: TypeAlias = dict[ImageId, OSError]

log = structlog.get_logger("service")


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _for_each(image_ids: Iterable[ImageId], do: Callable[[ImageId], None]) -> Failures:
    """An error of one file stops no other."""
    failures = {}
    for image_id in image_ids:
        try:
            do(image_id)
        except OSError as error:
            failures[image_id] = error
    return failures


class DiskStorage:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._clock = FolderClock(self._incoming)
        self.threads = disk_threads("storage")

    def prepare(self) -> None:
        """Make the folders. Raises SettingsError where they cannot be made or written; a full disk is neither."""
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            for shard in range(SHARDS):
                self._shard(shard).mkdir(exist_ok=True)
            _sync_directory(self._root)
        except OSError as error:
            raise self.unusable((error.strerror or str(error)).lower()) from error
        self.require()

    def is_new(self) -> bool:
        """Whether the folders were never made; or are on a disk that is not mounted. Blocks."""
        try:
            self._incoming.stat()
        except FileNotFoundError:
            return True
        except OSError:
            pass  # `prepare` will tell
        return False

    def require(self, *, wait_s: float = 0) -> None:
        """Raises SettingsError where the folders cannot be written, or where no API process makes them in time.

        A worker never makes them: a disk that is not mounted must not look like a new one.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self._incoming.stat()
                break
            except FileNotFoundError:
                if time.monotonic() >= deadline:
                    raise self.unusable("Daguerre's folders are not there; `daguerre serve` makes them") from None
            except OSError as error:
                raise self.unusable((error.strerror or str(error)).lower()) from error
            time.sleep(0.1)
        if not os.access(self._incoming, os.W_OK | os.X_OK):
            raise self.unusable(f"user {os.geteuid()} may not write to it")

    def unusable(self, reason: str) -> SettingsError:
        return SettingsError(f"DAGUERRE_STORAGE (or DAGUERRE_DATA): {self._root} cannot be used: {reason}")

    def path(self, image_id: ImageId) -> Path:
        """Where a stored image lies."""
        return self._shard(zlib.crc32(image_id.encode()) % SHARDS) / image_id

    def _shard(self, number: int) -> Path:
        return self._root / f"{number:02x}"

    def incoming_path(self, image_id: ImageId) -> Path:
        return self._incoming / image_id

    @asynccontextmanager
    async def receive(self, image_id: ImageId) -> AsyncIterator[IncomingFile]:
        """A new file for a body, to be finished in the block; it is removed if the block fails."""
        file = IncomingFile(self.incoming_path(image_id), self.threads)
        try:
            yield file
        except BaseException:
            file.abandon()
            raise

    async def seal(self, files: Sequence[IncomingFile]) -> Sequence[ServiceError | None]:
        """Make finished files durable, and their names. Answers for each None, or `storage-unavailable`.

        Raises `storage-unavailable` where that is so for all of them.
        """
        with unavailable():
            return await in_thread(self.threads, partial(self._seal, files))

    def _seal(self, files: Sequence[IncomingFile]) -> Sequence[ServiceError | None]:
        errors: dict[int, ServiceError] = {}
        for step in (IncomingFile.flush, IncomingFile.sync):
            for number, file in enumerate(files):
                try:
                    if number not in errors:
                        with unavailable():
                            step(file)
                except ServiceError as error:
                    file.abandon()
                    errors[number] = error
        _sync_directory(self._incoming)
        return [errors.get(number) for number in range(len(files))]

    async def keep(self, image_ids: Sequence[ImageId]) -> None:
        """Move received files, whose rows are committed now, to their own paths.

        One that cannot be moved is left to the sweep: readers look in both places. Nothing is raised: what is committed
        must not look like a group that failed, which is written again.
        """
        try:
            await in_thread(self.threads, partial(self._keep, image_ids))
        except OSError as error:
            log.warning("storage.move_failed", images=len(image_ids), error=repr(error))

    def _keep(self, image_ids: Sequence[ImageId]) -> None:
        def move(image_id: ImageId) -> None:
            self._publish(image_id, on_conflict=self._replace_orphan)

        for image_id, error in _for_each(image_ids, move).items():
            log.warning("storage.move_failed", image_id=image_id, error=repr(error))

    async def settle(self, expected: Mapping[ImageId, bytes]) -> Failures:
        """Do for some of `list_abandoned`, whose rows are committed and have these SHA-256, what `keep` was to do.

        If there is a stored file already, the SHA-256 of the row decides which of the two is the image. As a rule the
        other one came under an id that was taken, and its upload ended before it got another: it is removed. Or a crash
        left one file under both names.
        """

        def settle_one(image_id: ImageId) -> None:
            self._publish(image_id, on_conflict=lambda _: self._settle_conflict(image_id, expected[image_id]))

        return await in_thread(self.threads, partial(_for_each, expected, settle_one))

    def _settle_conflict(self, image_id: ImageId, sha256: bytes) -> None:
        if self._is_orphan_stored(image_id, sha256):
            self._replace_orphan(image_id)
        else:
            self._drop_incoming(image_id)

    def _is_orphan_stored(self, image_id: ImageId, sha256: bytes) -> bool:
        """Whether the received file is the image, and the stored one is not. Blocks; raises OSError."""
        incoming, path = self.incoming_path(image_id), self.path(image_id)
        return not incoming.samefile(path) and _digest(path) != sha256 and _digest(incoming) == sha256

    def _publish(self, image_id: ImageId, *, on_conflict: Callable[[ImageId], None]) -> None:
        try:
            publish(self.incoming_path(image_id), self.path(image_id))
        except FileExistsError:
            on_conflict(image_id)
        except FileNotFoundError:
            if not self.path(image_id).exists():  # else another process moved it
                raise

    def _drop_incoming(self, image_id: ImageId) -> None:
        self.incoming_path(image_id).unlink(missing_ok=True)

    def _replace_orphan(self, image_id: ImageId) -> None:
        """The id was free when its row was inserted, so a file at its path belongs to no image: e.g. the database was
        restored from an older backup than the files. It is set aside, since it may be the only copy.
        """
        incoming, path = self.incoming_path(image_id), self.path(image_id)
        if not incoming.samefile(path):
            log.warning("storage.orphan_set_aside", image_id=image_id, path=str(self.set_aside(path)))
            publish(incoming, path)
        else:
            incoming.unlink(missing_ok=True)

    async def rename_incoming(self, file: IncomingFile, to: ImageId) -> bool:
        """Returns False, and changes nothing, if another upload has a file of that id."""
        with unavailable():
            try:
                await in_thread(self.threads, partial(file.move, self.incoming_path(to)))
            except FileExistsError:
                return False
        return True

    async def discard(self, file: IncomingFile) -> None:
        """Remove a received file that gets no row."""
        with suppress(OSError):
            await in_thread(self.threads, file.abandon)

    async def remove_abandoned(self, image_ids: Sequence[ImageId]) -> Failures:
        """Remove some of `list_abandoned`."""
        return await in_thread(self.threads, partial(_for_each, image_ids, self._drop_incoming))

    async def remove(self, image_id: ImageId) -> None:
        """Remove a stored image, wherever it lies; it is no error if it is gone."""
        for path in (self.incoming_path(image_id), self.path(image_id)):
            with suppress(FileNotFoundError):
                await aiofiles.os.remove(path, executor=self.threads)

    def places(self, image_id: ImageId) -> tuple[str, str, str]:
        """Where the file of an image may lie whose row is committed, in the order to look."""
        kept = str(self.path(image_id))
        return kept, str(self.incoming_path(image_id)), kept  # it may be moved between the first two looks

    async def find(self, image_id: ImageId) -> Stored | None:
        """A stored image's file. Raises `storage-unavailable`."""
        with unavailable():
            return await in_thread(self.threads, partial(self._find, image_id))

    def _find(self, image_id: ImageId) -> Stored | None:
        for place in self.places(image_id):
            with suppress(FileNotFoundError):
                return look_at(Path(place))
        self._incoming.stat()  # where that fails, the disk is away, not the file
        return None

    async def require_mounted(self) -> None:
        """Raises OSError where the storage is not there: it is empty then, and must not pass for lost images."""
        await aiofiles.os.stat(self._incoming, executor=self.threads)

    async def list_abandoned(self, age_s: float, limit: int, *, skip: Container[str] = ()) -> list[ImageId]:
        """Received files that nobody has written to for `age_s` by the storage's clock, without those in `skip`."""
        return await in_thread(self.threads, lambda: list(self._abandoned(age_s, limit, skip)))

    def _abandoned(self, age_s: float, limit: int, skip: Container[str]) -> Iterator[ImageId]:
        before = self._clock.read(age_s) - age_s
        with os.scandir(self._incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name not in skip and entry.stat().st_mtime < before:
                        yield ImageId(entry.name)
                        limit -= 1
                        if limit == 0:
                            return

    def find_conflicts(self, expected: Mapping[ImageId, bytes]) -> dict[ImageId, bool]:
        """Those of `list_abandoned`, whose rows have these SHA-256, whose id has another stored file; True if that one
        is the orphan. Blocks.
        """
        conflicts = {}
        for image_id, sha256 in expected.items():
            with suppress(OSError):
                if not self.incoming_path(image_id).samefile(self.path(image_id)):
                    conflicts[image_id] = False
                    conflicts[image_id] = self._is_orphan_stored(image_id, sha256)
        return conflicts

    def examine(self, image_id: ImageId, *, read: bool) -> tuple[int, bytes | None]:
        """Size and, with `read`, SHA-256 of a stored image's file. Blocks; raises OSError."""
        for place in self.places(image_id):
            with suppress(FileNotFoundError), open(place, "rb") as file:  # noqa: PTH123 - paths are text here
                size = os.fstat(file.fileno()).st_size
                return size, hashlib.file_digest(file, "sha256").digest() if read else None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image_id)

    def list_shard(self, number: int) -> list[Path]:
        """The files in one of the folders, from 0. Blocks; raises OSError."""
        return list(self._shard(number).iterdir())

    def set_aside(self, path: Path) -> Path:
        """Move a file of `list_shard` to `unclaimed`, where nothing looks, and return its path there: with a number
        behind the name if there is one of that name. Blocks; raises OSError.
        """
        folder = self._root / "unclaimed"
        folder.mkdir(exist_ok=True)
        for number in range(MAX_SET_ASIDE_NAMES):
            place = folder / (f"{path.name}.{number}" if number else path.name)
            with suppress(FileExistsError):
                publish(path, place)
                return place
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder / path.name))

    async def check(self) -> None:
        """Raises OSError where nothing can be written."""
        await in_thread(self.threads, self._write_and_remove)

    def _write_and_remove(self) -> None:
        with tempfile.TemporaryFile(dir=self._incoming) as file:
            file.write(b"x")
            file.flush()
