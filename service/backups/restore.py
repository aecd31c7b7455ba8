"""Restores a backup into an empty database and an empty storage."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.backups import BackupError, programs
from service.backups.backup import DUMP, KEY, MANIFEST, STORAGE, copy_key
from service.backups.files import Copies, holds_images
from service.config.settings import Settings
from service.database import Connection
from service.images.integrity import list_stored_rows
from service.pooling import connect
from service.storage.identity import find_id, record_id
from service.storage.local.originals import LocalOriginals
from service.verification import report
from service.verification.context import Options

_BATCH_SIZE = 1000
_HAS_ROWS = "select exists (select from accounts) or exists (select from images)"


def check_backup(folder: Path) -> None:
    """Raises BackupError if the folder holds no finished backup."""
    if not (folder / MANIFEST).is_file() or not (folder / DUMP).is_file():
        raise BackupError(f"{folder} holds no finished backup: name a folder that `backup` made")


async def restore_backup(settings: Settings, folder: Path, *, write: Callable[[str], None]) -> bool:
    """Restores the database and the files of its rows, and verifies both. Returns False if problems remain.

    Images that were deleted while the backup was made have a row and no file; they are deleted again. Raises
    BackupError, SettingsError, OSError and what asyncpg raises.
    """
    check_backup(folder)
    storage = LocalOriginals(settings.storage_folder)
    if holds_images(storage):
        raise BackupError(f"{settings.storage_folder} already holds images: name an empty folder in DAGUERRE_STORAGE")
    await _restore_database(settings, folder / DUMP)
    await apply_schema(settings.database_url)
    write("Database: restored")
    storage.prepare()
    copies = await _restore_files(settings.database_url, LocalOriginals(folder / STORAGE), storage)
    os.sync()
    write(f"Images: {copies.describe()}")
    with suppress(FileNotFoundError):  # with servers of the operator there may be no data folder
        copy_key(folder / KEY, settings.data / KEY)
    return await report.verify(settings, Options(repair=True, drop_missing=True), {}, write=write)


async def _restore_database(settings: Settings, dump: Path) -> None:
    url = settings.database_url
    connection = await programs.connect(url, settings.database_pooler)
    try:
        has_tables = await connection.fetchval("select to_regclass('images') is not null")
        if has_tables and await connection.fetchval(_HAS_ROWS):
            raise BackupError("The database already holds accounts: name an empty database in DAGUERRE_DATABASE_URL")
        pg_restore = programs.find_program("pg_restore", url, connection.get_server_version().major)
    finally:
        await connection.close()
    options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    # The environment names the database, but pg_restore requires the option.
    programs.run(pg_restore, *options, "--dbname=application_name=daguerre", dump, database_url=url)


async def _drop_tables(connection: Connection) -> None:
    """Drops the empty tables of `daguerre schema`: those of the backup may be fewer, if its version is older."""
    schema = Schema.load()
    async with connection.transaction():
        await connection.execute(f"drop table if exists {', '.join(schema.tables)}")
        await connection.execute(f"drop function if exists {', '.join(schema.functions)}")


async def _restore_files(url: str, source: LocalOriginals, target: LocalOriginals) -> Copies:
    """Copies only files that have a row: the backup may have others, of images that were stored after the dump."""
    copies, last = Copies(), ""
    connection = await connect(url, timeout=programs.CONNECT_TIMEOUT_S)
    try:
        # The dump has the id of the storage that was backed up.
        own_id = target.create_own_id()
        await record_id(connection, own_id, instead_of=await find_id(connection))
        while rows := await list_stored_rows(connection, last, _BATCH_SIZE):
            last = rows[-1].id
            for row in rows:
                copies.add(row, [source.path(row.id)], target.path(row.id))
    finally:
        await connection.close()
    return copies
