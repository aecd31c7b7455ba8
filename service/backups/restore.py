"""Restores a backup into an empty database and an empty storage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from service.backups import BackupError, programs
from service.backups.backup import DUMP, KEY, MANIFEST, copy_key, open_copies
from service.config.settings import Settings
from service.database import Connection, Database
from service.schema.changes import upgrade_schema
from service.schema.definition import Schema
from service.storage.backends import open_inventory, open_setup
from service.storage.identity import find_id, load_id, record_id
from service.storage.local.inventory import LocalInventory
from service.transfers.copies import Copies
from service.verification import report
from service.verification.context import Options

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
    storage = open_setup(settings)
    if await asyncio.to_thread(storage.find_any_file) is not None:
        raise BackupError(f"{storage.location} already holds images: name an empty storage in DAGUERRE_STORAGE")
    await _restore_database(settings, folder / DUMP)
    await upgrade_schema(settings.database_url)  # the backup may be of an older version
    write("Database: restored")
    copies = await _restore_files(settings, open_copies(folder))
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
        if has_tables:
            await _drop_tables(connection)
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


async def _restore_files(settings: Settings, source: LocalInventory) -> Copies:
    """Copies only files that have a row: the backup may have others, of images that were stored after the dump."""
    async with Database.open(settings.database_url, connections=1, pooler=settings.database_pooler) as database:
        target = open_inventory(settings, database, partial(load_id, database))
        await asyncio.to_thread(target.prepare)
        own_id = await asyncio.to_thread(target.create_own_id)
        async with database.connection() as connection:
            # The dump has the id of the storage that was backed up.
            await record_id(connection, own_id, instead_of=await find_id(connection))
        copies = Copies(source, target)
        async for _ in copies.add_all(database):  # the verification reports faults
            pass
    return copies
