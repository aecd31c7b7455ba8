"""The folder of the images, as an API process finds or makes it at its start, and the id that it has in common with the
database.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog

from service.config.settings import SettingsError
from service.database import Database
from service.dependencies.reasons import explain_database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.integrity import list_stored_rows
from service.images.queries import needs_files
from service.storage.disk import DiskStorage
from service.storage.files import in_thread
from service.storage.identity import ID_FILE, StorageAway, find_folder_id, find_id, keep_id, make_id
from service.verification.pairing import NOT_MOUNTED

# If none of this many images has its file, the folder is not the storage.
_SAMPLE_SIZE = 20

log = structlog.get_logger("service.api")


class _State(NamedTuple):
    """What the database says of its storage: the id, whether it needs one, and the first of its images."""

    id: str | None
    is_needed: bool
    sample: Sequence[ImageId]


async def prepare_storage(storage: DiskStorage, database: Database) -> None:
    """Makes the folders, but not beside rows of images: a disk that is not mounted must not look like a new one.

    A storage gets an id, which the database notes. One without it, or with another one, is not used as long as the
    database has images. Raises SettingsError.
    """
    try:
        is_new = await asyncio.to_thread(storage.is_new)
        found = await asyncio.to_thread(find_folder_id, storage.root.path)
        try:
            state = await _load_state(database)
        except ServiceError as error:
            if is_new:
                reason = explain_database(error.__cause__ or error)
                raise storage.unusable(
                    f"it is empty, and PostgreSQL, which knows whether it should be, is away ({reason})"
                ) from error
            await asyncio.to_thread(storage.prepare)
            return
        if state.id is not None and found != state.id and state.is_needed:
            raise _refuse(storage, found, state.id)
        # Looked at again, since another process may have made them and stored an image meanwhile.
        if state.is_needed and is_new and await asyncio.to_thread(storage.is_new):
            raise storage.unusable(NOT_MOUNTED)
        if state.id is None and not await asyncio.to_thread(_has_any, storage, state.sample):
            raise storage.unusable(
                "none of the files of this database's images is there: mount that disk, or correct the setting"
                " (to give the images up, run `daguerre verify --repair --drop-missing --force`)"
            )
    except OSError as error:
        raise storage.unusable((error.strerror or str(error)).lower()) from error
    await asyncio.to_thread(storage.prepare)
    await _note_id(storage, database, state.id)


async def load_or_note_id(storage: DiskStorage, database: Database) -> str | None:
    """Returns the id of the database's storage. If it has none, it notes that of the folder, which may be made for it.

    So it does not matter whether `daguerre schema` or an API process is started first. Raises StorageAway, another
    OSError, and `database-unavailable`.
    """
    state = await _load_state(database)
    if state.id is not None:
        return state.id
    if await in_thread(storage.threads, storage.is_new):
        raise StorageAway(errno.ENODEV, "the storage is away: its folders are not there")
    if not await in_thread(storage.threads, lambda: _has_any(storage, state.sample)):
        raise StorageAway(errno.ENODEV, "the storage is away: none of the files of its images is there")
    with suppress(OSError):  # e.g. the disk is full: the next call does it
        return await _make_and_keep_id(storage, database, None)
    return None


async def _load_state(database: Database) -> _State:
    async with database.connection() as connection:
        known, is_needed = await find_id(connection), await needs_files(connection)
        rows = await list_stored_rows(connection, "", _SAMPLE_SIZE) if is_needed and known is None else []
    return _State(known, is_needed, [row.id for row in rows])


def _has_any(storage: DiskStorage, image_ids: Sequence[ImageId]) -> bool:
    """Whether the storage has the file of any of these images, if there are images. Blocks; raises OSError."""
    return not image_ids or bool(storage.list_present(image_ids))


async def _make_and_keep_id(storage: DiskStorage, database: Database, known: str | None) -> str | None:
    """Returns the id that is noted then. Raises OSError, and `database-unavailable`."""
    async with database.connection() as connection:
        if await connection.fetchval("select to_regclass('storage') is null"):
            return None  # `daguerre schema` was not run
    made = await in_thread(storage.threads, lambda: make_id(storage.root.path))
    async with database.connection() as connection:
        return await keep_id(connection, made, instead_of=known)


async def _note_id(storage: DiskStorage, database: Database, known: str | None) -> None:
    try:
        noted = await _make_and_keep_id(storage, database, known)
        found = await asyncio.to_thread(find_folder_id, storage.root.path)
    except (OSError, ServiceError) as error:  # e.g. the disk is full: `load_or_note_id` does it later
        log.warning("storage.id_not_noted", error=repr(error))
        return
    if noted is not None and noted != found:
        raise _refuse(storage, found, noted)


def _refuse(storage: DiskStorage, found: str | None, known: str) -> SettingsError:
    what = f"has no id (file `{ID_FILE}`)" if found is None else f"has {found} in its file `{ID_FILE}`"
    return storage.unusable(
        f"it {what}, and the storage of this database has {known}: mount that disk, or correct the setting"
        f" (if the images were copied without that file, write this id into it: echo {known} >{ID_FILE})"
    )
