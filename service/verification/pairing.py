"""Checks at start-up that the database and the storage belong together, by the id that both have.

A disk that is not mounted must not look like a new storage, nor a wrong database like a new one.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import asyncpg
import structlog

from service.config.settings import SettingsError
from service.database import Connection, Database
from service.dependencies.reasons import explain_database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.integrity import list_stored_rows
from service.images.queries import is_any_known, is_any_stored, needs_files
from service.pooling import connect
from service.storage.files import in_thread
from service.storage.identity import find_id, record_id
from service.storage.interface import OriginalBackend, StorageSetup, StorageUnavailable

# An unavailable database does not prevent a start: `/readyz` reports it.
_CONNECT_TIMEOUT_S = 2
# If none of this many images has its file, the folder is not the storage.
_SAMPLE_SIZE = 20

_DROP_ALL = "daguerre verify --repair --drop-missing --force"

log = structlog.get_logger("service")


class _State(NamedTuple):
    """What the database knows about its storage: the id, whether images need it, and the first images."""

    id: str | None
    is_needed: bool
    sample: Sequence[ImageId]


async def require_pair(database_url: str, storage: StorageSetup, *, is_new_database: bool = False) -> None:
    """Raises SettingsError if only the database or only the storage holds images: the other is new, or the wrong one.

    `is_new_database` means that the operator confirmed it. A database that is unavailable or damaged is not checked.
    """
    try:
        connection = await connect(database_url, timeout=_CONNECT_TIMEOUT_S, command_timeout=_CONNECT_TIMEOUT_S)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return
    try:
        if await is_any_known(connection):
            if await asyncio.to_thread(storage.is_new) and await is_any_stored(connection):
                raise _missing(storage, await find_id(connection))
        elif not is_new_database:
            await _require_no_files(connection, storage)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return
    finally:
        connection.terminate()


async def _require_no_files(connection: Connection, storage: StorageSetup) -> None:
    path = await asyncio.to_thread(storage.find_any_file)
    # Checked again, since another process may have stored the first image meanwhile.
    if path is None or await is_any_known(connection):
        return
    raise storage.unusable(
        f"it holds files of images, such as {path}, and the database has no image. If that is the wrong database,"
        " correct DAGUERRE_DATABASE_URL; if it was lost, restore it (docs/backup.md). If it is new on purpose, start"
        " with --new-database, or move the files to `unclaimed` by `daguerre verify --repair --force`"
    )


async def prepare_storage(storage: OriginalBackend, database: Database) -> None:
    """Prepares the storage, but only if no image needs another one. Raises SettingsError.

    A storage gets an id, which the database records. A storage without an id, or with another one, is refused while the
    database has images.
    """
    try:
        is_new = await asyncio.to_thread(storage.is_new)
        own_id = await asyncio.to_thread(storage.read_own_id)
        try:
            state = await _load_state(database)
        except ServiceError as error:
            if is_new:
                reason = explain_database(error.__cause__ or error)
                raise storage.unusable(
                    f"it is empty, and PostgreSQL, which knows whether it should be, is unavailable ({reason})"
                ) from error
            await asyncio.to_thread(storage.prepare)
            return
        await _require_own(storage, state, own_id, is_new=is_new)
    except OSError as error:
        raise storage.unusable((error.strerror or str(error)).lower()) from error
    await asyncio.to_thread(storage.prepare)
    await _record_id(storage, database, state.id)


async def _require_own(storage: OriginalBackend, state: _State, own_id: str | None, *, is_new: bool) -> None:
    """Raises SettingsError if the storage is not the one of the database, and OSError."""
    if not state.is_needed:
        return
    if state.id is not None and own_id != state.id:
        raise _missing(storage, state.id) if is_new else _mismatched(storage, own_id, state.id)
    # Checked again, since another process may have prepared it and stored an image meanwhile.
    if is_new and await asyncio.to_thread(storage.is_new):
        raise _missing(storage, state.id)
    if state.id is None and not await _has_any(storage, state.sample):
        raise storage.unusable(
            "none of the files of this database's images is there: mount that disk, or correct the setting"
            f" (to delete the images, run `{_DROP_ALL}`)"
        )


async def load_or_record_id(storage: OriginalBackend, database: Database) -> str | None:
    """Returns the id of the database's storage. If it has none, records that of the storage, which may be created.

    So `daguerre schema` and an API process can be started in any order. Raises StorageUnavailable, another OSError, and
    `database-unavailable`.
    """
    state = await _load_state(database)
    if state.id is not None:
        return state.id
    if await in_thread(storage.threads, storage.is_new):
        raise StorageUnavailable(errno.ENODEV, "the storage is not mounted: its folders are missing")
    if not await _has_any(storage, state.sample):
        raise StorageUnavailable(errno.ENODEV, "the storage is not mounted: none of the files of its images is there")
    with suppress(OSError):  # e.g. the disk is full: the next call does it
        return await _create_and_record_id(storage, database, None)
    return None


async def _load_state(database: Database) -> _State:
    async with database.connection() as connection:
        storage_id, is_needed = await find_id(connection), await needs_files(connection)
        rows = await list_stored_rows(connection, "", _SAMPLE_SIZE) if is_needed and storage_id is None else []
    return _State(storage_id, is_needed, [row.id for row in rows])


async def _has_any(storage: OriginalBackend, image_ids: Sequence[ImageId]) -> bool:
    """Returns whether the storage has the file of any of these images, or there are no images. Raises OSError."""
    return not image_ids or bool(await storage.list_present(image_ids))


async def _create_and_record_id(storage: OriginalBackend, database: Database, instead_of: str | None) -> str | None:
    """Returns the recorded id. Raises OSError, and `database-unavailable`."""
    async with database.connection() as connection:
        if await connection.fetchval("select to_regclass('storage') is null"):
            return None  # `daguerre schema` was not run
    own_id = await in_thread(storage.threads, storage.create_own_id)
    async with database.connection() as connection:
        return await record_id(connection, own_id, instead_of=instead_of)


async def _record_id(storage: OriginalBackend, database: Database, instead_of: str | None) -> None:
    try:
        recorded = await _create_and_record_id(storage, database, instead_of)
        own_id = await asyncio.to_thread(storage.read_own_id)
    except (OSError, ServiceError) as error:  # e.g. the disk is full: `load_or_record_id` does it later
        log.warning("storage.id_not_recorded", error=repr(error))
        return
    if recorded is not None and recorded != own_id:
        raise _mismatched(storage, own_id, recorded)


def _missing(storage: StorageSetup, storage_id: str | None) -> SettingsError:
    return storage.unusable(
        "Daguerre's folders are missing, though images are stored: mount that disk, correct the setting, or restore the"
        f" files (to delete the images, run: {storage.adopt_command(storage_id)} && {_DROP_ALL})"
    )


def _mismatched(storage: StorageSetup, own_id: str | None, storage_id: str) -> SettingsError:
    what = "has no id" if own_id is None else f"has the id {own_id}"
    return storage.unusable(
        f"it {what}, and the storage of this database has the id {storage_id}: mount that disk, or correct the setting"
        f" (if the images were copied without their id, run: {storage.adopt_command(storage_id)})"
    )
