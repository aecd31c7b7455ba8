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
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

import structlog

from service.config.settings import SettingsError
from service.errors import ServiceError
from service.folders import make_folder
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.storage import layout
from service.storage.ages import FolderClock
from service.storage.files import Stored, disk_threads, in_thread, look_at, open_regular, unavailable
from service.storage.identity import INCOMING, StorageAway, StorageRoot
from service.storage.incoming import IncomingFile, publish
from service.storage.unclaimed import Unclaimed

SHARDS = layout.SHARDS

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
    """`load_id` loads the id of the database's storage, as for StorageRoot."""

    def __init__(self, root: Path, load_id: Callable[[], Awaitable[str | None]] | None = None) -> None:
        self._root = root
        self.incoming = root / INCOMING
        self._clock = FolderClock(self.incoming)
        self.unclaimed = Unclaimed(root / "unclaimed")
        self.threads = disk_threads("storage")
        self.root = StorageRoot(root, load_id, self.threads)

    def prepare(self) -> None:
        """Make the folders. Raises SettingsError where they cannot be made or written; a full disk is neither."""
        try:
            make_folder(self.incoming)
            for shard in range(SHARDS):
                make_folder(self._shard(shard))
            _sync_directory(self._root)
        except OSError as error:
            raise self.unusable((error.strerror or str(error)).lower()) from error
        self.require()

    def is_new(self) -> bool:
        """Whether the folders were never made; or are on a disk that is not mounted. Blocks."""
        try:
            self.incoming.stat()
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
                self.incoming.stat()
                break
            except FileNotFoundError:
                if time.monotonic() >= deadline:
                    raise self.unusable("Daguerre's folders are not there; `daguerre serve` makes them") from None
            except OSError as error:
                raise self.unusable((error.strerror or str(error)).lower()) from error
            time.sleep(0.1)
        if not os.access(self.incoming, os.W_OK | os.X_OK):
            raise self.unusable(f"user {os.geteuid()} may not write to it")

    async def require_mounted(self) -> None:
        """Raises StorageAway, or another OSError, if the storage of the database is not in its folder."""
        await self.root.call(lambda _: None)

    def unusable(self, reason: str) -> SettingsError:
        return SettingsError(f"DAGUERRE_STORAGE (or DAGUERRE_DATA): {self._root} cannot be used: {reason}")

    def path(self, image_id: ImageId) -> Path:
        """Where a stored image lies."""
        return self._root / layout.shard_of(image_id) / image_id

    def _shard(self, number: int) -> Path:
        return self._root / f"{number:02x}"

    def incoming_path(self, image_id: ImageId) -> Path:
        return self.incoming / image_id

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
            return await self.root.call(lambda _: self._seal(files))

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
        _sync_directory(self.incoming)
        return [errors.get(number) for number in range(len(files))]

    async def keep(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """Move received files, whose rows are committed now, to their own paths. Returns those that are lost: the
        storage is there, and they are not.

        One that cannot be moved is left to the sweep: readers look in both places. Nothing is raised: what is committed
        must not look like a group that failed, which is written again.
        """
        try:
            missing = await in_thread(self.threads, partial(self._keep, image_ids))
            return await self.find_missing(missing) if missing else frozenset()
        except (OSError, ServiceError) as error:
            log.warning("storage.move_failed", images=len(image_ids), error=repr(error))
            return frozenset()

    def _keep(self, image_ids: Sequence[ImageId]) -> Sequence[ImageId]:
        """Returns those whose files were not found."""

        def move(image_id: ImageId) -> None:
            self._publish(image_id, on_conflict=self._replace_orphan)

        failures = _for_each(image_ids, move)
        for image_id, error in failures.items():
            log.warning("storage.move_failed", image_id=image_id, error=repr(error))
        return [image_id for image_id, error in failures.items() if isinstance(error, FileNotFoundError)]

    async def find_missing(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """Those whose file is at none of its places, though the storage is there. Raises OSError if it is not, and
        `database-unavailable`.
        """
        return await self.root.call(lambda root: frozenset(one for one in image_ids if layout.is_missing(one, root)))

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
            log.warning("storage.orphan_set_aside", image_id=image_id, path=str(self.unclaimed.set_aside(path)))
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
        """Remove a stored image, wherever it lies; it is no error if it is gone. Raises OSError if the storage is away,
        and `database-unavailable`.
        """
        await self.root.call(partial(layout.remove, image_id))

    def places(self, image_id: ImageId) -> tuple[str, str, str]:
        """Where the file of an image may lie whose row is committed, in the order to look."""
        kept = str(self.path(image_id))
        return kept, str(self.incoming_path(image_id)), kept  # it may be moved between the first two looks

    def list_present(self, image_ids: Iterable[ImageId]) -> list[ImageId]:
        """The images whose files are in this storage. Blocks; raises OSError."""
        return [image_id for image_id in image_ids if any(Path(place).exists() for place in self.places(image_id))]

    async def find(self, image_id: ImageId) -> Stored | None:
        """A stored image's file; None if it is lost. Raises `storage-unavailable`, `database-unavailable`."""
        with unavailable():
            stored = await in_thread(self.threads, partial(self._find, image_id))
            if stored is None and not await self.find_missing([image_id]):  # the storage was away, and has come back
                stored = await in_thread(self.threads, partial(self._find, image_id))
        return stored

    def _find(self, image_id: ImageId) -> Stored | None:
        for place in self.places(image_id):
            with suppress(FileNotFoundError):
                return look_at(Path(place))
        return None

    async def list_abandoned(self, age_s: float, limit: int, *, skip: Container[str] = ()) -> list[ImageId]:
        """Received files that nobody has written to for `age_s` by the storage's clock, without those in `skip`."""
        return await self.root.call(lambda _: list(self._abandoned(age_s, limit, skip)))

    def _abandoned(self, age_s: float, limit: int, skip: Container[str]) -> Iterator[ImageId]:
        before = self._clock.read(age_s) - age_s
        with os.scandir(self.incoming) as entries:
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
        """Size and, with `read`, SHA-256 of a stored image's file. Blocks; raises as `open_stored` does."""
        with self.open_stored(image_id) as file:
            size = os.fstat(file.fileno()).st_size
            return size, hashlib.file_digest(file, "sha256").digest() if read else None

    def open_stored(self, image_id: ImageId) -> BufferedReader:
        """A stored image's file, wherever it lies. Blocks; raises FileNotFoundError if it is lost, and OSError."""
        for place in self.places(image_id):
            with suppress(FileNotFoundError):
                return open_regular(place)
        if not self.root.run(partial(layout.is_missing, image_id)):
            raise StorageAway(errno.EAGAIN, "the storage was away, and has come back")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image_id)

    def take_back(self, image_id: ImageId, size: int, sha256: bytes) -> Path | None:
        """Moves the file of this content that was set aside to the image's own path; a file that is there is set aside.

        Returns where it was, or None if there is no such file. Blocks; raises OSError.
        """
        source = self.unclaimed.find(image_id, size, sha256)
        if source is not None:
            target = self.path(image_id)
            if os.path.lexists(target):
                self.unclaimed.set_aside(target)
            publish(source, target)
        return source

    def shard_folder(self, number: int) -> Path:
        """One of the folders of stored images, from 0."""
        return self._shard(number)

    def list_shard(self, number: int) -> list[Path]:
        """The files in one of the folders, from 0. Blocks; raises OSError."""
        return list(self._shard(number).iterdir())

    def find_any_stored(self) -> Path | None:
        """Returns a file that may be an image's, or None if there is none. Folders out of order are skipped. Blocks."""
        for shard in range(SHARDS):
            with suppress(OSError), os.scandir(self._shard(shard)) as entries:
                for entry in entries:
                    if IMAGE_ID_PATTERN.fullmatch(entry.name) and entry.is_file():
                        return Path(entry.path)
        return None

    async def check(self) -> None:
        """Raises OSError if nothing can be written, or the storage of the database is not in its folder; before its id
        could be loaded, any folder that can be written will do.
        """
        await self.root.call(lambda _: self._write_and_remove(), needs_id=False)

    def _write_and_remove(self) -> None:
        with tempfile.TemporaryFile(dir=self.incoming) as file:
            file.write(b"x")
            file.flush()
