"""The id of the storage as the database records it. A storage with another id belongs to another database."""

from __future__ import annotations

from service.database import Connection, Database

_LOAD = "select id from storage"


async def load_id(database: Database) -> str | None:
    """Returns the id of the database's storage, or None before the first start of an API process."""
    async with database.connection() as connection:
        return await find_id(connection)


async def find_id(connection: Connection) -> str | None:
    """Like `load_id`; also returns None if there are no tables yet."""
    if await connection.fetchval("select to_regclass('storage') is null"):
        return None
    storage_id: str | None = await connection.fetchval(_LOAD)
    return storage_id


_RECORD = """
insert into storage (id) values ($1)
on conflict (single) do update set id = excluded.id where storage.id is not distinct from $2
"""


async def record_id(connection: Connection, storage_id: str, *, instead_of: str | None) -> str | None:
    """Records the id of the database's storage, unless another process did so meanwhile.

    Returns the id that is recorded now.
    """
    await connection.execute(_RECORD, storage_id, instead_of)
    return await find_id(connection)
