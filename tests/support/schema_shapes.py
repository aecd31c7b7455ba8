"""The shape of a database: everything that its schema defines, as lines that can be compared."""

from __future__ import annotations

from typing import Any

_COLUMNS = """
select format('column %s.%s %s%s%s%s%s', relation.relname, attname, format_type(atttypid, atttypmod),
    case when attnotnull then ' not null' end, ' default ' || pg_get_expr(adbin, adrelid),
    ' identity ' || nullif(attidentity::text, ''), ' collate ' || nullif(collname, 'default'))
from pg_attribute
join pg_class as relation on relation.oid = attrelid
left join pg_attrdef on adrelid = attrelid and adnum = attnum
left join pg_collation on pg_collation.oid = attcollation
where relnamespace = 'public'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped
"""
_RELATIONS = """
select format('relation %s %s %s %s', relname, relkind, relpersistence, reloptions) from pg_class
where relnamespace = 'public'::regnamespace
"""
_INDEXES = """
select format('%s; valid %s, ready %s', pg_get_indexdef(indexrelid), indisvalid, indisready) from pg_index
where indexrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)
"""
_CONSTRAINTS = """
select format('constraint %s on %s: %s; validated %s', conname, conrelid::regclass, pg_get_constraintdef(oid),
    convalidated)
from pg_constraint where connamespace = 'public'::regnamespace
"""
_TRIGGERS = """
select format('%s; enabled %s', pg_get_triggerdef(oid), tgenabled) from pg_trigger where not tgisinternal
"""
_FUNCTIONS = "select pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace"
_TYPES = """
select format('type %s %s', typname, typtype) from pg_type
where typnamespace = 'public'::regnamespace and typtype in ('e', 'd', 'r')
"""


async def describe_shape(connection: Any) -> list[str]:
    """Returns a line for each table, column, index, constraint, trigger and function.

    The order of columns is not compared, because steps can only add columns at the end.
    """
    lines: list[str] = []
    for query in (_RELATIONS, _COLUMNS, _INDEXES, _CONSTRAINTS, _TRIGGERS, _FUNCTIONS, _TYPES):
        lines += [row[0] for row in await connection.fetch(query)]
    return sorted(lines)


async def read_rows(connection: Any) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each table."""
    tables = "select tablename::text from pg_tables where schemaname = 'public'"
    return {
        table: [dict(row) for row in await connection.fetch(f"select * from {table}")]
        for [table] in await connection.fetch(tables)
    }
