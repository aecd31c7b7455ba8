"""Whether the database and the storage are those of one Daguerre, as far as a start can see it."""

from __future__ import annotations

import asyncio

import asyncpg

from service.images.queries import is_any_known, is_any_stored
from service.storage.disk import DiskStorage

# A database that is away is no reason not to start: `/readyz` says so.
_CONNECT_S = 2


NOT_MOUNTED = (
    "Daguerre's folders are not there, though images are stored: mount that disk, or restore the files"
    " (to give them up, make a folder `incoming` there)"
)


async def require_pair(database_url: str, storage: DiskStorage, *, is_new_database: bool = False) -> None:
    """Raises SettingsError if only one of the two holds images: the other one is new, and not the one that belongs to
    it. `is_new_database` says that the operator knows. A database that is away or damaged is not looked into.
    """
    try:
        connection = await asyncpg.connect(database_url, timeout=_CONNECT_S, command_timeout=_CONNECT_S)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return
    try:
        if await is_any_known(connection):
            await _require_folders(connection, storage)
        elif not is_new_database:
            await _require_no_files(connection, storage)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return
    finally:
        connection.terminate()


async def _require_folders(connection: asyncpg.Connection[asyncpg.Record], storage: DiskStorage) -> None:
    if await asyncio.to_thread(storage.is_new) and await is_any_stored(connection):
        raise storage.unusable(NOT_MOUNTED)


async def _require_no_files(connection: asyncpg.Connection[asyncpg.Record], storage: DiskStorage) -> None:
    path = await asyncio.to_thread(storage.find_any_stored)
    # Looked at again, since another process may have stored the first image meanwhile.
    if path is None or await is_any_known(connection):
        return
    raise storage.unusable(
        f"it holds files of images, such as {path}, and the database has no image. If that is the wrong database,"
        " correct DAGUERRE_DATABASE_URL; if it was lost, restore it (docs/backup.md). If it is new on purpose, start"
        " with --new-database, or move the files to `unclaimed` by `daguerre verify --repair --force`"
    )
