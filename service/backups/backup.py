"""Make a backup, of a Daguerre that may run meanwhile.

The database comes first, then the files: a file is written before its row, so every row of the dump has its file, but
for images that were deleted in between. Of the files, those that are not at their own path yet come first, since they
move there meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import asyncpg

from service.backups import BackupError, programs
from service.backups.files import Copies, copy_shards, list_incoming
from service.ids import ImageId
from service.images.audit import find_sha256
from service.sizes import readable
from service.storage.disk import DiskStorage
from service.storage.identity import ID_FILE, find_folder_id, find_id

DUMP, STORAGE, KEY, MANIFEST = "database.dump", "storage", "first-key", "backup.json"
_CHUNK = 1000
_CONNECT_S = 10


async def make_backup(
    database_url: str, storage: Path, folder: Path, *, first_key: Path, tell: Callable[[str], None]
) -> None:
    """Makes the backup in `folder`, or brings the one that is there up to date; it stays whole until the end.

    `first_key` is the file of the first account's key, which is copied if it is there. Raises BackupError, OSError and
    what asyncpg raises.
    """
    with _claim(folder, storage) as handle:
        dump = folder / f"{DUMP}.partial"
        connection = await asyncpg.connect(database_url, timeout=_CONNECT_S)
        try:
            await _require_own(connection, storage)
            pg_dump = programs.find_program("pg_dump", connection.get_server_version().major)
            programs.run(pg_dump, "--format=custom", f"--file={dump}", database_url=database_url)
            dump.chmod(0o600)
            tell(f"Database: {readable(dump.stat().st_size)}")
            copies = await _copy_files(connection, DiskStorage(storage), DiskStorage(folder / STORAGE))
        finally:
            await connection.close()
        tell(f"Images: {copies.describe()}")
        copy_key(first_key, folder / KEY)
        os.sync()
        dump.replace(folder / DUMP)
        _write_manifest(folder)
        os.fsync(handle)


async def _require_own(connection: asyncpg.Connection[asyncpg.Record], storage: Path) -> None:
    """Raises BackupError if the folder has not the id of the database's storage, e.g. as its disk is not mounted."""
    known, found = await find_id(connection), find_folder_id(storage)
    if known is not None and found != known:
        raise BackupError(
            f"{storage} is not the storage of this database: its {ID_FILE} is {found}, and not {known}. Mount the right"
            " disk, or correct DAGUERRE_STORAGE (or DAGUERRE_DATA)"
        )


def copy_key(source: Path, target: Path) -> None:
    """Copies the file of the first account's key, if it is there, for the owner alone."""
    with suppress(FileNotFoundError):
        key = source.read_bytes()
        target.unlink(missing_ok=True)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)


async def _copy_files(
    connection: asyncpg.Connection[asyncpg.Record], storage: DiskStorage, target: DiskStorage
) -> Copies:
    copies = Copies()
    incoming = list_incoming(storage)
    for first in range(0, len(incoming), _CHUNK):
        # Those without a row are uploads that are still on their way.
        for image_id in await find_sha256(connection, incoming[first : first + _CHUNK]):
            copies.add(storage.incoming_path(ImageId(image_id)), target.path(image_id))
    copy_shards(storage, target, copies)
    return copies


@contextmanager
def _claim(folder: Path, storage: Path) -> Iterator[int]:
    """Makes the folder if it is missing, keeps other backups out of it, and yields its descriptor."""
    if storage.absolute() in [folder.absolute(), *folder.absolute().parents]:
        raise BackupError(f"{folder} is inside of the images' own folder: name another one")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {DUMP, f"{DUMP}.partial", STORAGE, KEY, MANIFEST, f"{MANIFEST}.partial", "lost+found"}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in known):
        some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise BackupError(f"{folder} holds other things ({some}): name a new folder, or that of an earlier backup")
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
    """The last thing that is written: a folder without it is no backup."""
    partial = folder / f"{MANIFEST}.partial"
    made = {"daguerre": version("daguerre"), "finished": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    partial.write_text(json.dumps(made) + "\n")
    partial.replace(folder / MANIFEST)
