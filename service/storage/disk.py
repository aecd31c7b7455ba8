"""Images as files.

A body streams into `incoming/ID`, is synced there, and moves to its own path only after its row is committed. So
`incoming` is the journal of uploads that may have died half-way, and no sweep ever has to read the folders of what is
stored; a reader looks at both places. The 256 folders, the shards, exist from the start: a new image makes none.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import aiofiles.os
import structlog

from service.errors import ServiceError
from service.ids import ImageId
from service.settings import SettingsError
from service.storage.files import Stored, in_thread, look_at, unavailable

SHARDS = 256
MAX_SET_ASIDE_NAMES = 1000

# What `link` raises on file systems without hard links (exFAT, SMB, some of FUSE), and under Linux's
# fs.protected_hardlinks for a file of another user.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})

log = structlog.get_logger("service")


class IncomingFile:
    """A body on its way to disk.

    Each call takes a thread's turn, which costs more than what is done in it: so chunks are best gathered to some
    hundred kilobytes, and a body that is no larger than that is written together with others, by `DiskStorage.seal`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest: Sequence[bytes] = ()
        self._durable = self._abandoned = False

    async def write(self, chunks: Sequence[bytes]) -> None:
        with unavailable():
            await in_thread(partial(self._write, chunks))

    async def finish(self, chunks: Sequence[bytes]) -> None:
        """The last chunks."""
        self._rest = chunks
        if self._file is not None:  # large: others should not wait for it
            with unavailable():
                await in_thread(self._flush_and_sync)

    def flush(self) -> None:
        """Write what is left, and let the disk begin. Blocks; raises OSError."""
        if self._durable:
            return
        if self._abandoned:
            raise OSError(errno.EIO, "it could not be written before")
        self._write(self._rest)
        self._rest = ()
        assert self._file is not None  # noqa: S101 - what _write opened
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux starts to write at this advice. A file system like ext4 then commits the files of a group together,
            # and not one by one at their syncs.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """The bytes are durable then, and the name once its folder is synced. Blocks; raises OSError."""
        if not self._durable:
            assert self._file is not None  # noqa: S101 - what _write opened
            os.fsync(self._file.fileno())
            self._file.close()
            self._durable = True

    def _flush_and_sync(self) -> None:
        self.flush()
        self.sync()

    def move(self, path: Path) -> None:
        """Blocks; raises OSError, and FileExistsError if the path is taken."""
        publish(self._path, path)
        self._path = path

    def abandon(self) -> None:
        """Remove it, if it was made here. Not a coroutine, so that a cancelled request cleans up as well."""
        self._durable, self._abandoned = False, True
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk fails the close, too
                self._file.close()

    def _write(self, chunks: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        self._file.writelines(chunks)


def publish(source: Path, target: Path) -> None:
    """Moves a file to a path where there is none; nothing is ever overwritten. Blocks.

    Raises FileExistsError if there is a file, and OSError. A crash may leave the file under both names. Without hard
    links it is a look and a rename, which are not one step.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        source.stat()  # a file that another process moved is missing, and its target no conflict
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
    else:
        source.unlink(missing_ok=True)  # a deletion of the image may have been first


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class DiskStorage:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

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
        file = IncomingFile(self.incoming_path(image_id))
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
            return await in_thread(partial(self._seal, files))

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
            await in_thread(partial(self._keep, image_ids))
        except OSError as error:
            log.warning("storage.move_failed", images=len(image_ids), error=repr(error))

    def _keep(self, image_ids: Sequence[ImageId]) -> None:
        for image_id in image_ids:
            with self._logging_failure(image_id):
                self._publish(image_id, on_conflict=self._replace_orphan)

    async def settle(self, image_ids: Sequence[ImageId]) -> None:
        """Do for some of `list_abandoned`, whose rows are committed, what `keep` was to do.

        If there is a stored file already, the other one came under an id that was taken, and its upload ended before
        it got another: it is removed. Or a crash left one file under both names.
        """
        await in_thread(partial(self._settle, image_ids))

    def _settle(self, image_ids: Sequence[ImageId]) -> None:
        for image_id in image_ids:
            with self._logging_failure(image_id):
                self._publish(image_id, on_conflict=self._drop_incoming)

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

    @contextmanager
    def _logging_failure(self, image_id: ImageId) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("storage.move_failed", image_id=image_id, error=repr(error))

    async def rename_incoming(self, file: IncomingFile, to: ImageId) -> bool:
        """Returns False, and changes nothing, if another upload has a file of that id."""
        with unavailable():
            try:
                await in_thread(partial(file.move, self.incoming_path(to)))
            except FileExistsError:
                return False
        return True

    async def discard(self, file: IncomingFile) -> None:
        """Remove a received file that gets no row."""
        with suppress(OSError):
            await in_thread(file.abandon)

    async def remove_abandoned(self, image_id: ImageId) -> None:
        """Remove one of `list_abandoned`."""
        with suppress(FileNotFoundError):
            await aiofiles.os.remove(self.incoming_path(image_id))

    async def remove(self, image_id: ImageId) -> None:
        """Remove a stored image, wherever it lies; it is no error if it is gone."""
        for path in (self.incoming_path(image_id), self.path(image_id)):
            with suppress(FileNotFoundError):
                await aiofiles.os.remove(path)

    def places(self, image_id: ImageId) -> tuple[str, str, str]:
        """Where the file of an image may lie whose row is committed, in the order to look."""
        kept = str(self.path(image_id))
        return kept, str(self.incoming_path(image_id)), kept  # it may be moved between the first two looks

    async def find(self, image_id: ImageId) -> Stored | None:
        """A stored image's file. Raises `storage-unavailable`."""
        with unavailable():
            return await in_thread(partial(self._find, image_id))

    def _find(self, image_id: ImageId) -> Stored | None:
        for place in self.places(image_id):
            with suppress(FileNotFoundError):
                return look_at(Path(place))
        self._incoming.stat()  # where that fails, the disk is away, not the file
        return None

    async def require_mounted(self) -> None:
        """Raises OSError where the storage is not there: it is empty then, and must not pass for lost images."""
        await aiofiles.os.stat(self._incoming)

    async def list_abandoned(self, age_s: float, limit: int) -> list[ImageId]:
        """Received files that nobody has written to for `age_s`."""
        return await asyncio.to_thread(lambda: list(self._abandoned(age_s, limit)))

    def _abandoned(self, age_s: float, limit: int) -> Iterator[ImageId]:
        before = time.time() - age_s
        with os.scandir(self._incoming) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat().st_mtime < before:
                        yield ImageId(entry.name)
                        limit -= 1
                        if limit == 0:
                            return

    def find_conflicts(self, image_ids: Sequence[ImageId]) -> set[ImageId]:
        """Those of `list_abandoned` whose id has another stored file. Blocks; raises OSError."""
        conflicts = set()
        for image_id in image_ids:
            with suppress(FileNotFoundError):
                if not self.incoming_path(image_id).samefile(self.path(image_id)):
                    conflicts.add(image_id)
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
        await asyncio.to_thread(self._write_and_remove)

    def _write_and_remove(self) -> None:
        with tempfile.TemporaryFile(dir=self._incoming) as file:
            file.write(b"x")
            file.flush()
