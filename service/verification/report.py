"""Runs the checks one after the other and reports the problems that they find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import asyncpg

from service.config.settings import Settings, SettingsError
from service.config.values import format_size
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId, parse_image_id
from service.images.integrity import require_tables
from service.queue import jobs
from service.schema.applied import SchemaTooOld, find_schema_version
from service.schema.definition import Schema
from service.storage.backends import open_inventory, open_renditions
from service.storage.identity import load_id
from service.storage.interface import OriginalInventory, StorageUnavailable
from service.verification.context import DATABASE_ERRORS, Context, Options, Problem, Problems
from service.verification.file_checks import (
    check_files,
    check_folders,
    check_removals,
    check_renditions,
    check_uploads,
)
from service.verification.image_checks import check_images
from service.verification.row_checks import check_accounts, check_expected, check_pending, check_tables

# Counting the images of one large account can take long.
_COMMAND_TIMEOUT_S = 600


async def verify(
    settings: Settings, options: Options, expected: Mapping[ImageId, bytes], *, write: Callable[[str], None]
) -> bool:
    """Writes each problem as it is found, and a summary. Returns whether no problem remains.

    Raises SettingsError if the storage or the tables cannot be used, and PostgreSQL's error if the database cannot be
    used.
    """
    redis = jobs.open_redis(settings.redis_url)
    try:
        async with Database.open(
            settings.database_url,
            connections=1,
            command_timeout_s=_COMMAND_TIMEOUT_S,
            pooler=settings.database_pooler,
        ) as database:
            storage = open_inventory(settings, database, lambda: _load_id(database, storage))
            await asyncio.to_thread(storage.require_any)
            await _require_own(storage)
            context = Context(database, storage, open_renditions(settings), jobs.JobQueue(redis), options)
            context.is_storage_known = await _is_known(database, storage)
            num_problems = num_repaired = 0
            async for problem in _check_all(context, expected):
                num_problems += 1
                num_repaired += bool(problem.repair)
                write(str(problem))
    finally:
        await redis.aclose(close_connection_pool=True)
    write(_summarize(context, num_problems, num_repaired))
    return num_repaired == num_problems


def _summarize(context: Context, num_problems: int, num_repaired: int) -> str:
    checked = f"{_count(context.num_images, 'image')}, {format_size(context.num_bytes)}"
    if not context.options.read:
        checked += ", sizes only"
    return f"{checked}: " + (
        f"{_count(num_problems, 'problem')}, {num_repaired} repaired." if num_problems else "no problems."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _require_own(storage: OriginalInventory) -> None:
    """Raises SettingsError if the storage has another id than the database. The checks report anything else."""
    try:
        await storage.require_available()
    except StorageUnavailable as error:
        if storage.id is not None:
            raise storage.unusable(error.strerror or str(error)) from error
    except (OSError, ServiceError, asyncpg.PostgresError):
        pass


async def _load_id(database: Database, storage: OriginalInventory) -> str | None:
    """Returns the id of the database's storage. If it has none, returns that of the storage, so that it can be read."""
    return await load_id(database) or await asyncio.to_thread(storage.read_own_id)


async def _is_known(database: Database, storage: OriginalInventory) -> bool:
    """Returns whether the storage has the id that the database has, or both have none."""
    try:
        return storage.id == await load_id(database)
    except (ServiceError, asyncpg.PostgresError):  # the table is damaged, which the checks report
        return True


async def _check_all(context: Context, expected: Mapping[ImageId, bytes]) -> Problems:
    await _require_tables(context.database)
    for subject, check in (
        ("tables", check_tables(context)),
        ("folders", check_folders(context)),
        ("images", check_images(context)),
        ("expected images", check_expected(context, expected)),
        ("files", check_files(context)),
        ("renditions", check_renditions(context)),
        ("unfinished uploads", check_uploads(context)),
        ("removals", check_removals(context)),
        ("pending images", check_pending(context)),
        ("accounts", check_accounts(context)),
    ):
        try:
            async for problem in check:
                yield problem
        except Exception as error:  # the other checks can still run
            if not await context.is_database_available():
                raise
            yield Problem(subject, f"the check could not be finished: {await context.explain(error)}")


async def _require_tables(database: Database) -> None:
    """Raises an error if the tables are missing, older, or not readable. The checks report damaged tables."""
    try:
        async with database.connection() as connection:
            await require_tables(connection)
    except asyncpg.InternalServerError:
        pass
    except ServiceError as error:
        if not isinstance(error.__cause__, asyncpg.PostgresSystemError):
            raise
    try:
        async with database.connection() as connection:
            applied = await find_schema_version(connection)
    except DATABASE_ERRORS:
        return
    schema = Schema.load()
    if applied < schema.version:
        raise SettingsError(str(SchemaTooOld(applied, schema)))


def parse_expected(lines: Iterable[str]) -> dict[ImageId, bytes]:
    """Parses lines `ID SHA256`, with the SHA-256 in hexadecimal. Raises ValueError."""
    expected = {}
    for number, line in enumerate(lines, 1):
        try:
            image_id, sha256 = line.split()
            expected[parse_image_id(image_id)] = bytes.fromhex(sha256)
        except Exception:
            raise ValueError(f"line {number} is not `ID SHA256`") from None
    return expected
