"""Rows of stored images, to compare them with the files: for `daguerre verify`, the scrub, the sweep and backups.

An index of a damaged table may be wrong. So each query has a second variant, which reads the blocks of the table
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import asyncpg

from service.database import Connection
from service.ids import IMAGE_ID_PATTERN, AccountId, ImageId


class StoredRow(NamedTuple):
    """An image that is stored, i.e. ready or pending."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes


def find_fault(row: StoredRow, size: int, sha256: bytes | None) -> str | None:
    """Returns what is wrong with the row's file, or None. `sha256` is that of the file, or None if it was not read."""
    if size != row.size:
        return f"its file has {size} bytes instead of {row.size}"
    if sha256 not in (None, row.sha256):
        return "its file is not what was sent: the SHA-256 differs"
    return None


MISSING = "its file is missing"

# Failed rows have no file; the order is that of the primary key.
_STORED = """
select id, account_id, size, sha256 from images where id > $1 and state <> 'failed' order by id limit $2
"""


async def list_stored_rows(connection: Connection, after: str, limit: int) -> list[StoredRow]:
    """Returns the next rows after the id `after`; the first ones for an empty text."""
    return [StoredRow(*row) for row in await connection.fetch(_STORED, after, limit)]


_COUNT_BLOCKS = "select pg_relation_size('images') / current_setting('block_size')::bigint"


async def count_blocks(connection: Connection) -> int:
    """Returns the number of blocks of the table of images."""
    return int(await connection.fetchval(_COUNT_BLOCKS))


# A range of `ctid` is read from the table itself, without an index (PostgreSQL 14).
_IN_BLOCKS = "select id, account_id, size, sha256 from images where ctid >= $1 and ctid < $2 and state <> 'failed'"


async def list_rows_in_blocks(connection: Connection, first: int, end: int) -> list[StoredRow]:
    """Returns the rows in the blocks from `first` to before `end`, without an index."""
    return [StoredRow(*row) for row in await connection.fetch(_IN_BLOCKS, (first, 0), (end, 0))]


async def is_table_usable(connection: Connection) -> bool:
    """Returns whether statements on images can be planned. They cannot if the first page of one index is damaged."""
    try:
        await connection.execute("explain select from images")
    except asyncpg.PostgresError:
        return False
    return True


async def copy_rows(connection: Connection, file: BinaryIO) -> None:
    """Writes the rows as lines for `parse_row`. COPY reads no index. The rows before a damaged block are written."""
    columns = ["id", "account_id", "size", "sha256", "state"]
    await connection.copy_from_table("images", columns=columns, output=file)


def parse_row(line: bytes) -> StoredRow | None:
    """Returns the row of a line in COPY's text format, or None if its image is not stored."""
    image_id, account_id, size, sha256, state = line.decode().rstrip("\n").split("\t")
    if state == "failed":
        return None
    return StoredRow(
        ImageId(image_id), AccountId(int(account_id)), int(size), bytes.fromhex(sha256.removeprefix("\\\\x"))
    )


_SHA256 = "select id, sha256 from images where id = any($1) and state <> 'failed'"


async def find_sha256(connection: Connection, image_ids: Sequence[ImageId]) -> dict[ImageId, bytes]:
    """Returns the SHA-256 of the stored images. An id may be any file name, which may not be valid text."""
    valid_ids = [image_id for image_id in image_ids if IMAGE_ID_PATTERN.fullmatch(image_id)]
    return {ImageId(row[0]): row[1] for row in await connection.fetch(_SHA256, valid_ids)}


# The commit that deletes or fails a row records the removal of its file.
_NEITHER_ROW_NOR_REMOVAL = """
select name from unnest($1::text[]) as name
where not exists (select from images where id = name) and not exists (select from removals where image_id = name)
"""
# In an object store, the file of an upload has its name before the row of the image is committed.
_ORPHANS = f"{_NEITHER_ROW_NOR_REMOVAL} and not exists (select from unfinished_uploads where image_id = name)"
# Other statements with plans of their own, because plans are cached.
_ORPHANS_BY_SCAN = f"{_ORPHANS}  -- of the whole table"
_UPLOADS_BY_SCAN = f"{_NEITHER_ROW_NOR_REMOVAL}  -- of the whole table"
_SCAN = """
set local enable_seqscan = on;
set local enable_indexscan = off;
set local enable_indexonlyscan = off
"""


async def find_orphans(connection: Connection, names: Sequence[str]) -> list[str]:
    """Returns the names of files of no row, recorded removal or unfinished upload, according to the indexes."""
    return [row[0] for row in await connection.fetch(_ORPHANS, names)]


async def scan_orphans(connection: Connection, names: Sequence[str]) -> list[str]:
    """Returns the same by reading the tables as a whole, because a damaged index can hide rows."""
    return await _scan(connection, _ORPHANS_BY_SCAN, names)


async def scan_uploads(connection: Connection, names: Sequence[str]) -> list[str]:
    """Returns the names of unfinished uploads that have neither a row nor a recorded removal, in the same way."""
    return await _scan(connection, _UPLOADS_BY_SCAN, names)


async def _scan(connection: Connection, query: str, names: Sequence[str]) -> list[str]:
    async with connection.transaction():
        await connection.execute(_SCAN)
        return [row[0] for row in await connection.fetch(query, names)]


_WITHOUT_ROW = "select name from unnest($1::text[]) as name where not exists (select from images where id = name)"


async def find_without_row(connection: Connection, names: Sequence[str]) -> list[str]:
    """Returns the names of files that have no row; some may have a recorded removal."""
    return [row[0] for row in await connection.fetch(_WITHOUT_ROW, names)]


_TABLES_EXIST = "select from applied_schema limit 0"


async def require_tables(connection: Connection) -> None:
    """Raises PostgreSQL's error if there are no tables, or if they may not be read."""
    await connection.execute(_TABLES_EXIST)


async def read_table(connection: Connection, table: str) -> None:
    """Reads all blocks of a table, and the first of each index. Raises PostgreSQL's error if one is damaged."""
    async with connection.transaction():
        await connection.execute(_SCAN)
        await connection.execute(f"select count(*) from {table}")


# PostgreSQL's errors name files, which mean nothing to an operator.
_RELATION = """
select relname::text, relkind = 'i' from pg_class
where oid = pg_filenode_relation(0, $1) and relkind in ('r', 'i', 't')
"""


async def find_relation(connection: Connection, filenode: int) -> tuple[str, bool] | None:
    """Returns the name of the table or index with this file number, and whether it is an index."""
    row = await connection.fetchrow(_RELATION, filenode)
    return None if row is None else (row[0], row[1])
