"""Whether every image that is stored has its file, and whether the file is what was sent."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from service.errors import ServiceError
from service.images.audit import (
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
from service.images.deletions import delete_images
from service.images.leftovers import list_existing
from service.storage.interface import StorageUnavailable
from service.verification.context import BATCH_SIZE, DATABASE_ERRORS, Context, Problem, Problems, explain, printable

_READERS = 4
_BLOCK_BATCH_SIZE = 64
_MAX_BAD_BLOCKS = 1000


class _Fault(NamedTuple):
    """`aside` is a file that was set aside and is what was sent."""

    row: StoredRow
    what: str
    is_missing: bool = False
    aside: Path | None = None


async def check_images(context: Context) -> Problems:
    """With `repair`, files that were set aside are taken back; with `drop_missing`, images without one are deleted."""
    missing: list[_Fault] = []
    bad_blocks: list[int] = []
    async for rows in _list_all(context, bad_blocks):
        if isinstance(rows, Problem):
            yield rows
            continue
        for fault in await _find_faults(context, rows):
            if fault.is_missing and context.options.drop_missing:
                missing.append(fault)
            else:
                yield await asyncio.to_thread(_report, context, fault)
    if bad_blocks:
        numbers = ", ".join(map(str, bad_blocks[:10])) + (", …" if len(bad_blocks) > 10 else "")
        yield Problem("table images", f"{len(bad_blocks)} of its blocks cannot be read ({numbers})")
    context.are_rows_whole = not bad_blocks
    async for problem in _drop_missing(context, missing):
        yield problem


async def _list_all(context: Context, bad_blocks: list[int]) -> AsyncIterator[Sequence[StoredRow] | Problem]:
    """Along the primary key; from where that cannot be read, out of the table itself."""
    last = ""
    try:
        while rows := await _list_behind(context, last):
            last = rows[-1].id
            yield rows
    except DATABASE_ERRORS as error:
        if not await context.is_database_there():
            raise
        yield Problem("table images", f"its rows are not read in their order: {await context.explain(error)}")
        async with context.database.connection() as connection:
            is_usable = await is_table_usable(connection)
        async for rows in _list_blocks(context, bad_blocks) if is_usable else _copy_all(context):
            yield [row for row in rows if row.id > last]


async def _list_behind(context: Context, last: str) -> list[StoredRow]:
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
                    if len(bad_blocks) > _MAX_BAD_BLOCKS or not await context.is_database_there():
                        raise


async def _copy_all(context: Context) -> AsyncIterator[list[StoredRow]]:
    """Raises what PostgreSQL says after the rows before a damaged block."""
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
    """Without those of images that were deleted meanwhile. Raises OSError if the storage went away."""
    context.num_images += len(rows)
    context.num_bytes += sum(row.size for row in rows)
    with ThreadPoolExecutor(_READERS) as readers:
        results = await asyncio.to_thread(lambda: list(readers.map(lambda row: _examine(context, row), rows)))
    faults = [fault for fault in results if fault is not None]
    if any(fault.is_missing for fault in faults):
        await context.storage.require_available()
    if not faults:
        return []
    try:
        async with context.database.connection() as connection:
            existing = await list_existing(connection, [fault.row.id for fault in faults])
    except DATABASE_ERRORS:  # the index is damaged: rather a fault of a deleted image than none
        return faults
    return [fault for fault in faults if fault.row.id in existing]


def _examine(context: Context, row: StoredRow) -> _Fault | None:
    is_missing = False
    try:
        what = find_fault(row, *context.storage.examine(row.id, read=context.options.read))
    except FileNotFoundError:
        is_missing, what = True, MISSING
    except StorageUnavailable:  # it is away for all of them
        raise
    except OSError as error:
        return _Fault(row, f"its file cannot be read: {explain(error)}")
    if what is None:
        return None
    aside = context.storage.quarantine.find(row.id, row.size, row.sha256)
    return _Fault(row, what, is_missing and aside is None, aside)


def _report(context: Context, fault: _Fault) -> Problem:
    subject, what, mended = f"image {fault.row.id}", fault.what, ""
    if fault.aside is not None:
        what += f", and {printable(fault.aside)} is what was sent"
        if context.options.repair:
            try:
                if context.storage.publisher.restore(fault.row.id, fault.row.size, fault.row.sha256) is not None:
                    mended = "taken back"
            except OSError as error:
                what += f", which cannot be moved: {explain(error)}"
    return Problem(subject, what, mended)


async def _drop_missing(context: Context, missing: Sequence[_Fault]) -> Problems:
    may_drop = not context.bad_shards and context.may_change(len(missing), context.num_images)
    # Without an id it may be the folder of a disk that is not mounted.
    may_drop &= context.storage.root.id is not None or len(missing) < context.num_images or context.options.force
    for fault in missing:
        yield Problem(f"image {fault.row.id}", fault.what, await _drop(context, fault.row) if may_drop else "")
    if missing and not may_drop:
        affected = f"{len(missing)} of {context.num_images} files are missing, so none was dropped"
        advice = "is it the right one, and mounted? If it is, --force drops them"
        if context.bad_shards:
            affected, advice = "a folder is out of order, so no image was dropped", "mend it first"
        yield Problem("storage", f"{affected}: {advice}")


async def _drop(context: Context, row: StoredRow) -> str:
    """Returns what was done; nothing if the database cannot do it."""
    try:
        async with context.database.connection() as connection:
            await delete_images(connection, [row.id], row.account_id)
    except DATABASE_ERRORS as error:
        if not (isinstance(error, ServiceError) and error.code == "invalid-id"):  # its client deleted it meanwhile
            return ""
    return "deleted"
