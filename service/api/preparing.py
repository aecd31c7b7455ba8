"""The folder of the images, as an API process finds or makes it at its start."""

from __future__ import annotations

import asyncio

import structlog

from service.database import Database
from service.dependencies.reasons import explain_database
from service.errors import ServiceError
from service.images.lookups import needs_files
from service.settings import SettingsError
from service.storage.disk import DiskStorage
from service.storage.identity import ID_FILE, find_folder_id, find_id, keep_id, make_id
from service.verification.pairing import NOT_MOUNTED

log = structlog.get_logger("service.api")


async def prepare_storage(storage: DiskStorage, database: Database) -> None:
    """Makes the folders, but not beside rows of images: a disk that is not mounted must not look like a new one.

    A storage gets an id, which the database notes. One without it, or with another one, is not used as long as the
    database has images. Raises SettingsError.
    """
    is_new = await asyncio.to_thread(storage.is_new)
    try:
        found = await asyncio.to_thread(find_folder_id, storage.root.path)
    except OSError as error:
        raise storage.unusable((error.strerror or str(error)).lower()) from error
    try:
        async with database.connection() as connection:
            known, is_needed = await find_id(connection), await needs_files(connection)
    except ServiceError as error:
        if is_new:
            reason = explain_database(error.__cause__ or error)
            raise storage.unusable(
                f"it is empty, and PostgreSQL, which knows whether it should be, is away ({reason})"
            ) from error
        await asyncio.to_thread(storage.prepare)
        return
    if known is not None and found != known and is_needed:
        raise _refuse(storage, found, known)
    # Looked at again, since another process may have made them and stored an image meanwhile.
    if is_needed and is_new and await asyncio.to_thread(storage.is_new):
        raise storage.unusable(NOT_MOUNTED)
    await asyncio.to_thread(storage.prepare)
    await _note_id(storage, database, known)


async def _note_id(storage: DiskStorage, database: Database, known: str | None) -> None:
    try:
        async with database.connection() as connection:
            if await connection.fetchval("select to_regclass('storage') is null"):
                return  # `daguerre schema` was not run
            made = await asyncio.to_thread(make_id, storage.root.path)
            noted = await keep_id(connection, made, instead_of=known)
    except (OSError, ServiceError) as error:  # e.g. the disk is full: the next start does it
        log.warning("storage.id_not_noted", error=repr(error))
        return
    if noted != made:
        raise _refuse(storage, made, noted or "")


def _refuse(storage: DiskStorage, found: str | None, known: str) -> SettingsError:
    what = f"has no file `{ID_FILE}`" if found is None else f"has {found} in its file `{ID_FILE}`"
    return storage.unusable(
        f"it {what}, and the storage of this database has {known}: mount that disk, or correct the setting"
        f" (if the images were copied without that file, write this id into it: echo {known} >{ID_FILE})"
    )
