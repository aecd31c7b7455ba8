"""Rows as `daguerre verify` holds them against the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.database import Connection
from service.ids import AccountId, ImageId


class StoredRow(NamedTuple):
    """An image that is stored, ready or pending."""

    id: ImageId
    account_id: AccountId
    size: int
    sha256: bytes


# Failed rows have no file; the order is that of the primary key.
_STORED = """
select id, account_id, size, sha256 from images where id > $1 and state <> 'failed' order by id limit $2
"""


async def list_stored_rows(connection: Connection, after: str, limit: int) -> list[StoredRow]:
    """The next rows behind the id `after`; the first ones behind the empty text."""
    return [StoredRow(*row) for row in await connection.fetch(_STORED, after, limit)]


_SHA256 = "select id, sha256 from images where id = any($1) and state <> 'failed'"


async def find_sha256(connection: Connection, image_ids: Sequence[ImageId]) -> dict[ImageId, bytes]:
    """Of those that are stored."""
    return {ImageId(row[0]): row[1] for row in await connection.fetch(_SHA256, image_ids)}


# A row that ends notes its file's removal in the same commit, so a file that has neither never will have.
_UNCLAIMED = """
select name from unnest($1::text[]) as name
where not exists (select from images where id = name) and not exists (select from removals where image_id = name)
"""


async def find_unclaimed(connection: Connection, names: Sequence[str]) -> list[str]:
    """Names of files that have neither a row nor a noted removal."""
    return [row[0] for row in await connection.fetch(_UNCLAIMED, names)]
