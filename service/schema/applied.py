"""The version of the tables that a database has."""

from __future__ import annotations

from service.database import Connection
from service.schema.definition import Schema, digest


class SchemaMismatch(Exception):
    """The tables are not those of this version of Daguerre. The message is for the operator and says what to do."""


class SchemaTooNew(SchemaMismatch):
    def __init__(self, applied: int, schema: Schema) -> None:
        super().__init__(
            f"The database has tables of a newer Daguerre (schema {applied}; this one knows {schema.version}): start"
            " the newer one again, or restore a backup of the database from before it was upgraded."
        )


class SchemaTooOld(SchemaMismatch):
    def __init__(self, applied: int, schema: Schema) -> None:
        steps = schema.steps_after(applied)
        pending = f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"
        super().__init__(
            f"The database has tables of an older Daguerre (schema {applied}; this version needs {schema.version}):"
            f" run `daguerre schema upgrade`. Pending: {pending}."
        )


def require_current(applied: int, schema: Schema) -> None:
    """Raises SchemaTooNew or SchemaTooOld if the tables of version `applied` are not those of `schema`."""
    if applied > schema.version:
        raise SchemaTooNew(applied, schema)
    if applied < schema.version:
        raise SchemaTooOld(applied, schema)


# Not to_regclass, which may answer from a cache of this session while another process creates the table.
_EXISTS = "select exists (select from pg_class where relname = 'applied_schema' and pg_table_is_visible(oid))"
# The table of the first version has no such column.
_APPLIED = "select max(coalesce((to_jsonb(applied_schema) ->> 'version')::integer, 1)) from applied_schema"


async def find_schema_version(connection: Connection) -> int:
    """Returns the version of the tables, or 0 if there are none."""
    if not await connection.fetchval(_EXISTS):
        return 0
    return int(await connection.fetchval(_APPLIED) or 0)


_RECORD = "insert into applied_schema (version, digest) values ($1, $2)"


async def record_version(connection: Connection, version: int, text: str) -> None:
    """Records that the tables have this version from now on. `text` is the SQL that changed them."""
    await connection.execute(_RECORD, version, digest(text))
