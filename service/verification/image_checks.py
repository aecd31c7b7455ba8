"""Checks that every stored image has its file, and that the file has the content that was uploaded."""

from __future__ import annotations

import asyncio
import errno
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from service.errors import ServiceError
from service.images.integrity import (
    MISSING,
    StoredRow,
    copy_rows,
    count_blocks,
    find_fault,
    is_table_usable,
    list_rows_in_blocks,
    list_stored_rows,
    parse_row,
)
from service.images.queries import list_existing
from service.images.updates import delete_images
from service.storage.interface import StorageUnavailable
from service.verification.context import BATCH_SIZE, DATABASE_ERRORS, Context, Problem, Problems, explain, printable

_BLOCK_BATCH_SIZE = 64
_MAX_BAD_BLOCKS = 1000


class _Fault(NamedTuple):
    """`quarantined` is the location of a file in the quarantine that has the content of the image."""

    row: StoredRow
    what: str
    is_missing: bool = False
    quarantined: str | None = None


async def check_images(context: Context) -> Problems:
    """With `repair`, files in the quarantine are restored; with `drop_missing`, images without a file are deleted."""
    missing: list[_Fault] = []
    bad_blocks: list[int] = []
    async for rows in _list_rows(context, bad_blocks):
        if isinstance(rows, Problem):
            yield rows
            continue
        for fault in await _find_faults(context, rows):
            if fault.is_missing and context.options.drop_missing:
                missing.append(fault)
            else:
                yield await _repair(context, fault)
    if bad_blocks:
        numbers = ", ".join(map(str, bad_blocks[:10])) + (", …" if len(bad_blocks) > 10 else "")
        yield Problem("table images", f"{len(bad_blocks)} of its blocks cannot be read ({numbers})")
    context.are_rows_complete = not bad_blocks
    async for problem in _drop_missing(context, missing):
        yield problem


async def _list_rows(context: Context, bad_blocks: list[int]) -> AsyncIterator[Sequence[StoredRow] | Problem]:
    """Reads rows in the order of the primary key, and from the table itself after a part that cannot be read."""
    last = ""
    try:
        while rows := await _list_after(context, last):
            last = rows[-1].id
            yield rows
    except DATABASE_ERRORS as error:
        if not await context.is_database_available():
            raise
        yield Problem("table images", f"its rows cannot be read by its primary key: {await context.explain(error)}")
        async with context.database.connection() as connection:
            is_usable = await is_table_usable(connection)
        async for rows in _list_blocks(context, bad_blocks) if is_usable else _copy_all(context):
            yield [row for row in rows if row.id > last]


async def _list_after(context: Context, last: str) -> list[StoredRow]:
    async with context.database.connection() as connection:
        return await list_stored_rows(connection, last, BATCH_SIZE)


async def _list_blocks(context: Context, bad_blocks: list[int]) -> AsyncIterator[list[StoredRow]]:
    async with context.database.connection() as connection:
        num_blocks = await count_blocks(connection)
    for first in range(0, num_blocks, _BLOCK_BATCH_SIZE):
        end = min(first + _BLOCK_BATCH_SIZE, num_blocks)
        try:
            yield await _read_blocks(context, first, end)
        except DATABASE_ERRORS:
            for block in range(first, end):
                try:
                    yield await _read_blocks(context, block, block + 1)
                except DATABASE_ERRORS:
                    bad_blocks.append(block)
                    if len(bad_blocks) > _MAX_BAD_BLOCKS or not await context.is_database_available():
                        raise


async def _copy_all(context: Context) -> AsyncIterator[list[StoredRow]]:
    """Yields the rows before a damaged block, then raises PostgreSQL's error."""
    with tempfile.TemporaryFile() as file:
        failure = None
        try:
            async with context.database.connection() as connection:
                await copy_rows(connection, file)
        except DATABASE_ERRORS as error:
            failure = error
        file.seek(0)
        while lines := list(itertools.islice(file, BATCH_SIZE)):
            rows = [parse_row(line) for line in lines if line.endswith(b"\n")]
            yield [row for row in rows if row is not None]
        if failure is not None:
            raise failure


async def _read_blocks(context: Context, first: int, end: int) -> list[StoredRow]:
    async with context.database.connection() as connection:
        return await list_rows_in_blocks(connection, first, end)


async def _find_faults(context: Context, rows: Sequence[StoredRow]) -> list[_Fault]:
    """Skips images that were deleted meanwhile. Raises OSError if the storage can no longer be reached."""
    context.num_images += len(rows)
    context.num_bytes += sum(row.size for row in rows)
    readers = asyncio.Semaphore(context.storage.max_readers)
    results = await asyncio.gather(*(_examine(context, row, readers) for row in rows))
    faults = [fault for fault in results if fault is not None]
    missing = [fault.row.id for fault in faults if fault.is_missing]
    if missing and await context.storage.find_missing(missing) != frozenset(missing):
        raise StorageUnavailable(errno.EAGAIN, "files were missing for a moment")
    if not faults:
        return []
    try:
        async with context.database.connection() as connection:
            existing = await list_existing(connection, [fault.row.id for fault in faults])
    except DATABASE_ERRORS:  # the index is damaged: faults of deleted images are reported, too
        return faults
    return [fault for fault in faults if fault.row.id in existing]


async def _examine(context: Context, row: StoredRow, readers: asyncio.Semaphore) -> _Fault | None:
    is_missing = False
    try:
        async with readers:
            what = find_fault(row, *await context.storage.examine(row.id, read=context.options.read))
    except FileNotFoundError:
        is_missing, what = True, MISSING
    except StorageUnavailable:  # the same for all of them
        raise
    except OSError as error:
        return _Fault(row, f"its file cannot be read: {explain(error)}")
    if what is None:
        return None
    quarantined = await context.storage.find_quarantined(row.id, row.size, row.sha256)
    return _Fault(row, what, is_missing and quarantined is None, quarantined)


async def _repair(context: Context, fault: _Fault) -> Problem:
    row, what, repair = fault.row, fault.what, ""
    if fault.quarantined is not None:
        what += f", and {printable(fault.quarantined)} has its content"
        if context.options.repair:
            try:
                if await context.storage.restore_quarantined(row.id, row.size, row.sha256):
                    repair = "restored"
            except OSError as error:
                what += f", which cannot be moved: {explain(error)}"
    return Problem(f"image {row.id}", what, repair)


async def _drop_missing(context: Context, missing: Sequence[_Fault]) -> Problems:
    may_drop = not context.bad_shards and context.may_change(len(missing), context.num_images)
    # Without an id, the folder may be that of a disk that is not mounted.
    may_drop &= context.storage.id is not None or len(missing) < context.num_images or context.options.force
    for fault in missing:
        yield Problem(f"image {fault.row.id}", fault.what, await _drop(context, fault.row) if may_drop else "")
    if missing and not may_drop:
        if context.bad_shards:
            reason, advice = "a folder was missing or cannot be read", "run it again when all folders are there"
        else:
            reason = f"{len(missing)} of {context.num_images} files are missing"
            advice = "check that the storage is the right one, and mounted; --force deletes the images"
        yield Problem("storage", f"{reason}, so no image was deleted: {advice}")


async def _drop(context: Context, row: StoredRow) -> str:
    """Deletes an image. Returns what was done, or "" if the database failed."""
    try:
        async with context.database.connection() as connection:
            await delete_images(connection, [row.id], row.account_id)
    except DATABASE_ERRORS as error:
        if not (isinstance(error, ServiceError) and error.code == "invalid-id"):  # its client deleted it meanwhile
            return ""
    return "deleted"
