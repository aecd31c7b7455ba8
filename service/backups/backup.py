"""Backs up the database and the files, also while Daguerre is running.

The database is dumped first, then the files are copied: a file is written before its row, so every row of the dump has
its file, except for images that were deleted in between. The rows say which files should exist, and their sizes: if the
storage lost files or parts of them, good copies of an earlier backup are not overwritten.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from service.backups import BackupError, programs
from service.config.settings import Settings
from service.config.values import format_size
from service.database import Database
from service.storage.backends import open_inventory
from service.storage.identity import load_id
from service.storage.local.inventory import LocalInventory
from service.transfers.copies import Copies, Faults
from service.version import VERSION

DUMP, STORAGE, KEY, MANIFEST = "database.dump", "storage", "first-key", "backup.json"
_MAX_FAULTS_SHOWN = 20


async def make_backup(settings: Settings, folder: Path, *, first_key: Path, write: Callable[[str], None]) -> int:
    """Makes the backup in `folder`, or updates an earlier backup, which can be restored until the new one is finished.

    `first_key` is the file of the first account's key, which is copied if it exists. Returns the number of images whose
    file is missing or damaged in the backup. Raises BackupError, ServiceError, OSError and what asyncpg raises.
    """
    with _claim(folder, settings) as handle:
        dump, url, pooler = folder / f"{DUMP}.partial", settings.database_url, settings.database_pooler
        pg_dump = programs.find_program("pg_dump", url, await programs.find_server_major(url, pooler))
        async with Database.open(url, connections=1, pooler=pooler) as database:
            source = open_inventory(settings, database, partial(load_id, database))
            await source.require_available()
            _create(dump).close()
            programs.run(pg_dump, "--format=custom", f"--file={dump}", database_url=url)
            write(f"Database: {format_size(dump.stat().st_size)}")
            copies = Copies(source, open_copies(folder))
            faults = await _copy_files(database, copies)
            await source.require_available()
        write(f"Images: {copies.describe()}")
        _write_faults(faults, write)
        copy_key(first_key, folder / KEY)
        os.sync()
        dump.replace(folder / DUMP)
        _write_manifest(folder)
        os.fsync(handle)
    return len(faults)


def copy_key(source: Path, target: Path) -> None:
    """Copies the file of the first account's key, if it exists. Only the owner can read the copy."""
    with suppress(FileNotFoundError):
        key = source.read_bytes()
        with _create(target) as file:
            file.write(key)


def _create(path: Path) -> BinaryIO:
    """Opens a new file that only the owner can read, and removes an earlier one."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def open_copies(folder: Path) -> LocalInventory:
    """Returns the storage inside a backup."""
    return LocalInventory(folder / STORAGE)


async def _copy_files(database: Database, copies: Copies) -> Faults:
    """Copies the files of all rows. Returns what is wrong with copies that are missing or damaged."""
    await asyncio.to_thread(copies.target.prepare_target)
    faults: Faults = {}
    async for new_faults in copies.add_all(database):
        faults |= new_faults
    return faults


def _write_faults(faults: Faults, write: Callable[[str], None]) -> None:
    for image_id, fault in islice(faults.items(), _MAX_FAULTS_SHOWN):
        write(f"image {image_id}: {fault}")
    if len(faults) > _MAX_FAULTS_SHOWN:
        write(f"… and {len(faults) - _MAX_FAULTS_SHOWN} more images")


@contextmanager
def _claim(folder: Path, settings: Settings) -> Iterator[int]:
    """Creates the folder if it is missing, locks it against other backups, and yields its descriptor."""
    if settings.storage_folder.resolve() in [folder.resolve(), *folder.resolve().parents]:
        raise BackupError(f"{folder} is inside the folder of the images: choose another folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {DUMP, f"{DUMP}.partial", STORAGE, KEY, MANIFEST, f"{MANIFEST}.partial", "lost+found"}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in known):
        some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise BackupError(f"{folder} holds other files ({some}): name a new folder, or that of an earlier backup")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"Another backup is being made in {folder}: wait for it") from None
        yield handle
    finally:
        os.close(handle)


def _write_manifest(folder: Path) -> None:
    """Call it last: a folder without the manifest holds no finished backup."""
    draft = folder / f"{MANIFEST}.partial"
    manifest = {"daguerre": VERSION, "finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    draft.write_text(json.dumps(manifest) + "\n")
    draft.replace(folder / MANIFEST)
