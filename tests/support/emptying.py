"""Empties databases and storages for the next test, which takes less time than making new ones."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from service.storage.local.disk import ID_FILE

_END_OTHERS = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
"""
_TABLES = {
    "accounts",
    "api_keys",
    "applied_schema",
    "damaged_images",
    "image_tags",
    "images",
    "presets",
    "removals",
    "renditions",
    "scrub",
    "signing_keys",
    "storage",
}


_EMPTIED = sorted(_TABLES - {"applied_schema"})
# Without triggers, so in any order. This takes a quarter of the time of TRUNCATE, which leaves no dead rows behind.
# Like TRUNCATE, the lock waits for writers that are still ending.
_DELETE = f"""
lock table {", ".join(_EMPTIED)} in exclusive mode;
set local session_replication_role = replica;
{"".join(f"delete from {table};" for table in _EMPTIED)}
select setval(seqrelid::regclass, 1, false) from pg_sequence
"""
_SIZES = """
select relname::text as name, pg_relation_size(oid) as size from pg_class
where relnamespace = 'public'::regnamespace and relkind = 'r'
"""
_TRUNCATE = f"truncate {', '.join(_EMPTIED)} restart identity"
_LARGE_BYTES = 64 << 10


async def empty_database(url: str) -> bool:
    """Returns whether the database is as good as new: False if a test left other tables than the schema's."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_END_OTHERS)
        sizes = {row["name"]: row["size"] for row in await connection.fetch(_SIZES)}
        if sizes.keys() != _TABLES:
            return False
        await connection.execute(_TRUNCATE if max(sizes.values()) > _LARGE_BYTES else _DELETE)
        return True
    finally:
        await connection.close()


_STORAGE_FOLDERS = {"incoming", *(f"{shard:02x}" for shard in range(256))}


def clear_storage(storage: Path) -> bool:
    """Returns whether the storage is as good as new: False if a test left other things than files in its folders."""
    (storage / ID_FILE).unlink(missing_ok=True)
    if not storage.is_dir() or {path.name for path in storage.iterdir()} != _STORAGE_FOLDERS:
        return False
    for folder in _STORAGE_FOLDERS:
        for path in (storage / folder).iterdir():
            if path.is_dir():
                return False
            path.unlink()
    return True
