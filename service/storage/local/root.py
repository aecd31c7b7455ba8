"""The folder of a storage, used only if it is the storage of this database: a file in it has the id of the database.

A disk that is not mounted leaves an empty folder behind, perhaps one with Daguerre's own folders in it, and another
disk may be mounted in its place. No file is lost then, and nothing that is written there would be kept.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.errors import ServiceError
from service.storage.files import in_thread
from service.storage.interface import StorageUnavailable
from service.storage.local.disk import INCOMING, has_folder, open_folder, publish

Result = TypeVar("Result")

ID_FILE = "storage-id"
_MAX_ID_BYTES = 64
# Less than a check may take, so that a database that hangs does not look like a disk that hangs.
_LOAD_TIMEOUT_S = 1.0


class StorageRoot:
    """Runs functions on the folder of a storage while the storage of the database is mounted there.

    `load_id` loads the id of the database's storage. If the database has none, a folder without an id is accepted that
    has `incoming`; without `load_id`, any folder that has `incoming`.
    """

    def __init__(self, path: Path, load_id: Callable[[], Awaitable[str | None]] | None, threads: Executor) -> None:
        self.path = path
        self.id: str | None = None
        self._load_id = load_id
        self._threads = threads

    async def call(self, do: Callable[[int], Result], *, needs_id: bool = True) -> Result:
        """Calls `do` in a thread with a descriptor of the folder, and returns its result.

        Raises StorageUnavailable, OSError, and `database-unavailable` if the id has to be loaded. Without `needs_id`
        the id that was loaded last will do if the database does not answer soon.
        """
        load = self._load if needs_id else self._load_soon
        if self.id is None:
            await load()
        try:
            return await in_thread(self._threads, partial(self.run, do))
        except StorageUnavailable:
            if not await load():
                raise
        return await in_thread(self._threads, partial(self.run, do))

    def run(self, do: Callable[[int], Result]) -> Result:
        """Does what `call` does, with the id that was loaded last. Blocks."""
        with ExitStack() as stack:
            try:
                root = stack.enter_context(open_folder(self.path))
            except FileNotFoundError as error:
                raise _unavailable("its folder is missing") from error
            except NotADirectoryError as error:
                raise StorageUnavailable(errno.ENOTDIR, "the storage is not mounted: its folder is a file") from error
            self._require_id(root)
            return do(root)

    async def _load(self) -> bool:
        """Returns whether the id has changed, e.g. because the database was restored."""
        if self._load_id is None:
            return False
        before, self.id = self.id, await self._load_id()
        return self.id != before

    async def _load_soon(self) -> bool:
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                return await self._load()
        except (ServiceError, TimeoutError):
            return False

    def _require_id(self, root: int) -> None:
        own_id = None if self._load_id is None else read_id(root)
        if own_id != self.id:
            raise _unavailable(f"its {ID_FILE} is {own_id}, and that of this database's storage is {self.id}")
        if own_id is None and not has_folder(INCOMING, root):
            raise _unavailable(f"its folder {INCOMING} is missing")


def _unavailable(reason: str) -> StorageUnavailable:
    return StorageUnavailable(errno.ENODEV, f"the storage is not mounted: {reason}")


def read_id(root: int) -> str | None:
    """Returns the id in the folder of this descriptor, or None if it has none. Blocks; raises OSError."""
    try:
        file = os.open(ID_FILE, os.O_RDONLY | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, _MAX_ID_BYTES).decode("ascii", "replace").strip() or None
    finally:
        os.close(file)


def read_folder_id(path: Path) -> str | None:
    """Returns the id in a folder, or None if it has none or is missing. Blocks; raises OSError."""
    try:
        with open_folder(path) as root:
            return read_id(root)
    except FileNotFoundError:
        return None


def create_id(path: Path) -> str:
    """Writes a new id into a folder that has none, and returns the id that is there then. Blocks; raises OSError."""
    draft = path / f".{ID_FILE}-{secrets.token_hex(8)}"
    try:
        with draft.open("x") as file:
            file.write(f"{secrets.token_hex(16)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was faster
            publish(draft, path / ID_FILE)
    finally:
        draft.unlink(missing_ok=True)
    with open_folder(path) as root:
        os.fsync(root)
        own_id = read_id(root)
    if not own_id:
        raise OSError(errno.EIO, f"{ID_FILE} cannot be read", str(path))
    return own_id
