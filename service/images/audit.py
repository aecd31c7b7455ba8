"""Rows as `daguerre verify` and the scrub compare them with the files.

What is asked of a damaged table is asked in a second way: along an index that may be damaged, or of the blocks of the
table themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import asyncpg

from service.database import Connection
from service.ids import IMAGE_ID_PATTERN, AccountId, ImageId


class StoredRow(NamedTuple):
    """An image that is stored, ready or pending."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes


def find_fault(row: StoredRow, size: int, sha256: bytes | None) -> str | None:
    """What is wrong with the row's file of this size and, if it was read, this SHA-256."""
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
    """The next rows behind the id `after`; the first ones behind the empty text."""
    return [StoredRow(*row) for row in await connection.fetch(_STORED, after, limit)]


_BLOCKS = "select pg_relation_size('images') / current_setting('block_size')::bigint"


async def count_blocks(connection: Connection) -> int:
    """The blocks of the table of images."""
    return int(await connection.fetchval(_BLOCKS))


# A range of `ctid` is read from the table itself, without an index (PostgreSQL 14).
_IN_BLOCKS = "select id, account_id, size, sha256 from images where ctid >= $1 and ctid < $2 and state <> 'failed'"


async def list_rows_in_blocks(connection: Connection, first: int, end: int) -> list[StoredRow]:
    """The rows in the blocks from `first` to before `end`. Needs no index."""
    return [StoredRow(*row) for row in await connection.fetch(_IN_BLOCKS, (first, 0), (end, 0))]


async def is_table_usable(connection: Connection) -> bool:
    """Whether statements on images can be planned: not if the first page of any of its indexes is damaged."""
    try:
        await connection.execute("explain select from images")
    except asyncpg.PostgresError:
        return False
    return True


async def copy_rows(connection: Connection, file: BinaryIO) -> None:
    """Writes the rows as lines for `parse_row`. COPY reads the table alone, whatever its indexes are like; what was
    read before a damaged block is written.
    """
    columns = ["id", "account_id", "size", "sha256", "state"]
    await connection.copy_from_table("images", columns=columns, output=file)


def parse_row(line: bytes) -> StoredRow | None:
    """Of a line of COPY's text format; None if the image is not stored."""
    name, account_id, size, sha256, state = line.decode().rstrip("\n").split("\t")
    if state == "failed":
        return None
    return StoredRow(ImageId(name), AccountId(int(account_id)), int(size), bytes.fromhex(sha256.removeprefix("\\\\x")))


_SHA256 = "select id, sha256 from images where id = any($1) and state <> 'failed'"


async def find_sha256(connection: Connection, image_ids: Sequence[ImageId]) -> dict[ImageId, bytes]:
    """Of those that are stored. Names of files that are no ids are of no image, and may not even be text."""
    possible = [image_id for image_id in image_ids if IMAGE_ID_PATTERN.fullmatch(image_id)]
    return {ImageId(row[0]): row[1] for row in await connection.fetch(_SHA256, possible)}


# A row that ends notes its file's removal in the same commit, so a file that has neither never will have.
_UNCLAIMED = """
select name from unnest($1::text[]) as name
where not exists (select from images where id = name) and not exists (select from removals where image_id = name)
"""
# Another statement, since the plan of a statement is kept.
_UNCLAIMED_BY_SCAN = f"{_UNCLAIMED}  -- of the whole table"
_SCAN = """
set local enable_seqscan = on;
set local enable_indexscan = off;
set local enable_indexonlyscan = off
"""


async def find_orphans(connection: Connection, names: Sequence[str]) -> list[str]:
    """Names of files that have neither a row nor a noted removal, as far as the indexes know."""
    return [row[0] for row in await connection.fetch(_UNCLAIMED, names)]


async def scan_orphans(connection: Connection, names: Sequence[str]) -> list[str]:
    """As `find_orphans`, by reading both tables as a whole: a damaged index makes no row look absent."""
    async with connection.transaction():
        await connection.execute(_SCAN)
        return [row[0] for row in await connection.fetch(_UNCLAIMED_BY_SCAN, names)]


_WITHOUT_ROW = "select name from unnest($1::text[]) as name where not exists (select from images where id = name)"


async def find_without_row(connection: Connection, names: Sequence[str]) -> list[str]:
    """Names of files that have no row, of which some may have a noted removal."""
    return [row[0] for row in await connection.fetch(_WITHOUT_ROW, names)]


_IS_THERE = "select from applied_schema limit 0"


async def require_tables(connection: Connection) -> None:
    """Raises what PostgreSQL says if there are no tables, or if they may not be read."""
    await connection.execute(_IS_THERE)


async def read_table(connection: Connection, table: str) -> None:
    """Reads all blocks of a table, and the first of its indexes. Raises what PostgreSQL says of them."""
    async with connection.transaction():
        await connection.execute(_SCAN)
        await connection.execute(f"select count(*) from {table}")


# The names of files that PostgreSQL's errors have are of use to nobody.
_RELATION = """
select relname::text, relkind = 'i' from pg_class
where oid = pg_filenode_relation(0, $1) and relkind in ('r', 'i', 't')
"""


async def find_relation(connection: Connection, filenode: int) -> tuple[str, bool] | None:
    """The name of the table or index whose file has this number, and whether it is an index."""
    row = await connection.fetchrow(_RELATION, filenode)
    return None if row is None else (row[0], row[1])
