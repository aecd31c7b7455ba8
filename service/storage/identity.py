"""Whether a folder is the storage of this database: a file in it has the id that the database has.

A disk that is not mounted leaves an empty folder behind, perhaps one with Daguerre's own folders in it, and another
disk may be mounted in its place. A file that is not there is not lost then, and nothing that is written there is kept.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.database import Connection, Database
from service.errors import ServiceError
from service.storage.files import in_thread
from service.storage.incoming import publish

Result = TypeVar("Result")

ID_FILE = "storage-id"
INCOMING = "incoming"
_MAX_ID_BYTES = 64
# Less than a check may take, so that a database that hangs does not look like a disk that does.
_LOAD_SOON_S = 1.0


class StorageAway(OSError):
    """The storage of this database is not in its folder."""


def read_id(root: int) -> str | None:
    """The id in the folder that this descriptor is of; None if there is none. Blocks; raises OSError."""
    try:
        file = os.open(ID_FILE, os.O_RDONLY | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, _MAX_ID_BYTES).decode("ascii", "replace").strip() or None
    finally:
        os.close(file)


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder. What is done by way of it is done on one disk, whatever is mounted meanwhile.

    Blocks; raises OSError.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


class StorageRoot:
    """The folder of a storage, used only while the storage of the database is there.

    `load_id` loads the id of the database's storage. If the database has none, a folder without an id will do that has
    `incoming`; without `load_id`, any folder that has it.
    """

    def __init__(self, path: Path, load_id: Callable[[], Awaitable[str | None]] | None, threads: Executor) -> None:
        self.path = path
        self.id: str | None = None
        self._load_id = load_id
        self._threads = threads

    async def call(self, do: Callable[[int], Result], *, needs_id: bool = True) -> Result:
        """Calls `do` in a thread with a descriptor of the folder.

        Raises StorageAway if the storage is not there, OSError, and `database-unavailable` if the id has to be loaded.
        Without `needs_id` it goes by the id that was loaded last if the database does not answer soon.
        """
        load = self._load if needs_id else self._load_soon
        if self.id is None:
            await load()
        try:
            return await in_thread(self._threads, partial(self.run, do))
        except StorageAway:
            if not await load():
                raise
        return await in_thread(self._threads, partial(self.run, do))

    async def _load(self) -> bool:
        """Returns whether it is another id now, e.g. of a database that was restored meanwhile."""
        if self._load_id is None:
            return False
        before, self.id = self.id, await self._load_id()
        return self.id != before

    async def _load_soon(self) -> bool:
        try:
            async with asyncio.timeout(_LOAD_SOON_S):
                return await self._load()
        except (ServiceError, TimeoutError):
            return False

    def run(self, do: Callable[[int], Result]) -> Result:
        """As `call`, with the id that was loaded last. Blocks."""
        with ExitStack() as stack:
            try:
                root = stack.enter_context(open_folder(self.path))
            except FileNotFoundError as error:
                raise _away("it is not there") from error
            except NotADirectoryError as error:
                raise StorageAway(errno.ENOTDIR, "the storage is away: its folder is a file") from error
            self._require(root)
            return do(root)

    def _require(self, root: int) -> None:
        found = None if self._load_id is None else read_id(root)
        if found != self.id:
            raise _away(f"its {ID_FILE} is {found}, and that of this database's storage is {self.id}")
        if found is None and not _has_folder(INCOMING, root):
            raise _away(f"its folder {INCOMING} is not there")


def find_folder_id(path: Path) -> str | None:
    """The id in a folder; None if there is none, or no folder. Blocks; raises OSError."""
    try:
        with open_folder(path) as root:
            return read_id(root)
    except FileNotFoundError:
        return None


def require_folder(name: str, root: int) -> None:
    """Raises OSError, and never FileNotFoundError, if this folder is not there. Blocks."""
    if not _has_folder(name, root):
        raise OSError(errno.ENODEV, f"the folder {name} of the storage is not there")


def _has_folder(name: str, root: int) -> bool:
    try:
        os.stat(name, dir_fd=root)
    except FileNotFoundError:
        return False
    return True


def _away(reason: str) -> StorageAway:
    return StorageAway(errno.ENODEV, f"the storage is away: {reason}")


def make_id(path: Path) -> str:
    """Writes a new id into a folder that has none; returns the one that is there then. Blocks; raises OSError."""
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
        found = read_id(root)
    if not found:
        raise OSError(errno.EIO, f"{ID_FILE} cannot be read", str(path))
    return found


_LOAD = "select id from storage"


async def load_id(database: Database) -> str | None:
    """The id of the database's storage; None before the first start of an API process."""
    async with database.connection() as connection:
        return await find_id(connection)


async def find_id(connection: Connection) -> str | None:
    """As `load_id`; None also where there are no tables yet."""
    if await connection.fetchval("select to_regclass('storage') is null"):
        return None
    found: str | None = await connection.fetchval(_LOAD)
    return found


_KEEP = """
insert into storage (id) values ($1)
on conflict (single) do update set id = excluded.id where storage.id is not distinct from $2
"""


async def keep_id(connection: Connection, storage_id: str, *, instead_of: str | None) -> str | None:
    """Notes the id of the database's storage, unless another process has noted one meanwhile; returns what is noted."""
    await connection.execute(_KEEP, storage_id, instead_of)
    return await find_id(connection)
