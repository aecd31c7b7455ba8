"""Runs the checks one after the other and reports what they find."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import asyncpg

from service.config.settings import Settings
from service.config.sizes import readable
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId, parse_image_id
from service.images.audit import require_tables
from service.queue import jobs
from service.storage.identity import load_id
from service.storage.interface import StorageUnavailable
from service.storage.local.disk import NUM_SHARDS
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions
from service.storage.local.root import read_folder_id
from service.verification.context import Context, Options, Problem, Problems
from service.verification.file_checks import check_files, check_folders, check_received, check_removals
from service.verification.image_checks import check_images
from service.verification.row_checks import check_accounts, check_expected, check_pending, check_tables

# A count of all that one account stores can take long.
_COMMAND_TIMEOUT_S = 600


async def verify(
    settings: Settings, options: Options, expected: Mapping[ImageId, bytes], *, write: Callable[[str], None]
) -> bool:
    """Writes each problem as it is found, and a summary. Returns whether nothing is wrong any more.

    Raises SettingsError if the storage cannot be used, and what PostgreSQL says if the database as a whole cannot.
    """
    _require_storage(LocalOriginals(settings.storage_folder))
    redis = jobs.open_redis(settings.redis_url)
    try:
        async with Database.open(
            settings.database_url, connections=1, command_timeout_s=_COMMAND_TIMEOUT_S
        ) as database:
            storage = LocalOriginals(settings.storage_folder, partial(_load_id, database, settings.storage_folder))
            await _require_own(storage)
            renditions = LocalRenditions(settings.renditions_folder)
            context = Context(database, storage, renditions, jobs.JobQueue(redis), options)
            context.is_storage_known = await _is_known(database, storage)
            num_problems = num_mended = 0
            async for problem in _check_all(context, expected):
                num_problems += 1
                num_mended += bool(problem.mended)
                write(f"{problem.subject}: {problem.what}" + (f"; {problem.mended}" if problem.mended else ""))
    finally:
        await redis.aclose(close_connection_pool=True)
    images, problems = _count(context.num_images, "image"), _count(num_problems, "problem")
    seen = f"{images}, {readable(context.num_bytes)}{'' if options.read else ', sizes only'}"
    write(f"{seen}: {f'{problems}, {num_mended} of them mended' if num_problems else 'all is well'}.")
    return num_mended == num_problems


def _require_storage(storage: LocalOriginals) -> None:
    """A storage of which some folder is there is checked, whatever is wrong with it."""
    if not any(os.access(storage.shard_folder(shard), os.F_OK) for shard in range(NUM_SHARDS)):
        storage.require()


async def _require_own(storage: LocalOriginals) -> None:
    """Raises SettingsError if the folder has another id than the database. Whatever else is wrong is for the checks."""
    try:
        await storage.require_available()
    except StorageUnavailable as error:
        if storage.root.id is not None:
            raise storage.unusable(error.strerror or str(error)) from error
    except (OSError, ServiceError, asyncpg.PostgresError):
        pass


async def _load_id(database: Database, folder: Path) -> str | None:
    """The id of the database's storage; if it has none, that of the folder, so that it can be looked at."""
    return await load_id(database) or await asyncio.to_thread(read_folder_id, folder)


async def _is_known(database: Database, storage: LocalOriginals) -> bool:
    """Whether the storage has the id that the database has, or none where that has none."""
    try:
        return storage.root.id == await load_id(database)
    except (ServiceError, asyncpg.PostgresError):  # it is damaged, which the checks say
        return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _check_all(context: Context, expected: Mapping[ImageId, bytes]) -> Problems:
    await _require_tables(context)
    for subject, check in (
        ("tables", check_tables(context)),
        ("folders", check_folders(context)),
        ("images", check_images(context)),
        ("expected images", check_expected(context, expected)),
        ("files", check_files(context)),
        ("received files", check_received(context)),
        ("removals", check_removals(context)),
        ("pending images", check_pending(context)),
        ("accounts", check_accounts(context)),
    ):
        try:
            async for problem in check:
                yield problem
        except Exception as error:  # whatever it is, the other checks can still be made
            if not await context.is_database_there():
                raise
            yield Problem(subject, f"the check did not come to its end: {await context.explain(error)}")


async def _require_tables(context: Context) -> None:
    """Raises if there are no tables, or they may not be read; a damaged one is left to the checks."""
    try:
        async with context.database.connection() as connection:
            await require_tables(connection)
    except asyncpg.InternalServerError:
        pass
    except ServiceError as error:
        if not isinstance(error.__cause__, asyncpg.PostgresSystemError):
            raise


def parse_expected(lines: Iterable[str]) -> dict[ImageId, bytes]:
    """Of lines `ID SHA256`, the SHA-256 in hexadecimal. Raises ValueError."""
    expected = {}
    for number, line in enumerate(lines, 1):
        try:
            name, sha256 = line.split()
            expected[parse_image_id(name)] = bytes.fromhex(sha256)
        except Exception:
            raise ValueError(f"line {number} is not `ID SHA256`") from None
    return expected
