"""Images as files.

A body streams into `incoming/ID`, is synced there, and moves to its own path only after its row is committed. So
`incoming` is the journal of uploads that may have died half-way, and no sweep ever has to read the folders of what is
stored; a reader looks at both places. The 256 folders exist from the start: a new image makes no directory.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import aiofiles
import aiofiles.os
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from service.errors import ServiceError
from service.ids import ImageId
from service.settings import SettingsError


class IncomingFile:
    """A body on its way to disk."""

    def __init__(self, file: AsyncBufferedIOBase, path: Path) -> None:
        self._file = file
        self._path = path

    async def write(self, piece: bytes | bytearray) -> None:
        """A call costs a thread's turn, so give it pieces of some hundred kilobytes."""
        with _unavailable():
            await self._file.write(piece)

    async def seal(self) -> None:
        """Make the file durable under its name."""
        with _unavailable():
            await self._file.flush()
            await asyncio.to_thread(self._sync)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        _sync_directory(self._path.parent)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError("storage-unavailable") from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _create(path: Path) -> AsyncBufferedIOBase:
    opening = asyncio.ensure_future(aiofiles.open(path, "xb"))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])  # a thread is at it, and makes the file all the same
        if opening.exception() is None:
            await aiofiles.os.remove(path)
            await opening.result().close()
        raise


class DiskStorage:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def prepare(self) -> None:
        """Make the folders. Raises SettingsError where they cannot be made or written; a full disk is neither."""
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            for shard in range(256):
                (self._root / f"{shard:02x}").mkdir(exist_ok=True)
            _sync_directory(self._root)
        except OSError as error:
            raise self._unusable((error.strerror or str(error)).lower()) from error
        self.require()

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
                    raise self._unusable("Daguerre's folders are not there; `daguerre serve` makes them") from None
            except OSError as error:
                raise self._unusable((error.strerror or str(error)).lower()) from error
            time.sleep(0.1)
        if not os.access(self._incoming, os.W_OK | os.X_OK):
            raise self._unusable(f"user {os.geteuid()} may not write to it")

    def _unusable(self, reason: str) -> SettingsError:
        return SettingsError(f"DAGUERRE_STORAGE (or DAGUERRE_DATA): {self._root} cannot be used: {reason}")

    def path(self, image_id: ImageId) -> Path:
        """Where a stored image lies."""
        return self._root / f"{zlib.crc32(image_id.encode()) & 0xFF:02x}" / image_id

    def incoming_path(self, image_id: ImageId) -> Path:
        return self._incoming / image_id

    @asynccontextmanager
    async def receive(self, image_id: ImageId) -> AsyncIterator[IncomingFile]:
        """A new file for a body. It is removed if the block fails, and durable once `seal` has returned."""
        path = self.incoming_path(image_id)
        with _unavailable():
            raw = await _create(path)
        try:
            yield IncomingFile(raw, path)
            with _unavailable():
                await raw.close()
        except BaseException:
            # Not awaited: a cancelled request cleans up as well.
            path.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk fails the close, too
                await raw.close()
            raise

    async def keep(self, image_id: ImageId) -> None:
        """Move a received file, whose row is committed now, to its own path."""
        try:
            await aiofiles.os.rename(self.incoming_path(image_id), self.path(image_id))
        except FileNotFoundError:
            if not await aiofiles.os.path.exists(self.path(image_id)):  # else another process kept it
                raise

    async def rename_incoming(self, image_id: ImageId, to: ImageId) -> None:
        with _unavailable():
            await aiofiles.os.rename(self.incoming_path(image_id), self.incoming_path(to))
            await asyncio.to_thread(_sync_directory, self._incoming)

    async def discard(self, image_id: ImageId) -> None:
        """Remove a received file that gets no row."""
        with suppress(FileNotFoundError):
            await aiofiles.os.remove(self.incoming_path(image_id))

    async def remove(self, image_id: ImageId) -> None:
        """Remove a stored image, wherever it lies; it is no error if it is gone."""
        for path in (self.incoming_path(image_id), self.path(image_id)):
            with suppress(FileNotFoundError):
                await aiofiles.os.remove(path)

    async def locate(self, image_id: ImageId) -> Path | None:
        """The file of an image whose row is committed, or None if it is missing from a storage that is there.

        Raises OSError where the storage is not: an unmounted folder is empty, and must not pass for lost images.
        """
        # The third look is for a move that went on between the first two.
        for path in (self.path(image_id), self.incoming_path(image_id), self.path(image_id)):
            with suppress(FileNotFoundError):
                await aiofiles.os.stat(path)
                return path
        await aiofiles.os.stat(self._incoming)
        return None

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

    async def check(self) -> None:
        """Raises OSError where nothing can be written."""
        await asyncio.to_thread(self._write_and_remove)

    def _write_and_remove(self) -> None:
        with tempfile.TemporaryFile(dir=self._incoming) as file:
            file.write(b"x")
            file.flush()
